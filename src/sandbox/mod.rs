//! The cage: runs the payload, serves its calls, kills it. Interprets no image byte.
//!
//! What the rest of the program needs of it stands in [`job`] (what is asked), [`observer`] (what is told) and
//! [`error`] (how it can end badly).

pub mod error;
pub mod job;
pub mod limits;
pub mod observer;
