use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use tidegate_contracts::{Batch, Journal, JournalError};

use crate::disk;

/// How long a writer waits for other processes.
const PATIENCE: Duration = Duration::from_secs(30);
/// `PRAGMA user_version` of the only schema there is.
const SCHEMA_VERSION: i64 = 1;
/// Marks the file as a journal of ours (`TIDE` in ASCII).
const APPLICATION_ID: i64 = 0x5449_4445;

const SCHEMA: &str = "
    CREATE TABLE entry (
        tab   TEXT NOT NULL,
        key   TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (tab, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leaf (
        position INTEGER PRIMARY KEY,
        id       TEXT NOT NULL UNIQUE,
        leaf     BLOB NOT NULL
    ) STRICT;
";

/// A journal in one SQLite file.
///
/// A commit is one immediate transaction in WAL mode with `synchronous=FULL`: it has reached the disk
/// when it returns. Several threads and processes wait for each other, up to 30 seconds. The file has
/// mode 0600.
pub struct SqliteJournal {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl SqliteJournal {
    /// Opens the journal at `path`, making file and folder where there are none.
    ///
    /// # Errors
    /// [`JournalError::Failed`] when the file cannot be opened, is not a journal, or was written by a
    /// newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        let path = path.as_ref();
        let failed = |why: String| JournalError::Failed {
            what: format!("opening `{}`", path.display()),
            why,
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            disk::private_folder(folder).map_err(|error| failed(error.to_string()))?;
        }
        // SQLite would make it with the mode that the umask leaves; its other files take this one's.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed(error.to_string()))?;
        let connection = connect(path).map_err(|error| failed(explain(&error)))?;
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|error| failed(explain(&error)))?;
        if version != SCHEMA_VERSION {
            let why =
                format!("its version is {version}, and this program knows {SCHEMA_VERSION}; use the newer program");
            return Err(failed(why));
        }
        Ok(Self {
            connection: Mutex::new(connection),
            path: path.to_owned(),
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic interrupted was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    // Switching to WAL does not wait by itself while another process opens the same new file.
    let until = Instant::now() + PATIENCE;
    loop {
        match connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get::<_, String>(0)) {
            Err(error) if is_busy(&error) && Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            switched => {
                switched?;
                break;
            }
        }
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_prepared_statement_cache_capacity(16);
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = change.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = change.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if version == 0 && tables == 0 {
        change.execute_batch(SCHEMA)?;
        change.pragma_update(None, "application_id", APPLICATION_ID)?;
        change.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    change.commit()?;
    Ok(connection)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// What SQLite says, without the statement and its values.
fn explain(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, message) => message.clone().unwrap_or_else(|| code.to_string()),
        rusqlite::Error::SqlInputError { error, msg, .. } => format!("{error}: {msg}"),
        other => other.to_string(),
    }
}

fn failed(what: &'static str) -> impl Fn(rusqlite::Error) -> JournalError {
    move |error| JournalError::Failed {
        what: what.to_owned(),
        why: explain(&error),
    }
}

/// An index as SQLite counts; what is above its range is behind every leaf.
fn position(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

impl fmt::Debug for SqliteJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteJournal")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

const GET: &str = "SELECT value FROM entry WHERE tab = ?1 AND key = ?2";

impl Journal for SqliteJournal {
    fn commit(&self, batch: &Batch) -> Result<(), JournalError> {
        let failed = failed("committing a batch");
        let mut connection = self.connection();
        let change = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        for (table, key, expected) in &batch.expect {
            let found: Option<Vec<u8>> = change
                .prepare_cached(GET)
                .and_then(|mut get| get.query_row([table, key], |row| row.get(0)).optional())
                .map_err(&failed)?;
            if found != *expected {
                return Err(JournalError::Conflict {
                    table: table.clone(),
                    key: key.clone(),
                });
            }
        }
        for (table, key, value) in &batch.put {
            change
                .prepare_cached("INSERT OR REPLACE INTO entry (tab, key, value) VALUES (?1, ?2, ?3)")
                .and_then(|mut put| put.execute(params![table, key, value]))
                .map_err(&failed)?;
        }
        for (table, key) in &batch.delete {
            change
                .prepare_cached("DELETE FROM entry WHERE tab = ?1 AND key = ?2")
                .and_then(|mut delete| delete.execute([table, key]))
                .map_err(&failed)?;
        }
        for (id, leaf) in &batch.append {
            // Leaves are never removed, so the next position is their number.
            change
                .prepare_cached(
                    "INSERT INTO leaf (position, id, leaf)
                     VALUES ((SELECT coalesce(max(position) + 1, 0) FROM leaf), ?1, ?2)
                     ON CONFLICT (id) DO NOTHING",
                )
                .and_then(|mut append| append.execute(params![id, leaf]))
                .map_err(&failed)?;
        }
        change.commit().map_err(failed)
    }

    fn get(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.connection()
            .prepare_cached(GET)
            .and_then(|mut get| get.query_row([table, key], |row| row.get(0)).optional())
            .map_err(failed("reading an entry"))
    }

    fn scan(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        let failed = failed("scanning a table");
        let connection = self.connection();
        let mut scan = connection
            .prepare_cached("SELECT key, value FROM entry WHERE tab = ?1 AND key >= ?2 ORDER BY key")
            .map_err(&failed)?;
        let mut rows = scan.query([table, prefix]).map_err(&failed)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            let key: String = row.get(0).map_err(&failed)?;
            if !key.starts_with(prefix) {
                break;
            }
            found.push((key, row.get(1).map_err(&failed)?));
        }
        Ok(found)
    }

    fn log_size(&self) -> Result<u64, JournalError> {
        let failed = failed("measuring the log");
        let size: i64 = self
            .connection()
            .query_row("SELECT coalesce(max(position) + 1, 0) FROM leaf", [], |row| row.get(0))
            .map_err(&failed)?;
        Ok(u64::try_from(size).unwrap_or_default())
    }

    fn log_leaves(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, JournalError> {
        let failed = failed("reading leaves");
        let connection = self.connection();
        let mut select = connection
            .prepare_cached("SELECT leaf FROM leaf WHERE position >= ?1 AND position < ?2 ORDER BY position")
            .map_err(&failed)?;
        let leaves = select
            .query_map([position(from), position(to)], |row| row.get(0))
            .and_then(Iterator::collect)
            .map_err(&failed)?;
        Ok(leaves)
    }

    fn log_index(&self, id: &str) -> Result<Option<u64>, JournalError> {
        let found: Option<i64> = self
            .connection()
            .prepare_cached("SELECT position FROM leaf WHERE id = ?1")
            .and_then(|mut find| find.query_row([id], |row| row.get(0)).optional())
            .map_err(failed("looking a leaf up"))?;
        Ok(found.and_then(|position| u64::try_from(position).ok()))
    }
}
