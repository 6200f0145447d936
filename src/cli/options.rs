//! What can be asked for, as types. Help texts stand here and nowhere else.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::Tier;

pub use super::look_options::{ColourWhen, DumpArgs, InfoArgs, MapArgs, MapFormat};

use super::access::AccessArgs;
use super::cache::CacheArgs;
use super::transport::TransportArgs;
use super::{decide, size};

const CHECK_EXAMPLES: &str = "\
Exit codes:
   0  the image is consistent
   1  the tool itself failed, wrong usage included; nothing is said about the image
   2  corruptions were found and are left
   3  leaks were found and are left, nothing worse
   4  repaired, and a fresh check is clean (only with --exit-code=detailed; otherwise 0)
  63  not a format, or a feature of it, that can be checked

Examples:
  instar check disk.qcow2                    what is wrong with it?
  instar check --repair --preview disk.qcow2 what would a repair do?
  instar check --repair=leaks disk.qcow2     give leaked space back
  instar check --repair=all disk.qcow2       mend what can be mended for certain
  instar check --discard disk.qcow2          give what nothing uses back to the file system
  instar check --deep disk.qcow2             can its compressed clusters be read?
  instar check --output=json disk.qcow2      the same for programs
  instar check --html=disk.html disk.qcow2   the same with pictures, for a bug report";

const MOUNT_EXAMPLES: &str = "\
The disk appears as MOUNTPOINT/<image name>.raw, or as MOUNTPOINT itself where that is a regular file.
In a folder, internal snapshots appear as MOUNTPOINT/snapshots/<name>.raw.
`fusermount3 -u MOUNTPOINT` ends it.

Examples:
  instar-mount disk.qcow2 /mnt/disk                  look into a disk, read-only
  instar-mount --allow-chain=. top.qcow2 /mnt/disk   with the backing files that lie beside it
  instar-mount --repair=leaks disk.qcow2 /mnt/disk   give leaked space back first
  instar-mount --repair=all --preview disk.qcow2 /mnt/disk
                                                     look into the repaired disk, the image untouched
  instar-mount --exec 'fdisk -l $INSTAR_DISK' disk.qcow2
                                                     one command, and no mount afterwards";

/// Check QCOW2 images and heal them. The image is looked at inside a cage, never by this program itself.
#[derive(Debug, Parser)]
#[command(name = "instar", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Instar {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub log: LogArgs,
}

/// What `instar` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check an image, and with --repair heal it.
    Check(CheckArgs),
    /// Finish a repair that was interrupted.
    Resume(ResumeArgs),
    /// Take back the last repair, finished or interrupted: every byte as it was before.
    Undo(UndoArgs),
    /// Tell what an image is: format, sizes, features, snapshots, names of other files. Counts nothing.
    Info(InfoArgs),
    /// Draw who uses which part of an image's file, and what its disk is made of, damage in place.
    Map(MapArgs),
    /// Copy an image's metadata without its guest data, to be sent to whoever is to look at it.
    Dump(DumpArgs),
    /// Tell which repairs of an image are remembered, and how they ended.
    History(HistoryArgs),
    /// List the mounts of instar-mount, their images and how they fare.
    Status(StatusArgs),
}

/// Logging.
#[derive(Debug, Clone, Default, Args)]
pub struct LogArgs {
    /// Log what matches FILTER, for example `debug` or `instar_mount::sandbox=trace`. [default: nothing to stderr, `info`
    /// to the journal]
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
    /// Where logs go. A mount in the background has no stderr.
    #[arg(long, value_enum, default_value_t, value_name = "WHERE", global = true)]
    pub log_to: LogTo,
}

/// Where logs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogTo {
    /// The terminal, as long as there is one.
    #[default]
    Stderr,
    /// systemd's journal. The event ids of the guide are in the field INSTAR_EVENT.
    Journal,
}

/// `instar check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
#[command(mut_args(needs_chain))]
#[command(group = ArgGroup::new("previewable").multiple(true))]
pub struct CheckArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub repair: RepairArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub plan: PlanArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub state: StateArgs,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Give the storage of clusters that nothing uses back to the file system, once a repair is to stay. What they held
    /// cannot be looked for any more then. Refused while the last repair can still be undone, and unless the image is
    /// consistent.
    #[arg(long, group = "previewable", conflicts_with_all = ["chain", "plan_out", "apply_plan"])]
    pub discard: bool,
    /// Also inflate every compressed cluster, to find those that cannot be read.
    #[arg(long)]
    pub deep: bool,
    /// List every finding instead of counts by problem.
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub chain: ChainArgs,
    /// Print nothing but errors and warnings; the exit code tells the rest.
    #[arg(long, short)]
    pub quiet: bool,
    /// Also write the report to FILE as a page for a browser, with pictures of file and disk. It needs no network
    /// and runs no script. An earlier report is replaced, nothing else is.
    #[arg(long, value_name = "FILE", conflicts_with = "chain")]
    pub html: Option<PathBuf>,
    /// Write progress to this open file descriptor, one JSON object on a line.
    #[arg(long, value_name = "FD")]
    pub progress_fd: Option<u32>,
    /// Which exit codes to use.
    #[arg(long, value_enum, default_value_t, value_name = "SET")]
    pub exit_code: ExitCodes,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// Plans that are made now and carried out later.
#[derive(Debug, Clone, Default, Args)]
pub struct PlanArgs {
    /// Write the plan of the repair to a new FILE instead of carrying it out.
    #[arg(long, value_name = "FILE", requires = "repair")]
    pub plan_out: Option<PathBuf>,
    /// Carry out exactly the plan in FILE, if the image is still the one that it was made for. It is proven anew.
    #[arg(long, value_name = "FILE", groups = ["healing", "previewable"])]
    pub apply_plan: Option<PathBuf>,
}

/// The files below an image.
#[derive(Debug, Clone, Default, Args)]
pub struct ChainArgs {
    /// Check the backing files too. A name inside an image opens nothing by itself: name each file with
    /// --backing, or a folder that they may come from with --allow-chain.
    #[arg(long, conflicts_with = "healing")]
    pub chain: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub below: BelowArgs,
}

/// Which files below an image may be opened, and as what.
#[derive(Debug, Clone, Default, Args)]
pub struct BelowArgs {
    /// The next backing file, whatever the image calls it; once for each member, nearest first. `none` leaves it and
    /// all below it out: what the members above it do not hold themselves is then damaged, never zeros.
    #[arg(long, value_name = "PATH")]
    pub backing: Vec<PathBuf>,
    /// Backing files may come from this folder and the ones beneath it.
    #[arg(long, value_name = "FOLDER")]
    pub allow_chain: Vec<PathBuf>,
    /// The format of the next backing file, for images that do not state it; once for each member, nearest first.
    /// It is never guessed.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub backing_format: Vec<BackingFormat>,
}

/// What a backing file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackingFormat {
    /// A QCOW2 image.
    Qcow2,
    /// The bytes of the disk, one for one.
    Raw,
}

/// What is said of the files below an image means nothing to a check that does not look at them.
fn needs_chain(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "backing" | "allow_chain" | "backing_format" => arg.requires("chain"),
        _ => arg,
    }
}

/// `instar resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub records: RecordsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub state: StateArgs,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// `instar undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// Keep the repair for good instead: remove its undo file. Refused while that is needed to finish something.
    #[arg(long)]
    pub drop: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub records: RecordsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub state: StateArgs,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// `instar history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub state: StateArgs,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// `instar status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Print nothing, and put FILE, a metrics file for Prometheus' node_exporter, in the place of the one before. A file
    /// that is something else is not replaced.
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub metrics: Option<PathBuf>,
}

/// `instar-mount`: serve the disk inside a QCOW2 image as a raw file, healed first if asked to.
///
/// The image is checked before it is served. Without --repair no byte of it is ever written.
#[derive(Debug, Parser)]
#[command(name = "instar-mount", version, arg_required_else_help = true, after_help = MOUNT_EXAMPLES)]
#[command(max_term_width = 100)]
pub struct MountOptions {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub repair: RepairArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub below: BelowArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub state: StateArgs,
    /// What a read of a damaged range gives: an I/O error, or zeros. Everything round it is read in either case.
    #[arg(long, value_enum, default_value_t, value_name = "POLICY")]
    pub on_damage: OnDamageArg,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub access: AccessArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cache: CacheArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub transport: TransportArgs,
    /// Run CMD with the shell while the disk is mounted, $INSTAR_DISK being its path and $INSTAR_MOUNT the folder that it
    /// is in, then unmount. Without MOUNTPOINT that is a folder of its own, open to nobody else. The exit code is that of
    /// CMD, or 128 and the signal that ended it.
    #[arg(long, value_name = "CMD", conflicts_with = "foreground")]
    pub exec: Option<OsString>,
    /// Stay in the foreground instead of going to the background once the mount answers.
    #[arg(long, short)]
    pub foreground: bool,
    /// How the program starts itself for the background.
    #[arg(long, hide = true)]
    pub background_server: bool,
    /// Print nothing unless something is wrong.
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub log: LogArgs,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// An empty folder, or a regular file that the disk then covers.
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "exec")]
    pub mountpoint: Option<PathBuf>,
}

/// Where past repairs are remembered.
#[derive(Debug, Clone, Default, Args)]
pub struct StateArgs {
    /// Remember repairs in FOLDER; `none` remembers nothing. [default: /var/lib/instar for root, else
    /// $XDG_STATE_HOME/instar or ~/.local/state/instar]
    #[arg(long, value_name = "FOLDER", env = "INSTAR_STATE_DIR", hide_env_values = true)]
    pub state_dir: Option<PathBuf>,
}

/// Where a repair keeps its records.
#[derive(Debug, Clone, Default, Args)]
pub struct RecordsArgs {
    /// Keep undo file and journal in FOLDER instead of beside the image. Whoever finishes or takes back the repair has
    /// to name the same folder.
    #[arg(long, value_name = "FOLDER")]
    pub undo_dir: Option<PathBuf>,
}

/// What a read of a damaged range gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnDamageArg {
    /// An I/O error: nothing wrong is ever taken for data.
    #[default]
    Eio,
    /// Zeros, for programs that give up at the first error.
    Zero,
}

/// What may be written.
#[derive(Debug, Clone, Default, Args)]
pub struct RepairArgs {
    /// Repair what TIER allows; `leaks` (the default) only frees clusters that nothing uses, `all` mends besides
    /// what the rest of the metadata determines. The repair is proven on a copy by a fresh check before the image is touched, and can be undone.
    #[arg(long, value_enum, value_name = "TIER", num_args = 0..=1, require_equals = true,
          default_missing_value = "leaks", groups = ["healing", "previewable"])]
    pub repair: Option<RepairTier>,
    /// Stop before anything is written: show what would be done.
    #[arg(long, requires = "previewable")]
    pub preview: bool,
    /// Decide about PROBLEM, which has several outcomes that each give something up; may be given several times. The
    /// report names what can be decided. On a terminal it is asked for.
    #[arg(long, value_name = "PROBLEM=CHOICE", value_parser = decide::parse, requires = "repair")]
    pub decide: Vec<Decision>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub records: RecordsArgs,
}

impl RepairArgs {
    /// The tier that was asked for, if any.
    #[must_use]
    pub fn tier(&self) -> Option<Tier> {
        self.repair.map(|tier| match tier {
            RepairTier::Leaks => Tier::Leaks,
            RepairTier::All => Tier::All,
        })
    }

    /// What was decided.
    #[must_use]
    pub fn decisions(&self) -> Decisions {
        self.decide.iter().fold(Decisions::default(), |made, decision| made.with(*decision))
    }
}

/// How much a repair may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RepairTier {
    /// Free clusters that nothing uses.
    Leaks,
    /// Besides, mend what the rest of the metadata determines.
    All,
}

/// Where the image is looked at, and with what.
#[derive(Debug, Clone, Default, Args)]
pub struct CageArgs {
    /// The cage that image bytes are interpreted in: a KVM machine, a locked-down process, or KVM where there
    /// is one and a process (said loudly) where there is not.
    #[arg(long, value_enum, default_value_t, value_name = "CAGE")]
    pub sandbox: Sandbox,
    /// Most memory that the cage may use, for example 512M.
    #[arg(long, value_parser = memory_size, default_value = "256M", value_name = "SIZE")]
    pub memory: u64,
    /// The image's external data file. Its name inside the image is never followed.
    #[arg(long, value_name = "PATH")]
    pub data_file: Option<PathBuf>,
}

/// Which cage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sandbox {
    /// KVM, or a process where there is no usable /dev/kvm.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// A locked-down process.
    Process,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// For programs; a check keeps the keys of qemu's ImageCheck.
    Json,
}

/// Which exit codes are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ExitCodes {
    /// Those of `qemu-img check`.
    #[default]
    Qemu,
    /// Besides, 4 for "repaired, and a fresh check is clean".
    Detailed,
}

/// Least `--memory`: below this no image can be walked.
pub const MEMORY_BYTES_MIN: u64 = 8 << 20;
/// Largest `--memory`.
pub const MEMORY_BYTES_MAX: u64 = instar_abi::layout::ARENA_BYTES_MAX;

fn memory_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{bytes} bytes given, allowed are 8M to 64G"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn command_lines_are_well_formed() {
        Instar::command().debug_assert();
        MountOptions::command().debug_assert();
    }

    #[test]
    fn check_help_names_every_exit_code() {
        for exit in Exit::ALL {
            let line = format!("{:>4}  {}", exit.code(), exit.meaning());
            assert!(CHECK_EXAMPLES.lines().any(|l| l == line), "{line}");
        }
    }

    #[test]
    fn repair_without_a_tier_means_leaks() {
        let options = MountOptions::parse_from(["instar-mount", "--repair", "i.qcow2", "/mnt"]);
        assert_eq!(options.repair.repair, Some(RepairTier::Leaks));
        assert_eq!(options.cage.memory, 256 << 20);
    }

    #[test]
    fn backing_files_are_for_chains_only() {
        assert!(Instar::try_parse_from(["instar", "check", "--backing", "b", "i"]).is_err());
        assert!(Instar::try_parse_from(["instar", "check", "--chain", "--backing", "b", "i"]).is_ok());
        assert!(MountOptions::try_parse_from(["instar-mount", "--backing", "b", "i", "/mnt"]).is_ok());
    }

    #[test]
    fn apply_plan_is_a_repair_of_its_own() {
        let check = |options: &[&str]| {
            Instar::try_parse_from([&["instar", "check"], options, &["i"]].concat()).is_ok()
        };
        assert!(check(&["--apply-plan=p"]) && check(&["--apply-plan=p", "--preview"]));
        assert!(!check(&["--apply-plan=p", "--repair"]) && !check(&["--apply-plan=p", "--chain"]));
        assert!(!check(&["--plan-out=p"]) && check(&["--plan-out=p", "--repair=all"]));
        assert!(!check(&["--decide=orphan-data=free"]));
        assert!(check(&["--decide=orphan-data=free", "--repair=all"]));
    }

    #[test]
    fn discard_goes_with_a_repair_and_a_preview_and_with_no_plan_file() {
        let check = |options: &[&str]| {
            Instar::try_parse_from([&["instar", "check"], options, &["i"]].concat()).is_ok()
        };
        assert!(check(&["--discard"]) && check(&["--discard", "--preview"]));
        assert!(check(&["--discard", "--repair"]) && check(&["--discard", "--repair=all", "--preview"]));
        assert!(!check(&["--discard", "--apply-plan=p"]) && !check(&["--discard", "--chain"]));
        assert!(!check(&["--discard", "--repair", "--plan-out=p"]) && !check(&["--preview"]));
        assert!(MountOptions::try_parse_from(["instar-mount", "--discard", "i", "/mnt"]).is_err());
    }

    #[test]
    fn mount_point_is_needed_unless_a_command_is_run() {
        let parse = |arguments: &[&str]| MountOptions::try_parse_from([&["m"], arguments].concat());
        assert!(parse(&["i"]).is_err() && parse(&["i", "/mnt"]).is_ok());
        assert!(parse(&["--exec", "true", "i"]).is_ok() && parse(&["--exec", "true", "i", "/mnt"]).is_ok());
        assert!(parse(&["--exec", "true", "-f", "i", "/mnt"]).is_err());
    }

    #[test]
    fn preview_without_repair_is_refused() {
        assert!(MountOptions::try_parse_from(["instar-mount", "--preview", "i", "/mnt"]).is_err());
    }
}
