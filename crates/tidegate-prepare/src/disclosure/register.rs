//! The register of releases: who was in which group of what has left, and with which rows, as keyed
//! hashes. Every release that was prepared counts, whether it was sent or not.
//!
//! The releases of a dataset are a chain. Each is a file of its own that ends with a keyed digest of
//! everything before it and holds the digest of the release before; `DATASET.head` names the last one. A
//! release that is altered, missing, doubled or out of place is found, also where it is the last. Who can
//! write into the folder and puts all of an older state back is not found by this.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_types::Digest;
use tidegate_types::ids::DatasetName;

use super::member::{Content, Group, Member};
use crate::error::PrepareError;
use crate::ingest::durable;
use crate::split::{Prf, Running};

const FORMAT: &str = "tidegate.release.v3";
const HEAD_FORMAT: &str = "tidegate.releases.v1";
const RELEASE: &str = "release";
const HEAD: &str = "head";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    dataset: DatasetName,
    step_key: Digest,
    /// Counts releases of the dataset from 1.
    sequence: u64,
    /// The digest that the release before ends with; none before the first.
    previous: Option<Digest>,
    members: u64,
}

/// `DATASET.head`: how long the chain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    dataset: DatasetName,
    sequence: u64,
    last: Option<Digest>,
}

/// A release of the dataset that was found and is whole.
#[derive(Debug)]
struct Link {
    path: PathBuf,
    header: Header,
    /// What the file ends with.
    digest: Digest,
    /// Of the members alone.
    members: Digest,
}

/// The releases of one dataset that came before a step, and the step's own place.
#[derive(Debug)]
pub(crate) struct Register {
    folder: PathBuf,
    dataset: DatasetName,
    step_key: Digest,
    key: Prf,
    sequence: u64,
    previous: Option<Digest>,
    /// What the step's release ends with, where it is in the register already.
    known: Option<Digest>,
    /// Releases that came before; two with the same members count as one for measuring.
    earlier: Vec<PathBuf>,
    /// How many came before.
    pub(crate) earlier_count: u64,
}

impl Register {
    /// Reads the register below `folder` and checks it. A step that is in it already keeps its place, so
    /// that it gives the same result again. Only the holder of the stage's lock may call it.
    ///
    /// # Errors
    /// When the register is not whole: then it cannot be told what has left before.
    pub(crate) fn open(folder: &Path, dataset: &DatasetName, step_key: Digest, key: Prf) -> Result<Self, PrepareError> {
        durable::sweep(folder)?;
        let mut links = Vec::new();
        let mut head = None;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(PrepareError::file("listing", folder, source)),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry
                .map_err(|source| PrepareError::file("listing", folder, source))?
                .path();
            if path.extension().is_some_and(|it| it == HEAD) {
                let found = read_head(&path, &key)?;
                if found.dataset == *dataset && path == head_path(folder, dataset) {
                    head = Some(found);
                }
                continue;
            }
            let link = check(&path, &key)?;
            if link.header.dataset == *dataset {
                links.push(link);
            }
        }
        links.sort_by_key(|link| link.header.sequence);
        let mut previous = None;
        for (link, sequence) in links.iter().zip(1..) {
            if link.header.sequence != sequence || link.header.previous != previous {
                return Err(damaged(&link.path));
            }
            previous = Some(link.digest);
        }
        let length = links.len() as u64;
        let path = head_path(folder, dataset);
        let found = Head {
            format: HEAD_FORMAT.to_owned(),
            dataset: dataset.clone(),
            sequence: length,
            last: previous,
        };
        match head {
            Some(head) if head == found => {}
            // A kill after the release was written and before the head was.
            Some(head)
                if head.sequence + 1 == length && links.last().map(|link| link.header.previous) == Some(head.last) =>
            {
                write_head(&path, &found, &key)?;
            }
            None if links.is_empty() => write_head(&path, &found, &key)?,
            _ => return Err(damaged(&path)),
        }
        let known = links.iter().position(|link| link.header.step_key == step_key);
        let known_digest = known.and_then(|at| links.get(at)).map(|link| link.digest);
        links.truncate(known.unwrap_or(links.len()));
        let mut earlier: Vec<(Digest, PathBuf)> = Vec::new();
        for link in &links {
            if earlier.iter().all(|(members, _)| *members != link.members) {
                earlier.push((link.members, link.path.clone()));
            }
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            dataset: dataset.clone(),
            step_key,
            key,
            sequence: links.len() as u64 + 1,
            previous: links.last().map(|link| link.digest),
            known: known_digest,
            earlier: earlier.into_iter().map(|(_, path)| path).collect(),
            earlier_count: links.len() as u64,
        })
    }

    /// The members of each earlier release, in order.
    pub(crate) fn earlier(&self) -> Result<Vec<Members>, PrepareError> {
        self.earlier.iter().map(|path| Ok(Members::open(path)?.1)).collect()
    }

    /// Adds the step's release, whose `count` members `next` gives in order.
    ///
    /// # Errors
    /// When the step is in the register with other members.
    pub(crate) fn record(
        &self,
        count: u64,
        mut next: impl FnMut() -> Result<Option<Member>, PrepareError>,
    ) -> Result<(), PrepareError> {
        let header = Header {
            format: FORMAT.to_owned(),
            dataset: self.dataset.clone(),
            step_key: self.step_key,
            sequence: self.sequence,
            previous: self.previous,
            members: count,
        };
        let mut line = serde_json::to_vec(&header)
            .map_err(|error| PrepareError::failed("recording a release", error.to_string(), "Report this"))?;
        line.push(b'\n');
        let path = self.folder.join(format!("{}.{RELEASE}", self.step_key.to_hex()));
        let mut written = 0;
        let mut last = None;
        durable::write_with(&path, |file| {
            let failed = |source| PrepareError::file("writing", &path, source);
            let mut digest = self.key.running();
            digest.bytes(&line);
            file.write_all(&line).map_err(failed)?;
            while let Some(member) = next()? {
                let bytes = encode(&member);
                digest.bytes(&bytes);
                file.write_all(&bytes).map_err(failed)?;
                written += 1;
            }
            let digest = Digest::from_bytes(digest.finish());
            if written != count || self.known.is_some_and(|known| known != digest) {
                return Err(PrepareError::failed(
                    "recording a release",
                    "it was recorded before with other people or rows",
                    "Restore the register of releases from a backup",
                ));
            }
            last = Some(digest);
            file.write_all(digest.as_bytes()).map_err(failed)
        })?;
        if self.known.is_some() {
            return Ok(());
        }
        let head = Head {
            format: HEAD_FORMAT.to_owned(),
            dataset: self.dataset.clone(),
            sequence: self.sequence,
            last,
        };
        write_head(&head_path(&self.folder, &self.dataset), &head, &self.key)
    }
}

/// The members of a release, one after another.
#[derive(Debug)]
pub(crate) struct Members {
    from: BufReader<File>,
    path: PathBuf,
    left: u64,
    next: Option<Member>,
}

const DIGEST: usize = 32;
const MEMBER: usize = 40;
/// Bytes of a header at the most.
const HEADER: usize = 4096;
/// Bytes that are read at a time: many releases may be open together.
const BUFFER: usize = 16 << 10;

impl Members {
    fn open(path: &Path) -> Result<(Header, Self), PrepareError> {
        let failed = |source| PrepareError::file("reading", path, source);
        let mut from = BufReader::with_capacity(BUFFER, File::open(path).map_err(failed)?);
        let (header, _) = read_header(&mut from, path)?;
        let mut members = Self {
            from,
            path: path.to_path_buf(),
            left: header.members,
            next: None,
        };
        members.advance()?;
        Ok((header, members))
    }

    /// The member that comes next.
    pub(crate) fn peek(&self) -> Option<&Member> {
        self.next.as_ref()
    }

    /// Takes it.
    pub(crate) fn advance(&mut self) -> Result<(), PrepareError> {
        self.next = None;
        if self.left > 0 {
            let mut bytes = [0; MEMBER];
            self.from.read_exact(&mut bytes).map_err(|_| damaged(&self.path))?;
            self.left -= 1;
            self.next = Some(decode(&bytes).ok_or_else(|| damaged(&self.path))?);
        }
        Ok(())
    }
}

fn read_header(from: &mut impl Read, path: &Path) -> Result<(Header, Vec<u8>), PrepareError> {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while line.last() != Some(&b'\n') {
        if line.len() >= HEADER {
            return Err(damaged(path));
        }
        from.read_exact(&mut byte).map_err(|_| damaged(path))?;
        line.extend_from_slice(&byte);
    }
    let header: Header = serde_json::from_slice(&line).map_err(|_| damaged(path))?;
    if header.format == FORMAT {
        Ok((header, line))
    } else {
        Err(damaged(path))
    }
}

/// Reads a release to its end and checks it.
fn check(path: &Path, key: &Prf) -> Result<Link, PrepareError> {
    let file = File::open(path).map_err(|source| PrepareError::file("reading", path, source))?;
    let mut from = BufReader::with_capacity(1 << 20, file);
    let (header, line) = read_header(&mut from, path)?;
    let mut digest: Running = key.running();
    let mut members: Running = key.running();
    digest.bytes(&line);
    let mut bytes = [0; MEMBER];
    for _ in 0..header.members {
        from.read_exact(&mut bytes).map_err(|_| damaged(path))?;
        digest.bytes(&bytes);
        members.bytes(&bytes);
    }
    let mut written = [0; DIGEST];
    from.read_exact(&mut written).map_err(|_| damaged(path))?;
    let digest = Digest::from_bytes(digest.finish());
    let named = path
        .file_name()
        .is_some_and(|name| *name == *format!("{}.{RELEASE}", header.step_key.to_hex()));
    let ended = from
        .read(&mut [0; 1])
        .map_err(|source| PrepareError::file("reading", path, source))?
        == 0;
    if digest.as_bytes() != &written || !named || !ended {
        return Err(damaged(path));
    }
    Ok(Link {
        path: path.to_path_buf(),
        header,
        digest,
        members: Digest::from_bytes(members.finish()),
    })
}

fn head_path(folder: &Path, dataset: &DatasetName) -> PathBuf {
    folder.join(format!("{dataset}.{HEAD}"))
}

fn write_head(path: &Path, head: &Head, key: &Prf) -> Result<(), PrepareError> {
    let mut bytes = serde_json::to_vec(head)
        .map_err(|error| PrepareError::failed("recording a release", error.to_string(), "Report this"))?;
    let digest = key.digest(&bytes);
    bytes.extend_from_slice(&digest);
    durable::write(path, &bytes)
}

fn read_head(path: &Path, key: &Prf) -> Result<Head, PrepareError> {
    let bytes = fs::read(path).map_err(|source| PrepareError::file("reading", path, source))?;
    let parsed = || {
        let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        if key.digest(content).as_slice() != digest {
            return None;
        }
        let head: Head = serde_json::from_slice(content).ok()?;
        (head.format == HEAD_FORMAT).then_some(head)
    };
    parsed().ok_or_else(|| damaged(path))
}

fn damaged(path: &Path) -> PrepareError {
    PrepareError::failed(
        format!("reading the register of releases, `{}`", path.display()),
        "it is not whole: a release is damaged, missing or not in its place, so that it cannot be told what has left \
         before",
        "Restore the folder from a backup; without it nothing is released",
    )
}

fn encode(member: &Member) -> [u8; MEMBER] {
    let mut bytes = [0; MEMBER];
    let parts = [
        &member.subject.to_le_bytes()[..],
        &member.group.0,
        &member.content.rows.to_le_bytes(),
        &member.content.records.to_le_bytes(),
    ];
    for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    bytes
}

fn decode(bytes: &[u8; MEMBER]) -> Option<Member> {
    let (subject, rest) = bytes.split_first_chunk::<8>()?;
    let (group, rest) = rest.split_first_chunk::<16>()?;
    let (rows, records) = rest.split_first_chunk::<8>()?;
    Some(Member {
        subject: u64::from_le_bytes(*subject),
        group: Group(*group),
        content: Content {
            rows: u64::from_le_bytes(*rows),
            records: u64::from_le_bytes(records.try_into().ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER_KEY: [u8; 32] = [9; 32];

    fn member(subject: u64, byte: u8) -> Member {
        Member {
            subject,
            group: Group([byte; 16]),
            content: Content { rows: 7, records: 8 },
        }
    }

    fn key(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn open(folder: &Path, byte: u8) -> Result<Register, PrepareError> {
        let prf = Prf::derive(&FOLDER_KEY, "releases", b"");
        Register::open(folder, &DatasetName::new("d").unwrap(), key(byte), prf)
    }

    fn record(folder: &Path, byte: u8, members: &[Member]) -> Result<(), PrepareError> {
        let mut left = members.iter().copied();
        open(folder, byte)?.record(members.len() as u64, || Ok(left.next()))
    }

    fn file(folder: &Path, byte: u8) -> PathBuf {
        folder.join(format!("{}.release", key(byte).to_hex()))
    }

    /// Three releases, the last like the first.
    fn three() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        record(folder.path(), 1, &[member(1, 1)]).unwrap();
        record(folder.path(), 2, &[member(1, 1), member(2, 2)]).unwrap();
        record(folder.path(), 3, &[member(1, 1)]).unwrap();
        folder
    }

    #[test]
    fn releases_keep_their_order_and_do_not_count_themselves() {
        let folder = three();
        let folder = folder.path();
        assert_eq!(open(folder, 1).unwrap().earlier_count, 0);
        assert_eq!(open(folder, 2).unwrap().earlier_count, 1);
        let next = open(folder, 4).unwrap();
        assert_eq!(next.earlier_count, 3);
        let mut earlier = next.earlier().unwrap();
        assert_eq!(earlier.len(), 2);
        let mut found = Vec::new();
        while let Some(member) = earlier[1].peek().copied() {
            found.push(member);
            earlier[1].advance().unwrap();
        }
        assert_eq!(found, [member(1, 1), member(2, 2)]);
        // The same again changes nothing; something else under the same name is refused.
        let before = fs::read(file(folder, 2)).unwrap();
        record(folder, 2, &[member(1, 1), member(2, 2)]).unwrap();
        assert_eq!(fs::read(file(folder, 2)).unwrap(), before);
        assert!(record(folder, 2, &[member(1, 1)]).is_err());
        assert_eq!(open(folder, 4).unwrap().earlier_count, 3);
        let other = DatasetName::new("e").unwrap();
        let other = Register::open(folder, &other, key(9), Prf::derive(&FOLDER_KEY, "releases", b"")).unwrap();
        assert_eq!(other.earlier_count, 0);
    }

    #[test]
    fn a_damaged_register_releases_nothing() {
        let folder = three();
        let folder = folder.path();
        for path in [file(folder, 1), file(folder, 2), file(folder, 3), folder.join("d.head")] {
            let whole = fs::read(&path).unwrap();
            for length in 0..whole.len() {
                fs::write(&path, &whole[..length]).unwrap();
                assert!(open(folder, 4).is_err(), "{} cut to {length}", path.display());
            }
            for index in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[index] ^= 1;
                fs::write(&path, &flipped).unwrap();
                assert!(open(folder, 4).is_err(), "{} changed at {index}", path.display());
            }
            fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
            assert!(open(folder, 4).is_err());
            fs::remove_file(&path).unwrap();
            assert!(open(folder, 4).is_err(), "{} removed", path.display());
            fs::write(&path, whole).unwrap();
        }
        assert!(open(folder, 4).is_ok());
        // Exchanged, doubled, and of another register.
        let (second, third) = (fs::read(file(folder, 2)).unwrap(), fs::read(file(folder, 3)).unwrap());
        fs::write(file(folder, 2), &third).unwrap();
        fs::write(file(folder, 3), &second).unwrap();
        assert!(open(folder, 4).is_err());
        fs::write(file(folder, 2), &second).unwrap();
        assert!(open(folder, 4).is_err());
        fs::write(file(folder, 3), &third).unwrap();
        fs::write(file(folder, 8), &third).unwrap();
        assert!(open(folder, 4).is_err());
        fs::remove_file(file(folder, 8)).unwrap();
        assert!(open(folder, 4).is_ok());
        let foreign = Prf::derive(&[1; 32], "releases", b"");
        assert!(Register::open(folder, &DatasetName::new("d").unwrap(), key(4), foreign).is_err());
    }

    #[test]
    fn the_last_releases_cannot_be_taken_away() {
        let folder = three();
        let folder = folder.path();
        let head = fs::read(folder.join("d.head")).unwrap();
        fs::remove_file(file(folder, 3)).unwrap();
        assert!(open(folder, 4).is_err());
        fs::remove_file(file(folder, 2)).unwrap();
        assert!(open(folder, 4).is_err());
        fs::remove_file(folder.join("d.head")).unwrap();
        assert!(open(folder, 4).is_err());
        fs::write(folder.join("d.head"), head).unwrap();
        fs::remove_file(file(folder, 1)).unwrap();
        assert!(open(folder, 4).is_err());
    }

    #[test]
    fn a_kill_between_release_and_head_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for byte in 1..4 {
            open(folder, byte).unwrap();
            let head = fs::read(folder.join("d.head")).unwrap();
            record(folder, byte, &[member(1, byte)]).unwrap();
            fs::write(folder.join("d.head"), head).unwrap();
            assert_eq!(open(folder, 9).unwrap().earlier_count, u64::from(byte));
        }
    }
}
