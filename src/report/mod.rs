//! What is said about an image: collected from a job, told to people or to programs.
//!
//! Invariant: the verdict is made here, from the host's own problem table and its own counting. An inmate's
//! word decides which places are named, never what a name means or which exit code it leads to.
//! Nothing here opens or writes a file of the user.

mod blockmap;
mod collect;
mod describe;
mod discard;
mod escape;
mod history;
mod html;
mod human;
mod ids;
mod json;
mod line;
mod map_json;
mod mapfile;
mod model;
mod names;
mod picture;
mod progress;
mod prometheus;
mod prospect;
#[cfg(test)]
mod samples;
#[cfg(test)]
pub(crate) mod schema;
mod sentence;
mod status;
mod tally;
mod todo;
mod touched;
pub mod units;

pub use blockmap::{MapStyle, write_map};
pub use collect::Collector;
pub use describe::ImageReport;
pub use discard::DiscardFacts;
pub use escape::{escape_bytes, escape_message, escape_path};
pub use history::{HistoryDocument, history_json, write_history};
pub use html::{HTML_MAGIC, check_html};
pub use human::{HumanOptions, headline, write_check, write_image};
pub use ids::verdict_name;
pub use json::{CheckDocument, check_json, image_json};
pub use line::line;
pub use map_json::{MapDocument, map_json};
pub use mapfile::mapfile;
pub use model::{CheckReport, KeptFinding, RepairFacts, SandboxFacts, Verdict};
pub use names::Names;
pub use picture::{Bucket, Buckets, DiskUse, FileUse, Picture};
pub use progress::{Progress, Watch};
pub use prometheus::{Exposition, MetricKind};
pub use sentence::sentence;
pub use status::{
    METRICS_MAGIC, MountFacts, MountHealth, MountState, StatusDocument, status_json, status_metrics,
    write_status,
};
pub use tally::{Tally, TallyRow};
pub use todo::{Todo, TodoRow};
