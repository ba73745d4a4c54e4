//! Finds the members that must go, in rounds over sorted files, until a round finds none.

use std::fs::File;
use std::path::Path;

use super::member::{Group, Member, State};
use super::register::Members;
use super::{Fields, MembersOf, Present, Requirement};
use crate::error::PrepareError;
use crate::ingest::snapshot::digest_of;
use crate::sort::{Bits, Reader, Sorted, Sorter};

/// A cell of this release: a group, and where the subject stands in each earlier release.
type Cell = [u8; 32];
/// The number of no member or subject of this release.
const NOBODY: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    K,
    L,
    Difference,
}

/// What one round found.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) k: Option<u64>,
    pub(super) l: Option<u64>,
    pub(super) groups: u64,
    pub(super) reason: Option<Reason>,
    /// Cells whose members must go, as they are numbered in order.
    cells: Bits,
    /// Subjects whose members must go.
    subjects: Bits,
    /// Whether anybody must.
    any: bool,
}

/// Members of this and earlier releases by their cells. None of it depends on what is suppressed later.
#[derive(Debug)]
pub(super) struct Settling {
    /// Cell, member, subject.
    cells: Sorted,
    /// Cell, sensitive column, value, member.
    values: Sorted,
    /// Cell of an earlier release, member with the same rows in this one, subject in this one.
    gone: Sorted,
    /// Whether there was an earlier release.
    after_others: bool,
    pub(super) alive: Bits,
}

impl Settling {
    /// Goes through the members of all releases together, subject by subject.
    pub(super) fn new(
        folder: &Path,
        present: &mut Present,
        values: &mut Sorted,
        mut earlier: Vec<Members>,
    ) -> Result<Self, PrepareError> {
        let mut alive = Bits::default();
        let mut cells = Sorter::new(folder);
        let mut valued = Sorter::new(folder);
        let mut gone = Sorter::new(folder);
        let mut members = MembersOf::new(present.entries.read()?);
        let mut values = Values::new(values.read()?)?;
        let mut next = members.next()?;
        let mut subjects = 0_u64;
        loop {
            let heads = earlier.iter().filter_map(|release| release.peek());
            let heads = heads.map(|member| member.subject);
            let heads = heads.chain(next.map(|(_, member)| member.subject));
            let Some(subject) = heads.min() else { break };

            let mut there: Vec<Vec<Member>> = Vec::with_capacity(earlier.len());
            for release in &mut earlier {
                let mut of_subject = Vec::new();
                while let Some(member) = release.peek().filter(|member| member.subject == subject).copied() {
                    of_subject.push(member);
                    release.advance()?;
                }
                there.push(of_subject);
            }
            let mut here = Vec::new();
            let mut numbers = Vec::new();
            while let Some((number, member)) = next.filter(|(_, member)| member.subject == subject) {
                here.push(member);
                numbers.push(number);
                next = members.next()?;
            }
            for (member, number) in here.iter().zip(&numbers) {
                alive.set(*number);
                let cell = cell(member, &there);
                cells.push(&[&cell, &number.to_be_bytes(), &subjects.to_be_bytes()])?;
                while let Some(value) = values.of(member) {
                    valued.push(&[&cell, value, &number.to_be_bytes()])?;
                    values.advance()?;
                }
            }
            let known = if here.is_empty() { NOBODY } else { subjects };
            for (release, of_subject) in (0_u32..).zip(&there) {
                for member in of_subject {
                    let same = here.binary_search_by_key(&member.group, |found| found.group);
                    let same = same.ok().filter(|_| State::of(member, &here) == State::Same);
                    let same = same.and_then(|at| numbers.get(at)).copied().unwrap_or(NOBODY);
                    let cell = cell(member, &there);
                    gone.push(&[&release.to_be_bytes(), &cell, &same.to_be_bytes(), &known.to_be_bytes()])?;
                }
            }
            subjects += u64::from(!here.is_empty());
        }
        Ok(Self {
            cells: cells.finish()?,
            values: valued.finish()?,
            gone: gone.finish()?,
            after_others: !earlier.is_empty(),
            alive,
        })
    }

    /// Measures what is alive.
    pub(super) fn round(&mut self, requirement: &Requirement) -> Result<Round, PrepareError> {
        let mut round = Round::default();
        self.people(requirement, &mut round)?;
        self.distinct(requirement, &mut round)?;
        if self.after_others {
            self.differences(requirement, &mut round)?;
        }
        Ok(round)
    }

    /// Whom each cell of this release holds.
    fn people(&mut self, requirement: &Requirement, round: &mut Round) -> Result<(), PrepareError> {
        let too_few = if self.after_others {
            Reason::Difference
        } else {
            Reason::K
        };
        let mut last_group = None;
        let mut end = |number: u64, cell: &Cell, size: u64| {
            // Nobody is left in it.
            if size == 0 {
                return;
            }
            let group = cell.first_chunk::<16>().copied();
            if last_group != group {
                last_group = group;
                round.groups += 1;
            }
            round.k = Some(round.k.map_or(size, |k| k.min(size)));
            if size < requirement.k {
                round.any |= round.cells.set(number);
                round.reason = Some(too_few);
            }
        };
        let mut reader = self.cells.read()?;
        let (mut cell, mut number, mut size) = (None, 0, 0);
        while let Some(record) = reader.next()? {
            let mut fields = Fields(record);
            let found: Cell = fields.take()?;
            if let Some(before) = cell.filter(|before| *before != found) {
                end(number, &before, size);
                (number, size) = (number + 1, 0);
            }
            cell = Some(found);
            // A subject is in a cell once: its group is.
            size += u64::from(self.alive.get(fields.number()?));
        }
        if let Some(cell) = cell {
            end(number, &cell, size);
        }
        Ok(())
    }

    /// How many values of each sensitive column each cell holds.
    fn distinct(&mut self, requirement: &Requirement, round: &mut Round) -> Result<(), PrepareError> {
        let mut end = |number: u64, values: u64| {
            if values == 0 {
                return;
            }
            round.l = Some(round.l.map_or(values, |l| l.min(values)));
            if values < requirement.l && round.cells.set(number) {
                round.any = true;
                round.reason = round.reason.or(Some(Reason::L));
            }
        };
        let mut reader = self.values.read()?;
        let (mut place, mut number, mut values) = (None, 0, 0);
        let mut counted = None;
        while let Some(record) = reader.next()? {
            let mut fields = Fields(record);
            let cell: Cell = fields.take()?;
            let column: [u8; 4] = fields.take()?;
            if let Some((before, _)) = place.filter(|place| *place != (cell, column)) {
                end(number, values);
                values = 0;
                counted = None;
                number += u64::from(before != cell);
            }
            place = Some((cell, column));
            let value = fields.number()?;
            if counted != Some(value) && self.alive.get(fields.number()?) {
                counted = Some(value);
                values += 1;
            }
        }
        if place.is_some() {
            end(number, values);
        }
        Ok(())
    }

    /// The cells of earlier releases of which somebody is not there any more, or not with the same rows.
    fn differences(&mut self, requirement: &Requirement, round: &mut Round) -> Result<(), PrepareError> {
        let mut bad = Bits::default();
        let mut reason = None;
        let mut end = |number: u64, present: u64, absent: u64| {
            // A cell that was too small before this release is no news that this release brings.
            if absent == 0 || (present == 0 && absent < requirement.k) {
                return;
            }
            round.k = Some(round.k.map_or(absent, |k| k.min(absent)));
            if absent < requirement.k {
                tracing::debug!("people left out since an earlier release are fewer than k");
                bad.set(number);
                reason = Some(Reason::Difference);
            }
        };
        let mut reader = self.gone.read()?;
        let (mut place, mut number, mut present, mut absent) = (None, 0, 0, 0);
        while let Some(record) = reader.next()? {
            let mut fields = Fields(record);
            let found: [u8; 36] = fields.take()?;
            if place.is_some_and(|before| before != found) {
                end(number, present, absent);
                (number, present, absent) = (number + 1, 0, 0);
            }
            place = Some(found);
            if self.alive.get(fields.number()?) {
                present += 1;
            } else {
                absent += 1;
            }
        }
        if place.is_some() {
            end(number, present, absent);
        }
        round.reason = reason.or(round.reason);
        if reason.is_none() {
            return Ok(());
        }
        let mut reader = self.gone.read()?;
        let (mut place, mut number) = (None, 0);
        while let Some(record) = reader.next()? {
            let mut fields = Fields(record);
            let found: [u8; 36] = fields.take()?;
            if place.is_some_and(|before| before != found) {
                number += 1;
            }
            place = Some(found);
            let (same, subject) = (fields.number()?, fields.number()?);
            if bad.get(number) && self.alive.get(same) {
                round.subjects.set(subject);
                round.any = true;
            }
        }
        Ok(())
    }

    /// Lets everybody go who must, and tells whether that was anybody.
    pub(super) fn kill(&mut self, round: &Round) -> Result<bool, PrepareError> {
        if !round.any {
            return Ok(false);
        }
        let mut left = Bits::default();
        let mut killed = false;
        let mut reader = self.cells.read()?;
        let (mut cell, mut number) = (None, 0);
        while let Some(record) = reader.next()? {
            let mut fields = Fields(record);
            let found: Cell = fields.take()?;
            if cell.is_some_and(|before| before != found) {
                number += 1;
            }
            cell = Some(found);
            let (member, subject) = (fields.number()?, fields.number()?);
            if self.alive.get(member) {
                if round.cells.get(number) || round.subjects.get(subject) {
                    killed = true;
                } else {
                    left.set(member);
                }
            }
        }
        self.alive = left;
        Ok(killed)
    }
}

/// The cell of a member: its group, and a digest of where its subject stands in each release, of which
/// `there` are the subject's members.
fn cell(member: &Member, there: &[Vec<Member>]) -> Cell {
    let mut states = Vec::new();
    for there in there {
        match State::of(member, there) {
            State::Absent => states.push(0),
            State::Same => states.push(1),
            State::Changed => states.push(2),
            State::Other(groups) => {
                states.push(3);
                states.extend_from_slice(&(groups.len() as u64).to_le_bytes());
                states.extend(groups.iter().flat_map(|group| group.0));
            }
        }
    }
    let states = digest_of(&states);
    let mut cell = [0; 32];
    let parts = member.group.0.iter().chain(states.as_bytes());
    for (to, from) in cell.iter_mut().zip(parts) {
        *to = *from;
    }
    cell
}

/// The sensitive values of members, in the members' order.
struct Values<'a> {
    reader: Reader<&'a File>,
    /// Subject and group; then column and value.
    ahead: Option<(u64, Group, [u8; 12])>,
}

impl<'a> Values<'a> {
    fn new(reader: Reader<&'a File>) -> Result<Self, PrepareError> {
        let mut values = Self { reader, ahead: None };
        values.advance()?;
        Ok(values)
    }

    fn advance(&mut self) -> Result<(), PrepareError> {
        self.ahead = match self.reader.next()? {
            None => None,
            Some(record) => {
                let mut fields = Fields(record);
                Some((fields.number()?, fields.group()?, fields.take()?))
            }
        };
        Ok(())
    }

    /// The next value, if it is one of `member`.
    fn of(&self, member: &Member) -> Option<&[u8]> {
        match &self.ahead {
            Some((subject, group, value)) if (*subject, *group) == (member.subject, member.group) => {
                Some(value.as_slice())
            }
            _ => None,
        }
    }
}
