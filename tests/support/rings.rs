//! FUSE over io_uring on the machine of the tests: a switch of the kernel's that holds for every mount made while it is on.

use std::fs::{self, File};

/// The switch.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The switch is on, or off, as long as this lives. Tests of several programs may run at once, and each puts back what it has
/// found, so there is one at a time.
#[derive(Debug)]
pub struct Switched {
    before: String,
    _turn: File,
}

impl Switched {
    /// Turns it on.
    ///
    /// # Errors
    /// What the machine lacks.
    pub fn on() -> Result<Self, String> {
        Self::to("Y")
    }

    /// Turns it off.
    ///
    /// # Errors
    /// What the machine lacks.
    pub fn off() -> Result<Self, String> {
        Self::to("N")
    }

    fn to(state: &str) -> Result<Self, String> {
        let cannot = |error| format!("{SWITCH}: {error}");
        // Opened first of all, as the switch is there once the kernel's module is.
        super::tools::fuse()?;
        let turn = File::create(std::env::temp_dir().join("instar-rings.lock")).map_err(cannot)?;
        turn.lock().map_err(cannot)?;
        let before = fs::read_to_string(SWITCH).map_err(cannot)?;
        fs::write(SWITCH, state).map_err(cannot)?;
        Ok(Self { before, _turn: turn })
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        let back = fs::write(SWITCH, &self.before);
        assert!(std::thread::panicking() || back.is_ok(), "{SWITCH}: {back:?}");
    }
}

/// Does something while mounts can be made that are served through rings; they keep them when it is over.
///
/// # Errors
/// What the machine lacks.
pub fn with<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let switched = Switched::on()?;
    let done = work();
    drop(switched);
    Ok(done)
}
