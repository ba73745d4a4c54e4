//! Merkle tree hashing and proofs (RFC 6962 section 2; the verifying algorithms are those of RFC
//! 9162 sections 2.1.3.2 and 2.1.4.2, which accept the same proofs).

use aws_lc_rs::digest::{Context, SHA256};
use tidegate_types::Digest;

use crate::LedgerError;

fn sha256(parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest::from_bytes(bytes)
}

/// The hash of a leaf: SHA-256 of a zero byte and the leaf.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Digest {
    sha256(&[&[0], leaf])
}

/// The hash of an inner node: SHA-256 of a one byte and both children.
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    sha256(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// The root of the log without leaves: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Digest {
    sha256(&[])
}

/// The largest power of two below `n`, for `n` of at least 2.
const fn split_point(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// Size and root of a growing log in logarithmic space: the roots of the perfect subtrees that the
/// leaves fill, largest first. Appending costs O(log n) at worst and O(1) on average.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactRange {
    size: u64,
    peaks: Vec<Digest>,
}

impl CompactRange {
    /// The log without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A range as [`CompactRange::peaks`] gave it, so that a log goes on after a restart without
    /// reading its leaves.
    ///
    /// # Errors
    /// When the number of hashes is not the number of binary digits 1 of `size`.
    pub fn from_peaks(size: u64, peaks: Vec<Digest>) -> Result<Self, LedgerError> {
        let expected = size.count_ones();
        if u32::try_from(peaks.len()) != Ok(expected) {
            return Err(LedgerError::WrongPeaks {
                size,
                expected,
                found: peaks.len(),
            });
        }
        Ok(Self { size, peaks })
    }

    /// Adds one leaf by its hash.
    pub fn append(&mut self, leaf: Digest) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the perfect subtrees, largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Digest] {
        &self.peaks
    }

    /// The Merkle tree hash of all leaves.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.peaks
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| node_hash(&left, &right))
            .unwrap_or_else(empty_root)
    }
}

/// All hashes of a log in memory (64 bytes for each leaf), for proofs and tiles at any size.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// `levels[l][i]` is the root of leaves `i * 2^l .. (i + 1) * 2^l`.
    levels: Vec<Vec<Digest>>,
}

impl FromIterator<Digest> for Tree {
    /// Builds a tree from leaf hashes.
    fn from_iter<I: IntoIterator<Item = Digest>>(leaves: I) -> Self {
        let mut tree = Self::default();
        leaves.into_iter().for_each(|leaf| tree.append(leaf));
        tree
    }
}

impl Tree {
    /// Adds one leaf by its hash ([`leaf_hash`]).
    pub fn append(&mut self, leaf: Digest) {
        let mut hash = leaf;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let Some(nodes) = self.levels.get_mut(level) else { break };
            nodes.push(hash);
            match nodes.as_slice() {
                [.., left, right] if nodes.len() % 2 == 0 => hash = node_hash(left, right),
                _ => break,
            }
        }
    }

    /// The number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The root of leaves `index * 2^level .. (index + 1) * 2^level`, when they are all there.
    #[must_use]
    pub fn node(&self, level: u32, index: u64) -> Option<Digest> {
        self.levels
            .get(usize::try_from(level).ok()?)?
            .get(usize::try_from(index).ok()?)
            .copied()
    }

    /// MTH(D[lo:hi]) of RFC 6962, for the ranges that its recursion visits: `lo` is a multiple of the
    /// smallest power of two that is not below `hi - lo`.
    fn range(&self, lo: u64, hi: u64) -> Option<Digest> {
        let n = hi.checked_sub(lo)?;
        match n {
            0 => Some(empty_root()),
            n if n.is_power_of_two() => self.node(n.trailing_zeros(), lo / n),
            n => {
                let middle = lo + split_point(n);
                Some(node_hash(&self.range(lo, middle)?, &self.range(middle, hi)?))
            }
        }
    }

    fn check_sizes(&self, old: u64, new: u64) -> Result<(), LedgerError> {
        if old <= new && new <= self.size() {
            Ok(())
        } else {
            Err(LedgerError::NoSuchSize {
                old,
                new,
                have: self.size(),
            })
        }
    }

    fn range_or_error(&self, lo: u64, hi: u64) -> Result<Digest, LedgerError> {
        self.range(lo, hi).ok_or(LedgerError::NoSuchSize {
            old: lo,
            new: hi,
            have: self.size(),
        })
    }

    /// The root of the first `size` leaves.
    ///
    /// # Errors
    /// When there are fewer leaves.
    pub fn root(&self, size: u64) -> Result<Digest, LedgerError> {
        self.check_sizes(0, size)?;
        self.range_or_error(0, size)
    }

    /// The audit path of leaf `index` in the log of the first `size` leaves (RFC 6962 section 2.1.1),
    /// the leaf's sibling first.
    ///
    /// # Errors
    /// When there is no such leaf or size.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Digest>, LedgerError> {
        self.check_sizes(0, size)?;
        if index >= size {
            return Err(LedgerError::NoSuchLeaf { index, size });
        }
        let (mut lo, mut hi, mut path) = (0, size, Vec::new());
        while hi - lo > 1 {
            let middle = lo + split_point(hi - lo);
            if index < middle {
                path.push(self.range_or_error(middle, hi)?);
                hi = middle;
            } else {
                path.push(self.range_or_error(lo, middle)?);
                lo = middle;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// The proof that the log of the first `new` leaves continues the log of the first `old` (RFC
    /// 6962 section 2.1.2). It is empty when `old` is 0 or `new`.
    ///
    /// # Errors
    /// When there are no such sizes.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Digest>, LedgerError> {
        self.check_sizes(old, new)?;
        let mut path = Vec::new();
        if old == 0 || old == new {
            return Ok(path);
        }
        let (mut lo, mut hi) = (0, new);
        while hi != old {
            let middle = lo + split_point(hi - lo);
            if old <= middle {
                path.push(self.range_or_error(middle, hi)?);
                hi = middle;
            } else {
                path.push(self.range_or_error(lo, middle)?);
                lo = middle;
            }
        }
        // The verifier knows the subtree by itself when it is the whole old log.
        if lo != 0 {
            path.push(self.range_or_error(lo, hi)?);
        }
        path.reverse();
        Ok(path)
    }
}

/// Checks that a leaf is in a log.
///
/// # Errors
/// [`LedgerError::NotIncluded`] when `proof` does not lead from `leaf` (a leaf hash) at `index` to
/// `root` of the log with `size` leaves.
pub fn verify_inclusion(
    leaf: &Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: &Digest,
) -> Result<(), LedgerError> {
    let failed = || LedgerError::NotIncluded { index, size };
    if index >= size {
        return Err(failed());
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(failed());
        }
        if node % 2 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node % 2 == 0 && node != 0 {
                node /= 2;
                last /= 2;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node /= 2;
        last /= 2;
    }
    if last == 0 && hash == *root {
        Ok(())
    } else {
        Err(failed())
    }
}

/// Checks that one log continues another. Every log continues the log without leaves.
///
/// # Errors
/// [`LedgerError::NotConsistent`] when `proof` does not show it.
pub fn verify_consistency(
    old: u64,
    old_root: &Digest,
    new: u64,
    new_root: &Digest,
    proof: &[Digest],
) -> Result<(), LedgerError> {
    let check = |ok: bool| {
        if ok {
            Ok(())
        } else {
            Err(LedgerError::NotConsistent { old, new })
        }
    };
    if old > new {
        return check(false);
    }
    if old == new {
        return check(proof.is_empty() && old_root == new_root);
    }
    if old == 0 {
        return check(proof.is_empty() && *old_root == empty_root());
    }
    let (first, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        match proof.split_first() {
            Some((first, rest)) => (*first, rest),
            None => return check(false),
        }
    };
    let shift = (old - 1).trailing_ones();
    let (mut node, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return check(false);
        }
        if node % 2 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node % 2 == 0 && node != 0 {
                node /= 2;
                last /= 2;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node /= 2;
        last /= 2;
    }
    check(last == 0 && old_hash == *old_root && new_hash == *new_root)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
