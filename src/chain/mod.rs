//! Backing chains: which members an image has below it, and whether each is what its overlay says.
//!
//! Invariant: a member is opened only after its name has passed the [gate](crate::image::gate), its format is the
//! one that the member above it states, or else the user, and is never probed, and a chain that bites its own tail or is too long
//! ends with an error and not with the program's memory. What a QCOW2 member says about itself is learned in a
//! cage ([`Describe`]).

mod describe;
mod follow;
mod member;

pub use describe::CageDescriber;
pub use follow::follow;
pub use member::{Chain, ChainPolicy, ChainProblem, Describe, Facts, Format, Member};
