//! Intervals by drawing subjects with replacement.
//!
//! Rows of one subject resemble each other, so drawing rows would make intervals too narrow. A drawn
//! subject brings all of its rows (cluster bootstrap; Davison and Hinkley, 1997, section 3.8).

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tidegate_bundle::Interval;

/// Samples that are drawn.
const SAMPLES: usize = 500;
/// A figure that is not defined in more than one of twenty samples gets no interval.
const MIN_DEFINED: usize = SAMPLES - SAMPLES / 20;
/// Fixed, so that the same rows give the same interval.
const SEED: u64 = 0x7469_6465_6761_7465;

/// The subjects of rows, numbered from 0.
pub(crate) struct Clusters {
    of_rows: Vec<usize>,
    count: usize,
}

impl Clusters {
    pub(crate) fn of(subjects: &[u64]) -> Self {
        // By the subject's own number, so that the order of rows decides nothing.
        let distinct: BTreeSet<u64> = subjects.iter().copied().collect();
        let numbers: BTreeMap<u64, usize> = distinct.into_iter().zip(0..).collect();
        Self {
            of_rows: subjects
                .iter()
                .filter_map(|subject| numbers.get(subject).copied())
                .collect(),
            count: numbers.len(),
        }
    }

    pub(crate) fn of_rows(&self) -> &[usize] {
        &self.of_rows
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// Draws how often each subject counts, [`SAMPLES`] times.
pub(crate) struct Resampling {
    random: ChaCha12Rng,
    weights: Vec<u32>,
    left: usize,
}

impl Resampling {
    pub(crate) fn new(subjects: usize) -> Self {
        Self {
            random: ChaCha12Rng::seed_from_u64(SEED),
            weights: vec![0; subjects],
            left: SAMPLES,
        }
    }

    /// The next sample, until there is none.
    pub(crate) fn draw(&mut self) -> Option<&[u32]> {
        self.left = self.left.checked_sub(1)?;
        self.weights.fill(0);
        let count = self.weights.len() as u128;
        for _ in 0..count {
            let chosen = ((u128::from(self.random.next_u64()) * count) >> 64) as usize;
            self.weights[chosen] += 1;
        }
        Some(&self.weights)
    }
}

/// The 95 % percentile interval of a figure, or none where too few samples define it. Ends fall on the
/// outer neighbour, and the interval always contains the figure.
pub(crate) fn interval(value: f64, mut samples: Vec<f64>) -> Option<Interval> {
    if samples.len() < MIN_DEFINED {
        return None;
    }
    samples.sort_by(f64::total_cmp);
    let last = (samples.len() - 1) as f64;
    let low = samples.get((last * 0.025).floor() as usize)?.min(value);
    let high = samples.get((last * 0.975).ceil() as usize)?.max(value);
    Some(Interval { value, low, high })
}
