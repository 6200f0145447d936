//! The exit codes, all of them.
//!
//! Invariant: a program of this package ends with one of these and nothing else, and the number is made in one
//! place, [`Exit::code`]. The numbers up to 63 mean what they mean for `qemu-img check`, so that scripts which
//! know one tool know the other.

use std::process::{ExitCode, Termination};

/// How a program of this package ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// The image is consistent, or the command did what it was asked to do.
    Consistent,
    /// The tool itself failed: nothing is known about the image, or less than was asked for.
    Failed,
    /// Corruptions were found and are still there.
    Corruptions,
    /// Leaks were found and are still there; nothing worse.
    Leaks,
    /// Damage was found and repaired, and a fresh check found nothing any more. Only with
    /// `--exit-code=detailed`; otherwise this is [`Exit::Consistent`].
    Repaired,
    /// Not a format, or not a feature of the format, that this program checks.
    NotChecked,
    /// What the command that was run with `--exec` ended with: its own code, or 128 and the signal that ended it.
    Command(u8),
}

impl Exit {
    /// Every exit of the programs themselves, in the order of the codes.
    pub const ALL: [Self; 6] =
        [Self::Consistent, Self::Failed, Self::Corruptions, Self::Leaks, Self::Repaired, Self::NotChecked];

    /// The number that the parent process sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Consistent => 0,
            Self::Failed => 1,
            Self::Corruptions => 2,
            Self::Leaks => 3,
            Self::Repaired => 4,
            Self::NotChecked => 63,
            Self::Command(code) => code,
        }
    }

    /// What it means, as help and README say it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Consistent => "the image is consistent",
            Self::Failed => "the tool itself failed, wrong usage included; nothing is said about the image",
            Self::Corruptions => "corruptions were found and are left",
            Self::Leaks => "leaks were found and are left, nothing worse",
            Self::Repaired => {
                "repaired, and a fresh check is clean (only with --exit-code=detailed; otherwise 0)"
            }
            Self::NotChecked => "not a format, or a feature of it, that can be checked",
            Self::Command(_) => "what the command of --exec ended with",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_ascend_and_are_unique() {
        assert!(Exit::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
    }
}
