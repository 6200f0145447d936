//! How the mount is served, as it is asked for on the command line.

use clap::{Args, ValueEnum};

use crate::fuse::TransportChoice;

/// How requests come from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TransportArg {
    /// io_uring where the kernel has it for FUSE and it is switched on, else /dev/fuse.
    #[default]
    Auto,
    /// /dev/fuse.
    Fuse,
    /// io_uring, or no mount: Linux 6.14 or newer with /sys/module/fuse/parameters/enable_uring set to Y.
    Uring,
}

/// The option.
#[derive(Debug, Clone, Default, Args)]
pub struct TransportArgs {
    /// How requests come from the kernel.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub transport: TransportArg,
}

impl TransportArgs {
    /// The choice.
    #[must_use]
    pub fn choice(&self) -> TransportChoice {
        match self.transport {
            TransportArg::Auto => TransportChoice::Auto,
            TransportArg::Fuse => TransportChoice::Fuse,
            TransportArg::Uring => TransportChoice::Uring,
        }
    }
}
