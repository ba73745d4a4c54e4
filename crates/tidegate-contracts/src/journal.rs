//! Journals: small state that survives a crash, changed in atomic batches.

use std::fmt;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// An expectation of the batch does not hold; nothing was changed.
    #[error("journal entry `{table}/{key}` is not what was expected; nothing was changed")]
    Conflict {
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// The journal cannot be read or written.
    #[error("the journal failed while {what}: {why}")]
    Failed {
        /// What was being done.
        what: String,
        /// What happened.
        why: String,
    },
}

/// One atomic change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Entries that must be exactly so, or absent when `None`: compare-and-set.
    pub expect: Vec<(String, String, Option<Vec<u8>>)>,
    /// Entries to write.
    pub put: Vec<(String, String, Vec<u8>)>,
    /// Entries to remove.
    pub delete: Vec<(String, String)>,
    /// Leaves to append to the log, each with a deterministic id; one whose id is already there is
    /// not appended again.
    pub append: Vec<(String, Vec<u8>)>,
}

impl Batch {
    /// Expects an entry to be absent, and writes it.
    #[must_use]
    pub fn create(mut self, table: &str, key: &str, value: Vec<u8>) -> Self {
        self.expect.push((table.to_owned(), key.to_owned(), None));
        self.put.push((table.to_owned(), key.to_owned(), value));
        self
    }

    /// Expects an entry to be `old`, or not to be there.
    #[must_use]
    pub fn expect(mut self, table: &str, key: &str, old: Option<Vec<u8>>) -> Self {
        self.expect.push((table.to_owned(), key.to_owned(), old));
        self
    }

    /// Writes an entry.
    #[must_use]
    pub fn set(mut self, table: &str, key: &str, value: Vec<u8>) -> Self {
        self.put.push((table.to_owned(), key.to_owned(), value));
        self
    }

    /// Expects an entry to be `old`, and writes `new`.
    #[must_use]
    pub fn replace(mut self, table: &str, key: &str, old: Option<Vec<u8>>, new: Vec<u8>) -> Self {
        self.expect.push((table.to_owned(), key.to_owned(), old));
        self.put.push((table.to_owned(), key.to_owned(), new));
        self
    }

    /// Appends a leaf to the log.
    #[must_use]
    pub fn leaf(mut self, id: &str, leaf: Vec<u8>) -> Self {
        self.append.push((id.to_owned(), leaf));
        self
    }
}

/// Small state: tables of entries, and one append-only log of leaves.
///
/// # Contract
/// - [`Journal::commit`] happens whole or not at all, and once it returned it survives a crash.
/// - Commits of several threads and processes are serial; expectations are checked inside.
/// - Leaves keep their order; an index never changes its leaf.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Changes the journal atomically.
    ///
    /// # Errors
    /// [`JournalError::Conflict`] when an expectation does not hold.
    fn commit(&self, batch: &Batch) -> Result<(), JournalError>;

    /// One entry.
    fn get(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, JournalError>;

    /// All entries of a table whose keys begin with `prefix`, sorted by key.
    fn scan(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError>;

    /// How many leaves the log has.
    fn log_size(&self) -> Result<u64, JournalError>;

    /// Leaves `from..to` of the log.
    fn log_leaves(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, JournalError>;

    /// The index of the leaf with this id.
    fn log_index(&self, id: &str) -> Result<Option<u64>, JournalError>;
}
