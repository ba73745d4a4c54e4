//! What can be worked out from the groups of two variables together.
//!
//! Whoever knows figures of groups knows those of their unions, and of the difference where one union
//! lies inside another: of ten-year bands and of "over 65" follows "60 to 65". So for two variables
//! that both divide all rows into blocks, this looks for blocks `S` of one and `T` of the other with
//! all of `T` inside `S` and a small rest. The rest is a union of crossings of a block with a block,
//! and small only if each of these is small, which leaves little to try:
//!
//! - a block of `T` pulls every block that it crosses into `S`;
//! - where a block of `S` crosses another in rows that are not few, that one must be in `T`.

use std::collections::{BTreeMap, BTreeSet};

/// Choices that are tried for one crossing; beyond them it counts as worked out.
const MAX_CHOICES: usize = 2_000;

/// Blocks of the one and of the other variable from which a small rest follows.
pub(super) struct Revealing {
    pub(super) of_first: BTreeSet<usize>,
    pub(super) of_second: BTreeSet<usize>,
}

/// Rows of each crossing of a block with a block.
struct Crossings<'a> {
    rows: BTreeMap<(usize, usize), Vec<usize>>,
    small: BTreeSet<(usize, usize)>,
    is_small: &'a dyn Fn(&[usize]) -> bool,
}

/// Looks for blocks of `first` and blocks of `second` inside them that leave a small rest. Both name the
/// block of each row.
pub(super) fn find(first: &[usize], second: &[usize], is_small: &dyn Fn(&[usize]) -> bool) -> Option<Revealing> {
    let mut rows: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (row, (&one, &other)) in first.iter().zip(second).enumerate() {
        rows.entry((one, other)).or_default().push(row);
    }
    let small = rows
        .iter()
        .filter(|(_, rows)| is_small(rows))
        .map(|(crossing, _)| *crossing)
        .collect();
    let crossings = Crossings { rows, small, is_small };
    crossings.small.iter().find_map(|&crossing| crossings.follows(crossing))
}

impl Crossings<'_> {
    /// The smallest `S` and `T` that contain the given blocks.
    fn close(&self, mut of_first: BTreeSet<usize>, mut of_second: BTreeSet<usize>) -> Revealing {
        loop {
            let before = of_first.len() + of_second.len();
            for &(one, other) in self.rows.keys() {
                if of_second.contains(&other) {
                    of_first.insert(one);
                }
                if of_first.contains(&one) && !self.small.contains(&(one, other)) {
                    of_second.insert(other);
                }
            }
            if of_first.len() + of_second.len() == before {
                return Revealing { of_first, of_second };
            }
        }
    }

    /// Whether a small rest with this crossing in it follows from some choice of blocks.
    fn follows(&self, (one, other): (usize, usize)) -> Option<Revealing> {
        let mut waiting = vec![self.close(BTreeSet::from([one]), BTreeSet::new())];
        let mut seen = BTreeSet::new();
        while let Some(choice) = waiting.pop() {
            if choice.of_second.contains(&other) || !seen.insert(choice.of_second.clone()) {
                continue;
            }
            let left = |crossing: &(usize, usize)| {
                choice.of_first.contains(&crossing.0) && !choice.of_second.contains(&crossing.1)
            };
            let rest = || self.rows.iter().filter(|(crossing, _)| left(crossing));
            let rows: Vec<usize> = rest().flat_map(|(_, rows)| rows.iter().copied()).collect();
            if (self.is_small)(&rows) || seen.len() > MAX_CHOICES {
                return Some(choice);
            }
            // The rest shrinks only if a further block of the second variable is taken away from it.
            let further: BTreeSet<usize> = rest()
                .map(|((_, block), _)| *block)
                .filter(|&block| block != other)
                .collect();
            for block in further {
                let mut of_second = choice.of_second.clone();
                of_second.insert(block);
                waiting.push(self.close(choice.of_first.clone(), of_second));
            }
        }
        None
    }
}
