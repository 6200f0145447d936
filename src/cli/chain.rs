//! `instar check --chain`: an image and every member below it.

use std::sync::Arc;

use serde::Serialize;

use super::check::print;
use super::inspect::Inspector;
use super::options::{BackingFormat, BelowArgs, CageArgs, CheckArgs, OutputFormat};
use super::{confine, say};
use crate::chain::{CageDescriber, Chain, ChainPolicy, ChainProblem, Format, Member, follow};
use crate::error::Error;
use crate::exit::Exit;
use crate::image::gate::GatePolicy;
use crate::image::{ImageHandle, Mode};
use crate::report::{
    CheckReport, HumanOptions, Watch, check_json, escape_bytes, escape_message, escape_path,
};
use crate::sandbox::limits::Limits;

/// Runs it.
///
/// # Errors
/// Whatever kept the top of the chain from being opened, or a member from being checked.
pub fn run(args: &CheckArgs, watch: &Watch) -> Result<Exit, Error> {
    let limits = Limits { arena_bytes: args.cage.memory, ..Limits::default() };
    let describer = CageDescriber { choice: args.cage.sandbox.into(), limits };
    let top = Arc::new(ImageHandle::open(&args.image, Mode::Read)?);
    confine::to_follow(args.cage.sandbox, &args.chain.below)?;
    let chain = follow(top, &policy(&args.chain.below), &describer);
    let reports = check_members(&chain, args, watch)?;
    match args.output {
        OutputFormat::Json => say::document(&document(&chain, &reports))?,
        OutputFormat::Human => tell(&chain, &reports, HumanOptions { all: args.all, quiet: args.quiet })?,
    }
    Ok(exit(&chain, &reports))
}

impl From<BackingFormat> for Format {
    fn from(format: BackingFormat) -> Self {
        match format {
            BackingFormat::Qcow2 => Self::Qcow2,
            BackingFormat::Raw => Self::Raw,
        }
    }
}

/// In the place of a backing file's path: it is left out, and so is all below it.
const NOTHING_BELOW: &str = "none";

/// What the command line allows below an image.
pub(super) fn policy(args: &BelowArgs) -> ChainPolicy {
    let last = args.backing.iter().position(|path| path.as_os_str() == NOTHING_BELOW);
    let named = args.backing.get(..last.unwrap_or(args.backing.len())).unwrap_or_default().to_vec();
    ChainPolicy {
        gate: GatePolicy { named, folders: args.allow_chain.clone() },
        last,
        formats: args.backing_format.iter().copied().map(Format::from).collect(),
    }
}

/// Checks the QCOW2 members. A raw member has no metadata to check.
fn check_members(chain: &Chain, args: &CheckArgs, watch: &Watch) -> Result<Vec<Option<CheckReport>>, Error> {
    let check = |(position, member): (usize, &Member)| match member.format {
        Format::Raw => Ok(None),
        Format::Qcow2 => {
            // The data file is the top's; those below have their own.
            let data_file = args.cage.data_file.clone().filter(|_| position == 0);
            let cage = CageArgs { data_file, ..args.cage.clone() };
            let inspector = Inspector::new(&member.handle, &cage, watch.clone())?.with_deep(args.deep);
            inspector.check().map(Some)
        }
    };
    chain.members.iter().enumerate().map(check).collect()
}

/// The worst that is true of any member: corruptions, then "not everything could be looked at", then leaks.
fn exit(chain: &Chain, reports: &[Option<CheckReport>]) -> Exit {
    let severity = |exit: &Exit| match exit {
        Exit::Corruptions => 4,
        Exit::Failed => 3,
        Exit::NotChecked => 2,
        Exit::Leaks => 1,
        Exit::Consistent | Exit::Repaired | Exit::Command(_) => 0,
    };
    let exit_of = |report: &CheckReport| report.exit(false);
    let whole = match reports.first().and_then(Option::as_ref).map(exit_of) {
        _ if chain.is_whole() => Exit::Consistent,
        // What is below a top that cannot be checked is nobody's failure.
        Some(Exit::NotChecked) => Exit::NotChecked,
        _ => Exit::Failed,
    };
    let exits = reports.iter().flatten().map(exit_of);
    exits.chain([whole]).max_by_key(severity).unwrap_or(whole)
}

fn tell(chain: &Chain, reports: &[Option<CheckReport>], options: HumanOptions) -> Result<(), Error> {
    for (position, (member, report)) in chain.members.iter().zip(reports).enumerate() {
        match report {
            Some(report) => print(report, OutputFormat::Human, options)?,
            None if options.quiet => {}
            None => say::result(|out| {
                writeln!(out, "{}: raw, {} bytes", escape_path(&member.path), member.virtual_size)
            })?,
        }
        for problem in problems_of(chain, position) {
            say::result(|out| writeln!(out, "  {}: {}", kind(problem), sentence(problem)))?;
        }
    }
    Ok(())
}

fn problems_of(chain: &Chain, position: usize) -> impl Iterator<Item = &ChainProblem> {
    chain.problems.iter().filter(move |(about, _)| *about == position).map(|(_, problem)| problem)
}

const fn kind(problem: &ChainProblem) -> &'static str {
    if problem.is_remark() { "note" } else { "chain broken" }
}

/// The problem with its causes, fit for a terminal.
pub(super) fn sentence(problem: &ChainProblem) -> String {
    let mut text = problem.to_string();
    if let ChainProblem::FormatUnknown { stated } = problem {
        text.push_str(&format!(": '{}'", escape_bytes(stated)));
    }
    let mut cause = std::error::Error::source(problem);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    escape_message(&text)
}

/// What `instar check --chain --output=json` prints. `docs/chain.schema.json` is generated from it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ChainDocument {
    /// True if every member that is named was reached.
    whole: bool,
    /// The members, top first.
    members: Vec<MemberDocument>,
}

/// One member.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct MemberDocument {
    /// Where it was found, escaped.
    filename: String,
    /// "qcow2" or "raw".
    format: &'static str,
    /// Size of its disk in bytes.
    virtual_size: u64,
    /// What broke the chain below this member.
    problems: Vec<String>,
    /// What is legal and worth knowing.
    notes: Vec<String>,
    /// The check's own document, for QCOW2 members.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<crate::report::CheckDocument>,
}

fn document(chain: &Chain, reports: &[Option<CheckReport>]) -> ChainDocument {
    let member = |(position, (member, report)): (usize, (&Member, &Option<CheckReport>))| {
        let (notes, problems): (Vec<_>, Vec<_>) =
            problems_of(chain, position).partition(|problem| problem.is_remark());
        MemberDocument {
            filename: escape_path(&member.path),
            format: member.format.name(),
            virtual_size: member.virtual_size,
            problems: problems.into_iter().map(sentence).collect(),
            notes: notes.into_iter().map(sentence).collect(),
            check: report.as_ref().map(check_json),
        }
    };
    let members = chain.members.iter().zip(reports).enumerate().map(member).collect();
    ChainDocument { whole: chain.is_whole(), members }
}

#[cfg(test)]
mod tests {
    use super::ChainDocument;
    use crate::report::schema;

    #[test]
    fn schema_in_docs_is_the_one_of_the_chain() {
        schema::assert_published::<ChainDocument>("chain");
    }
}
