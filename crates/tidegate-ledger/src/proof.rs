//! Proofs of single leaves (C2SP `tlog-proof`): an index, an audit path and the signed checkpoint in
//! one text file, `.tlog-proof`, that can be checked offline against the leaf and the trusted keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tidegate_types::Digest;

use crate::checkpoint::{SignedCheckpoint, TrustedKeys, parse_decimal, parse_hash};
use crate::merkle::{Tree, leaf_hash, verify_inclusion};
use crate::{Checkpoint, LedgerError};

/// The first line of a proof file.
pub const FORMAT: &str = "c2sp.org/tlog-proof@v1";

/// Evidence that one leaf is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafProof {
    /// The leaf's index, counted from 0.
    pub index: u64,
    /// The audit path, the leaf's sibling first.
    pub path: Vec<Digest>,
    /// The checkpoint that the path leads to.
    pub checkpoint: SignedCheckpoint,
}

impl LeafProof {
    /// Makes the proof for leaf `index` under a signed checkpoint of the same log.
    ///
    /// # Errors
    /// When the checkpoint covers no such leaf, or is not one of `tree`.
    pub fn new(tree: &Tree, index: u64, checkpoint: SignedCheckpoint) -> Result<Self, LedgerError> {
        let Checkpoint { size, root, .. } = *checkpoint.checkpoint();
        let path = tree.inclusion_proof(index, size)?;
        if tree.root(size)? != root {
            return Err(LedgerError::Rewritten { size });
        }
        Ok(Self {
            index,
            path,
            checkpoint,
        })
    }

    /// Checks that `leaf` is in the log that the trusted keys signed, at [`LeafProof::index`].
    ///
    /// # Errors
    /// When the checkpoint is not signed by all trusted keys, or the path does not lead from the leaf
    /// to its root.
    pub fn verify(&self, leaf: &[u8], keys: &TrustedKeys) -> Result<(), LedgerError> {
        self.checkpoint.verify(keys)?;
        let Checkpoint { size, root, .. } = self.checkpoint.checkpoint();
        verify_inclusion(&leaf_hash(leaf), self.index, *size, &self.path, root)
    }
}

impl fmt::Display for LeafProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FORMAT}\nindex {}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", BASE64.encode(hash.as_bytes()))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

impl FromStr for LeafProof {
    type Err = LedgerError;

    /// Reads a proof and believes nothing yet. A line of extra data is skipped: nothing vouches for it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason| LedgerError::BadProof { reason };
        let (head, checkpoint) = text
            .split_once("\n\n")
            .ok_or(bad("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(FORMAT) {
            return Err(bad("the first line is another"));
        }
        if let Some(extra) = lines.next_if(|line| line.starts_with("extra ")) {
            BASE64
                .decode(extra.trim_start_matches("extra "))
                .map_err(|_| bad("the extra data is not base64"))?;
        }
        let index = lines
            .next()
            .and_then(|line| line.strip_prefix("index "))
            .and_then(parse_decimal);
        let index = index.ok_or(bad("no `index` and a decimal number without leading zeros"))?;
        // A path is never longer than the binary digits of a size.
        let path: Option<Vec<Digest>> = lines.by_ref().take(64).map(parse_hash).collect();
        let path = path
            .filter(|_| lines.next().is_none())
            .ok_or(bad("the path is not lines of base64 of 32 bytes"))?;
        Ok(Self {
            index,
            path,
            checkpoint: SignedCheckpoint::parse(checkpoint)?,
        })
    }
}
