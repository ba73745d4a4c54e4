//! The probabilities that a model gives to rows at home: each part is scored once, in the sandbox, however
//! many steps look at it. What a machine of the site scored in the keeper's place lies in files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_prepare::{Part, Rows};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::digest::Digest;

/// The folder of what was scored elsewhere, below the stage's own.
pub(crate) const FOLDER: &str = "scores";

/// One part of the rows at home with the model's probabilities, and without the features.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scored {
    pub(crate) outcomes: Vec<bool>,
    /// A keyed number for each row's person.
    pub(crate) subjects: Vec<u64>,
    /// For each subgroup expression its value in each row.
    pub(crate) subgroups: Vec<(String, Vec<Option<String>>)>,
    /// In files as their bits: what is judged is then the same to the last one.
    #[serde(with = "bits")]
    pub(crate) probabilities: Vec<f64>,
}

mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        let bits: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
        bits.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let bits = Vec::<u64>::deserialize(deserializer)?;
        Ok(bits.into_iter().map(f64::from_bits).collect())
    }
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
pub(crate) struct Scores {
    kept: Mutex<BTreeMap<Key, Arc<Scored>>>,
    /// Whether they are for somebody else, who finds them in files.
    pub(crate) for_others: bool,
}

impl Scores {
    pub(crate) fn key(model: Digest, part: Part, by: &[String]) -> Key {
        (model, part.as_str(), by.to_vec())
    }

    /// `folder` is the stage's own.
    pub(crate) fn find(&self, folder: &Path, key: &Key) -> Option<Arc<Scored>> {
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(scored) = kept.get(key) {
                return Some(Arc::clone(scored));
            }
        }
        let scored = Arc::new(read::<Scored>(&file(folder, &key.0, key)?)?);
        self.remember(key.clone(), &scored);
        Some(scored)
    }

    /// Whether they are there, in files at least.
    pub(crate) fn has(&self, folder: &Path, key: &Key) -> bool {
        self.find(folder, key).is_some()
    }

    pub(crate) fn keep(&self, folder: &Path, key: Key, scored: &Arc<Scored>) -> std::io::Result<()> {
        if self.for_others
            && let Some(file) = file(folder, &key.0, &key)
        {
            write(&file, &**scored)?;
        }
        self.remember(key, scored);
        Ok(())
    }

    /// Keeps scores, and forgets those of every other model.
    fn remember(&self, key: Key, scored: &Arc<Scored>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(model, ..), _| *model == key.0);
        kept.insert(key, Arc::clone(scored));
    }
}

/// The file of something about a model, whose digest its name begins with.
pub(crate) fn file<T: Serialize>(folder: &Path, model: &Digest, what: &T) -> Option<PathBuf> {
    let what = canonical_digest(what).ok()?;
    Some(
        folder
            .join(FOLDER)
            .join(format!("{}.{}", model.to_hex(), what.to_hex())),
    )
}

/// Nothing where it cannot be read: it is made again then.
pub(crate) fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

pub(crate) fn write<T: Serialize>(file: &Path, value: &T) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(value)?)?;
    std::fs::rename(new, file)
}
