//! Brings what a dataset's source names in a store of a cloud to the private site, where it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tidegate_cloud::{Address, Environment, Source, SourceAddress, SourceObject};
use tidegate_contracts::stage::StageError;
use tidegate_prepare::SourceFile;
use tidegate_seal::digest::{Sha256, sha256, sha256_reader};
use tidegate_transfer::patiently;
use tidegate_types::digest::Digest;
use tidegate_types::files::Catalog;
use tokio::io::AsyncWriteExt;

const BRINGING: &str = "bringing the source of the dataset here";
/// What is asked for in one request.
const PART_BYTES: u64 = 16 << 20;
/// Held by whoever changes a folder, or reads what is in it.
const LOCK: &str = ".lock";
/// What the names of files begin with that are not whole yet.
const UNFINISHED: &str = ".new-";

/// The files of a source, which stay as they are while this is held.
pub(crate) struct Brought {
    pub(crate) files: Vec<SourceFile>,
    _lock: File,
}

/// Copies the objects that the source of a dataset names into a folder below `folder`, those that are not there
/// already, and removes what no source of the catalog names any more. Nothing is ever written back. None where the
/// source lies in files.
///
/// # Errors
/// When the address is none, the store cannot be read, or an object changed meanwhile.
pub(crate) async fn bring(
    source: &str,
    catalog: &Catalog,
    folder: &Path,
    environment: &Environment,
) -> Result<Option<Brought>, StageError> {
    forget_others(catalog, folder).map_err(failed)?;
    if !Address::is_meant(source) {
        return Ok(None);
    }
    let address: SourceAddress = source
        .parse()
        .map_err(|error| StageError::Input(format!("{BRINGING}: {error}")))?;
    let shown = address.to_string();
    let folder = folder.join(name_of(source));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(failed)?;
    let lock = folder.join(LOCK);
    let lock = tokio::task::spawn_blocking(move || {
        let file = private(&lock)?;
        file.lock().map(|()| file)
    });
    let lock = lock.await.map_err(failed)?.map_err(failed)?;
    let opened = Source::open(address, environment).map_err(failed)?;
    let objects = patiently(|| opened.objects()).await.map_err(failed)?;
    let there = there(&folder).map_err(failed)?;
    let mut kept = BTreeSet::new();
    let mut files = Vec::with_capacity(objects.len());
    for object in &objects {
        let id = id_of(object);
        let known = match there.get(&id) {
            Some(path) => verified(path.clone()).await?,
            None => None,
        };
        let path = match known {
            Some(path) => path,
            None => copy(&opened, object, &folder, &id).await?,
        };
        kept.insert(path.clone());
        files.push(SourceFile {
            path,
            name: object.key.clone(),
        });
    }
    // Records that were removed from the source are not kept here, also where all of them were.
    for path in there.into_values().filter(|path| !kept.contains(path)) {
        match fs::remove_file(path) {
            // It was not what its name says, and another copy has taken its place.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    if files.is_empty() {
        let why = format!("{BRINGING}: `{shown}` names no object; correct `source` in the catalog");
        return Err(StageError::Input(why));
    }
    Ok(Some(Brought { files, _lock: lock }))
}

/// One object, whole and of the version that was listed, or nothing under its name.
async fn copy(source: &Source, object: &SourceObject, folder: &Path, id: &str) -> Result<PathBuf, StageError> {
    let new = folder.join(format!("{UNFINISHED}{id}"));
    let mut file = tokio::fs::File::from_std(private(&new).map_err(failed)?);
    let mut digest = Sha256::default();
    let mut at = 0;
    while at < object.bytes {
        let end = object.bytes.min(at + PART_BYTES);
        let part = patiently(|| source.read(object, at..end)).await.map_err(failed)?;
        digest.update(&part);
        file.write_all(&part).await.map_err(failed)?;
        at = end;
    }
    // What could not be written is told by this alone.
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    if file.metadata().await.map_err(failed)?.len() != object.bytes {
        return Err(failed("not all of an object could be written"));
    }
    let path = folder.join(format!("{id}.{}", digest.finish().to_hex()));
    fs::rename(&new, &path).map_err(failed)?;
    Ok(path)
}

/// A file of its owner alone, empty where there is none of its name yet.
fn private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The folder of a source, by all that is said of it.
fn name_of(source: &str) -> String {
    sha256(source.as_bytes()).to_hex().chars().take(32).collect()
}

/// A name for an object's version. What the source calls it may be no file's name.
fn id_of(object: &SourceObject) -> String {
    let named = format!("{}\n{}\n{}", object.key, object.bytes, object.version);
    name_of(&named)
}

/// The files in a folder, by the versions that they are of: their names end with the digests of their contents. What is
/// not whole is removed.
fn there(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut there = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.split_once('.') {
            Some((id, _)) if !id.is_empty() && !there.contains_key(id) => {
                there.insert(id.to_owned(), entry.path());
            }
            _ if name == LOCK => {}
            _ => fs::remove_file(entry.path())?,
        }
    }
    Ok(there)
}

/// A file that is what its name says.
async fn verified(path: PathBuf) -> Result<Option<PathBuf>, StageError> {
    let verify = move || {
        let (found, _) = sha256_reader(File::open(&path)?)?;
        let named: Option<Digest> = path.extension().and_then(|hex| hex.to_str()?.parse().ok());
        if named == Some(found) {
            return Ok(Some(path));
        }
        fs::remove_file(&path)?;
        Ok::<_, io::Error>(None)
    };
    tokio::task::spawn_blocking(verify)
        .await
        .map_err(failed)?
        .map_err(failed)
}

/// Removes what was brought from sources that the catalog does not name any more.
fn forget_others(catalog: &Catalog, folder: &Path) -> io::Result<()> {
    let named: BTreeSet<String> = catalog
        .datasets
        .values()
        .map(|dataset| name_of(&dataset.source))
        .collect();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let known = named.contains(entry.file_name().to_string_lossy().as_ref());
        if known || !entry.file_type()?.is_dir() {
            continue;
        }
        // Whoever still reads it removes it, or the next run does.
        let lock = private(&entry.path().join(LOCK))?;
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn failed(why: impl std::fmt::Display) -> StageError {
    StageError::Failed(format!("{BRINGING}: {why}"))
}
