//! What was served, so that nothing older comes back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_types::Digest;

use crate::error::ServeError;

const FORMAT: &str = "tidegate.served.v1";
/// Far more than [`super::MAX_ENTRIES`] models need.
const MAX_BYTES: u64 = 1 << 20;

/// The newest release of a model that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Newest {
    pub(crate) version: u64,
    pub(crate) digest: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: String,
    models: BTreeMap<String, Newest>,
}

/// The newest release of each model, in a file where one was named.
#[derive(Debug)]
pub(crate) struct Served {
    file: Option<PathBuf>,
    models: BTreeMap<String, Newest>,
}

impl Served {
    /// Reads the record; a file that is not there yet is an empty one.
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self, ServeError> {
        let Some(path) = file else {
            return Ok(Self {
                file: None,
                models: BTreeMap::new(),
            });
        };
        let failed = |reason: String| ServeError::State {
            path: path.clone(),
            reason,
        };
        let models = match read(&path) {
            Ok(bytes) => {
                let record: Record =
                    serde_json::from_slice(&bytes).map_err(|error| failed(format!("it is damaged ({error})")))?;
                if record.format != FORMAT {
                    return Err(failed("its format is not known".to_owned()));
                }
                record.models
            }
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error.to_string())),
        };
        Ok(Self {
            file: Some(path),
            models,
        })
    }

    pub(crate) fn newest(&self, model: &str) -> Option<Newest> {
        self.models.get(model).copied()
    }

    /// Writes down that a version is served, before it is.
    pub(crate) fn record(&mut self, model: &str, version: u64, digest: Digest) -> std::io::Result<()> {
        let newest = Newest { version, digest };
        if self.newest(model) == Some(newest) {
            return Ok(());
        }
        let mut models = self.models.clone();
        models.insert(model.to_owned(), newest);
        let record = Record {
            format: FORMAT.to_owned(),
            models,
        };
        if let Some(file) = &self.file {
            write(file, &serde_json::to_vec(&record)?)?;
        }
        self.models = record.models;
        Ok(())
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The old content or the new, whatever happens in between.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_again_and_damage_is_not_an_empty_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/served.json");
        let digest = Digest::from_bytes([7; 32]);
        let mut served = Served::open(Some(path.clone())).unwrap();
        assert_eq!(served.newest("readmission"), None);
        served.record("readmission", 3, digest).unwrap();
        let again = Served::open(Some(path.clone())).unwrap();
        assert_eq!(again.newest("readmission"), Some(Newest { version: 3, digest }));

        for damaged in ["", "{}", "{\"format\":\"tidegate.served.v2\",\"models\":{}}"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(
                matches!(Served::open(Some(path.clone())), Err(ServeError::State { .. })),
                "{damaged}"
            );
        }
    }

    #[test]
    fn what_cannot_be_written_down_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let mut served = Served {
            file: Some(blocked.join("served.json")),
            models: BTreeMap::new(),
        };
        assert!(served.record("readmission", 1, Digest::from_bytes([7; 32])).is_err());
        assert_eq!(served.newest("readmission"), None);
    }
}
