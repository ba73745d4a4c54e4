//! The measurement once more, written for reading and held in memory: what `settle` finds on sorted files
//! must be what this finds. With one rule of it switched off the two differ on some release, so each rule
//! is needed and each is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use datafusion::arrow::array::{StringArray, UInt64Array};
use tidegate_types::Digest;
use tidegate_types::ids::DatasetName;

use super::register::Register;
use super::{Counted, Measure, Requirement};
use crate::execute::OutputBatch;
use crate::split::Prf;

/// A rule that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    Nothing,
    /// People are counted, not rows.
    People,
    /// A cell has at least k people.
    SmallCells,
    /// A cell has at least l values.
    Values,
    /// Who was in another group before is told apart.
    Elsewhere,
    /// Who had other rows before is told apart.
    Changed,
    /// The same records under another query are the same rows.
    SameRecords,
    /// Fewer than k people left out since an earlier release are too few.
    Gone,
    /// How many rows a record gives tells people apart.
    Times,
    /// What is too small after a suppression must go too.
    Again,
    /// The share of suppressed rows is bounded.
    Bound,
}

#[derive(Debug, Clone)]
struct Row {
    subject: u64,
    number: u64,
    /// Quasi-identifier, sensitive value, attribute.
    fields: [u8; 3],
    record: u64,
}

/// Quasi-identifier, and how many rows the record gives.
type Group = (u8, usize);
/// Of a subject in a group: rows and records as often as they are there.
type Content = (Vec<[u8; 3]>, Vec<u64>);
type Release = BTreeMap<(u64, Group), Content>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Absent,
    Same,
    Changed,
    Elsewhere(Vec<Group>),
}

#[derive(Debug, PartialEq)]
struct Found {
    alive: Vec<bool>,
    k: u64,
    k_before: u64,
    l: Option<u64>,
    groups: u64,
    subjects: u64,
}

fn state(off: Off, subject: u64, group: Group, content: &Content, release: &Release) -> State {
    if let Some(there) = release.get(&(subject, group)) {
        let same_records = there.1 == content.1 && off != Off::SameRecords;
        let same = there.0 == content.0 || same_records || off == Off::Changed;
        return if same { State::Same } else { State::Changed };
    }
    let others: Vec<Group> = release
        .keys()
        .filter(|(it, _)| *it == subject)
        .map(|(_, group)| *group)
        .collect();
    if others.is_empty() || off == Off::Elsewhere {
        State::Absent
    } else {
        State::Elsewhere(others)
    }
}

fn members(off: Off, rows: &[Row], alive: &[bool]) -> Release {
    let mut release = Release::new();
    for row in rows.iter().zip(alive).filter(|(_, alive)| **alive).map(|(row, _)| row) {
        let content = release.entry((row.subject, group(off, row, rows))).or_default();
        content.0.push(row.fields);
        content.1.push(row.record);
    }
    for content in release.values_mut() {
        content.0.sort_unstable();
        content.1.sort_unstable();
    }
    release
}

fn group(off: Off, row: &Row, rows: &[Row]) -> Group {
    let times = rows.iter().filter(|other| other.number == row.number).count();
    (row.fields[0], if off == Off::Times { 1 } else { times })
}

/// What must leave, or the rule that refuses.
fn measured(off: Off, rows: &[Row], earlier: &[Release], wanted: &Requirement) -> Result<Found, &'static str> {
    let whole = members(off, rows, &vec![true; rows.len()]);
    let states = |subject, group, content: &Content| -> Vec<State> {
        earlier
            .iter()
            .map(|release| state(off, subject, group, content, release))
            .collect()
    };
    let cells: Vec<(Group, Vec<State>)> = rows
        .iter()
        .map(|row| {
            let group = group(off, row, rows);
            (group, states(row.subject, group, &whole[&(row.subject, group)]))
        })
        .collect();
    let mut alive = vec![true; rows.len()];
    let mut reason: Option<&'static str> = None;
    let mut k_before = None;
    let (k, l) = loop {
        let (mut k, mut l, mut found): (Option<u64>, Option<u64>, Option<&'static str>) = (None, None, None);
        let mut people: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        let mut values: BTreeMap<_, BTreeSet<u8>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate().filter(|(at, _)| alive[*at]) {
            let who = if off == Off::People { at as u64 } else { row.subject };
            people.entry(&cells[at]).or_default().insert(who);
            values.entry(&cells[at]).or_default().insert(row.fields[1]);
        }
        let mut bad = BTreeSet::new();
        for (cell, people) in &people {
            let size = people.len() as u64;
            k = Some(k.map_or(size, |k: u64| k.min(size)));
            if size < wanted.k && off != Off::SmallCells {
                bad.insert(*cell);
                found = Some(if earlier.is_empty() {
                    "k-not-reached"
                } else {
                    "difference-below-k"
                });
            }
        }
        for (cell, values) in &values {
            let size = values.len() as u64;
            l = Some(l.map_or(size, |l: u64| l.min(size)));
            if size < wanted.l && off != Off::Values && bad.insert(*cell) {
                found = found.or(Some("l-not-reached"));
            }
        }
        let present = members(off, rows, &alive);
        let mut must_go = BTreeSet::new();
        for release in earlier {
            let mut left: BTreeMap<_, (BTreeSet<u64>, BTreeSet<u64>)> = BTreeMap::new();
            for ((subject, group), content) in release {
                let (here, gone) = left.entry((group, states(*subject, *group, content))).or_default();
                let same = state(off, *subject, *group, content, &present) == State::Same;
                let side = if same { here } else { gone };
                side.insert(*subject);
            }
            for (here, gone) in left.into_values().filter(|(_, gone)| !gone.is_empty()) {
                let size = gone.len() as u64;
                if off == Off::Gone || (here.is_empty() && size < wanted.k) {
                    continue;
                }
                k = Some(k.map_or(size, |k| k.min(size)));
                if size < wanted.k {
                    must_go.extend(here);
                    found = Some("difference-below-k");
                }
            }
        }
        k_before.get_or_insert(k);
        reason = reason.or(found);
        let mut killed = false;
        for (at, row) in rows.iter().enumerate() {
            if alive[at] && (bad.contains(&cells[at]) || must_go.contains(&row.subject)) {
                alive[at] = false;
                killed = true;
            }
        }
        if !killed || off == Off::Again {
            break (k, l);
        }
    };
    let left = alive.iter().filter(|alive| **alive).count();
    if let Some(reason) = reason {
        let within = (rows.len() - left) as f64 <= wanted.max_suppressed * rows.len() as f64;
        if !(wanted.suppress && (within || off == Off::Bound)) || left == 0 {
            return Err(reason);
        }
    }
    let released = members(off, rows, &alive);
    let distinct = |of: &dyn Fn(&(u64, Group)) -> u64| released.keys().map(of).collect::<BTreeSet<_>>().len() as u64;
    let groups: BTreeSet<Group> = released.keys().map(|(_, group)| *group).collect();
    Ok(Found {
        k: k.unwrap_or(0),
        k_before: k_before.flatten().unwrap_or(0),
        l,
        groups: groups.len() as u64,
        subjects: distinct(&|(subject, _)| *subject),
        alive,
    })
}

/// What the sorted files say, entered into the register where it is released.
fn sorted(folder: &Path, step: u8, rows: &[Row], wanted: &Requirement) -> Result<Found, String> {
    let counted = |index: usize, name: &str| Counted {
        index,
        name: name.to_owned(),
        meaning: name.to_owned(),
    };
    let prf = |purpose| Prf::derive(&[7; 32], purpose, b"");
    let mut measure = Measure::new(
        folder,
        vec![counted(0, "q")],
        vec![counted(1, "s")],
        prf("groups"),
        true,
    );
    let column = |index: usize| {
        rows.iter()
            .map(|row| Some(row.fields[index].to_string()))
            .collect::<StringArray>()
    };
    let numbers = |of: fn(&Row) -> u64| UInt64Array::from_iter_values(rows.iter().map(of));
    let batch = OutputBatch {
        columns: (0..3).map(column).collect(),
        subjects: numbers(|row| row.subject),
        records: numbers(|row| row.number),
        digests: numbers(|row| row.record),
        by: Vec::new(),
    };
    for row in 0..rows.len() {
        measure.add(&batch, row).unwrap();
    }
    let dataset = DatasetName::new("d").unwrap();
    let key = Digest::from_bytes([step; 32]);
    let register = Register::open(&folder.join("releases"), &dataset, key, prf("releases")).unwrap();
    let mut verdict = measure
        .settle(&register, wanted)
        .map_err(|error| match error.refusal() {
            Some(refusal) => refusal.rule.clone(),
            None => error.to_string(),
        })?;
    verdict.record(&register).unwrap();
    let alive: Vec<bool> = (0..rows.len() as u64).map(|row| verdict.alive.get(row)).collect();
    assert_eq!(verdict.rows, rows.len() as u64);
    assert_eq!(verdict.suppressed, alive.iter().filter(|alive| !**alive).count() as u64);
    let dead: BTreeSet<u64> = rows
        .iter()
        .zip(&alive)
        .filter(|(_, alive)| !**alive)
        .map(|(row, _)| row.number)
        .collect();
    let mut reader = verdict.suppressed_records.read().unwrap();
    for number in dead {
        assert_eq!(reader.next().unwrap(), Some(number.to_be_bytes().as_slice()));
    }
    assert_eq!(reader.next().unwrap(), None);
    Ok(Found {
        alive,
        k: verdict.k,
        k_before: verdict.k_before,
        l: verdict.l,
        groups: verdict.groups,
        subjects: verdict.subjects,
    })
}

/// A small deterministic source of choices (splitmix64).
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Releases of people who mostly stay the same, and what each must reach.
fn history(seed: u64) -> Vec<(Vec<Row>, Requirement)> {
    let mut c = Choices(seed);
    let people = 4 + c.below(9);
    let mut stays: Vec<(u64, [u8; 3])> = (0..people + c.below(6))
        .map(|stay| (stay % people, [c.below(2) as u8, c.below(3) as u8, c.below(3) as u8]))
        .collect();
    (0..1 + c.below(3))
        .map(|_| {
            // Another query: every attribute is written otherwise.
            let query = if c.below(3) == 0 { 10 } else { 0 };
            for _ in 0..c.below(3) {
                let at = c.below(stays.len() as u64) as usize;
                match c.below(3) {
                    0 => stays[at].1 = [c.below(2) as u8, c.below(3) as u8, c.below(3) as u8],
                    1 => stays.push((
                        c.below(people + 2),
                        [c.below(2) as u8, c.below(3) as u8, c.below(3) as u8],
                    )),
                    _ if stays.len() > 2 => {
                        stays.remove(at);
                    }
                    _ => {}
                }
            }
            let twice = c.below(3) == 0;
            let mut rows = Vec::new();
            for (number, (subject, fields)) in stays.iter().enumerate() {
                let [quasi, sensitive, attribute] = *fields;
                let record =
                    *subject * 1000 + u64::from(quasi) * 100 + u64::from(sensitive) * 10 + u64::from(attribute);
                let record = Choices(record).below(u64::MAX);
                for _ in 0..1 + usize::from(twice && c.below(2) == 0) {
                    rows.push(Row {
                        subject: *subject,
                        number: number as u64,
                        fields: [quasi, sensitive, attribute + query],
                        record,
                    });
                }
            }
            let requirement = Requirement {
                k: c.below(4),
                l: c.below(3),
                suppress: c.below(3) > 0,
                max_suppressed: [0.2, 0.6, 1.0][c.below(3) as usize],
            };
            (rows, requirement)
        })
        .collect()
}

#[test]
fn sorted_files_say_what_the_plain_measurement_says() {
    let (mut released, mut refused) = (0, 0);
    for seed in 0..400 {
        let folder = tempfile::tempdir().unwrap();
        let mut earlier = Vec::new();
        for (step, (rows, wanted)) in (1..).zip(history(seed)) {
            let plain = measured(Off::Nothing, &rows, &earlier, &wanted).map_err(str::to_owned);
            let found = sorted(folder.path(), step, &rows, &wanted);
            assert_eq!(found, plain, "seed {seed}, step {step}: {rows:#?} {wanted:?}");
            match plain {
                Ok(found) => {
                    released += 1;
                    let release = members(Off::Nothing, &rows, &found.alive);
                    if !earlier.contains(&release) {
                        earlier.push(release);
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(released > 200 && refused > 50, "{released} {refused}");
}

#[test]
fn every_rule_of_the_measurement_is_needed() {
    for off in [
        Off::People,
        Off::SmallCells,
        Off::Values,
        Off::Elsewhere,
        Off::Changed,
        Off::SameRecords,
        Off::Gone,
        Off::Times,
        Off::Again,
        Off::Bound,
    ] {
        let differs = (0..400).any(|seed| {
            let mut earlier = Vec::new();
            history(seed).into_iter().any(|(rows, wanted)| {
                let whole = measured(Off::Nothing, &rows, &earlier, &wanted);
                let without = measured(off, &rows, &earlier, &wanted);
                let differs = whole.as_ref().map(|it| &it.alive) != without.as_ref().map(|it| &it.alive);
                if let Ok(found) = whole {
                    earlier.push(members(Off::Nothing, &rows, &found.alive));
                }
                differs
            })
        });
        assert!(differs, "no release tells whether {off:?} is in force");
    }
}
