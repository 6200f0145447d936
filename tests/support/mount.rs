//! `instar-mount` as a test runs it: a mount that ends with its owner.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::tools;

/// A disk image mounted on a folder of its own.
#[derive(Debug)]
pub struct Mount {
    point: TempDir,
    image: PathBuf,
    /// What the program said.
    pub said: String,
}

impl Mount {
    /// Mounts `image` in the background. Needs [`tools::fuse`].
    ///
    /// # Errors
    /// What the program said instead.
    pub fn try_new<S: AsRef<OsStr>>(
        image: &Path,
        options: impl IntoIterator<Item = S>,
    ) -> Result<Self, Output> {
        let point = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_instar-mount"));
        let output = tools::run(command.args(options).arg(image).arg(point.path()));
        if !output.status.success() {
            return Err(output);
        }
        Ok(Self { point, image: image.to_owned(), said: tools::stderr(&output) })
    }

    /// [`Mount::try_new`] where nothing may go wrong.
    pub fn new<S: AsRef<OsStr>>(image: &Path, options: impl IntoIterator<Item = S>) -> Self {
        Self::try_new(image, options).unwrap_or_else(|output| panic!("{}", tools::stderr(&output)))
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        self.point.path()
    }

    /// A path under the mount point.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }

    /// The active disk.
    pub fn raw(&self) -> PathBuf {
        let name = self.image.file_name().expect("an image has a name");
        self.point.path().join(name).with_extension("raw")
    }

    /// A document under `.instar`.
    pub fn document(&self, name: &str) -> String {
        let path = self.path(".instar").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// A JSON document under `.instar`.
    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.document(name)).expect("the document is JSON")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = tools::run(Command::new("fusermount3").arg("-uz").arg(self.point.path()));
        assert!(std::thread::panicking() || ended.status.success(), "{}", tools::stderr(&ended));
    }
}
