//! A plan as a file of its own: written by a preview, carried out later. `docs/plan.schema.json` is generated from the
//! types in here.
//!
//! Invariant: what is read is hostile until it is a [`BoundPlan`]. It is bounded before it is parsed, goes through
//! every rule that a plan from a cage goes through, and has to have the digest that it states. Whether it fits an
//! image, and whether it makes that image better, is not judged here: the healer compares fingerprints and proves the
//! plan anew. A file that is there already is never written over.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use instar_abi::choice::{Decision, Decisions};
use instar_abi::cure::Cure;
use instar_abi::problem::Tier;
use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::journal::Binding;
use super::plan::{Plan, PlanError, Step};
use super::{BoundPlan, Guard};
use crate::image::Write;

/// What the files of this version say that they are.
const FORMAT: &str = "instar plan 1";
/// Longest file that is read or written.
pub const PLAN_FILE_BYTES_MAX: u64 = 512 << 20;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanDocument {
    /// "instar plan 1".
    format: String,
    /// The image that it was made for.
    image: ImageDocument,
    /// "leaks" or "all".
    tier: String,
    /// What the user had decided, each as PROBLEM=CHOICE.
    decisions: Vec<String>,
    /// SHA-256 of the plan's canonical form (docs/repair.md), in hexadecimal.
    digest: Hex,
    /// What keeps others from writing to the image meanwhile; absent where the plan needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guard: Option<GuardDocument>,
    /// What is written, in order; each step is durable before the next begins.
    steps: Vec<StepDocument>,
}

/// The state of an image that a plan is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ImageDocument {
    /// SHA-256 over what the plan depends on (docs/adr/0002-image-fingerprint.md), in hexadecimal.
    fingerprint: Hex,
    /// Length in bytes.
    length_before: u64,
    /// Length in bytes once the plan has been carried out.
    length_after: u64,
}

/// Bytes that are raised before the first step and lowered after the last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct GuardDocument {
    /// Byte offset in the image.
    offset: u64,
    /// The bytes while the image is between two states, in hexadecimal.
    raised: Hex,
    /// The bytes in the end, in hexadecimal.
    lowered: Hex,
}

/// One cure.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct StepDocument {
    /// The cure's permanent id.
    cure: String,
    /// Where it may write: byte offset and length of each range.
    scope: Vec<(u64, u64)>,
    /// Its writes; each group is durable before the next begins.
    groups: Vec<Vec<WriteDocument>>,
}

/// One write.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct WriteDocument {
    /// Byte offset in the image.
    offset: u64,
    /// The bytes, in hexadecimal.
    bytes: Hex,
}

/// Bytes that stand in the file as pairs of hexadecimal digits.
#[derive(Debug, PartialEq, Eq)]
struct Hex(Vec<u8>);

#[cfg(test)]
impl schemars::JsonSchema for Hex {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hex".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^([0-9a-f]{2})*$" })
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;
        impl de::Visitor<'_> for Digits {
            type Value = Hex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pairs of the digits 0 to 9 and a to f")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hex, E> {
                let digit = |byte: u8| match byte {
                    b'0'..=b'9' => Some(byte - b'0'),
                    b'a'..=b'f' => Some(byte - b'a' + 10),
                    _ => None,
                };
                let pair = |pair: &[u8]| match pair {
                    [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                    _ => None,
                };
                let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
                bytes.map(Hex).ok_or_else(|| E::invalid_value(de::Unexpected::Other("other text"), &self))
            }
        }
        deserializer.deserialize_str(Digits)
    }
}

/// Why a plan file cannot be used.
#[derive(Debug, Error)]
#[error("{}: {what}", path.display())]
pub struct PlanFileError {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub what: PlanFileFault,
}

/// What is wrong with a plan file.
#[derive(Debug, Error)]
pub enum PlanFileFault {
    /// The system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a regular file.
    #[error("is not a regular file")]
    Kind,
    /// Too long.
    #[error("longer than {PLAN_FILE_BYTES_MAX} bytes, which is the limit for plan files")]
    TooLong,
    /// Not a plan file, or a cut or changed one.
    #[error("is not a plan file")]
    Json(#[source] serde_json::Error),
    /// Of another version.
    #[error("format '{}', known is '{FORMAT}'", .0.escape_debug())]
    Format(String),
    /// A word that is not known.
    #[error("unknown {what} '{}'", value.escape_debug())]
    Unknown {
        /// Of what.
        what: &'static str,
        /// Which.
        value: String,
    },
    /// A digest or fingerprint of another length.
    #[error("{what} of {len} bytes, must be 32")]
    DigestLength {
        /// Which.
        what: &'static str,
        /// How many.
        len: usize,
    },
    /// The plan breaks a rule.
    #[error("the plan breaks a rule")]
    Plan(#[source] PlanError),
    /// The plan is not the one that the file says it is.
    #[error("the plan's digest is {actual}, stated is {stated}: the file has been changed")]
    Digest {
        /// What the file says.
        stated: String,
        /// What it is.
        actual: String,
    },
}

impl PlanFileFault {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Writes a plan to a new file.
///
/// # Errors
/// `Io`, also where there is a file already; `TooLong`. No file is left then.
pub fn write(path: &Path, bound: &BoundPlan) -> Result<(), PlanFileError> {
    create(path)
        .and_then(|file| fill(&file, bound).map_err(|what| remove(path, what)))
        .map_err(|what| PlanFileError { path: path.to_owned(), what })
}

fn create(path: &Path) -> Result<File, PlanFileFault> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(PlanFileFault::io("make the plan file"))
}

fn fill(file: &File, bound: &BoundPlan) -> Result<(), PlanFileFault> {
    // Each byte takes two digits.
    if bound.plan.write_bytes() > PLAN_FILE_BYTES_MAX / 3 {
        return Err(PlanFileFault::TooLong);
    }
    let mut out = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut out, &document(bound)).map_err(PlanFileFault::Json)?;
    let written = writeln!(out).and_then(|()| out.flush()).and_then(|()| file.sync_all());
    written.map_err(PlanFileFault::io("write the plan file"))?;
    let len = file.metadata().map_err(PlanFileFault::io("read the attributes"))?.len();
    if len > PLAN_FILE_BYTES_MAX { Err(PlanFileFault::TooLong) } else { Ok(()) }
}

/// Removes what could not be finished.
fn remove(path: &Path, what: PlanFileFault) -> PlanFileFault {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a plan file that is not whole could not be removed");
    }
    what
}

/// Reads a plan.
///
/// # Errors
/// Every [`PlanFileFault`].
pub fn read(path: &Path) -> Result<BoundPlan, PlanFileError> {
    parse_file(path).map_err(|what| PlanFileError { path: path.to_owned(), what })
}

fn parse_file(path: &Path) -> Result<BoundPlan, PlanFileFault> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(PlanFileFault::io("open the plan file"))?;
    let meta = file.metadata().map_err(PlanFileFault::io("read the attributes"))?;
    if !meta.is_file() {
        return Err(PlanFileFault::Kind);
    }
    if meta.len() > PLAN_FILE_BYTES_MAX {
        return Err(PlanFileFault::TooLong);
    }
    parse(file)
}

fn parse(file: impl io::Read) -> Result<BoundPlan, PlanFileFault> {
    let reader = BufReader::new(file.take(PLAN_FILE_BYTES_MAX));
    let document: PlanDocument = serde_json::from_reader(reader).map_err(PlanFileFault::Json)?;
    if document.format != FORMAT {
        return Err(PlanFileFault::Format(document.format));
    }
    let stated: [u8; 32] = thirty_two("digest", document.digest)?;
    let binding = Binding {
        fingerprint: thirty_two("fingerprint", document.image.fingerprint)?,
        len_before: document.image.length_before,
        len_after: document.image.length_after,
    };
    let decisions = decisions(&document.decisions)?;
    let guard = document.guard.map(|guard| Guard::new(guard.offset, guard.raised.0, guard.lowered.0));
    let guard = guard.transpose().map_err(PlanFileFault::Plan)?;
    let steps = document.steps.into_iter().map(step).collect::<Result<Vec<_>, _>>()?;
    let plan = Plan::from_parts(tier(&document.tier)?, decisions, guard.as_ref(), steps)
        .map_err(PlanFileFault::Plan)?;
    if plan.digest() != stated {
        let text = |digest: [u8; 32]| Hex(digest.to_vec()).to_string();
        return Err(PlanFileFault::Digest { stated: text(stated), actual: text(plan.digest()) });
    }
    Ok(BoundPlan { plan, binding })
}

fn thirty_two(what: &'static str, hex: Hex) -> Result<[u8; 32], PlanFileFault> {
    hex.0.try_into().map_err(|bytes: Vec<u8>| PlanFileFault::DigestLength { what, len: bytes.len() })
}

fn unknown(what: &'static str, value: &str) -> PlanFileFault {
    PlanFileFault::Unknown { what, value: value.to_owned() }
}

fn tier(name: &str) -> Result<Tier, PlanFileFault> {
    match name {
        "leaks" => Ok(Tier::Leaks),
        "all" => Ok(Tier::All),
        _ => Err(unknown("tier", name)),
    }
}

fn decisions(names: &[String]) -> Result<Decisions, PlanFileFault> {
    names.iter().try_fold(Decisions::default(), |made, name| {
        let is_named = |decision: &&Decision| option_of(**decision) == *name;
        let decision = Decision::ALL.iter().find(is_named).ok_or_else(|| unknown("decision", name))?;
        Ok(made.with(*decision))
    })
}

/// A decision as it is typed: PROBLEM=CHOICE.
#[must_use]
pub fn option_of(decision: Decision) -> String {
    format!("{}={}", decision.problem().row().id, decision.id())
}

fn step(document: StepDocument) -> Result<Step, PlanFileFault> {
    let named = Cure::ALL.iter().find(|cure| cure.id() == document.cure);
    let cure = *named.ok_or_else(|| unknown("cure", &document.cure))?;
    let write = |write: WriteDocument| Write { offset: write.offset, bytes: write.bytes.0.into() };
    let groups = document.groups.into_iter().map(|group| group.into_iter().map(write).collect()).collect();
    Ok(Step { cure, scope: document.scope, groups })
}

/// The document of a plan.
fn document(bound: &BoundPlan) -> PlanDocument {
    let BoundPlan { plan, binding } = bound;
    let write = |write: &Write| WriteDocument { offset: write.offset, bytes: Hex(write.bytes.to_vec()) };
    let step = |step: &Step| StepDocument {
        cure: step.cure.id().to_owned(),
        scope: step.scope.clone(),
        groups: step.groups.iter().map(|group| group.iter().map(write).collect()).collect(),
    };
    PlanDocument {
        format: FORMAT.to_owned(),
        image: ImageDocument {
            fingerprint: Hex(binding.fingerprint.to_vec()),
            length_before: binding.len_before,
            length_after: binding.len_after,
        },
        tier: match plan.tier() {
            Tier::Leaks => "leaks".to_owned(),
            Tier::All => "all".to_owned(),
        },
        decisions: Decision::ALL
            .iter()
            .filter(|d| plan.decisions().has(**d))
            .map(|d| option_of(*d))
            .collect(),
        digest: Hex(plan.digest().to_vec()),
        guard: plan.guard().map(|guard| GuardDocument {
            offset: guard.offset(),
            raised: Hex(guard.raised().to_vec()),
            lowered: Hex(guard.lowered().to_vec()),
        }),
        steps: plan.steps().iter().map(step).collect(),
    }
}

#[cfg(test)]
#[path = "plan_file_tests.rs"]
mod tests;
