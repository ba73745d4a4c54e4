use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tidegate_seal::digest::{Keyed, constant_time_eq, keyed_reader};
use tidegate_seal::shard::PlainShard;
use tidegate_types::artifact::{SHARD_PLAINTEXT_BYTES, ShardKey};
use tidegate_types::{FileEntry, KeyedDigest};

use crate::error::TransferError;
use crate::tree::{open_file, open_folder};

const SHARD: usize = SHARD_PLAINTEXT_BYTES as usize;

/// The files of an artifact laid end to end and cut into shards.
///
/// Reading is done twice: once to prove that the files are what the manifest says, which gives a
/// digest of every shard's plaintext, and once for every shard that is sealed, which must have that
/// digest. So nothing that was not described is sealed, let alone sent, however often and however
/// quietly the files change in between.
#[derive(Debug)]
pub(crate) struct Source {
    folder: std::os::fd::OwnedFd,
    files: Vec<FileEntry>,
    /// Where each file begins in the whole.
    starts: Vec<u64>,
    total: u64,
    shards: Vec<KeyedDigest>,
}

impl Source {
    /// Reads everything once and compares it with the manifest's entries. Blocks.
    pub(crate) fn verify(folder: &Path, files: Vec<FileEntry>, digest_key: &[u8; 32]) -> Result<Self, TransferError> {
        let folder = open_folder(folder).map_err(TransferError::local("opening the folder to send"))?;
        let mut shards = Shards::new(digest_key);
        let mut starts = Vec::with_capacity(files.len());
        let mut total = 0_u64;
        for file in &files {
            let reading = || TransferError::local(format!("reading file `{}`", file.path));
            let changed = || TransferError::Changed {
                path: file.path.clone(),
            };
            starts.push(total);
            total = total.saturating_add(file.bytes);
            let content = match open_file(&folder, &file.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed()),
                opened => opened.map_err(reading())?,
            };
            let tee = Tee {
                // One byte more than expected shows that a file has grown, and no more is read.
                inner: content.take(file.bytes.saturating_add(1)),
                shards: &mut shards,
            };
            let (keyed_digest, bytes) = keyed_reader(digest_key, tee).map_err(reading())?;
            if bytes != file.bytes || !constant_time_eq(keyed_digest.as_bytes(), file.keyed_digest.as_bytes()) {
                return Err(changed());
            }
        }
        let shards = shards.finish();
        Ok(Self {
            folder,
            files,
            starts,
            total,
            shards,
        })
    }

    /// How many shards there are.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The keyed digest of what is in each shard.
    pub(crate) fn contents(&self) -> &[KeyedDigest] {
        &self.shards
    }

    /// Reads one shard's plaintext and seals it, piece by piece, in `room` if that is large enough, and
    /// proves at the end that it was what was verified. Blocks.
    pub(crate) fn seal(
        &self,
        number: usize,
        organisation: &str,
        digest_key: &[u8; 32],
        room: Vec<u8>,
    ) -> Result<(Vec<u8>, ShardKey), TransferError> {
        let start = SHARD_PLAINTEXT_BYTES.saturating_mul(number as u64);
        let length = self.total.saturating_sub(start).min(SHARD_PLAINTEXT_BYTES);
        let length = usize::try_from(length).unwrap_or(SHARD);
        let sealing = || TransferError::seal("sealing a shard");
        let shard = PlainShard::new(length, room).map_err(sealing())?;
        // The last file that begins at or before the shard; empty files before it do not matter.
        let first = self.starts.partition_point(|begin| *begin <= start).saturating_sub(1);
        let mut files = Files {
            source: self,
            at: first,
            offset: start.saturating_sub(self.starts.get(first).copied().unwrap_or_default()),
            open: None,
        };
        let mut digest = Keyed::new(digest_key);
        let sealed = shard.seal_filling(organisation, |piece| {
            files.fill(piece)?;
            digest.update(piece);
            Ok::<_, TransferError>(())
        });
        let sealed = sealed.map_err(sealing())??;
        match self.shards.get(number) {
            Some(verified) if *verified == digest.finish() => Ok(sealed),
            _ => Err(files.changed()),
        }
    }
}

/// The files of a source, read end to end from some place on.
struct Files<'a> {
    source: &'a Source,
    /// Index of the file that is being read, and from where.
    at: usize,
    offset: u64,
    open: Option<std::fs::File>,
}

impl Files<'_> {
    fn path(&self) -> &str {
        let file = self.source.files.get(self.at).or(self.source.files.last());
        file.map_or("", |file| &file.path)
    }

    fn changed(&self) -> TransferError {
        TransferError::Changed {
            path: self.path().to_owned(),
        }
    }

    fn fill(&mut self, mut piece: &mut [u8]) -> Result<(), TransferError> {
        while !piece.is_empty() {
            let file = self.source.files.get(self.at).ok_or_else(|| self.changed())?;
            let missing = file.bytes.saturating_sub(self.offset);
            if missing == 0 {
                (self.at, self.offset, self.open) = (self.at + 1, 0, None);
                continue;
            }
            let reading = || TransferError::local(format!("reading file `{}`", file.path));
            if self.open.is_none() {
                self.open = Some(open_file(&self.source.folder, &file.path).map_err(reading())?);
            }
            let Some(content) = &self.open else { continue };
            let here = usize::try_from(missing).map_or(piece.len(), |missing| missing.min(piece.len()));
            let (now, later) = piece.split_at_mut(here);
            match content.read_exact_at(now, self.offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(self.changed()),
                read => read.map_err(reading())?,
            }
            self.offset += here as u64;
            piece = later;
        }
        Ok(())
    }
}

/// The digests of the shards that have gone by.
struct Shards<'a> {
    key: &'a [u8; 32],
    current: Keyed,
    /// How many bytes of the current shard have gone by.
    bytes: usize,
    done: Vec<KeyedDigest>,
}

impl<'a> Shards<'a> {
    fn new(key: &'a [u8; 32]) -> Self {
        Self {
            key,
            current: Keyed::new(key),
            bytes: 0,
            done: Vec::new(),
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SHARD - self.bytes));
            self.current.update(now);
            self.bytes += now.len();
            bytes = later;
            if self.bytes == SHARD {
                self.done
                    .push(std::mem::replace(&mut self.current, Keyed::new(self.key)).finish());
                self.bytes = 0;
            }
        }
    }

    fn finish(mut self) -> Vec<KeyedDigest> {
        if self.bytes > 0 {
            self.done.push(self.current.finish());
        }
        self.done
    }
}

/// A reader that shows what it reads to [`Shards`].
struct Tee<'a, 'k, R> {
    inner: R,
    shards: &'a mut Shards<'k>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.shards.push(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
