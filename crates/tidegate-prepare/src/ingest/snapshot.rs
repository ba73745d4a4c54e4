//! Immutable copies of a source. A snapshot is a folder named by its content: the files byte for
//! byte, and `snapshot.json` that lists them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use tidegate_types::{Digest, to_canonical_json};

use super::durable::{self, Draft};
use super::source::{Format, InputFile};
use crate::error::PrepareError;

const FORMAT: &str = "tidegate.snapshot.v1";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    format: String,
    files: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// What the source calls it.
    name: String,
    bytes: u64,
    digest: Digest,
}

impl Entry {
    fn of(source: &InputFile, target: Option<&Path>) -> Result<Self, PrepareError> {
        let (bytes, digest) = copy(&source.path, target)?;
        Ok(Self {
            name: source.shown.clone(),
            bytes,
            digest,
        })
    }
}

/// A copy of a source that nothing changes any more.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) digest: Digest,
    pub(crate) files: Vec<InputFile>,
}

impl Snapshot {
    /// Copies `sources` into a folder below `folder`, unless the same content is there already.
    pub(crate) fn take(sources: &[InputFile], folder: &Path) -> Result<Self, PrepareError> {
        fs::create_dir_all(folder).map_err(|source| PrepareError::file("creating", folder, source))?;
        durable::sweep(folder)?;
        let mut entries = Vec::with_capacity(sources.len());
        for source in sources {
            entries.push(Entry::of(source, None)?);
        }
        let known = folder.join(name_of(&listing(entries)?.1));
        match Self::open(&known) {
            Ok(found) => return Ok(found),
            Err(PrepareError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("the snapshot is taken again: {error}"),
        }
        // The source still says what it should hold.
        durable::set_aside(&known)?;
        // What counts is what was copied: a source that changed since it was first read gets the
        // name of its new content.
        let draft = Draft::new(&known)?;
        let mut entries = Vec::with_capacity(sources.len());
        for (number, source) in sources.iter().enumerate() {
            let target = draft.path().join(file_name(number, source.format));
            entries.push(Entry::of(source, Some(&target))?);
        }
        let (bytes, digest) = listing(entries)?;
        let target = folder.join(name_of(&digest));
        if target != known {
            return Err(PrepareError::failed(
                "taking a snapshot of the source",
                "it changed while it was read",
                "Run again when nothing writes to it any more",
            ));
        }
        let path = draft.path().join("snapshot.json");
        fs::write(&path, bytes).map_err(|source| PrepareError::file("writing", &path, source))?;
        draft.publish()?;
        Self::open(&target)
    }

    /// Opens a snapshot by its folder; a listing that does not fit the folder's name, and a file that does
    /// not have the digest in the listing, are refused.
    pub(crate) fn open(folder: &Path) -> Result<Self, PrepareError> {
        let path = folder.join("snapshot.json");
        let bytes = fs::read(&path).map_err(|source| PrepareError::file("reading", &path, source))?;
        let damaged = || {
            PrepareError::failed(
                format!("opening the snapshot `{}`", folder.display()),
                "it is not what it was when it was taken",
                "Remove the folder and prepare again",
            )
        };
        let found: Listing = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let (_, digest) = listing(found.files.clone())?;
        if found.format != FORMAT || folder.file_name().is_none_or(|name| *name != *name_of(&digest)) {
            return Err(damaged());
        }
        let mut files = Vec::with_capacity(found.files.len());
        for (number, entry) in found.files.into_iter().enumerate() {
            let format = if entry.name.to_ascii_lowercase().ends_with(".parquet") {
                Format::Parquet
            } else {
                Format::Csv
            };
            let path = folder.join(file_name(number, format));
            if copy(&path, None).map_err(|_| damaged())? != (entry.bytes, entry.digest) {
                return Err(damaged());
            }
            files.push(InputFile {
                path,
                shown: entry.name,
                format,
            });
        }
        Ok(Self { digest, files })
    }

    /// Where the snapshot with this digest lies below `folder`.
    pub(crate) fn path(folder: &Path, digest: &Digest) -> PathBuf {
        folder.join(name_of(digest))
    }
}

fn name_of(digest: &Digest) -> String {
    digest.to_hex()
}

fn file_name(number: usize, format: Format) -> String {
    format!("{number:05}.{}", format.extension())
}

fn listing(files: Vec<Entry>) -> Result<(Vec<u8>, Digest), PrepareError> {
    let listing = Listing {
        format: FORMAT.to_owned(),
        files,
    };
    let bytes = to_canonical_json(&listing)
        .map_err(|error| PrepareError::failed("describing the snapshot", error.to_string(), "Report this"))?;
    let digest = digest_of(&bytes);
    Ok((bytes, digest))
}

/// SHA-256 of a file.
pub(crate) fn digest_of_file(path: &Path) -> Result<Digest, PrepareError> {
    copy(path, None).map(|(_, digest)| digest)
}

/// SHA-256 of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    finish(digest::digest(&digest::SHA256, bytes))
}

fn finish(found: digest::Digest) -> Digest {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(found.as_ref()) {
        *to = *from;
    }
    Digest::from_bytes(bytes)
}

/// Reads a file to its end, and writes what was read to `target`. Gives the length and the digest.
fn copy(source: &Path, target: Option<&Path>) -> Result<(u64, Digest), PrepareError> {
    let reading = |error: io::Error| PrepareError::file("reading", source, error);
    let mut from = File::open(source).map_err(reading)?;
    let mut to = match target {
        Some(path) => Some((
            path,
            File::create(path).map_err(|error| PrepareError::file("writing", path, error))?,
        )),
        None => None,
    };
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0_u64;
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(reading(error)),
        };
        let chunk = buffer.get(..length).unwrap_or_default();
        context.update(chunk);
        bytes += length as u64;
        if let Some((path, file)) = &mut to {
            file.write_all(chunk)
                .map_err(|error| PrepareError::file("writing", path, error))?;
        }
    }
    if let Some((path, file)) = to {
        let protect = || {
            file.sync_all()?;
            let mut permissions = file.metadata()?.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(path, permissions)
        };
        protect().map_err(|error| PrepareError::file("writing", path, error))?;
    }
    Ok((bytes, finish(context.finish())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source;

    #[test]
    fn a_snapshot_keeps_its_content_and_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.csv"), "x\n1\n").unwrap();
        let sources = source::find(folder.path(), "a.csv").unwrap();
        let store = folder.path().join("snapshots");
        let first = Snapshot::take(&sources, &store).unwrap();
        assert_eq!(first.digest, Snapshot::take(&sources, &store).unwrap().digest);
        fs::write(folder.path().join("a.csv"), "x\n2\n").unwrap();
        let second = Snapshot::take(&sources, &store).unwrap();
        assert_ne!(first.digest, second.digest);
        assert_eq!(fs::read_to_string(&first.files[0].path).unwrap(), "x\n1\n");
        assert_eq!(fs::read_dir(&store).unwrap().count(), 2);
    }

    #[test]
    fn a_changed_file_of_the_same_length_is_refused_and_taken_again_from_the_source() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.csv"), "x\n1\n").unwrap();
        let sources = source::find(folder.path(), "a.csv").unwrap();
        let store = folder.path().join("snapshots");
        let snapshot = Snapshot::take(&sources, &store).unwrap();
        let path = &snapshot.files[0].path;
        fs::remove_file(path).unwrap();
        fs::write(path, "x\n2\n").unwrap();
        let error = Snapshot::open(&Snapshot::path(&store, &snapshot.digest)).unwrap_err();
        assert!(
            error.to_string().contains("is not what it was when it was taken"),
            "{error}"
        );
        let again = Snapshot::take(&sources, &store).unwrap();
        assert_eq!(again.digest, snapshot.digest);
        assert_eq!(fs::read_to_string(path).unwrap(), "x\n1\n");
    }

    #[test]
    fn a_changed_listing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.csv"), "x\n1\n").unwrap();
        let sources = source::find(folder.path(), "a.csv").unwrap();
        let store = folder.path().join("snapshots");
        let snapshot = Snapshot::take(&sources, &store).unwrap();
        let listing = Snapshot::path(&store, &snapshot.digest).join("snapshot.json");
        let text = fs::read_to_string(&listing).unwrap().replace("a.csv", "b.csv");
        fs::write(&listing, text).unwrap();
        assert!(Snapshot::open(&Snapshot::path(&store, &snapshot.digest)).is_err());
    }
}
