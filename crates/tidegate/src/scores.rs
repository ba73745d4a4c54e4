//! The probabilities that a model gives to rows at home: each part is scored once, in the sandbox, however
//! many steps look at it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_prepare::{Part, Rows};
use tidegate_types::digest::Digest;

/// One part of the rows at home with the model's probabilities, and without the features.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) outcomes: Vec<bool>,
    /// A keyed number for each row's person.
    pub(crate) subjects: Vec<u64>,
    /// For each subgroup expression its value in each row.
    pub(crate) subgroups: Vec<(String, Vec<Option<String>>)>,
    pub(crate) probabilities: Vec<f64>,
}

impl Scored {
    pub(crate) fn new(rows: Rows, probabilities: Vec<f64>) -> Self {
        Self {
            outcomes: rows.outcomes,
            subjects: rows.subjects,
            subgroups: rows.subgroups,
            probabilities,
        }
    }
}

/// What makes scores the same: the model's files and the prepared rows, as one digest; the part; the subgroups.
pub(crate) type Key = (Digest, &'static str, Vec<String>);

/// The scores of the model that was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Scores(Mutex<BTreeMap<Key, Arc<Scored>>>);

impl Scores {
    pub(crate) fn key(model: Digest, part: Part, by: &[String]) -> Key {
        (model, part.as_str(), by.to_vec())
    }

    pub(crate) fn find(&self, key: &Key) -> Option<Arc<Scored>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).map(Arc::clone)
    }

    /// Keeps scores, and forgets those of every other model.
    pub(crate) fn keep(&self, key: Key, scored: &Arc<Scored>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(model, ..), _| *model == key.0);
        kept.insert(key, Arc::clone(scored));
    }
}
