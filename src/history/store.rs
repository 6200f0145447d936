//! The database: attempts, newest first.
//!
//! Invariant: an attempt is in it with all of its findings or not at all; at most [`ATTEMPTS_OF_IMAGE_MAX`] of one
//! image and [`ATTEMPTS_MAX`] of all. It is opened for a moment and waits for other processes no longer than
//! [`PATIENCE`].

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};

use super::{HistoryError, HistoryErrorKind, ImageKey};

/// Most attempts kept of one image.
pub const ATTEMPTS_OF_IMAGE_MAX: u32 = 64;
/// Most attempts kept in all.
pub const ATTEMPTS_MAX: u32 = 10_000;
/// How long another process may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// Version of the tables.
const VERSION: i64 = 1;

const TABLES: &str = "
    CREATE TABLE attempt (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL, inode INTEGER NOT NULL, path BLOB NOT NULL,
        time_unix_s INTEGER NOT NULL,
        request TEXT NOT NULL, outcome TEXT NOT NULL, failed INTEGER NOT NULL,
        fingerprint_before BLOB NOT NULL, fingerprint_after BLOB NOT NULL,
        plan_digest BLOB, attestation BLOB, checked_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX attempt_of_image ON attempt (device, inode);
    CREATE TABLE finding (
        attempt INTEGER NOT NULL REFERENCES attempt (id) ON DELETE CASCADE,
        is_after INTEGER NOT NULL, problem TEXT NOT NULL, items INTEGER NOT NULL,
        PRIMARY KEY (attempt, is_after, problem)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;";

/// Items found by problem id.
pub type Counts = BTreeMap<String, u64>;

/// One attempt at a repair, or one undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it ended, in seconds since 1970; set by [`Store::add`].
    pub time_unix_s: i64,
    /// The same in words (UTC); set by the database.
    pub time: String,
    /// What was asked for, by which version.
    pub request: String,
    /// Id of its ending.
    pub outcome: String,
    /// The same again would fail again ([`super::judge::is_failure`]).
    pub failed: bool,
    /// The image's fingerprint before it.
    pub fingerprint_before: [u8; 32],
    /// The image's fingerprint after it.
    pub fingerprint_after: [u8; 32],
    /// Digest of the plan, where there was one.
    pub plan_digest: Option<[u8; 32]>,
    /// Digest of the attestation: only where the repaired image was proven.
    pub attestation: Option<[u8; 32]>,
    /// What was found before it.
    pub before: Counts,
    /// What was found after it, where the image was looked at again.
    pub after: Option<Counts>,
}

impl Attempt {
    /// An attempt that found nothing and changed nothing.
    #[must_use]
    pub fn of(outcome: &str, request: &str) -> Self {
        Self {
            time_unix_s: 0,
            time: String::new(),
            request: request.to_owned(),
            outcome: outcome.to_owned(),
            failed: false,
            fingerprint_before: [0; 32],
            fingerprint_after: [0; 32],
            plan_digest: None,
            attestation: None,
            before: Counts::new(),
            after: None,
        }
    }

    /// Whether it took all of a problem away.
    #[must_use]
    pub fn cured(&self, problem: &str) -> bool {
        self.before.contains_key(problem)
            && self.after.as_ref().is_some_and(|after| !after.contains_key(problem))
    }

    /// Whether it says no more than the attempt before it, `earlier`: nothing was done, and nothing failed.
    fn repeats(&self, earlier: &Self) -> bool {
        let said = |attempt: &Self| Self { time_unix_s: 0, time: String::new(), ..attempt.clone() };
        self.plan_digest.is_none() && !self.failed && said(self) == said(earlier)
    }
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the database at `path`, made first where it is missing.
    ///
    /// # Errors
    /// `Database`, `Newer`.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut store = Self::connect(path, flags)?;
        if store.version()? == 0 {
            let path = path.to_owned();
            store.make_tables().map_err(|error| database(&path, error))?;
        }
        store.refuse_newer()
    }

    /// Opens the database at `path`, which there is, for reading.
    ///
    /// # Errors
    /// `Database`, `Newer`.
    pub fn open_to_read(path: &Path) -> Result<Self, HistoryError> {
        Self::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?.refuse_newer()
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, HistoryError> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connect = || {
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(PATIENCE)?;
            connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;")?;
            Ok(connection)
        };
        let connection = connect().map_err(|error| database(path, error))?;
        Ok(Self { path: path.to_owned(), connection })
    }

    fn version(&self) -> Result<i64, HistoryError> {
        self.connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|error| database(&self.path, error))
    }

    fn refuse_newer(self) -> Result<Self, HistoryError> {
        match self.version()? {
            0..=VERSION => Ok(self),
            version => Err(HistoryError {
                path: self.path,
                kind: HistoryErrorKind::Newer { version, known: VERSION },
            }),
        }
    }

    fn make_tables(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been first.
        let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            transaction.execute_batch(TABLES)?;
        }
        transaction.commit()
    }

    /// The attempts at an image, newest first.
    ///
    /// # Errors
    /// `Database`.
    pub fn attempts(&self, image: &ImageKey) -> Result<Vec<Attempt>, HistoryError> {
        if self.version()? == 0 {
            return Ok(Vec::new());
        }
        self.read(image).map_err(|error| database(&self.path, error))
    }

    fn read(&self, image: &ImageKey) -> rusqlite::Result<Vec<Attempt>> {
        let mut query = self.connection.prepare(
            "SELECT id, time_unix_s, strftime('%Y-%m-%dT%H:%M:%SZ', time_unix_s, 'unixepoch') AS time,
                request, outcome, failed, fingerprint_before, fingerprint_after, plan_digest, attestation, checked_after
             FROM attempt WHERE device = ?1 AND inode = ?2 AND path = ?3 ORDER BY id DESC LIMIT ?4",
        )?;
        let (device, inode, path) = columns(image);
        let rows = query.query_map(params![device, inode, path, ATTEMPTS_OF_IMAGE_MAX], |row| {
            Ok((row.get::<_, i64>("id")?, attempt(row)?))
        })?;
        let mut findings = self
            .connection
            .prepare("SELECT problem, items FROM finding WHERE attempt = ?1 AND is_after = ?2")?;
        let mut counts = |id: i64, is_after: bool| -> rusqlite::Result<Counts> {
            let found = findings.query_map(params![id, is_after], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.cast_unsigned()))
            })?;
            found.collect()
        };
        rows.map(|row| {
            let (id, mut attempt) = row?;
            attempt.before = counts(id, false)?;
            if attempt.after.is_some() {
                attempt.after = Some(counts(id, true)?);
            }
            Ok(attempt)
        })
        .collect()
    }

    /// Adds an attempt as of now, and forgets the oldest. One that says no more than the one before it takes its
    /// place.
    ///
    /// # Errors
    /// `Database`.
    pub fn add(&mut self, image: &ImageKey, attempt: &Attempt) -> Result<(), HistoryError> {
        let earlier = self.attempts(image)?;
        let repeats = earlier.first().is_some_and(|earlier| attempt.repeats(earlier));
        let path = self.path.clone();
        self.write(image, attempt, repeats).map_err(|error| database(&path, error))
    }

    fn write(&mut self, image: &ImageKey, attempt: &Attempt, repeats: bool) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if repeats {
            delete_last(&transaction, image)?;
        }
        insert(&transaction, image, attempt)?;
        prune(&transaction, image)?;
        transaction.commit()
    }
}

fn database(path: &Path, error: rusqlite::Error) -> HistoryError {
    HistoryError { path: path.to_owned(), kind: HistoryErrorKind::Database(error) }
}

fn columns(image: &ImageKey) -> (i64, i64, &[u8]) {
    (image.device.cast_signed(), image.inode.cast_signed(), image.path.as_os_str().as_bytes())
}

fn attempt(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    let checked_after: bool = row.get("checked_after")?;
    Ok(Attempt {
        time_unix_s: row.get("time_unix_s")?,
        time: row.get::<_, Option<String>>("time")?.unwrap_or_default(),
        request: row.get("request")?,
        outcome: row.get("outcome")?,
        failed: row.get("failed")?,
        fingerprint_before: row.get("fingerprint_before")?,
        fingerprint_after: row.get("fingerprint_after")?,
        plan_digest: row.get("plan_digest")?,
        attestation: row.get("attestation")?,
        before: Counts::new(),
        after: checked_after.then(Counts::new),
    })
}

fn insert(transaction: &Transaction<'_>, image: &ImageKey, attempt: &Attempt) -> rusqlite::Result<()> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (device, inode, path) = columns(image);
    transaction.execute(
        "INSERT INTO attempt (device, inode, path, time_unix_s, request, outcome, failed, fingerprint_before,
            fingerprint_after, plan_digest, attestation, checked_after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            device,
            inode,
            path,
            i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX),
            attempt.request,
            attempt.outcome,
            attempt.failed,
            attempt.fingerprint_before,
            attempt.fingerprint_after,
            attempt.plan_digest,
            attempt.attestation,
            attempt.after.is_some(),
        ],
    )?;
    let id = transaction.last_insert_rowid();
    let after = attempt.after.iter().flatten().map(|count| (true, count));
    for (is_after, (problem, items)) in attempt.before.iter().map(|count| (false, count)).chain(after) {
        transaction.execute(
            "INSERT INTO finding (attempt, is_after, problem, items) VALUES (?1, ?2, ?3, ?4)",
            params![id, is_after, problem, items.cast_signed()],
        )?;
    }
    Ok(())
}

fn delete_last(transaction: &Transaction<'_>, image: &ImageKey) -> rusqlite::Result<()> {
    let (device, inode, path) = columns(image);
    let last: Option<i64> = transaction
        .query_row(
            "SELECT max(id) FROM attempt WHERE device = ?1 AND inode = ?2 AND path = ?3",
            params![device, inode, path],
            |row| row.get(0),
        )
        .optional()?
        .flatten();
    transaction.execute("DELETE FROM attempt WHERE id = ?1", params![last])?;
    Ok(())
}

fn prune(transaction: &Transaction<'_>, image: &ImageKey) -> rusqlite::Result<()> {
    let (device, inode, path) = columns(image);
    transaction.execute(
        "DELETE FROM attempt WHERE device = ?1 AND inode = ?2 AND path = ?3 AND id NOT IN (
            SELECT id FROM attempt WHERE device = ?1 AND inode = ?2 AND path = ?3 ORDER BY id DESC LIMIT ?4)",
        params![device, inode, path, ATTEMPTS_OF_IMAGE_MAX],
    )?;
    transaction.execute(
        "DELETE FROM attempt WHERE id NOT IN (SELECT id FROM attempt ORDER BY id DESC LIMIT ?1)",
        params![ATTEMPTS_MAX],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> ImageKey {
        ImageKey { device: u64::MAX, inode, path: "/a/\u{fc}.qcow2".into() }
    }

    fn full() -> Attempt {
        Attempt {
            plan_digest: Some([3; 32]),
            attestation: Some([4; 32]),
            before: Counts::from([("refcount-leak".to_owned(), 12)]),
            after: Some(Counts::new()),
            ..Attempt::of("repaired", "0.1 leaks")
        }
    }

    fn without_time(attempt: Attempt) -> Attempt {
        Attempt { time_unix_s: 0, time: String::new(), ..attempt }
    }

    #[test]
    fn attempt_comes_back_as_it_was_added_and_of_its_image_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        Store::open(&path).unwrap().add(&key(1), &full()).unwrap();
        let store = Store::open_to_read(&path).unwrap();
        let found = store.attempts(&key(1)).unwrap();
        assert!(found[0].time.starts_with("20") && found[0].time.ends_with('Z'), "{}", found[0].time);
        assert_eq!(found.into_iter().map(without_time).collect::<Vec<_>>(), [full()]);
        assert!(store.attempts(&key(2)).unwrap().is_empty());
    }

    #[test]
    fn attempts_beyond_the_bound_are_forgotten_with_their_findings() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("h")).unwrap();
        for _ in 0..ATTEMPTS_OF_IMAGE_MAX + 5 {
            store.add(&key(1), &full()).unwrap();
        }
        store.add(&key(2), &full()).unwrap();
        let count = |table| -> u32 {
            store
                .connection
                .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
                .unwrap()
        };
        assert_eq!(count("attempt"), ATTEMPTS_OF_IMAGE_MAX + 1);
        assert_eq!(count("finding"), ATTEMPTS_OF_IMAGE_MAX + 1);
    }

    #[test]
    fn attempt_that_did_nothing_again_takes_the_place_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("h")).unwrap();
        for outcome in ["clean", "clean", "quarantined", "quarantined", "clean"] {
            let failed = outcome == "quarantined";
            store.add(&key(1), &Attempt { failed, ..Attempt::of(outcome, "r") }).unwrap();
        }
        let outcomes: Vec<_> =
            store.attempts(&key(1)).unwrap().into_iter().map(|attempt| attempt.outcome).collect();
        assert_eq!(outcomes, ["clean", "quarantined", "quarantined", "clean"]);
    }

    #[test]
    fn damaged_and_newer_databases_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        std::fs::write(&path, [0x5a; 5000]).unwrap();
        let damaged = Store::open(&path).unwrap_err();
        assert!(matches!(damaged.kind, HistoryErrorKind::Database(_)), "{damaged}");
        std::fs::remove_file(&path).unwrap();
        Store::open(&path).unwrap().connection.execute_batch("PRAGMA user_version = 9").unwrap();
        let newer = Store::open(&path).unwrap_err();
        assert!(matches!(newer.kind, HistoryErrorKind::Newer { version: 9, known: 1 }), "{newer}");
    }

    #[test]
    fn locked_database_is_an_error_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        let holder = Store::open(&path).unwrap();
        holder.connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let mut second = Store::connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        second.connection.busy_timeout(Duration::from_millis(10)).unwrap();
        assert!(second.add(&key(1), &full()).is_err());
        holder.connection.execute_batch("ROLLBACK").unwrap();
        second.add(&key(1), &full()).unwrap();
    }
}
