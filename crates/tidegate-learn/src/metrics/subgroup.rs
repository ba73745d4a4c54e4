//! Which groups may be shown.
//!
//! A group is shown only if it is not small. What is not shown must not follow from what is shown
//! either, so further groups are hidden until two things hold:
//!
//! - what the shown groups of a variable leave of all rows, its *rest*, is empty or not small;
//! - no two variables together leave a small rest, see [`super::difference`].
//!
//! Figures that follow only from three variables at once are not looked for.

use std::collections::{BTreeMap, BTreeSet};

use super::{MISSING, difference};

/// The rows of one value of a variable.
pub(super) struct Group {
    pub(super) rows: Vec<usize>,
    /// The value, when the group may be shown.
    pub(super) shown_as: Option<String>,
}

/// Whether rows are about too few subjects, or too few with either outcome.
pub(super) fn is_small(rows: &[usize], outcomes: &[bool], clusters: &[usize], min_cell: usize) -> bool {
    let mut subjects = [BTreeSet::new(), BTreeSet::new()];
    for &row in rows {
        if let (Some(&outcome), Some(&cluster)) = (outcomes.get(row), clusters.get(row)) {
            subjects[usize::from(outcome)].insert(cluster);
        }
    }
    // Enough subjects with each outcome are enough subjects.
    subjects.iter().any(|subjects| subjects.len() < min_cell)
}

/// The groups of each variable, in the order of values.
pub(super) fn groups(
    variables: &[(String, Vec<Option<String>>)],
    outcomes: &[bool],
    clusters: &[usize],
    min_cell: usize,
) -> Vec<Vec<Group>> {
    let small = |rows: &[usize]| is_small(rows, outcomes, clusters, min_cell);
    let mut groups: Vec<Vec<Group>> = Vec::new();
    for (_, values) in variables {
        let mut by_value: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, value) in values.iter().enumerate() {
            by_value
                .entry(value.as_deref().unwrap_or(MISSING))
                .or_default()
                .push(row);
        }
        let group = |(value, rows): (&str, Vec<usize>)| Group {
            shown_as: (!small(&rows)).then(|| value.to_owned()),
            rows,
        };
        groups.push(by_value.into_iter().map(group).collect());
    }
    while let Some(group) = find_revealing(&groups, outcomes.len(), &small) {
        set_shown(&mut groups, group, None);
    }
    // Hiding a group for the sake of another that is hidden later has been for nothing.
    let hidden = |(variable, groups): (usize, &Vec<Group>)| -> Vec<(usize, usize)> {
        let hidden = |(_, group): &(usize, &Group)| group.shown_as.is_none() && !small(&group.rows);
        groups
            .iter()
            .enumerate()
            .filter(hidden)
            .map(|(position, _)| (variable, position))
            .collect()
    };
    let mut candidates: Vec<(usize, usize)> = groups.iter().enumerate().flat_map(hidden).collect();
    candidates.sort_by_key(|&(variable, position)| std::cmp::Reverse(size(&groups, variable, position)));
    for (variable, position) in candidates {
        let values = variables
            .get(variable)
            .map(|(_, values)| values.as_slice())
            .unwrap_or_default();
        let row = groups
            .get(variable)
            .and_then(|groups| groups.get(position))
            .and_then(|group| group.rows.first());
        let value = row
            .and_then(|&row| values.get(row))
            .map(|value| value.as_deref().unwrap_or(MISSING).to_owned());
        set_shown(&mut groups, (variable, position), value);
        if find_revealing(&groups, outcomes.len(), &small).is_some() {
            set_shown(&mut groups, (variable, position), None);
        }
    }
    groups
}

fn set_shown(groups: &mut [Vec<Group>], (variable, position): (usize, usize), shown_as: Option<String>) {
    if let Some(group) = groups.get_mut(variable).and_then(|groups| groups.get_mut(position)) {
        group.shown_as = shown_as;
    }
}

fn size(groups: &[Vec<Group>], variable: usize, position: usize) -> usize {
    groups
        .get(variable)
        .and_then(|groups| groups.get(position))
        .map_or(0, |group| group.rows.len())
}

/// A shown group from which, with others, a small rest follows: its variable and position.
fn find_revealing(groups: &[Vec<Group>], rows: usize, small: &dyn Fn(&[usize]) -> bool) -> Option<(usize, usize)> {
    // Block 0 of a variable is its rest, block `i + 1` its shown group `i`.
    let mut blocks = Vec::new();
    let smallest = |variable: usize, of: &dyn Fn(usize) -> bool| {
        let shown = groups
            .get(variable)?
            .iter()
            .enumerate()
            .filter(|(_, group)| group.shown_as.is_some());
        let among = shown.filter(|(position, _)| of(position + 1));
        among
            .min_by_key(|(_, group)| group.rows.len())
            .map(|(position, group)| (group.rows.len(), variable, position))
    };
    for (variable, groups) in groups.iter().enumerate() {
        let mut of_rows = vec![0; rows];
        let shown = groups.iter().enumerate().filter(|(_, group)| group.shown_as.is_some());
        for (block, row) in shown.flat_map(|(position, group)| group.rows.iter().map(move |&row| (position + 1, row))) {
            of_rows[row] = block;
        }
        let rest: Vec<usize> = (0..rows).filter(|&row| of_rows[row] == 0).collect();
        if !rest.is_empty()
            && small(&rest)
            && let Some((_, variable, position)) = smallest(variable, &|_| true)
        {
            return Some((variable, position));
        }
        blocks.push(of_rows);
    }
    for (first, of_first) in blocks.iter().enumerate() {
        for (second, of_second) in blocks.iter().enumerate().filter(|(second, _)| *second != first) {
            let Some(found) = difference::find(of_first, of_second, small) else {
                continue;
            };
            let one = smallest(first, &|block| found.of_first.contains(&block));
            let other = smallest(second, &|block| found.of_second.contains(&block));
            // Where only rests are involved, any group of the two makes one of them larger.
            let any = || {
                smallest(first, &|_| true)
                    .into_iter()
                    .chain(smallest(second, &|_| true))
                    .min()
            };
            if let Some((_, variable, position)) = one.into_iter().chain(other).min().or_else(any) {
                return Some((variable, position));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Variables from the sizes of their groups; every second row has the outcome, each row is a subject.
    fn shown(variables: &[&[usize]], min_cell: usize) -> Vec<Vec<bool>> {
        let rows = variables[0].iter().sum::<usize>();
        let named = |sizes: &&[usize]| {
            let values = sizes
                .iter()
                .enumerate()
                .flat_map(|(group, &size)| vec![Some(format!("{group:02}")); size]);
            (String::new(), values.collect::<Vec<_>>())
        };
        let variables: Vec<_> = variables.iter().map(named).collect();
        let outcomes: Vec<bool> = (0..rows).map(|row| row % 2 == 0).collect();
        let subjects: Vec<usize> = (0..rows).collect();
        let groups = groups(&variables, &outcomes, &subjects, min_cell);
        groups
            .iter()
            .map(|groups| groups.iter().map(|group| group.shown_as.is_some()).collect())
            .collect()
    }

    #[test]
    fn a_single_small_group_takes_the_next_one_with_it() {
        assert_eq!(shown(&[&[100, 40, 60]], 11), [[true, true, true]]);
        assert_eq!(
            shown(&[&[100, 40, 12]], 11),
            [[true, false, false]],
            "12 rows have 6 of each outcome"
        );
        assert_eq!(
            shown(&[&[100, 12, 12]], 11),
            [[true, false, false]],
            "together they are 24"
        );
        assert_eq!(shown(&[&[100, 4]], 11), [[false, false]]);
    }

    #[test]
    fn a_group_within_a_group_does_not_reveal_the_difference() {
        // The first variable's 50 rows are the second one's 44 and 6 more, and so is what both leave.
        assert_eq!(shown(&[&[50, 50], &[44, 56]], 11), [[false, false], [true, true]]);
        // Also where the difference is between two groups and two others.
        let chain = shown(&[&[40, 40, 40, 40], &[30, 56, 34, 40]], 11);
        assert_ne!(chain, [[true; 4], [true; 4]], "80 rows and 86 differ in 6");
        assert_eq!(shown(&[&[50, 50], &[26, 74]], 11), [[true, true], [true, true]]);
        assert_eq!(
            shown(&[&[50, 50], &[50, 50]], 11),
            [[true, true], [true, true]],
            "the same groups differ in nothing"
        );
    }

    #[test]
    fn subjects_are_counted_and_not_rows() {
        let outcomes = [true, false].repeat(50);
        let rows: Vec<usize> = (0..100).collect();
        assert!(!is_small(&rows, &outcomes, &rows, 11));
        let few: Vec<usize> = (0..100).map(|row| row / 10).collect();
        assert!(is_small(&rows, &outcomes, &few, 11));
        assert!(is_small(&rows, &[true; 100], &rows, 11), "nobody without the outcome");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn no_difference_of_shown_groups_is_small(
            rows in proptest::collection::vec((0..5u8, 0..4u8, any::<bool>(), 0..60usize), 1..150),
            min_cell in 1..9usize,
        ) {
            let variable = |pick: fn(&(u8, u8, bool, usize)) -> u8| rows.iter().map(|row| Some(pick(row).to_string())).collect::<Vec<_>>();
            let variables = [("a".to_owned(), variable(|row| row.0)), ("b".to_owned(), variable(|row| row.1))];
            let outcomes: Vec<bool> = rows.iter().map(|row| row.2).collect();
            let subjects: Vec<usize> = rows.iter().map(|row| row.3).collect();
            let small = |rows: &[usize]| is_small(rows, &outcomes, &subjects, min_cell);
            let groups = groups(&variables, &outcomes, &subjects, min_cell);
            let all: BTreeSet<usize> = (0..rows.len()).collect();
            // Every union of shown groups of a variable, and what it leaves of all rows.
            let unions = |groups: &[Group]| -> Vec<BTreeSet<usize>> {
                let shown: Vec<&Group> = groups.iter().filter(|group| group.shown_as.is_some()).collect();
                let chosen = |choice: u32| shown.iter().enumerate().filter(move |(i, _)| choice >> i & 1 == 1);
                let union = |choice| chosen(choice).flat_map(|(_, group)| group.rows.iter().copied()).collect::<BTreeSet<_>>();
                (0..1u32 << shown.len()).map(union).flat_map(|rows| [all.difference(&rows).copied().collect(), rows]).collect()
            };
            let [first, second] = [unions(&groups[0]), unions(&groups[1])];
            for group in groups.iter().flatten().filter(|group| group.shown_as.is_some()) {
                prop_assert!(!small(&group.rows));
            }
            for (one, other) in first.iter().flat_map(|one| second.iter().map(move |other| (one, other))) {
                for (inner, outer) in [(one, other), (other, one)] {
                    let rest: Vec<usize> = outer.difference(inner).copied().collect();
                    let all_rows = rest.len() == all.len();
                    prop_assert!(!inner.is_subset(outer) || rest.is_empty() || all_rows || !small(&rest), "{rest:?}");
                }
            }
        }
    }
}
