//! The offline audit: is this the log that was signed, whole and unchanged?

use serde::Serialize;
use tidegate_types::{Digest, to_canonical_json};

use crate::LedgerError;
use crate::checkpoint::{SignedCheckpoint, TrustedKeys};
use crate::merkle::{CompactRange, Tree, leaf_hash};
use crate::tiles::{CHECKPOINT_PATH, ReadFile, check_hash_tiles, read_leaves};

/// What an audit has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// The number of leaves that the checkpoint covers.
    pub size: u64,
    /// Their root, recomputed.
    pub root: Digest,
    /// Leaves behind the checkpoint, read and well-formed, but signed by nobody yet.
    pub not_covered: u64,
    /// The names of the keys whose signatures were checked, the log's first.
    pub signed_by: Vec<String>,
    /// The size of the older checkpoint that this log was shown to continue.
    pub continues: Option<u64>,
    /// What this audit does not prove, as sentences.
    pub not_proven: Vec<String>,
}

/// Audits a log: signatures, every leaf, the recomputed root, and that it continues an older
/// checkpoint. Memory is logarithmic in the number of leaves.
///
/// `leaves` are all leaves in order, an error of the reader among them ends the audit. `checkpoint` and
/// `since` are signed checkpoints as text; both must carry all trusted signatures.
///
/// # Errors
/// The first thing that is wrong. [`LedgerError::Truncated`] and [`LedgerError::WentBack`] when the
/// log was cut, [`LedgerError::Rewritten`] and [`LedgerError::Forked`] when it was changed,
/// [`LedgerError::BadLeaf`] with the index of a leaf that is no event.
pub fn verify_log<I>(
    leaves: I,
    checkpoint: &str,
    keys: &TrustedKeys,
    since: Option<&str>,
) -> Result<Report, LedgerError>
where
    I: IntoIterator<Item = Result<Vec<u8>, LedgerError>>,
{
    audit(leaves, checkpoint, keys, since, &mut |_| ())
}

/// Audits a log that lies as a folder of tiles with its checkpoint: all that [`verify_log`] does, and
/// that every hash tile agrees with the leaves. Takes 64 bytes of memory for each leaf.
///
/// # Errors
/// As [`verify_log`], and [`LedgerError::TileMismatch`], [`LedgerError::BadTile`] and
/// [`LedgerError::Read`] for files.
pub fn verify_tiles(read: ReadFile<'_>, keys: &TrustedKeys, since: Option<&str>) -> Result<Report, LedgerError> {
    let failed = |reason: String| LedgerError::Read {
        what: CHECKPOINT_PATH.to_owned(),
        reason,
    };
    let bytes = read(CHECKPOINT_PATH).map_err(|error| failed(error.to_string()))?;
    let bytes = bytes.ok_or(LedgerError::BadTile {
        path: CHECKPOINT_PATH.to_owned(),
        reason: "is missing",
    })?;
    let checkpoint = String::from_utf8(bytes).map_err(|_| LedgerError::BadCheckpoint("it is not UTF-8"))?;
    let size = SignedCheckpoint::open(&checkpoint, keys)?.checkpoint().size;
    let mut tree = Tree::default();
    let report = audit(read_leaves(read, size), &checkpoint, keys, since, &mut |leaf| {
        tree.append(leaf)
    });
    // When the leaves are all there and do not fit, the tiles say which of them was altered.
    match report {
        Err(LedgerError::Rewritten { .. }) | Ok(_) => check_hash_tiles(read, &tree).and(report),
        Err(error) => Err(error),
    }
}

fn audit<I>(
    leaves: I,
    checkpoint: &str,
    keys: &TrustedKeys,
    since: Option<&str>,
    each: &mut dyn FnMut(Digest),
) -> Result<Report, LedgerError>
where
    I: IntoIterator<Item = Result<Vec<u8>, LedgerError>>,
{
    let signed = SignedCheckpoint::open(checkpoint, keys)?;
    let head = signed.checkpoint();
    let old = since.map(|text| SignedCheckpoint::open(text, keys)).transpose()?;
    let old = old.as_ref().map(SignedCheckpoint::checkpoint);
    if let Some(old) = old.filter(|old| old.size > head.size) {
        return Err(LedgerError::WentBack {
            old: old.size,
            new: head.size,
        });
    }

    let mut range = CompactRange::new();
    // The two roots are taken on the way, when the log has just their sizes.
    let (mut head_root, mut old_root) = (None, None);
    let mut leaves = leaves.into_iter();
    loop {
        if range.size() == head.size {
            head_root = Some(range.root());
        }
        if old.is_some_and(|old| old.size == range.size()) {
            old_root = Some(range.root());
        }
        let Some(leaf) = leaves.next() else { break };
        let leaf = leaf?;
        check_leaf(range.size(), &leaf)?;
        let hash = leaf_hash(&leaf);
        each(hash);
        range.append(hash);
    }

    let Some(root) = head_root else {
        return Err(LedgerError::Truncated {
            have: range.size(),
            stated: head.size,
        });
    };
    if let Some(old) = old.filter(|old| old_root != Some(old.root)) {
        // When the new checkpoint fits the leaves, its signers signed two histories.
        let size = old.size;
        return Err(if root == head.root {
            LedgerError::Forked { old: size }
        } else {
            LedgerError::Rewritten { size }
        });
    }
    if root != head.root {
        return Err(LedgerError::Rewritten { size: head.size });
    }
    let mut signed_by = vec![keys.log.name().to_owned()];
    signed_by.extend(keys.cosigners.iter().map(|key| key.name().to_owned()));
    let not_covered = range.size() - head.size;
    Ok(Report {
        origin: head.origin.clone(),
        size: head.size,
        root,
        not_covered,
        not_proven: not_proven(keys, old.is_some(), not_covered),
        signed_by,
        continues: old.map(|old| old.size),
    })
}

/// A leaf is a JSON object in canonical form. The error holds nothing of its content.
fn check_leaf(index: u64, leaf: &[u8]) -> Result<(), LedgerError> {
    let bad = |reason| LedgerError::BadLeaf { index, reason };
    let value: serde_json::Value = serde_json::from_slice(leaf).map_err(|_| bad("is not JSON"))?;
    if !value.is_object() {
        return Err(bad("is not a JSON object"));
    }
    let canonical = to_canonical_json(&value).map_err(|_| bad("has no canonical form"))?;
    if canonical == leaf {
        Ok(())
    } else {
        Err(bad("is not in canonical form (RFC 8785)"))
    }
}

fn not_proven(keys: &TrustedKeys, has_older: bool, not_covered: u64) -> Vec<String> {
    let mut sentences = Vec::new();
    if keys.cosigners.is_empty() {
        sentences.push(
            "only the log's own key signed: whoever holds it can write another history and sign that, and show it to \
             readers who kept no older checkpoint"
                .to_owned(),
        );
    }
    if !has_older {
        sentences.push(
            "no older checkpoint was compared: that the log was not cut or rewritten before this checkpoint was signed \
             is shown only to those who kept one"
                .to_owned(),
        );
    }
    if not_covered > 0 {
        sentences.push(format!(
            "the last {not_covered} leaves are behind the checkpoint and signed by nobody yet"
        ));
    }
    sentences
}
