//! Notes about a crossing that may be interrupted: what was sealed, tried and stored.
//!
//! The file holds one JSON value in each line and only ever grows, so that noting something costs one
//! small write; a last line that was cut by a crash is cut off. It holds the keys of the shards that it
//! names: it is a secret of the sending site, has mode 0600, and belongs into a folder that only that
//! site sees.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidegate_contracts::ObjectName;
use tidegate_types::artifact::{SealedObject, ShardKey};
use tidegate_types::ids::PermitId;
use tidegate_types::{ArtifactId, Digest};

use crate::error::TransferError;
use crate::send::sealed_name;

const FORMAT: &str = "tidegate.resume.v1";
const EXTENSION: &str = "resume";
/// How long to wait for another sender of the same crossing: longer than one that was just dropped
/// needs to end its last write.
const PATIENCE: Duration = Duration::from_secs(5);
/// A crossing of a terabyte has 16,384 shards, each with some 600 bytes of notes.
const MAX_BYTES: u64 = 1 << 30;

/// Which crossing the notes are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    pub(crate) format: String,
    pub(crate) permit: PermitId,
    pub(crate) permit_digest: Digest,
    pub(crate) artifact: ArtifactId,
    pub(crate) key_commitment: Digest,
    pub(crate) packing_list: String,
}

impl Head {
    pub(crate) fn new(
        permit: &PermitId,
        permit_digest: Digest,
        artifact: ArtifactId,
        key_commitment: Digest,
        packing_list: &ObjectName,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            permit: permit.clone(),
            permit_digest,
            artifact,
            key_commitment,
            packing_list: packing_list.to_string(),
        }
    }
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first.
    Head(Head),
    /// A shard was sealed and is about to be put. A later line for the same number replaces it.
    Shard {
        number: u64,
        key: ShardKey,
        object: SealedObject,
        /// It stands at another site, and whoever opens it brings it over.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copied: bool,
    },
    /// The index was sealed and is about to be put.
    Index(SealedObject),
    /// The packing list was signed and is about to be put.
    List(SealedObject),
    /// So many bytes are about to be put.
    Tried(u64),
    /// The packing list stands in the store: the crossing is complete.
    Complete,
}

/// What the lines say together.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) shards: BTreeMap<u64, (ShardKey, SealedObject)>,
    /// Numbers of those that stand at another site.
    pub(crate) copied: BTreeSet<u64>,
    pub(crate) index: Option<SealedObject>,
    pub(crate) list: Option<SealedObject>,
    pub(crate) tried: u64,
    pub(crate) complete: bool,
    /// What was about to be put and is named by nothing any more. It may stand in the store all the same.
    pub(crate) abandoned: BTreeSet<ObjectName>,
}

impl Notes {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Head(_) => {}
            Line::Shard {
                number,
                key,
                object,
                copied,
            } => {
                // An index or list that was made before does not name the new shard.
                self.abandon_index();
                let name = sealed_name(&object.digest);
                let before = self.shards.insert(number, (key, object));
                let was_copied = self.copied.remove(&number);
                // What was to be copied is not ours to remove: another crossing has put it, and may need it.
                if let Some((_, before)) = before.filter(|_| !was_copied) {
                    self.abandoned.insert(sealed_name(&before.digest));
                }
                if copied {
                    self.copied.insert(number);
                }
                self.abandoned.remove(&name);
            }
            Line::Index(object) => {
                self.abandon_index();
                self.abandoned.remove(&sealed_name(&object.digest));
                self.index = Some(object);
            }
            Line::List(object) => self.list = Some(object),
            Line::Tried(bytes) => self.tried = self.tried.saturating_add(bytes),
            Line::Complete => self.complete = true,
        }
    }

    fn abandon_index(&mut self) {
        self.list = None;
        self.complete = false;
        if let Some(before) = self.index.take() {
            self.abandoned.insert(sealed_name(&before.digest));
        }
    }
}

/// The notes of one crossing, held by one sender at a time.
#[derive(Debug)]
pub(crate) struct Resume {
    head: Head,
    inner: Mutex<(File, Notes)>,
}

impl Resume {
    /// Opens the notes of a crossing, or begins them. Blocks.
    pub(crate) fn open(state: &Path, head: Head) -> Result<Self, TransferError> {
        let name = format!("{}-{}.{EXTENSION}", head.permit, head.artifact.short());
        let failed = || TransferError::local("opening the resume file");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(failed())?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(state.join(name))
            .map_err(failed())?;
        lock(&file, &head)?;
        let unusable = |why: &str| unusable(&head, why);
        let (found, notes) = load(&mut file).map_err(failed())?.ok_or_else(|| {
            unusable("a line of it cannot be read; restore it, or ask for a new permit and remove it")
        })?;
        match found {
            Some(found) if found == head => {}
            Some(found) if found.key_commitment != head.key_commitment => {
                return Err(unusable(
                    "the crossing was begun with another data key; give the same one again",
                ));
            }
            Some(_) => return Err(unusable("it is about another crossing; ask for a new permit")),
            None => {
                append(&mut file, &Line::Head(head.clone())).map_err(failed())?;
                File::open(state)
                    .and_then(|folder| folder.sync_all())
                    .map_err(failed())?;
            }
        }
        Ok(Self {
            head,
            inner: Mutex::new((file, notes)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, (File, Notes)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the notes.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Notes) -> T) -> T {
        look(&self.lock().1)
    }

    /// Writes a line down. It need not be on disk before the next [`Self::reserve`] is, which brings the whole
    /// file there and without which nothing is put.
    fn note(&self, line: Line) -> Result<(), TransferError> {
        let mut inner = self.lock();
        append(&mut inner.0, &line).map_err(TransferError::local("writing the resume file"))?;
        inner.1.apply(line);
        Ok(())
    }

    /// A shard was sealed. Blocks.
    pub(crate) fn shard(&self, number: u64, key: ShardKey, object: SealedObject) -> Result<(), TransferError> {
        self.note(Line::Shard {
            number,
            key,
            object,
            copied: false,
        })
    }

    /// A shard is named that stands at another site. Blocks.
    pub(crate) fn copied(&self, number: u64, key: ShardKey, object: SealedObject) -> Result<(), TransferError> {
        self.note(Line::Shard {
            number,
            key,
            object,
            copied: true,
        })
    }

    /// The index was sealed. Blocks.
    pub(crate) fn index(&self, object: SealedObject) -> Result<(), TransferError> {
        self.note(Line::Index(object))
    }

    /// The packing list was signed. Blocks.
    pub(crate) fn list(&self, object: SealedObject) -> Result<(), TransferError> {
        self.note(Line::List(object))
    }

    /// The packing list stands in the store. Blocks.
    pub(crate) fn complete(&self) -> Result<(), TransferError> {
        self.note(Line::Complete)?;
        let synced = self.lock().0.sync_data();
        synced.map_err(TransferError::local("writing the resume file"))
    }

    /// Counts bytes that are about to be put; gives the sum that is above the limit instead, and counts
    /// nothing, where it would be. Blocks.
    pub(crate) fn reserve(&self, bytes: u64, limit: u64) -> Result<Result<(), u64>, TransferError> {
        let mut inner = self.lock();
        let sum = inner.1.tried.saturating_add(bytes);
        if sum > limit {
            return Ok(Err(sum));
        }
        let line = Line::Tried(bytes);
        append(&mut inner.0, &line)
            .and_then(|()| inner.0.sync_data())
            .map_err(TransferError::local("writing the resume file"))?;
        inner.1.apply(line);
        Ok(Ok(()))
    }

    /// What it says cannot be.
    pub(crate) fn unusable(&self, why: &str) -> TransferError {
        unusable(&self.head, why)
    }
}

fn unusable(head: &Head, why: &str) -> TransferError {
    TransferError::Resume {
        permit: head.permit.to_string(),
        artifact: head.artifact,
        why: why.to_owned(),
    }
}

fn lock(file: &File, head: &Head) -> Result<(), TransferError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => {
                return Err(unusable(head, "another process is sending this artifact; wait for it"));
            }
            Err(TryLockError::Error(error)) => return Err(TransferError::local("locking the resume file")(error)),
        }
    }
}

fn append(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let before = file.metadata()?.len();
    file.write_all(&text).inspect_err(|_| {
        // A part of a line, on a disk that is full, would spoil the next one.
        let _ = file.set_len(before);
    })
}

/// Reads all whole lines and cuts off a last one that a crash cut. `None` when a whole line is not one.
fn load(file: &mut File) -> io::Result<Option<(Option<Head>, Notes)>> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    if file.take(MAX_BYTES).read_to_end(&mut text)? as u64 == MAX_BYTES {
        return Ok(None);
    }
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        file.set_len(whole as u64)?;
        text.truncate(whole);
    }
    let mut head = None;
    let mut notes = Notes::default();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice(line) else {
            return Ok(None);
        };
        match line {
            Line::Head(found) if head.is_none() => head = Some(found),
            Line::Head(_) => return Ok(None),
            _ if head.is_none() => return Ok(None),
            line => notes.apply(line),
        }
    }
    Ok(Some((head, notes)))
}

/// Whether some process is sending with notes in `state` at this moment. Blocks.
///
/// # Errors
/// [`TransferError::Local`] where the folder or a file in it cannot be read.
pub fn is_sending(state: &Path) -> Result<bool, TransferError> {
    let failed = || TransferError::local("reading resume files");
    for path in resume_files(state).map_err(failed())? {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(failed())?,
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(failed()(error)),
        }
    }
    Ok(false)
}

fn resume_files(state: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    Ok(files)
}

/// The names of all objects that crossings with notes in `state` have put or are about to put: what nobody may remove
/// who does not know that they have ended. Blocks.
///
/// # Errors
/// [`TransferError::Local`] where the folder or a file cannot be read, [`TransferError::Resume`] where
/// notes cannot be understood, so that nothing is swept on a guess.
pub fn names_in_flight(state: &Path) -> Result<BTreeSet<ObjectName>, TransferError> {
    let failed = || TransferError::local("reading resume files");
    let mut names = BTreeSet::new();
    for path in resume_files(state).map_err(failed())? {
        let text = match std::fs::read(&path) {
            // A crossing that ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.map_err(failed())?,
        };
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text
            .get(..whole)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            match serde_json::from_slice(line)
                .map_err(io::Error::from)
                .map_err(failed())?
            {
                Line::Head(head) => {
                    names.insert(
                        ObjectName::new(head.packing_list)
                            .map_err(io::Error::other)
                            .map_err(failed())?,
                    );
                }
                Line::Shard { object, .. } | Line::Index(object) => {
                    names.insert(sealed_name(&object.digest));
                }
                Line::List(_) | Line::Tried(_) | Line::Complete => {}
            }
        }
    }
    Ok(names)
}
