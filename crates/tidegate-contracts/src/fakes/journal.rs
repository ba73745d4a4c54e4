use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::locked;
use crate::journal::{Batch, Journal, JournalError};

/// A journal in memory. Clones share their entries.
#[derive(Clone, Default)]
pub struct MemoryJournal {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<(String, String), Vec<u8>>,
    leaves: Vec<Vec<u8>>,
    index: BTreeMap<String, u64>,
}

impl MemoryJournal {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = locked(&self.state);
        f.debug_struct("MemoryJournal")
            .field("entries", &state.entries.len())
            .field("leaves", &state.leaves.len())
            .finish()
    }
}

impl Journal for MemoryJournal {
    fn commit(&self, batch: &Batch) -> Result<(), JournalError> {
        let mut state = locked(&self.state);
        for (table, key, expected) in &batch.expect {
            if state.entries.get(&(table.clone(), key.clone())) != expected.as_ref() {
                return Err(JournalError::Conflict {
                    table: table.clone(),
                    key: key.clone(),
                });
            }
        }
        for (table, key, value) in &batch.put {
            state.entries.insert((table.clone(), key.clone()), value.clone());
        }
        for (table, key) in &batch.delete {
            state.entries.remove(&(table.clone(), key.clone()));
        }
        for (id, leaf) in &batch.append {
            let next = state.leaves.len() as u64;
            if !state.index.contains_key(id) {
                state.index.insert(id.clone(), next);
                state.leaves.push(leaf.clone());
            }
        }
        Ok(())
    }

    fn get(&self, table: &str, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(locked(&self.state)
            .entries
            .get(&(table.to_owned(), key.to_owned()))
            .cloned())
    }

    fn scan(&self, table: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        Ok(locked(&self.state)
            .entries
            .range((table.to_owned(), prefix.to_owned())..)
            .take_while(|((t, key), _)| t == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn log_size(&self) -> Result<u64, JournalError> {
        Ok(locked(&self.state).leaves.len() as u64)
    }

    fn log_leaves(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, JournalError> {
        let state = locked(&self.state);
        let inside = |at: u64| usize::try_from(at).map_or(state.leaves.len(), |at| at.min(state.leaves.len()));
        let (from, to) = (inside(from), inside(to));
        Ok(state.leaves.get(from..to.max(from)).unwrap_or_default().to_vec())
    }

    fn log_index(&self, id: &str) -> Result<Option<u64>, JournalError> {
        Ok(locked(&self.state).index.get(id).copied())
    }
}
