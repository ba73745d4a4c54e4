use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fsync, linkat, mkdirat, open, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use tidegate_contracts::{ObjectInfo, ObjectName, Pace, Store, StoreError};

use crate::disk;

mod list;

/// Where objects are written before they get their names. `+` is in no object's name.
const INCOMING: &str = "+incoming";

/// A store that is a folder: every object is a file whose path is the object's name.
///
/// An object is written into a file of its own beside the others, brought to disk, and then given its
/// name by a rename that never replaces. Symbolic links inside the store are never followed, so nobody
/// who can write into the folder leads a reader out of it. Since a file cannot lie inside a file, a name
/// that continues another object's name (`a/b` where `a` is an object) is refused with
/// [`StoreError::Permanent`].
#[derive(Debug, Clone)]
pub struct FolderStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Whether an object that was put is still there after a loss of power.
    lasting: bool,
    /// Folders whose own names are known to be on disk.
    synced: Mutex<HashSet<String>>,
}

impl FolderStore {
    /// Opens the store in the folder `path`, making it where there is none, and removes what writers
    /// that were killed left behind.
    ///
    /// # Errors
    /// [`StoreError::Permanent`] or [`StoreError::Denied`] when the folder cannot be made or written.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::with(path.into(), true)
    }

    /// Opens a store for messages, each of them one JSON document, that are sent again after a loss of power. It
    /// may take the newest of them, or bring back what was removed last; what it tore is removed here. Nothing
    /// waits for the disk.
    ///
    /// # Errors
    /// As [`FolderStore::open`].
    pub fn open_mailbox(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self::with(path.into(), false)?;
        let root = store.path();
        let swept = File::open(root.join(INCOMING)).and_then(|incoming| {
            // One after the other: what comes after the first sweep is whole, and must stay.
            incoming.lock()?;
            remove_torn(root)
        });
        swept.map_err(|error| classify(error, || format!("opening the mailbox `{}`", root.display())))?;
        Ok(store)
    }

    fn with(root: PathBuf, lasting: bool) -> Result<Self, StoreError> {
        let failed = |error| classify(error, || format!("opening the store `{}`", root.display()));
        disk::private_folder(&root.join(INCOMING)).map_err(failed)?;
        remove_abandoned(&root.join(INCOMING)).map_err(failed)?;
        disk::sync_folder(&root).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                root,
                lasting,
                synced: Mutex::default(),
            }),
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.root
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &ObjectName,
        what: &'static str,
        work: impl FnOnce(&Shared, &ObjectName) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        let describe = || format!("{what} object `{name}`");
        let task = {
            let name = name.clone();
            tokio::task::spawn_blocking(move || work(&shared, &name))
        };
        match task.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Store(error))) => Err(error),
            Ok(Err(Failure::Io(error))) => Err(classify(error, describe)),
            Err(_) => Err(StoreError::Transient {
                what: describe(),
                source: io::Error::other("the step was stopped"),
            }),
        }
    }
}

/// What a step ends with before it is told to a caller.
enum Failure {
    Store(StoreError),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// What an error of the system means to whoever may try again.
fn classify(error: io::Error, what: impl FnOnce() -> String) -> StoreError {
    let what = what();
    match error.kind() {
        io::ErrorKind::PermissionDenied => StoreError::Denied {
            what,
            why: "this user may not do that".to_owned(),
        },
        io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy | io::ErrorKind::StaleNetworkFileHandle => {
            StoreError::Transient { what, source: error }
        }
        _ => match error.raw_os_error().map(Errno::from_raw_os_error) {
            // Too many open files: other tasks will close theirs.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN) => StoreError::Busy { what, after: None },
            _ => StoreError::Permanent { what, source: error },
        },
    }
}

/// Removes the files below `folder` that are no whole JSON document.
fn remove_torn(folder: &Path) -> io::Result<()> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != INCOMING {
            remove_torn(&path)?;
        } else if kind.is_file() {
            let file = match File::open(&path) {
                Ok(file) => io::BufReader::new(file),
                // Whoever it was for has taken it.
                Err(error) => {
                    gone(error)?;
                    continue;
                }
            };
            match serde_json::from_reader::<_, serde::de::IgnoredAny>(file) {
                Ok(_) => {}
                Err(error) if error.is_io() => return Err(error.into()),
                Err(_) => std::fs::remove_file(&path).or_else(gone)?,
            }
        }
    }
    Ok(())
}

/// Removes files in the incoming folder that no living writer holds.
fn remove_abandoned(incoming: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(incoming)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        // Held until it is gone: a writer that has made it, and waits for it, sees that it is.
        if file.try_lock().is_ok()
            && let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}

impl Shared {
    fn open_root(&self) -> Result<OwnedFd, Errno> {
        open(
            &self.root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// The folder that holds an object, and the last component of its name. With `make`, folders that
    /// are missing are made, and their names brought to disk.
    fn folder_of<'n>(&self, name: &'n ObjectName, make: bool) -> Result<(OwnedFd, &'n str), Errno> {
        let mut folder = self.open_root()?;
        let mut components = name.as_str().split('/').peekable();
        let mut length = 0;
        while let Some(component) = components.next() {
            if components.peek().is_none() {
                return Ok((folder, component));
            }
            length += component.len();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = match openat(&folder, component, flags, Mode::empty()) {
                Err(Errno::NOENT) if make => {
                    match mkdirat(&folder, component, Mode::RWXU) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    openat(&folder, component, flags, Mode::empty())?
                }
                opened => opened?,
            };
            if make {
                let path = name.as_str().get(..length).unwrap_or_default();
                self.sync_once(path, &folder)?;
            }
            length += 1;
            folder = inner;
        }
        Err(Errno::INVAL)
    }

    /// Brings the name of folder `path`, which lies in `parent`, to disk where it must last; once is enough.
    fn sync_once(&self, path: &str, parent: &OwnedFd) -> Result<(), Errno> {
        let known = |set: &HashSet<String>| set.contains(path);
        if self.lasting && !known(&self.synced.lock().unwrap_or_else(PoisonError::into_inner)) {
            fsync(parent)?;
            let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
            // A bound, so that years of mailboxes do not fill the memory; to sync again does no harm.
            if synced.len() >= 10_000 {
                synced.clear();
            }
            synced.insert(path.to_owned());
        }
        Ok(())
    }

    /// Brings the names in a folder to disk, where they must last.
    fn sync_names(&self, folder: &OwnedFd) -> Result<(), Errno> {
        if self.lasting { fsync(folder) } else { Ok(()) }
    }

    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<(), Failure> {
        let exists = || Failure::Store(StoreError::AlreadyExists(name.clone()));
        let (folder, last) = self.folder_of(name, true)?;
        match statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::RegularFile => {
                // Whoever put it may not have brought its name to disk yet; what we answer must be true.
                self.sync_names(&folder)?;
                return Err(exists());
            }
            Ok(_) => return Err(io::Error::other("something that is no object has its name").into()),
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let incoming = openat(self.open_root()?, INCOMING, flags, Mode::empty())?;
        let (new, mut file) = new_file(&incoming)?;
        let mut write = || -> io::Result<()> {
            file.write_all(body)?;
            if self.lasting {
                file.sync_all()?;
            }
            Ok(publish(&incoming, &new, &folder, last)?)
        };
        let published = write();
        if published.is_err() {
            let _ = unlinkat(&incoming, &new, AtFlags::empty());
        }
        match published {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.sync_names(&folder)?;
                Err(exists())
            }
            published => {
                published?;
                Ok(self.sync_names(&folder)?)
            }
        }
    }

    /// Opens an object's file and tells its length.
    fn open_object(&self, name: &ObjectName) -> Result<(File, u64), Failure> {
        let not_found = || Failure::Store(StoreError::NotFound(name.clone()));
        // A pipe in the place of an object must not hold the reader.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = self
            .folder_of(name, false)
            .and_then(|(folder, last)| openat(&folder, last, flags, Mode::empty()));
        let file = match opened {
            // `a/b` where `a` is an object is simply not there.
            Err(Errno::NOENT | Errno::NOTDIR) if !self.has_link(name)? => return Err(not_found()),
            opened => File::from(opened?),
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(not_found());
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file").into());
        }
        Ok((file, metadata.len()))
    }

    /// Whether one of the folders on the way to an object is a symbolic link, which the system reports
    /// like a file in the place of a folder.
    fn has_link(&self, name: &ObjectName) -> io::Result<bool> {
        let mut path = self.root.clone();
        for component in name.as_str().split('/') {
            path.push(component);
            match std::fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => return Ok(true),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), Failure> {
        let removed = self.folder_of(name, false).and_then(|(folder, last)| {
            unlinkat(&folder, last, AtFlags::empty())?;
            self.sync_names(&folder)
        });
        match removed {
            // A folder is no object, so the object is not there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) if !self.has_link(name)? => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// A file without a name of its own yet, which its writer holds.
fn new_file(incoming: &OwnedFd) -> io::Result<(String, File)> {
    loop {
        let new = disk::random_name("")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(incoming, &new, flags, Mode::RUSR | Mode::WUSR)?);
        file.lock()?;
        // Whoever opens the store in just this moment takes it for abandoned.
        if file.metadata()?.nlink() > 0 {
            return Ok((new, file));
        }
    }
}

/// Gives a file its name unless something has it. The flag is unknown to some network file systems;
/// there a second name and the removal of the first do the same in two steps.
fn publish(incoming: &OwnedFd, new: &str, folder: &OwnedFd, last: &str) -> Result<(), Errno> {
    match renameat_with(incoming, new, folder, last, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            linkat(incoming, new, folder, last, AtFlags::empty())?;
            unlinkat(incoming, new, AtFlags::empty())
        }
        renamed => renamed,
    }
}

fn read_at_most(file: File, limit: u64, mut body: Vec<u8>) -> io::Result<Vec<u8>> {
    body.clear();
    // A sealed shard, which is a little longer than what it holds, and what is read to see that it ends there.
    body.reserve_exact(usize::try_from(limit.min(65 << 20)).unwrap_or_default() + 32);
    file.take(limit).read_to_end(&mut body)?;
    Ok(body)
}

#[async_trait]
impl Store for FolderStore {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        self.run(name, "putting", move |shared, name| shared.put_new(name, &body))
            .await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        Ok(self.get_in(name, limit, Vec::new()).await?.into())
    }

    async fn get_in(&self, name: &ObjectName, limit: u64, room: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.run(name, "reading", move |shared, name| {
            let (file, bytes) = shared.open_object(name)?;
            if bytes > limit {
                return Err(Failure::Store(StoreError::TooLarge {
                    name: name.clone(),
                    bytes,
                    limit,
                }));
            }
            Ok(read_at_most(file, bytes, room)?)
        })
        .await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.run(name, "reading", move |shared, name| {
            let (mut file, bytes) = shared.open_object(name)?;
            let start = range.start.min(bytes);
            let length = range.end.min(bytes).saturating_sub(start);
            file.seek(SeekFrom::Start(start))?;
            Ok(read_at_most(file, length, Vec::new())?.into())
        })
        .await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.run(name, "looking at", |shared, name| {
            let (_, bytes) = shared.open_object(name)?;
            Ok(ObjectInfo {
                name: name.clone(),
                bytes,
            })
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let what = || format!("listing `{}`", prefix.escape_default());
        let (prefix_owned, after) = (prefix.to_owned(), after.cloned());
        let task = tokio::task::spawn_blocking(move || {
            let root = shared.open_root()?;
            list::list(&root, &prefix_owned, after.as_ref())
        });
        match task.await {
            Ok(listed) => listed.map_err(|error| classify(error, what)),
            Err(_) => Err(StoreError::Transient {
                what: what(),
                source: io::Error::other("the step was stopped"),
            }),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.run(name, "deleting", Shared::delete).await
    }

    fn pace(&self) -> Pace {
        Pace::NEAR
    }
}
