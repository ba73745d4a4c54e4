use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use tidegate_seal::digest::{constant_time_eq, hmac_reader, sha256};
use tidegate_types::artifact::SHARD_PLAINTEXT_BYTES;
use tidegate_types::{Digest, FileEntry};

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
    shards: Vec<Digest>,
}

impl Source {
    /// Reads everything once and compares it with the manifest's entries. Blocks.
    pub(crate) fn verify(folder: &Path, files: Vec<FileEntry>, digest_key: &[u8; 32]) -> Result<Self, TransferError> {
        let folder = open_folder(folder).map_err(TransferError::local("opening the folder to send"))?;
        let mut shards = Shards::default();
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
            let (keyed_digest, bytes) = hmac_reader(digest_key, tee).map_err(reading())?;
            if bytes != file.bytes || !constant_time_eq(keyed_digest.as_bytes(), file.keyed_digest.as_bytes()) {
                return Err(changed());
            }
        }
        Ok(Self {
            folder,
            files,
            starts,
            total,
            shards: shards.finish(),
        })
    }

    /// How many shards there are.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Reads one shard's plaintext and proves that it is what was verified. Blocks.
    pub(crate) fn shard(&self, number: usize) -> Result<Vec<u8>, TransferError> {
        let start = SHARD_PLAINTEXT_BYTES.saturating_mul(number as u64);
        let length = self.total.saturating_sub(start).min(SHARD_PLAINTEXT_BYTES);
        let mut plaintext = Vec::with_capacity(usize::try_from(length).unwrap_or(SHARD));
        // The last file that begins at or before the shard; empty files before it do not matter.
        let first = self.starts.partition_point(|begin| *begin <= start).saturating_sub(1);
        let mut path = "";
        for (file, begin) in self.files.iter().zip(&self.starts).skip(first) {
            let missing = length - plaintext.len() as u64;
            if missing == 0 {
                break;
            }
            path = &file.path;
            let reading = || TransferError::local(format!("reading file `{path}`"));
            let mut content = open_file(&self.folder, path).map_err(reading())?;
            content
                .seek(SeekFrom::Start(start.saturating_sub(*begin)))
                .map_err(reading())?;
            let here = missing.min((begin + file.bytes).saturating_sub(start.max(*begin)));
            content.take(here).read_to_end(&mut plaintext).map_err(reading())?;
        }
        if self.shards.get(number) == Some(&sha256(&plaintext)) {
            Ok(plaintext)
        } else {
            Err(TransferError::Changed { path: path.to_owned() })
        }
    }
}

/// The digests of the shards that have gone by.
#[derive(Default)]
struct Shards {
    current: Vec<u8>,
    done: Vec<Digest>,
}

impl Shards {
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SHARD - self.current.len()));
            self.current.extend_from_slice(now);
            bytes = later;
            if self.current.len() == SHARD {
                self.done.push(sha256(&self.current));
                self.current.clear();
            }
        }
    }

    fn finish(mut self) -> Vec<Digest> {
        if !self.current.is_empty() {
            self.done.push(sha256(&self.current));
        }
        self.done
    }
}

/// A reader that shows what it reads to [`Shards`].
struct Tee<'a, R> {
    inner: R,
    shards: &'a mut Shards,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.shards.push(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
