//! What somebody outside could learn about people from what leaves, measured and limited.
//!
//! A *group* is the rows of a release that agree on all quasi-identifiers. Whoever holds this release
//! and every earlier one can split each group further: into people who were in the same group of an
//! earlier release with the same rows, there with other rows, in another group, or not there at all. These
//! *cells* are what k counts people in, and distinct-l counts values in, so that no combination of
//! releases, and no difference between two, singles out fewer than k people.
//!
//! Rows, members and values are sorted on the disk of the private site and read in order; what is held in
//! memory is one bit for each, and the members of one subject at a time.

pub(crate) mod identifiers;
mod member;
#[cfg(test)]
mod reference;
pub(crate) mod register;
mod settle;

use std::fs::File;
use std::path::Path;

use tidegate_types::Refusal;

use crate::error::PrepareError;
use crate::execute::OutputBatch;
use crate::sort::{Bits, Reader, Sorted, Sorter, cut_short};
use crate::split::Prf;
use member::{Content, Group, Member};
use register::Register;
use settle::{Reason, Settling};

/// What a release must reach, and what may be done for it.
#[derive(Debug, Clone)]
pub(crate) struct Requirement {
    pub(crate) k: u64,
    pub(crate) l: u64,
    /// Whether rows may be suppressed.
    pub(crate) suppress: bool,
    /// The largest share of rows that may be.
    pub(crate) max_suppressed: f64,
}

/// An output column that counts, with the text that says what it is over all releases, such as
/// `age_band(age, 10)`.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) meaning: String,
}

/// Rows of a release as they are collected: a few numbers for each, never the row.
#[derive(Debug)]
pub(crate) struct Measure<'a> {
    folder: &'a Path,
    quasi: Vec<Counted>,
    sensitive: Vec<Counted>,
    group_prf: Prf,
    rows: u64,
    /// Number of the record, then the row as it is collected: where a record may be output several times.
    repeated: Option<Sorter>,
    /// Subject, group, row, digest of the row, digest of its record, number of its record.
    entries: Sorter,
    /// Subject, group, sensitive column, digest of the value.
    values: Sorter,
}

/// What was found, and which rows must go.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// For each row, in the order in which they were added, whether it may leave.
    pub(crate) alive: Bits,
    pub(crate) rows: u64,
    pub(crate) k: u64,
    pub(crate) k_before: u64,
    pub(crate) l: Option<u64>,
    pub(crate) groups: u64,
    pub(crate) subjects: u64,
    pub(crate) suppressed: u64,
    /// Numbers of the source records of which a row was suppressed, in order, as big-endian numbers.
    pub(crate) suppressed_records: Sorted,
    members: Present,
}

impl<'a> Measure<'a> {
    /// Sorts below `folder`. Where one record may give several rows, how many it gives tells what their
    /// conditions say, so groups are also told apart by that number.
    pub(crate) fn new(
        folder: &'a Path,
        quasi: Vec<Counted>,
        sensitive: Vec<Counted>,
        group_prf: Prf,
        may_repeat: bool,
    ) -> Self {
        Self {
            folder,
            quasi,
            sensitive,
            group_prf,
            rows: 0,
            repeated: may_repeat.then(|| Sorter::new(folder)),
            entries: Sorter::new(folder),
            values: Sorter::new(folder).distinct(),
        }
    }

    /// Adds one output row.
    pub(crate) fn add(&mut self, batch: &OutputBatch, row: usize) -> Result<(), PrepareError> {
        let mut digest = self.group_prf.running();
        for column in &self.quasi {
            digest.field(Some(&column.meaning));
            digest.field(Some(batch.field(column.index, row)));
        }
        let group = Group::of(&digest.finish());
        let mut digest = self.group_prf.running();
        for column in 0..batch.columns.len() {
            digest.field(Some(batch.field(column, row)));
        }
        let entry = Entry {
            subject: batch.subjects.value(row),
            group,
            row: self.rows,
            content: Group::of(&digest.finish()).number(),
            record: batch.digests.value(row),
            number: batch.records.value(row),
        };
        let mut values = Vec::with_capacity(self.sensitive.len() * 8);
        for column in &self.sensitive {
            let mut digest = self.group_prf.running();
            digest.field(Some(batch.field(column.index, row)));
            values.extend_from_slice(&Group::of(&digest.finish()).number().to_be_bytes());
        }
        self.rows += 1;
        match &mut self.repeated {
            Some(repeated) => repeated.push(&[&entry.number.to_be_bytes(), &entry.encode(), &values]),
            None => self.place(&entry, &values),
        }
    }

    fn place(&mut self, entry: &Entry, values: &[u8]) -> Result<(), PrepareError> {
        self.entries.push(&[&entry.encode()])?;
        for (column, value) in (0_u32..).zip(values.chunks(8)) {
            self.values.push(&[
                &entry.subject.to_be_bytes(),
                &entry.group.0,
                &column.to_be_bytes(),
                value,
            ])?;
        }
        Ok(())
    }

    /// Places the rows that were kept until it was known how many there are of each record.
    fn place_repeated(&mut self) -> Result<(), PrepareError> {
        let Some(repeated) = self.repeated.take() else {
            return Ok(());
        };
        let mut sorted = repeated.finish()?;
        let mut reader = sorted.read()?;
        // No more than a query has branches.
        let mut rows: Vec<(Entry, Vec<u8>)> = Vec::new();
        loop {
            let next = match reader.next()? {
                None => None,
                Some(record) => {
                    let mut fields = Fields(record);
                    fields.number()?;
                    Some((Entry::read(&mut fields)?, fields.0.to_vec()))
                }
            };
            let last = rows.last().map(|(entry, _)| entry.number);
            if last.is_some() && last != next.as_ref().map(|(entry, _)| entry.number) {
                let times = rows.len() as u64;
                for (mut entry, values) in rows.drain(..) {
                    if times > 1 {
                        let mut digest = self.group_prf.running();
                        digest.bytes(b"rows of one record");
                        digest.bytes(&times.to_le_bytes());
                        digest.bytes(&entry.group.0);
                        entry.group = Group::of(&digest.finish());
                    }
                    self.place(&entry, &values)?;
                }
            }
            match next {
                Some(row) => rows.push(row),
                None => return Ok(()),
            }
        }
    }

    /// Finds the rows that may leave.
    ///
    /// # Errors
    /// A refusal when the requirement is not met, or only by suppressing too much.
    pub(crate) fn settle(mut self, register: &Register, requirement: &Requirement) -> Result<Verdict, PrepareError> {
        let repeats = self.repeated.is_some();
        self.place_repeated()?;
        let names = Names {
            repeats,
            quasi: self.quasi,
            sensitive: self.sensitive,
            rows: self.rows,
        };
        let mut present = Present {
            entries: self.entries.finish()?,
            alive: Bits::default(),
            count: 0,
        };
        let mut values = self.values.finish()?;
        let mut settling = Settling::new(self.folder, &mut present, &mut values, register.earlier()?)?;
        let mut reason = None;
        let mut k_before = None;
        let last = loop {
            let round = settling.round(requirement)?;
            k_before.get_or_insert(round.k);
            reason = reason.or(round.reason);
            if !settling.kill(&round)? {
                break round;
            }
        };
        present.alive = settling.alive;

        let mut alive = Bits::default();
        let mut records = Sorter::new(self.folder).distinct();
        let (mut left, mut subjects, mut before) = (0, 0, None);
        let mut count = 0;
        let mut entries = present.entries.read()?;
        let mut members = Numbered::default();
        while let Some(entry) = entries.next()? {
            let entry = Entry::parse(entry)?;
            let (member, fresh) = members.number(&entry);
            if present.alive.get(member) {
                alive.set(entry.row);
                left += 1;
                count += u64::from(fresh);
                if before != Some(entry.subject) {
                    before = Some(entry.subject);
                    subjects += 1;
                }
            } else {
                records.push(&[&entry.number.to_be_bytes()])?;
            }
        }
        drop(entries);
        present.count = count;
        let suppressed = names.rows - left;
        if let Some(reason) = reason {
            let allowed = requirement.suppress && suppressed as f64 <= requirement.max_suppressed * names.rows as f64;
            if !allowed || left == 0 {
                return Err(names
                    .refusal(reason, k_before.flatten(), suppressed, requirement)
                    .into());
            }
        }
        Ok(Verdict {
            alive,
            rows: names.rows,
            k: last.k.unwrap_or(0),
            k_before: k_before.flatten().unwrap_or(0),
            l: last.l,
            groups: last.groups,
            subjects,
            suppressed,
            suppressed_records: records.finish()?,
            members: present,
        })
    }
}

impl Verdict {
    /// Enters who is in which group of what leaves into the register.
    pub(crate) fn record(&mut self, register: &Register) -> Result<(), PrepareError> {
        let count = self.members.count;
        let Present { entries, alive, .. } = &mut self.members;
        let mut members = MembersOf::new(entries.read()?);
        register.record(count, || {
            while let Some((number, member)) = members.next()? {
                if alive.get(number) {
                    return Ok(Some(member));
                }
            }
            Ok(None)
        })
    }
}

/// The rows of this release, sorted; their members are numbered in order.
#[derive(Debug)]
struct Present {
    entries: Sorted,
    /// By the numbers of members. All rows of a subject in a group leave or none does.
    alive: Bits,
    /// How many are alive.
    count: u64,
}

/// One row, as it was sorted.
#[derive(Debug, Clone, Copy)]
struct Entry {
    subject: u64,
    group: Group,
    row: u64,
    content: u64,
    record: u64,
    /// The number of its record.
    number: u64,
}

impl Entry {
    fn encode(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        let (subject, row) = (self.subject.to_be_bytes(), self.row.to_be_bytes());
        let (content, record) = (self.content.to_be_bytes(), self.record.to_be_bytes());
        let number = self.number.to_be_bytes();
        let parts = [&subject[..], &self.group.0, &row, &content, &record, &number];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, PrepareError> {
        Self::read(&mut Fields(bytes))
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self, PrepareError> {
        Ok(Self {
            subject: fields.number()?,
            group: fields.group()?,
            row: fields.number()?,
            content: fields.number()?,
            record: fields.number()?,
            number: fields.number()?,
        })
    }
}

/// Reads a sorted record from its beginning.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], PrepareError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or_else(cut_short)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, PrepareError> {
        self.take().map(u64::from_be_bytes)
    }

    fn group(&mut self) -> Result<Group, PrepareError> {
        self.take().map(Group)
    }
}

/// Numbers members as their rows come.
#[derive(Debug, Default)]
struct Numbered {
    last: Option<(u64, Group)>,
    next: u64,
}

impl Numbered {
    /// The number of the row's member, and whether the row is its first.
    fn number(&mut self, entry: &Entry) -> (u64, bool) {
        let found = Some((entry.subject, entry.group));
        let fresh = self.last != found;
        if fresh {
            self.last = found;
            self.next += 1;
        }
        (self.next - 1, fresh)
    }
}

/// The members of this release in order, with their numbers.
struct MembersOf<'a> {
    entries: Reader<&'a File>,
    ahead: Option<Entry>,
    started: bool,
    next: u64,
}

impl<'a> MembersOf<'a> {
    fn new(entries: Reader<&'a File>) -> Self {
        Self {
            entries,
            ahead: None,
            started: false,
            next: 0,
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, PrepareError> {
        self.entries.next()?.map(Entry::parse).transpose()
    }

    fn next(&mut self) -> Result<Option<(u64, Member)>, PrepareError> {
        if !self.started {
            self.started = true;
            self.ahead = self.entry()?;
        }
        let Some(first) = self.ahead else {
            return Ok(None);
        };
        let mut content = Content::default();
        while let Some(entry) = self.ahead
            && (entry.subject, entry.group) == (first.subject, first.group)
        {
            content.add(entry.content, entry.record);
            self.ahead = self.entry()?;
        }
        let number = self.next;
        self.next += 1;
        let member = Member {
            subject: first.subject,
            group: first.group,
            content,
        };
        Ok(Some((number, member)))
    }
}

/// What a refusal speaks of.
struct Names {
    /// Whether a record may give several rows.
    repeats: bool,
    quasi: Vec<Counted>,
    sensitive: Vec<Counted>,
    rows: u64,
}

impl Names {
    fn refusal(&self, reason: Reason, k_before: Option<u64>, suppressed: u64, requirement: &Requirement) -> Refusal {
        let names = |columns: &[Counted]| {
            if columns.is_empty() {
                "no column".to_owned()
            } else {
                let quoted: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name)).collect();
                quoted.join(", ")
            }
        };
        let rows = self.rows;
        let share = 100.0 * suppressed as f64 / rows.max(1) as f64;
        let limit = if requirement.suppress {
            format!(
                "{suppressed} of {rows} rows ({share:.1} %) would have to be suppressed, and at most {:.1} % may be",
                100.0 * requirement.max_suppressed
            )
        } else {
            format!("{suppressed} of {rows} rows ({share:.1} %) are concerned, and `on_violation` is `refuse`")
        };
        let (rule, why, fix) = match reason {
            Reason::K => (
                "k-not-reached",
                format!(
                    "the smallest group of people alike on {}{} has {}, k is {}; {limit}",
                    names(&self.quasi),
                    if self.repeats {
                        ", and on how many rows a record gives,"
                    } else {
                        ""
                    },
                    k_before.unwrap_or(0),
                    requirement.k
                ),
                "generalise more (a wider `age_band`, a lower `top_code`), select fewer quasi-identifiers, or set \
                 `on_violation: suppress` with a larger `max_suppressed`",
            ),
            Reason::L => (
                "l-not-reached",
                format!(
                    "a group of people alike on {} has fewer than {} different values of one of {}; {limit}",
                    names(&self.quasi),
                    requirement.l,
                    names(&self.sensitive)
                ),
                "generalise the quasi-identifiers more, leave out the sensitive column, or set `on_violation: suppress` \
                 with a larger `max_suppressed`",
            ),
            Reason::Difference => (
                "difference-below-k",
                format!(
                    "compared with earlier releases, which some people were not in or with other rows, it would single out {} \
                     people, k is {}; {limit}",
                    k_before.unwrap_or(0),
                    requirement.k
                ),
                "keep people and generalisation as in the earlier release, wait until at least k people per group have \
                 changed, or set `on_violation: suppress` with a larger `max_suppressed`",
            ),
        };
        Refusal {
            rule: rule.to_owned(),
            what: format!("releasing {rows} rows"),
            why,
            fix: fix.to_owned(),
        }
    }
}
