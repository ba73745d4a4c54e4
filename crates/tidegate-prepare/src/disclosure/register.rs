//! The register of releases: who was in which group of what has left, and with which rows, as keyed
//! hashes. Every release that was prepared counts, whether it was sent or not.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_types::Digest;
use tidegate_types::ids::DatasetName;

use crate::error::PrepareError;
use crate::ingest::durable;
use crate::ingest::snapshot::digest_of;

const FORMAT: &str = "tidegate.release.v2";

/// A group's keyed name: what it is a group of, and the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Group([u8; 16]);

impl Group {
    pub(crate) fn of(digest: &[u8; 32]) -> Self {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().zip(digest) {
            *to = *from;
        }
        Self(name)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// A subject in a group of a release. The contents are sums of keyed digests, so that the order of rows
/// does not matter and every row counts as often as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) subject: u64,
    pub(crate) group: Group,
    pub(crate) content: Content,
}

/// What a subject's rows in a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Content {
    /// Of the rows that left.
    pub(crate) rows: u64,
    /// Of the source records that they come from.
    pub(crate) records: u64,
}

impl Content {
    /// Adds one row and its record.
    pub(crate) fn add(&mut self, row: u64, record: u64) {
        self.rows = self.rows.wrapping_add(row);
        self.records = self.records.wrapping_add(record);
    }

    /// Whether two releases say the same of somebody: the same rows left; or the same records did, and
    /// if the rows differ then by another query, which treats everybody alike.
    fn agrees(&self, other: &Self) -> bool {
        self.rows == other.rows || self.records == other.records
    }
}

/// Where a subject stands in an earlier release, seen from one group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Not in it.
    Absent,
    /// In the same group with the same rows.
    Same,
    /// In the same group with other rows: somebody came again, or a value was corrected.
    Changed,
    /// In these other groups.
    Other(Vec<Group>),
}

/// An earlier release.
#[derive(Debug)]
pub(crate) struct Release {
    /// Sorted by subject, then group.
    members: Vec<Member>,
}

impl Release {
    pub(crate) fn new(mut members: Vec<Member>) -> Self {
        members.sort_unstable();
        members.dedup();
        Self { members }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> + '_ {
        self.members.iter()
    }

    /// Where `member` of another release stands in this one.
    pub(crate) fn state(&self, member: &Member) -> State {
        let from = self.members.partition_point(|found| found.subject < member.subject);
        let found = self.members.iter().skip(from);
        let found = found.take_while(|found| found.subject == member.subject);
        let mut groups = Vec::new();
        for found in found {
            if found.group != member.group {
                groups.push(found.group);
            } else if found.content.agrees(&member.content) {
                return State::Same;
            } else {
                return State::Changed;
            }
        }
        if groups.is_empty() {
            State::Absent
        } else {
            State::Other(groups)
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    dataset: DatasetName,
    step_key: Digest,
    /// Counts releases of the dataset from 1.
    sequence: u64,
    members: u64,
}

/// The releases of one dataset that came before a step, and the step's own place.
#[derive(Debug)]
pub(crate) struct Register {
    folder: PathBuf,
    dataset: DatasetName,
    step_key: Digest,
    sequence: u64,
    /// Releases that came before; two with the same members count as one for measuring.
    pub(crate) earlier: Vec<Release>,
    /// How many came before.
    pub(crate) earlier_count: u64,
}

impl Register {
    /// Reads the register below `folder`. A step that is in it already keeps its place, so that it
    /// gives the same result again.
    pub(crate) fn open(folder: &Path, dataset: &DatasetName, step_key: Digest) -> Result<Self, PrepareError> {
        durable::sweep(folder)?;
        let mut found = Vec::new();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(PrepareError::file("listing", folder, source)),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry
                .map_err(|source| PrepareError::file("listing", folder, source))?
                .path();
            let (header, members) = read(&path)?;
            if header.dataset == *dataset {
                found.push((header, members));
            }
        }
        let last = found.iter().map(|(header, _)| header.sequence).max().unwrap_or(0);
        let sequence = found
            .iter()
            .find(|(header, _)| header.step_key == step_key)
            .map_or(last + 1, |(header, _)| header.sequence);
        found.retain(|(header, _)| header.sequence < sequence);
        found.sort_by_key(|(header, _)| header.sequence);
        let earlier_count = found.len() as u64;
        let mut earlier: Vec<Release> = Vec::new();
        for (_, members) in found {
            let release = Release::new(members);
            if earlier.iter().all(|known| known.members != release.members) {
                earlier.push(release);
            }
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            dataset: dataset.clone(),
            step_key,
            sequence,
            earlier,
            earlier_count,
        })
    }

    /// Adds the step's release.
    pub(crate) fn record(&self, members: &[Member]) -> Result<(), PrepareError> {
        let header = Header {
            format: FORMAT.to_owned(),
            dataset: self.dataset.clone(),
            step_key: self.step_key,
            sequence: self.sequence,
            members: members.len() as u64,
        };
        let mut bytes = serde_json::to_vec(&header)
            .map_err(|error| PrepareError::failed("recording a release", error.to_string(), "Report this"))?;
        bytes.push(b'\n');
        for member in members {
            bytes.extend_from_slice(&member.subject.to_le_bytes());
            bytes.extend_from_slice(&member.group.0);
            bytes.extend_from_slice(&member.content.rows.to_le_bytes());
            bytes.extend_from_slice(&member.content.records.to_le_bytes());
        }
        let digest = digest_of(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        durable::write(&self.folder.join(format!("{}.release", self.step_key.to_hex())), &bytes)
    }
}

const DIGEST: usize = 32;
const MEMBER: usize = 40;

fn read(path: &Path) -> Result<(Header, Vec<Member>), PrepareError> {
    let bytes = fs::read(path).map_err(|source| PrepareError::file("reading", path, source))?;
    parse(&bytes).ok_or_else(|| {
        PrepareError::failed(
            format!("reading the register of releases, `{}`", path.display()),
            "the file is damaged, so that it cannot be told what has left before",
            "Restore it from a backup; without it nothing is released",
        )
    })
}

fn parse(bytes: &[u8]) -> Option<(Header, Vec<Member>)> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if digest_of(content).as_bytes() != digest {
        return None;
    }
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(content.get(..end)?).ok()?;
    let (members, rest) = content.get(end + 1..)?.as_chunks::<MEMBER>();
    if header.format != FORMAT || !rest.is_empty() || members.len() as u64 != header.members {
        return None;
    }
    let members = members.iter().map(|member| {
        let (subject, rest) = member.split_first_chunk::<8>()?;
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
    });
    Some((header, members.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(subject: u64, byte: u8) -> Member {
        Member {
            subject,
            group: Group([byte; 16]),
            content: Content { rows: 7, records: 8 },
        }
    }

    #[test]
    fn releases_keep_their_order_and_do_not_count_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = DatasetName::new("d").unwrap();
        let key = |byte| Digest::from_bytes([byte; 32]);
        let open = |byte| Register::open(folder.path(), &dataset, key(byte)).unwrap();
        open(1).record(&[member(1, 1)]).unwrap();
        open(2).record(&[member(1, 1), member(2, 2)]).unwrap();
        open(3).record(&[member(1, 1)]).unwrap();
        assert_eq!(open(1).earlier_count, 0);
        assert_eq!(open(2).earlier_count, 1);
        let third = open(4);
        assert_eq!((third.earlier_count, third.earlier.len()), (3, 2));
        assert_eq!(third.earlier[1].state(&member(2, 2)), State::Same);
        assert_eq!(
            third.earlier[1].state(&member(2, 1)),
            State::Other(vec![Group([2; 16])])
        );
        assert_eq!(third.earlier[0].state(&member(2, 2)), State::Absent);
        for (rows, records, state) in [(7, 9, State::Same), (9, 8, State::Same), (9, 9, State::Changed)] {
            let content = Content { rows, records };
            let found = Member {
                content,
                ..member(2, 2)
            };
            assert_eq!(third.earlier[1].state(&found), state);
        }
        let other = Register::open(folder.path(), &DatasetName::new("e").unwrap(), key(9)).unwrap();
        assert_eq!(other.earlier_count, 0);
    }

    #[test]
    fn a_damaged_register_releases_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = DatasetName::new("d").unwrap();
        let key = Digest::from_bytes([1; 32]);
        let register = Register::open(folder.path(), &dataset, key).unwrap();
        register.record(&[member(1, 1), member(2, 1)]).unwrap();
        let path = folder.path().join(format!("{}.release", key.to_hex()));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Register::open(folder.path(), &dataset, key).is_err());
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(Register::open(folder.path(), &dataset, key).is_err());
        }
    }
}
