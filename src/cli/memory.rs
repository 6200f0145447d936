//! Past repairs, for the command line: asked before a repair, told after it.
//!
//! Invariant: a memory that cannot be used costs a warning, one per run, and nothing else. Two things it may do to a
//! repair: refuse it while another process repairs the same image, and refuse it where the same has just failed
//! three times.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::options::StateArgs;
use super::say;
use crate::error::Error;
use crate::heal::Attested;
use crate::history::{
    Attempt, Claim, ClaimError, Counts, Folder, HistoryError, ImageKey, Recurring, Refusal, Store,
    default_path, fingerprint, judge,
};
use crate::image::ImageHandle;
use crate::report::{Tally, escape_message};

/// What `--state-dir` says for no memory at all.
const NONE: &str = "none";

/// What is remembered of one image.
#[derive(Debug)]
pub struct Memory<'a> {
    image: &'a ImageHandle,
    key: ImageKey,
    /// `None` where nothing is to be remembered, or where it turned out that nothing can be.
    folder: Option<PathBuf>,
}

/// An attempt at a repair that is under way. Nobody else may make one until it is dropped.
#[derive(Debug)]
pub struct Attempting<'a> {
    memory: Memory<'a>,
    _claim: Option<Claim>,
    past: Vec<Attempt>,
    request: String,
    /// `None` where nothing is remembered.
    fingerprint: Option<[u8; 32]>,
}

/// How an attempt ended.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Id of the ending.
    pub outcome: &'static str,
    /// The same again would fail again.
    pub failed: bool,
    /// Digest of the plan.
    pub plan_digest: Option<[u8; 32]>,
    /// The proof.
    pub attested: Option<&'a Attested>,
    /// What was found before.
    pub before: &'a Tally,
    /// What a fresh check found after it.
    pub after: Option<&'a Tally>,
}

/// The state folder that was asked for; `None` for none.
#[must_use]
pub fn named(args: &StateArgs) -> Option<PathBuf> {
    match &args.state_dir {
        Some(path) if path.as_os_str() == NONE => None,
        Some(path) => Some(path.clone()),
        None => default_path(),
    }
}

/// The same; that there is none although one is wanted is told.
#[must_use]
pub fn folder(args: &StateArgs) -> Option<PathBuf> {
    let path = named(args);
    if path.is_none() && args.state_dir.is_none() {
        say::to_person("warning: no home folder to remember repairs in; --state-dir names one");
    }
    path
}

/// The same, made where it is missing. One that cannot be made is told of when it is used.
#[must_use]
pub fn prepared(args: &StateArgs) -> Option<PathBuf> {
    let path = named(args)?;
    if let Err(error) = Folder::make(&path) {
        tracing::debug!(%error, "the state folder cannot be used");
    }
    Some(path)
}

impl<'a> Memory<'a> {
    /// The memory of an open image.
    #[must_use]
    pub fn of(image: &'a ImageHandle, args: &StateArgs) -> Self {
        Self { image, key: ImageKey::of(image.file()), folder: folder(args) }
    }

    /// Which of the problems that were found have been repaired again and again. Makes no folder and no file.
    #[must_use]
    pub fn recurring(mut self, found: &Tally) -> Vec<Recurring> {
        if found.is_empty() {
            return Vec::new();
        }
        let past = self.with_folder(|path, key| match Folder::find(path)?.map(|f| f.existing_store()) {
            Some(store) => store?.map_or(Ok(Vec::new()), |store| store.attempts(key)),
            None => Ok(Vec::new()),
        });
        judge::recurring(&past.unwrap_or_default(), &counts(found))
    }

    /// Begins an attempt to do what `request` says.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn begin(mut self, request: String) -> Result<Attempting<'a>, Error> {
        let image = self.image;
        let refused = |source| Error::Refused { image: image.path().to_owned(), source };
        let claim = self.with_folder(|path, key| match Claim::take(&Folder::make(path)?, key) {
            Ok(claim) => Ok(Ok(claim)),
            Err(ClaimError::Held { holder }) => Ok(Err(Refusal::Claimed { holder })),
            Err(ClaimError::Unusable(error)) => Err(error),
        });
        let claim = claim.transpose().map_err(refused)?;
        let past = self.with_store(|store, key| store.attempts(key)).unwrap_or_default();
        let fingerprint = self.fingerprint();
        if let Some(now) = &fingerprint
            && let Some((failures, last)) = judge::failures_in_a_row(&past, &request, now)
            && failures >= judge::FAILURES_MAX
        {
            return Err(refused(Refusal::Exhausted { failures, last: last.to_owned() }));
        }
        Ok(Attempting { memory: self, _claim: claim, past, request, fingerprint })
    }

    fn fingerprint(&mut self) -> Option<[u8; 32]> {
        let image = self.image;
        self.folder.as_ref()?;
        match fingerprint(image.file()) {
            Ok(fingerprint) => Some(fingerprint),
            Err(error) => {
                self.give_up(&error.to_string());
                None
            }
        }
    }

    fn with_store<T>(
        &mut self,
        work: impl FnOnce(&mut Store, &ImageKey) -> Result<T, HistoryError>,
    ) -> Option<T> {
        self.with_folder(|path, key| work(&mut Folder::make(path)?.store()?, key))
    }

    /// Does `work` where there is a memory; an error ends it.
    fn with_folder<T>(
        &mut self,
        work: impl FnOnce(&PathBuf, &ImageKey) -> Result<T, HistoryError>,
    ) -> Option<T> {
        let folder = self.folder.as_ref()?;
        match work(folder, &self.key) {
            Ok(value) => Some(value),
            Err(error) => {
                self.give_up(&error.to_string());
                None
            }
        }
    }

    fn give_up(&mut self, why: &str) {
        self.folder = None;
        say::to_person(&format!("warning: nothing is remembered of this repair: {}", escape_message(why)));
    }
}

impl Attempting<'_> {
    /// Remembers how it ended. Gives what was repaired again and again and was found this time too.
    pub fn end(mut self, ended: &Ended<'_>) -> Vec<Recurring> {
        let before = counts(ended.before);
        let recurring = judge::recurring(&self.past, &before);
        let (Some(fingerprint_before), Some(fingerprint_after)) =
            (self.fingerprint, self.memory.fingerprint())
        else {
            return recurring;
        };
        let attempt = Attempt {
            fingerprint_before,
            fingerprint_after,
            failed: ended.failed,
            plan_digest: ended.plan_digest,
            attestation: ended.attested.map(|attested| digest(attested, &fingerprint_after)),
            before,
            after: ended.after.map(counts),
            ..Attempt::of(ended.outcome, &self.request)
        };
        self.memory.with_store(|store, key| store.add(key, &attempt));
        recurring
    }
}

/// What binds an attestation to the plan that was landed and to the image that it was given for.
fn digest(attested: &Attested, fingerprint: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"instar attestation 1\n");
    hash.update(attested.plan_digest);
    hash.update(attested.cured.to_le_bytes());
    hash.update(fingerprint);
    hash.finalize().into()
}

fn counts(tally: &Tally) -> Counts {
    tally.rows().map(|row| (row.problem.row().id.to_owned(), row.items)).collect()
}
