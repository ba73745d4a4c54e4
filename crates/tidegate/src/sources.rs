//! Brings what a dataset's source names in a store of a cloud to the private site, where it is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tidegate_cloud::{Address, Environment, Source, SourceAddress, SourceObject};
use tidegate_contracts::stage::StageError;
use tidegate_prepare::SourceFile;
use tidegate_seal::digest::{Sha256, sha256, sha256_reader};
use tidegate_transfer::patiently;
use tidegate_types::digest::Digest;
use tokio::io::AsyncWriteExt;

const BRINGING: &str = "bringing the source of the dataset here";
/// What is asked for in one request.
const PART_BYTES: u64 = 16 << 20;
/// What a folder of brought files says of them.
const LISTING: &str = "brought.json";

/// Digests of the brought files by their names.
type Listing = BTreeMap<String, Digest>;

/// Whether a source lies in a store of a cloud.
pub(crate) fn is_elsewhere(source: &str) -> bool {
    Address::is_meant(source)
}

/// Copies the objects of `source` into `folder`, those that are not there already; removes what the source does
/// not name any more. Nothing of it is ever written back.
///
/// # Errors
/// When the address is none, the store cannot be read, or an object changed meanwhile.
pub(crate) async fn bring(
    source: &str,
    folder: &Path,
    environment: &Environment,
) -> Result<Vec<SourceFile>, StageError> {
    let address: SourceAddress = source
        .parse()
        .map_err(|error| StageError::Input(format!("{BRINGING}: {error}")))?;
    let shown = address.to_string();
    let opened = Source::open(address, environment).map_err(failed)?;
    let objects = patiently(|| opened.objects()).await.map_err(failed)?;
    if objects.is_empty() {
        let why = format!("{BRINGING}: `{shown}` names no object; correct `source` in the catalog");
        return Err(StageError::Input(why));
    }
    // Each source has a folder of its own, and one process at a time changes it.
    let digest = sha256(shown.as_bytes()).to_hex();
    let folder = folder.join(digest.get(..16).unwrap_or_default());
    fs::create_dir_all(&folder).map_err(failed)?;
    let lock = folder.join(".lock");
    let _lock = tokio::task::spawn_blocking(move || {
        let file = File::create(lock)?;
        file.lock().map(|()| file)
    })
    .await
    .map_err(failed)?
    .map_err(failed)?;
    let known = listing(&folder)?;
    let mut brought = Listing::new();
    let mut files = Vec::with_capacity(objects.len());
    for object in &objects {
        let name = file_name(object);
        let path = folder.join(&name);
        let kept = known.get(&name).copied();
        let digest = match kept {
            Some(digest) if digest_of(path.clone()).await? == Some(digest) => digest,
            _ => copy(&opened, object, &path).await?,
        };
        brought.insert(name, digest);
        files.push(SourceFile {
            path,
            name: object.key.clone(),
        });
    }
    if brought != known {
        let bytes = serde_json::to_vec(&brought).map_err(failed)?;
        let new = folder.join(format!("{LISTING}.new"));
        fs::write(&new, bytes).map_err(failed)?;
        File::open(&new).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&new, folder.join(LISTING)).map_err(failed)?;
    }
    forget(&folder, &brought).map_err(failed)?;
    Ok(files)
}

/// One object, whole and of the version that was listed, or nothing under its name.
async fn copy(source: &Source, object: &SourceObject, path: &Path) -> Result<Digest, StageError> {
    let new = path.with_extension("new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = tokio::fs::File::from_std(options.open(&new).map_err(failed)?);
    let mut digest = Sha256::default();
    let mut at = 0;
    while at < object.bytes {
        let end = object.bytes.min(at + PART_BYTES);
        let part = patiently(|| source.read(object, at..end)).await.map_err(failed)?;
        digest.update(&part);
        file.write_all(&part).await.map_err(failed)?;
        at = end;
    }
    file.sync_all().await.map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(digest.finish())
}

/// What the folder says it holds. A listing that cannot be read says that nothing is there.
fn listing(folder: &Path) -> Result<Listing, StageError> {
    match fs::read(folder.join(LISTING)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Listing::new()),
        Err(error) => Err(failed(error)),
    }
}

/// A name for an object's content. What the source calls it may be no file's name.
fn file_name(object: &SourceObject) -> String {
    let digest = sha256(format!("{}\n{}\n{}", object.key, object.bytes, object.version).as_bytes()).to_hex();
    let ending = Path::new(&object.key).extension().and_then(|ending| ending.to_str());
    let ending = ending.filter(|ending| ending.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    format!("{digest}.{}", ending.unwrap_or("csv").to_ascii_lowercase())
}

async fn digest_of(path: PathBuf) -> Result<Option<Digest>, StageError> {
    let read = move || match File::open(path) {
        Ok(file) => sha256_reader(file).map(|(digest, _)| Some(digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    tokio::task::spawn_blocking(read).await.map_err(failed)?.map_err(failed)
}

/// Removes personal data that nobody reads any more.
fn forget(folder: &Path, brought: &Listing) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && name != LISTING && !brought.contains_key(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn failed(why: impl std::fmt::Display) -> StageError {
    StageError::Failed(format!("{BRINGING}: {why}"))
}
