//! Where releases come from, and which of them is served.
//!
//! A folder is looked at again and again; there is no notification to lose. What was refused is
//! remembered by the names, lengths and times of its files, so that it is not verified every second,
//! and is tried again once they change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tidegate_bundle::bundle::read_folder;
use tidegate_types::ids::PipelineName;

use crate::infer::Model;
use crate::options::VerifyBundle;

mod served;

pub(crate) use served::Served;

/// The most models of one folder, and the most versions of one model, that are looked at.
const MAX_ENTRIES: usize = 1000;

/// A folder that holds released bundles as `models/NAME/VERSION/`, the version in decimal digits.
/// Other names are passed over, so that a folder which is still being written can lie beside the
/// others under a name such as `4.partial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseSource {
    /// The folder in which `models/` lies, or will lie.
    pub folder: PathBuf,
}

/// The models that are served now.
#[derive(Debug, Default)]
pub(crate) struct Registry(RwLock<BTreeMap<String, Arc<Model>>>);

impl Registry {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Model>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn swap(&self, name: String, model: Model) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::new(model));
    }
}

/// What tells one state of a folder from another without reading it.
type Fingerprint = Vec<(String, u64, Option<SystemTime>)>;

/// Keeps the registry at the newest releases that verify.
pub(crate) struct Watcher {
    source: ReleaseSource,
    verify: VerifyBundle,
    served: Served,
    registry: Arc<Registry>,
    /// Folders that were refused or are too old, as they were then.
    passed_over: BTreeMap<PathBuf, Fingerprint>,
}

/// Why a release is not served. The message goes to the log.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Bundle(#[from] tidegate_bundle::BundleError),
    #[error(transparent)]
    Load(#[from] tidegate_bundle::PredictError),
    #[error("the bundle is of model `{name}`, version {version}: it lies in a folder of another")]
    OtherPlace { name: String, version: u64 },
    #[error("version {newest} was served before, and a site never goes back")]
    Older { newest: u64 },
    #[error("this version was served before with other content")]
    Altered,
    #[error("it could not be written down that this version is served: {0}")]
    Unrecorded(std::io::Error),
}

impl Watcher {
    pub(crate) fn new(source: ReleaseSource, verify: VerifyBundle, served: Served, registry: Arc<Registry>) -> Self {
        Self {
            source,
            verify,
            served,
            registry,
            passed_over: BTreeMap::new(),
        }
    }

    /// Looks at the folder once. Blocks on files and on loading models.
    pub(crate) fn look(&mut self) {
        let models = self.source.folder.join("models");
        // A folder that is gone is no news; its fingerprint would only take space.
        self.passed_over.retain(|folder, _| folder.is_dir());
        let names = folders(&models).filter(|name| PipelineName::new(name.as_str()).is_ok());
        for Reverse(name) in largest(names.map(Reverse), MAX_ENTRIES) {
            self.look_at_model(&models.join(&name), &name);
        }
    }

    fn look_at_model(&mut self, folder: &Path, name: &str) {
        let is_number = |text: &String| text.bytes().all(|b| b.is_ascii_digit());
        let versions = folders(folder)
            .filter(is_number)
            .filter_map(|text| Some((text.parse::<u64>().ok()?, folder.join(text))));
        let current = self.registry.get(name).map_or(0, |model| model.bundle.manifest.version);
        for (version, path) in largest(versions, MAX_ENTRIES) {
            if version == current {
                break;
            }
            let fingerprint = fingerprint(&path);
            if self.passed_over.get(&path) == Some(&fingerprint) {
                continue;
            }
            match self.try_release(name, version, &path) {
                Ok(model) => {
                    tracing::info!(model = name, version, digest = %model.bundle.digest, "a release is served");
                    self.registry.swap(name.to_owned(), model);
                    break;
                }
                Err(reason) => {
                    tracing::warn!(model = name, version, %reason, "a release is refused; what was served before is served on");
                    // What failed for want of space is tried again; everything else when it changes.
                    if !matches!(reason, Refused::Unrecorded(_)) {
                        self.passed_over.insert(path, fingerprint);
                    }
                }
            }
        }
    }

    fn try_release(&mut self, name: &str, version: u64, path: &Path) -> Result<Model, Refused> {
        let newest = self.served.newest(name);
        if let Some(newest) = newest.filter(|newest| version < newest.version) {
            return Err(Refused::Older { newest: newest.version });
        }
        let bundle = (self.verify)(&read_folder(path)?)?;
        let manifest = &bundle.manifest;
        if manifest.name != name || manifest.version != version {
            return Err(Refused::OtherPlace {
                name: manifest.name.chars().filter(|c| !c.is_control()).take(63).collect(),
                version: manifest.version,
            });
        }
        if newest.is_some_and(|newest| newest.version == version && newest.digest != bundle.digest) {
            return Err(Refused::Altered);
        }
        let digest = bundle.digest;
        let model = Model::load(bundle)?;
        // Written down before it is served: a crash in between costs nothing.
        self.served.record(name, version, digest).map_err(Refused::Unrecorded)?;
        Ok(model)
    }
}

/// The names of the folders in a folder, in no order; none when it is not there. Symbolic links are not
/// followed.
fn folders(folder: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// The largest items, the largest first, at most `most` of them, and never more in memory. A folder
/// lists its names in no order: taking the first ones could leave out the newest version.
fn largest<T: Ord>(items: impl Iterator<Item = T>, most: usize) -> Vec<T> {
    let mut kept = BTreeSet::new();
    for item in items {
        kept.insert(item);
        if kept.len() > most {
            kept.pop_first();
        }
    }
    kept.into_iter().rev().collect()
}

fn fingerprint(folder: &Path) -> Fingerprint {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Fingerprint = entries
        .take(MAX_ENTRIES)
        .map(|entry| {
            let metadata = entry.metadata().ok();
            let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
            let time = metadata.and_then(|metadata| metadata.modified().ok());
            (entry.file_name().to_string_lossy().into_owned(), length, time)
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_wherever_they_come() {
        let mixed = (0..10_u64).map(|at| at * 7 % 10);
        assert_eq!(largest(mixed, 3), [9, 8, 7]);
        assert_eq!(largest([1, 2].into_iter(), 3), [2, 1]);
        let names = ["b", "c", "a"].into_iter().map(Reverse);
        assert_eq!(largest(names, 2), [Reverse("a"), Reverse("b")]);
    }
}
