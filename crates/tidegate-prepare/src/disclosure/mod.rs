//! What somebody outside could learn about people from what leaves, measured and limited.
//!
//! A *group* is the rows of a release that agree on all quasi-identifiers. Whoever holds this release
//! and every earlier one can split each group further: into people who were in the same group of an
//! earlier release with the same rows, there with other rows, in another group, or not there at all. These
//! *cells* are what k counts people in,
//! and distinct-l counts values in, so that no combination of releases, and no difference between two,
//! singles out fewer than k people.

pub(crate) mod identifiers;
pub(crate) mod register;

use std::collections::{BTreeSet, HashMap, HashSet};

use tidegate_types::Refusal;

use crate::error::PrepareError;
use crate::execute::OutputBatch;
use crate::split::Prf;
use register::{Content, Group, Member, Release, State};

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
pub(crate) struct Measure {
    quasi: Vec<Counted>,
    sensitive: Vec<Counted>,
    group_prf: Prf,
    groups: HashMap<Group, u32>,
    names: Vec<Group>,
    entries: Vec<(u32, u64)>,
    /// Keyed digests of sensitive values, `sensitive.len()` for each entry.
    values: Vec<u64>,
    /// What the rows of a subject in a group are.
    contents: HashMap<(u32, u64), Content>,
}

/// What was found, and which rows must go.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// For each row, in the order in which they were added, whether it may leave.
    pub(crate) alive: Vec<bool>,
    pub(crate) k: u64,
    pub(crate) k_before: u64,
    pub(crate) l: Option<u64>,
    pub(crate) groups: u64,
    pub(crate) subjects: u64,
    pub(crate) suppressed: u64,
    /// Who is in which group of what leaves: for the register.
    pub(crate) members: Vec<Member>,
}

impl Measure {
    pub(crate) fn new(quasi: Vec<Counted>, sensitive: Vec<Counted>, group_prf: Prf) -> Self {
        Self {
            quasi,
            sensitive,
            group_prf,
            groups: HashMap::new(),
            names: Vec::new(),
            entries: Vec::new(),
            values: Vec::new(),
            contents: HashMap::new(),
        }
    }

    /// Adds one output row, with a keyed digest of the source record that it comes from.
    pub(crate) fn add(&mut self, batch: &OutputBatch, row: usize, record: u64) -> Result<(), PrepareError> {
        let mut digest = self.group_prf.running();
        for column in &self.quasi {
            digest.field(Some(&column.meaning));
            digest.field(Some(batch.field(column.index, row)));
        }
        let name = Group::of(&digest.finish());
        let next = u32::try_from(self.names.len()).map_err(|_| {
            PrepareError::failed(
                "measuring the disclosure risk",
                "there are more than four thousand million groups",
                "Generalise the quasi-identifiers",
            )
        })?;
        let group = *self.groups.entry(name).or_insert(next);
        if group == next {
            self.names.push(name);
        }
        let subject = batch.subjects.value(row);
        self.entries.push((group, subject));
        let mut digest = self.group_prf.running();
        for column in 0..batch.columns.len() {
            digest.field(Some(batch.field(column, row)));
        }
        let content = self.contents.entry((group, subject)).or_default();
        content.add(Group::of(&digest.finish()).number(), record);
        for column in &self.sensitive {
            let mut digest = self.group_prf.running();
            digest.field(Some(batch.field(column.index, row)));
            self.values.push(Group::of(&digest.finish()).number());
        }
        Ok(())
    }

    /// Finds the rows that may leave.
    ///
    /// # Errors
    /// A refusal when the requirement is not met, or only by suppressing too much.
    pub(crate) fn settle(self, earlier: &[Release], requirement: &Requirement) -> Result<Verdict, PrepareError> {
        let cells = self.cells(earlier);
        let mut alive = vec![true; self.entries.len()];
        let mut reason = None;
        let mut k_before = None;
        let (k, l) = loop {
            let found = self.round(&cells, earlier, &alive, requirement);
            k_before.get_or_insert(found.k);
            reason = reason.or(found.reason);
            if found.kill.is_empty() {
                break (found.k, found.l);
            }
            for entry in found.kill {
                if let Some(alive) = alive.get_mut(entry) {
                    *alive = false;
                }
            }
        };
        let rows = alive.len() as u64;
        let left = alive.iter().filter(|alive| **alive).count() as u64;
        let suppressed = rows - left;
        if let Some(reason) = reason {
            let allowed = requirement.suppress && suppressed as f64 <= requirement.max_suppressed * rows as f64;
            if !allowed || left == 0 {
                return Err(self.refusal(reason, k_before.flatten(), suppressed, requirement).into());
            }
        }
        let mut members = BTreeSet::new();
        let mut subjects = HashSet::new();
        let mut groups = HashSet::new();
        for ((group, subject), alive) in self.entries.iter().zip(&alive) {
            if !alive {
                continue;
            }
            groups.insert(*group);
            subjects.insert(*subject);
            members.insert(self.member(*group, *subject));
        }
        Ok(Verdict {
            k: k.unwrap_or(0),
            k_before: k_before.flatten().unwrap_or(0),
            l,
            groups: groups.len() as u64,
            subjects: subjects.len() as u64,
            suppressed,
            members: members.into_iter().collect(),
            alive,
        })
    }

    /// All rows of a subject in a group leave or none does, so what was added is what leaves.
    fn member(&self, group: u32, subject: u64) -> Member {
        Member {
            subject,
            group: self.names.get(group as usize).copied().unwrap_or_default(),
            content: self.contents.get(&(group, subject)).copied().unwrap_or_default(),
        }
    }

    /// The cell of each entry: its group, and where its subject stands in each earlier release. It does
    /// not depend on what is suppressed later.
    fn cells(&self, earlier: &[Release]) -> Vec<u32> {
        let mut known: HashMap<(u32, Vec<State>), u32> = HashMap::new();
        self.entries
            .iter()
            .map(|(group, subject)| {
                let member = self.member(*group, *subject);
                let states = earlier.iter().map(|release| release.state(&member)).collect();
                let next = known.len() as u32;
                *known.entry((*group, states)).or_insert(next)
            })
            .collect()
    }

    fn round(&self, cells: &[u32], earlier: &[Release], alive: &[bool], requirement: &Requirement) -> Round {
        let mut round = Round::default();
        let width = self.sensitive.len();
        let mut people: HashMap<u32, HashSet<u64>> = HashMap::new();
        let mut values: HashMap<(u32, usize), HashSet<u64>> = HashMap::new();
        let mut present = HashSet::new();
        for (index, ((group, subject), cell)) in self.entries.iter().zip(cells).enumerate() {
            if !alive.get(index).copied().unwrap_or(false) {
                continue;
            }
            present.insert((*group, *subject));
            people.entry(*cell).or_default().insert(*subject);
            for (column, value) in self.values.iter().skip(index * width).take(width).enumerate() {
                values.entry((*cell, column)).or_default().insert(*value);
            }
        }
        let mut bad = HashSet::new();
        for (cell, people) in &people {
            let size = people.len() as u64;
            round.k = Some(round.k.map_or(size, |k| k.min(size)));
            if size < requirement.k {
                bad.insert(*cell);
                round.reason = Some(if earlier.is_empty() {
                    Reason::K
                } else {
                    Reason::Difference
                });
            }
        }
        for ((cell, _), values) in &values {
            let distinct = values.len() as u64;
            round.l = Some(round.l.map_or(distinct, |l| l.min(distinct)));
            if distinct < requirement.l && bad.insert(*cell) {
                round.reason = round.reason.or(Some(Reason::L));
            }
        }
        let mut people_to_go = HashSet::new();
        let present = Release::new(
            present
                .into_iter()
                .map(|(group, subject)| self.member(group, subject))
                .collect(),
        );
        for (cell, left) in gone(earlier, &present) {
            let size = left.absent.len() as u64;
            // A cell that was too small before this release is no news that this release brings.
            if left.present.is_empty() && size < requirement.k {
                continue;
            }
            round.k = Some(round.k.map_or(size, |k| k.min(size)));
            if size < requirement.k {
                tracing::debug!(
                    release = cell.0,
                    "people left out since an earlier release are fewer than k"
                );
                people_to_go.extend(left.present);
                round.reason = Some(Reason::Difference);
            }
        }
        for (index, ((_, subject), cell)) in self.entries.iter().zip(cells).enumerate() {
            if alive.get(index).copied().unwrap_or(false) && (bad.contains(cell) || people_to_go.contains(subject)) {
                round.kill.push(index);
            }
        }
        round
    }

    fn refusal(&self, reason: Reason, k_before: Option<u64>, suppressed: u64, requirement: &Requirement) -> Refusal {
        let names = |columns: &[Counted]| {
            if columns.is_empty() {
                "no column".to_owned()
            } else {
                let quoted: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name)).collect();
                quoted.join(", ")
            }
        };
        let rows = self.entries.len();
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
                    "the smallest group of people alike on {} has {}, k is {}; {limit}",
                    names(&self.quasi),
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    K,
    L,
    Difference,
}

#[derive(Debug, Default)]
struct Round {
    k: Option<u64>,
    l: Option<u64>,
    reason: Option<Reason>,
    /// Entries that must go.
    kill: Vec<usize>,
}

/// People of one cell of an earlier release.
#[derive(Debug, Default)]
struct Left {
    present: HashSet<u64>,
    absent: HashSet<u64>,
}

/// The cells of earlier releases of which somebody is not there any more, or not with the same rows.
fn gone(earlier: &[Release], present: &Release) -> Vec<((usize, u32), Left)> {
    let mut found = Vec::new();
    for (number, release) in earlier.iter().enumerate() {
        let mut cells: HashMap<(Group, Vec<State>), Left> = HashMap::new();
        for member in release.members() {
            let states = earlier.iter().map(|other| other.state(member)).collect();
            let left = cells.entry((member.group, states)).or_default();
            if present.state(member) == State::Same {
                left.present.insert(member.subject);
            } else {
                left.absent.insert(member.subject);
            }
        }
        let left = cells.into_values().filter(|left| !left.absent.is_empty());
        found.extend(left.enumerate().map(|(cell, left)| ((number, cell as u32), left)));
    }
    found
}
