//! Who is in which group of a release, with which rows, and where somebody stands in another release.

/// A group's keyed name: what it is a group of, and the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Group(pub(super) [u8; 16]);

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
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        self.rows == other.rows || self.records == other.records
    }
}

/// Where a subject stands in another release, seen from one group.
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

impl State {
    /// Where the subject of `member` stands in another release, of which `there` are the members of the
    /// same subject in order of their groups.
    pub(crate) fn of(member: &Member, there: &[Member]) -> Self {
        match there.binary_search_by_key(&member.group, |found| found.group) {
            Ok(at) if there.get(at).is_some_and(|found| found.content.agrees(&member.content)) => Self::Same,
            Ok(_) => Self::Changed,
            Err(_) if there.is_empty() => Self::Absent,
            Err(_) => Self::Other(there.iter().map(|found| found.group).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_the_same_changed_elsewhere_or_absent() {
        let member = |byte, rows, records| Member {
            subject: 2,
            group: Group([byte; 16]),
            content: Content { rows, records },
        };
        let there = [member(1, 7, 8), member(2, 7, 8)];
        assert_eq!(State::of(&member(2, 7, 8), &there), State::Same);
        assert_eq!(State::of(&member(2, 7, 9), &there), State::Same);
        assert_eq!(State::of(&member(2, 9, 8), &there), State::Same);
        assert_eq!(State::of(&member(2, 9, 9), &there), State::Changed);
        let groups = vec![Group([1; 16]), Group([2; 16])];
        assert_eq!(State::of(&member(3, 7, 8), &there), State::Other(groups));
        assert_eq!(State::of(&member(3, 7, 8), &[]), State::Absent);
    }
}
