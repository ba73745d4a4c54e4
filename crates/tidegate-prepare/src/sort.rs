//! Sorting of more records than fit into memory: sorted runs in nameless temporary files, merged. The
//! files lie in the private site's folder and end with the process, however it ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::PrepareError;

/// Bytes of records that are held before a run of them is written.
const RUN_BYTES: usize = 8 << 20;
/// Runs of one size that are merged into a larger one.
const FAN_IN: usize = 16;
/// Bytes that are read or written at a time.
const BUFFER: usize = 128 << 10;

fn failed(source: io::Error) -> PrepareError {
    PrepareError::file("sorting in", Path::new("the stage's folder"), source)
}

/// Takes records, which are byte strings, in any order.
#[derive(Debug)]
pub(crate) struct Sorter {
    folder: PathBuf,
    distinct: bool,
    run_bytes: usize,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Runs by how often they were merged, so that no more are open than the logarithm of all.
    levels: Vec<Vec<File>>,
}

/// One record of the run that is collected; its first bytes decide most comparisons.
#[derive(Debug, Clone, Copy)]
struct Entry {
    prefix: u64,
    at: usize,
    length: u32,
}

impl Entry {
    fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.at..self.at + self.length as usize).unwrap_or_default()
    }
}

/// Records in the order of their bytes.
#[derive(Debug)]
pub(crate) struct Sorted {
    file: File,
}

/// Reads records one after another.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    from: BufReader<R>,
    record: Vec<u8>,
}

impl Sorter {
    /// Writes its runs below `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            distinct: false,
            run_bytes: RUN_BYTES,
            bytes: Vec::new(),
            entries: Vec::new(),
            levels: Vec::new(),
        }
    }

    /// Keeps one of equal records.
    pub(crate) fn distinct(mut self) -> Self {
        self.distinct = true;
        self
    }

    /// Adds a record that is `parts` one after another.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> Result<(), PrepareError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let at = self.bytes.len();
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let length = u32::try_from(length).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
        let mut entry = Entry { prefix: 0, at, length };
        entry.prefix = prefix(entry.of(&self.bytes));
        self.entries.push(entry);
        if self.bytes.len() + self.entries.len() * size_of::<Entry>() >= self.run_bytes {
            self.end_run()?;
        }
        Ok(())
    }

    /// Sorts what is left.
    pub(crate) fn finish(mut self) -> Result<Sorted, PrepareError> {
        self.end_run()?;
        let mut runs: Vec<File> = std::mem::take(&mut self.levels).into_iter().flatten().collect();
        let file = match runs.pop() {
            None => tempfile::tempfile_in(&self.folder).map_err(failed)?,
            Some(run) if runs.is_empty() => run,
            Some(run) => {
                runs.push(run);
                self.merge(runs)?
            }
        };
        Ok(Sorted { file })
    }

    fn end_run(&mut self) -> Result<(), PrepareError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let bytes = &self.bytes;
        self.entries
            .sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| a.of(bytes).cmp(b.of(bytes))));
        let mut run = Writer::new(&self.folder, self.distinct)?;
        for entry in &self.entries {
            run.write(entry.of(bytes))?;
        }
        self.bytes.clear();
        self.entries.clear();
        let mut run = run.finish()?;
        let mut level = 0;
        loop {
            if self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let Some(runs) = self.levels.get_mut(level) else {
                return Ok(());
            };
            runs.push(run);
            if runs.len() < FAN_IN {
                return Ok(());
            }
            let full = std::mem::take(runs);
            run = self.merge(full)?;
            level += 1;
        }
    }

    fn merge(&self, runs: Vec<File>) -> Result<File, PrepareError> {
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (number, run) in runs.into_iter().enumerate() {
            let mut reader = Reader::new(run)?;
            if reader.advance()? {
                heads.push(Reverse(Head { reader, number }));
            }
        }
        let mut merged = Writer::new(&self.folder, self.distinct)?;
        while let Some(mut head) = heads.peek_mut() {
            merged.write(&head.0.reader.record)?;
            if !head.0.reader.advance()? {
                PeekMut::pop(head);
            }
        }
        merged.finish()
    }
}

fn prefix(record: &[u8]) -> u64 {
    let mut prefix = [0; 8];
    for (to, from) in prefix.iter_mut().zip(record) {
        *to = *from;
    }
    u64::from_be_bytes(prefix)
}

struct Head {
    reader: Reader<File>,
    number: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let records = self.reader.record.cmp(&other.reader.record);
        records.then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

struct Writer {
    file: BufWriter<File>,
    /// The last record, where equal ones are left out.
    last: Option<Vec<u8>>,
    distinct: bool,
}

impl Writer {
    fn new(folder: &Path, distinct: bool) -> Result<Self, PrepareError> {
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        Ok(Self {
            file: BufWriter::with_capacity(BUFFER, file),
            last: None,
            distinct,
        })
    }

    fn write(&mut self, record: &[u8]) -> Result<(), PrepareError> {
        if self.distinct {
            if self.last.as_deref() == Some(record) {
                return Ok(());
            }
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(record);
        }
        let length = record.len() as u32;
        self.file.write_all(&length.to_le_bytes()).map_err(failed)?;
        self.file.write_all(record).map_err(failed)
    }

    fn finish(self) -> Result<File, PrepareError> {
        self.file.into_inner().map_err(|error| failed(error.into_error()))
    }
}

impl Sorted {
    /// Reads from the first record on.
    pub(crate) fn read(&mut self) -> Result<Reader<&File>, PrepareError> {
        Reader::new(&self.file)
    }
}

impl<R: Read + Seek> Reader<R> {
    fn new(mut from: R) -> Result<Self, PrepareError> {
        from.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Self {
            from: BufReader::with_capacity(BUFFER, from),
            record: Vec::new(),
        })
    }

    fn advance(&mut self) -> Result<bool, PrepareError> {
        if self.from.buffer().is_empty() {
            use std::io::BufRead;
            if self.from.fill_buf().map_err(failed)?.is_empty() {
                return Ok(false);
            }
        }
        let mut length = [0; 4];
        self.from.read_exact(&mut length).map_err(failed)?;
        self.record.resize(u32::from_le_bytes(length) as usize, 0);
        self.from.read_exact(&mut self.record).map_err(failed)?;
        Ok(true)
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, PrepareError> {
        Ok(self.advance()?.then_some(self.record.as_slice()))
    }
}

/// The error for a record that is shorter than what was written.
pub(crate) fn cut_short() -> PrepareError {
    failed(io::ErrorKind::UnexpectedEof.into())
}

/// One bit for each of many numbered things: the only thing in memory that grows with the data.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn get(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Sets the bit, and tells whether it was not set before.
    pub(crate) fn set(&mut self, number: u64) -> bool {
        let index = usize::try_from(number / 64).unwrap_or(usize::MAX - 1);
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        let bit = 1 << (number % 64);
        self.0.get_mut(index).is_some_and(|word| {
            let fresh = *word & bit == 0;
            *word |= bit;
            fresh
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut sorter: Sorter, records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        for record in records {
            sorter.push(&[record]).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        let mut twice = Vec::new();
        for _ in 0..2 {
            let mut found = Vec::new();
            let mut reader = sorted.read().unwrap();
            while let Some(record) = reader.next().unwrap() {
                found.push(record.to_vec());
            }
            twice.push(found);
        }
        assert_eq!(twice[0], twice[1]);
        twice.remove(0)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn many_runs_are_sorted_like_one(
            mut records in proptest::collection::vec(proptest::collection::vec(0..3_u8, 0..12), 0..600),
        ) {
            let folder = tempfile::tempdir().unwrap();
            // A run for every second record: more than can be merged at once.
            let small = || Sorter { run_bytes: 40, ..Sorter::new(folder.path()) };
            let (plain, distinct) = (sorted(small(), &records), sorted(small().distinct(), &records));
            let at_once = sorted(Sorter::new(folder.path()), &records);
            records.sort();
            proptest::prop_assert_eq!(&plain, &records);
            proptest::prop_assert_eq!(&at_once, &records);
            records.dedup();
            proptest::prop_assert_eq!(&distinct, &records);
            proptest::prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn bits_are_set_once() {
        let mut bits = Bits::default();
        assert!(!bits.get(1000) && bits.set(1000) && !bits.set(1000) && bits.get(1000) && !bits.get(999));
    }
}
