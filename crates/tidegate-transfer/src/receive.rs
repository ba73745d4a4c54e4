use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures::stream::{self, StreamExt, TryStreamExt};
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use rustix::io::Errno;
use tidegate_contracts::{ObjectName, Store, StoreError};
use tidegate_seal::digest::{Sha256, sha256};
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{open_index, open_packing_list};
use tidegate_seal::random::random_bytes;
use tidegate_seal::shard::PlainShard;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::artifact::{SealedIndex, SealedObject, ShardKey};
use tidegate_types::ids::PermitId;
use tidegate_types::{ArtifactId, Digest, FileEntry, Label, Manifest, PackingList, Refusal, SiteName};

use crate::error::TransferError;
use crate::retry;
use crate::send::{blocking, packing_list_name, sealed_name};
use crate::sweep::MAX_LIST_BYTES;
use crate::tree::{MAX_FILES, files_of, open_folder, path_fault};

/// As many files are brought to disk one by one; more of them by one call for all that the disk has not yet.
const FEW_FILES: usize = 256;
/// Shards fetched and opened ahead of the one that is written.
const AHEAD: usize = 2;

/// What the receiver knows before it looks: everything in the store is held against it.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Where the signed packing list is.
    pub packing_list: &'a ObjectName,
    /// SHA-256 of that object.
    pub packing_list_digest: &'a Digest,
    /// Who must have signed it.
    pub sender: &'a VerifyingKey,
    /// The organisation.
    pub organisation: &'a str,
    /// The artifact; `None` for a worker's output, which nobody could name beforehand.
    pub artifact: Option<&'a ArtifactId>,
    /// The permit of the crossing.
    pub permit: &'a PermitId,
    /// SHA-256 of its signed payload.
    pub permit_digest: &'a Digest,
    /// The receiving site.
    pub to: &'a SiteName,
    /// The data key's commitment, where a grant or record names it.
    pub key_commitment: Option<&'a Digest>,
    /// The most bytes to fetch: packing list, index and shards, as sealed.
    pub byte_limit: u64,
    /// The most bytes of all files together, which shards unpack to: a thousandth of it may be sealed.
    pub plaintext_limit: u64,
    /// The highest label that it may carry; `None` where the artifact is named, and its label with it.
    pub ceiling: Option<&'a Label>,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What it is.
    pub manifest: Manifest,
    /// Its packing list.
    pub list: PackingList,
    /// Bytes of packing list, index and shards.
    pub bytes: u64,
}

/// Fetches, verifies and opens an artifact into the folder `destination`, whose parent must exist.
///
/// The folder appears by one rename, whole, or not at all; files have mode 0600. When it is already
/// there with exactly the manifest's files, nothing is fetched but packing list and index.
///
/// # Errors
/// [`TransferError::Seal`] when the key is not the right one or something was altered, cut, swapped or
/// signed by somebody else; [`TransferError::Unexpected`] when something genuine is not what was
/// expected; [`TransferError::Refused`] when its label is too high; [`TransferError::Destination`] when the folder is there with other files;
/// [`TransferError::Store`] and [`TransferError::Local`] when store or disk fail.
pub async fn receive(
    expected: &Expected<'_>,
    store: &dyn Store,
    data_key: &DataKey,
    destination: &Path,
) -> Result<Received, TransferError> {
    let (list, index, list_bytes) = open_list(expected, store, data_key).await?;
    let unexpected = |why: &str| TransferError::Unexpected {
        name: expected.packing_list.clone(),
        why: why.to_owned(),
    };
    if let Some(ceiling) = expected.ceiling
        && !index.manifest.label.flows_to(ceiling)
    {
        return Err(Refusal {
            rule: "label-above-slot".to_owned(),
            what: format!("receiving artifact {} at site `{}`", list.artifact.short(), expected.to),
            why: format!(
                "its label is `{}`, and it may carry `{ceiling}` at the most",
                index.manifest.label
            ),
            fix: "let the worker label its output as its inputs".to_owned(),
        }
        .into());
    }
    // Shards unpack to exactly the bytes that the index names, so nothing more ever comes out of them.
    if index.manifest.total_bytes() > expected.plaintext_limit {
        return Err(unexpected("its files have more bytes than are accepted"));
    }
    if index.manifest.files.len() > MAX_FILES {
        return Err(unexpected("it has more files than an artifact may have"));
    }
    if let Some(why) = index.manifest.files.iter().find_map(|file| path_fault(&file.path)) {
        return Err(unexpected(&format!("a path in its manifest cannot be used: {why}")));
    }
    let received = Received {
        bytes: total_bytes(&list, list_bytes),
        manifest: index.manifest,
        list,
    };
    let (target, files) = (destination.to_owned(), received.manifest.files.clone());
    let Some(mut folder) = blocking(move || Partial::begin(&target, files)).await? else {
        return Ok(received);
    };
    // Owned pairs: over borrowed ones the compiler cannot tell a caller that this future is `Send`.
    let shards: Vec<_> = received.list.shards.iter().cloned().zip(index.shards).collect();
    // Memory that shards no longer need: new memory costs the system as much as opening does.
    let rooms = Mutex::new(Vec::new());
    let mut opened = stream::iter(shards)
        .map(|(object, key)| {
            let room = rooms.lock().unwrap_or_else(PoisonError::into_inner).pop();
            open(store, object, key, expected.organisation, room.unwrap_or_default())
        })
        .buffered(AHEAD);
    while let Some(plaintext) = opened.try_next().await? {
        let room;
        (folder, room) = blocking(move || {
            for piece in plaintext.pieces() {
                folder = folder.write(piece)?;
            }
            Ok((folder, plaintext.into_room()))
        })
        .await?;
        rooms.lock().unwrap_or_else(PoisonError::into_inner).push(room);
    }
    drop(opened);
    blocking(move || folder.finish()).await?;
    Ok(received)
}

/// The verified packing list, the index that it names, and the list's length in bytes.
pub(crate) async fn open_list(
    expected: &Expected<'_>,
    store: &dyn Store,
    data_key: &DataKey,
) -> Result<(PackingList, SealedIndex, u64), TransferError> {
    let (list, list_bytes) = packing_list(expected, store, data_key).await?;
    let sealed = fetch(store, &list.index, Vec::new()).await?;
    if sha256(&sealed) != list.index.digest {
        return Err(another(&list.index));
    }
    let index = open_index(&sealed, data_key, expected.organisation, &list.artifact)
        .map_err(TransferError::seal("opening the sealed index"))?;
    if index.shards.len() != list.shards.len() {
        return Err(TransferError::Unexpected {
            name: expected.packing_list.clone(),
            why: "it has another number of shards than its sealed index".to_owned(),
        });
    }
    Ok((list, index, list_bytes))
}

fn total_bytes(list: &PackingList, list_bytes: u64) -> u64 {
    let objects = list.shards.iter().chain([&list.index]);
    objects.fold(list_bytes, |sum, object| sum.saturating_add(object.bytes))
}

/// The verified packing list and its length in bytes: what [`receive`] checks first. Nothing that it names is fetched.
///
/// # Errors
/// As [`receive`].
pub async fn packing_list(
    expected: &Expected<'_>,
    store: &dyn Store,
    data_key: &DataKey,
) -> Result<(PackingList, u64), TransferError> {
    let name = expected.packing_list;
    let bytes = retry::patiently(|| store.get(name, MAX_LIST_BYTES.min(expected.byte_limit)))
        .await
        .map_err(TransferError::store("fetching the packing list"))?;
    let unexpected = |why: &str| {
        Err(TransferError::Unexpected {
            name: name.clone(),
            why: why.to_owned(),
        })
    };
    if sha256(&bytes) != *expected.packing_list_digest {
        return unexpected("its digest is not the one that was told");
    }
    let list = open_packing_list(&bytes, expected.sender).map_err(TransferError::seal("verifying the packing list"))?;
    if list.organisation != expected.organisation {
        return unexpected("it is of another organisation");
    }
    if list.to != *expected.to {
        return unexpected("it is for another site");
    }
    if list.permit != *expected.permit || list.permit_digest != *expected.permit_digest {
        return unexpected("it names another permit");
    }
    if expected.artifact.is_some_and(|artifact| *artifact != list.artifact) {
        return unexpected("it names another artifact");
    }
    if *name != packing_list_name(&list.run, &list.permit, &list.artifact) {
        return unexpected("it was published under another name");
    }
    if expected
        .key_commitment
        .is_some_and(|commitment| *commitment != list.key_commitment)
    {
        return unexpected("it was sealed under another data key than the one that was granted");
    }
    if data_key.commitment() != list.key_commitment {
        return unexpected("the data key that was given is not the one that it was sealed under");
    }
    let bytes = bytes.len() as u64;
    if total_bytes(&list, bytes) > expected.byte_limit {
        return unexpected("it names more bytes than are accepted");
    }
    Ok((list, bytes))
}

/// Fetches one sealed object of the length that was named, into `room`.
async fn fetch(store: &dyn Store, object: &SealedObject, mut room: Vec<u8>) -> Result<Vec<u8>, TransferError> {
    let name = sealed_name(&object.digest);
    match retry::patiently(|| store.get_in(&name, object.bytes, std::mem::take(&mut room))).await {
        Ok(bytes) if bytes.len() as u64 == object.bytes => Ok(bytes),
        Ok(_) => Err(another(object)),
        Err(StoreError::TooLarge { .. }) => Err(TransferError::Unexpected {
            name,
            why: "it is longer than the packing list says".to_owned(),
        }),
        Err(error) => Err(TransferError::store("fetching a sealed object")(error)),
    }
}

fn another(object: &SealedObject) -> TransferError {
    TransferError::Unexpected {
        name: sealed_name(&object.digest),
        why: "it is not the object that the packing list names".to_owned(),
    }
}

async fn open(
    store: &dyn Store,
    object: SealedObject,
    key: ShardKey,
    organisation: &str,
    room: Vec<u8>,
) -> Result<PlainShard, TransferError> {
    let sealed = fetch(store, &object, room).await?;
    let organisation = organisation.to_owned();
    let opening = TransferError::seal("opening a shard");
    blocking(move || {
        let (mut digest, mut seen) = (Sha256::default(), false);
        let opened = PlainShard::open_watching(sealed, &key, &organisation, |piece| {
            digest.update(piece);
            seen = true;
        });
        match opened {
            // Its key is none, so that nobody looked at it.
            Err(error) if !seen => Err(opening(error)),
            // Another object is told as that, whether or not it opens.
            _ if digest.finish() != object.digest => Err(another(&object)),
            opened => opened.map_err(opening),
        }
    })
    .await
}

/// A folder that is being filled beside its destination. Dropped unfinished, it is removed; left behind
/// by a crash, the next call removes it.
struct Partial {
    path: PathBuf,
    destination: PathBuf,
    files: Vec<FileEntry>,
    /// Index of the file that is being written, and what of it is missing.
    at: usize,
    missing: u64,
    open: Option<File>,
    finished: bool,
    /// Held until the end, so that nobody takes this folder for one that was left behind.
    _lock: File,
}

impl Partial {
    /// Begins, unless the destination is already there with the same files. Blocks.
    fn begin(destination: &Path, files: Vec<FileEntry>) -> Result<Option<Self>, TransferError> {
        if is_there(destination, &files)? {
            return Ok(None);
        }
        let failed = || TransferError::local("making a folder to receive into");
        let (parent, prefix) = beside(destination).map_err(failed())?;
        remove_abandoned(&parent, &prefix);
        let path = loop {
            let random: [u8; 8] = random_bytes().map_err(TransferError::seal("naming a folder"))?;
            let path = parent.join(format!("{prefix}{:016x}", u64::from_be_bytes(random)));
            DirBuilder::new().mode(0o700).create(&path).map_err(failed())?;
            let lock = File::open(&path).map_err(failed())?;
            // Somebody who tidies up may have been faster than the lock.
            let inode = lock.metadata().map_err(failed())?.ino();
            if lock.try_lock().is_ok() && std::fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
                break (path, lock);
            }
        };
        let (path, lock) = path;
        let mut partial = Self {
            path,
            destination: destination.to_owned(),
            files,
            at: 0,
            missing: 0,
            open: None,
            finished: false,
            _lock: lock,
        };
        partial.next_files()?;
        Ok(Some(partial))
    }

    /// Opens the next file that has bytes, making empty ones on the way.
    fn next_files(&mut self) -> Result<(), TransferError> {
        while self.missing == 0 {
            if let Some(done) = self.open.take() {
                if self.files.len() <= FEW_FILES {
                    done.sync_all()
                        .map_err(TransferError::local("writing a received file"))?;
                }
                self.at += 1;
            }
            let Some(file) = self.files.get(self.at) else {
                return Ok(());
            };
            let making = || TransferError::local(format!("making file `{}`", file.path));
            let path = self.path.join(&file.path);
            let folder = path.parent().unwrap_or(&self.path);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(making())?;
            let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            self.open = Some(options.map_err(making())?);
            self.missing = file.bytes;
        }
        Ok(())
    }

    fn write(mut self, mut plaintext: &[u8]) -> Result<Self, TransferError> {
        while !plaintext.is_empty() {
            let Some(file) = self.open.as_mut() else {
                return Err(TransferError::local("writing received files")(io::Error::other(
                    "there are more bytes than files",
                )));
            };
            let here = usize::try_from(self.missing).map_or(plaintext.len(), |missing| missing.min(plaintext.len()));
            let (now, later) = plaintext.split_at(here);
            file.write_all(now)
                .map_err(TransferError::local("writing a received file"))?;
            self.missing -= here as u64;
            plaintext = later;
            self.next_files()?;
        }
        Ok(self)
    }

    fn finish(mut self) -> Result<(), TransferError> {
        if self.at != self.files.len() {
            return Err(TransferError::local("writing received files")(
                io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        let failed = || TransferError::local("completing the received folder");
        if self.files.len() <= FEW_FILES {
            sync_folders(&self.path).map_err(failed())?;
        } else {
            let synced = File::open(&self.path).and_then(|folder| Ok(syncfs(folder)?));
            synced.map_err(failed())?;
        }
        let (parent, _) = beside(&self.destination).map_err(failed())?;
        match renameat_with(CWD, &self.path, CWD, &self.destination, RenameFlags::NOREPLACE) {
            // A file system without that flag; a folder that is not empty is not replaced anyway.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(&self.path, &self.destination).map_err(failed())?,
            // Another receiver of the same artifact was faster.
            Err(Errno::EXIST) if is_there(&self.destination, &self.files)? => return Ok(()),
            renamed => renamed.map_err(io::Error::from).map_err(failed())?,
        }
        self.finished = true;
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing more can be done here; the next call tries again.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The folder beside which a destination is filled, and how names of unfinished folders begin.
fn beside(destination: &Path) -> io::Result<(PathBuf, String)> {
    let name = destination.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the folder has no name in UTF-8"))?;
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((parent.unwrap_or(Path::new(".")).to_owned(), format!(".{name}.partial-")))
}

/// Removes what crashed receivers left. Whatever cannot be removed now is no reason to stop.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))
            && let Ok(folder) = File::open(entry.path())
            && folder.try_lock().is_ok()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the destination is there with exactly these files. Since it can only have appeared whole and
/// verified, paths and lengths are compared, not contents.
fn is_there(destination: &Path, files: &[FileEntry]) -> Result<bool, TransferError> {
    let there = match open_folder(destination) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => files_of(
            &opened.map_err(TransferError::local("looking at the folder to receive into"))?,
            |_| true,
        )?,
    };
    let mut wanted: Vec<(&str, u64)> = files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    wanted.sort_unstable();
    let differs = |path: &str| Err(TransferError::Destination { path: path.to_owned() });
    for position in 0..there.len().max(wanted.len()) {
        match (there.get(position), wanted.get(position)) {
            (Some((path, bytes)), Some(wanted)) if (path.as_str(), *bytes) == *wanted => {}
            (Some((path, _)), _) => return differs(path),
            (None, wanted) => return differs(wanted.map_or("", |(path, _)| *path)),
        }
    }
    Ok(true)
}

/// Makes the names in a folder and all folders below survive a crash.
fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}
