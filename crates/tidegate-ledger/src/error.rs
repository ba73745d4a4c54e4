//! What can be wrong with a log, a checkpoint or a proof. No error holds a byte of a leaf.

fn leaves(first: u64, last: u64) -> String {
    if first == last {
        format!("leaf {first}")
    } else {
        format!("leaves {first} to {last}")
    }
}

/// Why a log, a checkpoint or a proof was not accepted or not made.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A leaf was asked for that is not there.
    #[error("a log of {size} leaves has no leaf {index}: leaves are counted from 0")]
    NoSuchLeaf {
        /// The index that was asked for.
        index: u64,
        /// The number of leaves.
        size: u64,
    },
    /// A range of sizes was asked for that this log does not span.
    #[error("a log of {have} leaves cannot be looked at from size {old} to size {new}")]
    NoSuchSize {
        /// The smaller size.
        old: u64,
        /// The larger size.
        new: u64,
        /// The number of leaves there are.
        have: u64,
    },
    /// The number of hashes does not fit the size of a compact range.
    #[error("a compact range of {size} leaves has {expected} hashes, not {found}: rebuild it from the leaves")]
    WrongPeaks {
        /// The number of leaves.
        size: u64,
        /// One for each binary digit 1 of the size.
        expected: u32,
        /// What was given.
        found: usize,
    },
    /// An inclusion proof that does not prove.
    #[error(
        "the proof does not show that this is leaf {index} of the log with {size} leaves: leaf, index, proof or checkpoint was altered"
    )]
    NotIncluded {
        /// The claimed index.
        index: u64,
        /// The log's size.
        size: u64,
    },
    /// A consistency proof that does not prove.
    #[error(
        "the log with {new} leaves is not shown to continue the log with {old} leaves: history was rewritten, or the proof is for other logs"
    )]
    NotConsistent {
        /// The older size.
        old: u64,
        /// The newer size.
        new: u64,
    },
    /// A text that is no verifier key.
    #[error("`{text}` is not a verifier key: {reason}; expected `NAME+HASH+BASE64`")]
    BadKey {
        /// The beginning of the text.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A text that is no signed note.
    #[error("this is not a signed note: {0}")]
    BadNote(&'static str),
    /// A text that is no checkpoint.
    #[error("this is not a checkpoint: {0}")]
    BadCheckpoint(&'static str),
    /// A text that is no proof file.
    #[error("this is not a `{format}` file: {reason}", format = crate::proof::FORMAT)]
    BadProof {
        /// What is wrong.
        reason: &'static str,
    },
    /// A trusted key's signature that does not verify.
    #[error("the signature by `{name}` (key {id:08x}) does not verify: the text was altered, or another key signed it")]
    BadSignature {
        /// The key's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// A key that must have signed and has not.
    #[error("`{name}` (key {id:08x}) has not signed: ask for a note with its signature, or check which key you trust")]
    NotSigned {
        /// The key's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// The closure that signs does not hold the private half of the key it was called for.
    #[error("what was signed for `{name}` does not verify under its public key: the private key belongs to another")]
    WrongSigner {
        /// The key's name.
        name: String,
    },
    /// A checkpoint of another log.
    #[error("this checkpoint is of the log `{found}`, not of `{expected}`")]
    OtherLog {
        /// The origin that was expected.
        expected: String,
        /// The origin that stands there.
        found: String,
    },
    /// A leaf that does not fit into an entry bundle.
    #[error("leaf {index} has {bytes} bytes; a leaf may have at most 65535 (the format counts in 16 bits)")]
    LeafTooLong {
        /// Its index.
        index: u64,
        /// Its length.
        bytes: usize,
    },
    /// A leaf that is not an event in canonical JSON.
    #[error("leaf {index} {reason}: it was altered, or written by something else")]
    BadLeaf {
        /// Its index.
        index: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Leaves are missing at the end.
    #[error("the log was truncated: it ends after {have} leaves, and the checkpoint signs {stated}")]
    Truncated {
        /// The leaves that are there.
        have: u64,
        /// The leaves that the checkpoint signs.
        stated: u64,
    },
    /// The leaves do not hash to the signed root.
    #[error(
        "the log was rewritten: its first {size} leaves do not have the root that the checkpoint of size {size} signs; one of leaves 0 to {last} was altered, removed or inserted",
        last = size.saturating_sub(1)
    )]
    Rewritten {
        /// The size of the checkpoint that disagrees.
        size: u64,
    },
    /// The checkpoint is older than the one to compare with.
    #[error("the log went back: its checkpoint signs {new} leaves, and an older checkpoint signed {old}")]
    WentBack {
        /// The older checkpoint's size.
        old: u64,
        /// The newer checkpoint's size.
        new: u64,
    },
    /// The history before an older checkpoint is another one.
    #[error(
        "the log was forked: an older checkpoint signed another history of the first {old} leaves than this log has now"
    )]
    Forked {
        /// The older checkpoint's size.
        old: u64,
    },
    /// A file of the log that is missing or malformed.
    #[error("`{path}` {reason}")]
    BadTile {
        /// The path inside the log's folder.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A hash tile that disagrees with the leaves.
    #[error("`{path}` disagrees with {}: a leaf or the tile was altered", leaves(*.first, *.last))]
    TileMismatch {
        /// The path inside the log's folder.
        path: String,
        /// The first leaf under the first hash that differs.
        first: u64,
        /// The last leaf under it.
        last: u64,
    },
    /// Leaves or files could not be read.
    #[error("reading `{what}` failed: {reason}")]
    Read {
        /// The file or table.
        what: String,
        /// Why, in the words of whoever reads.
        reason: String,
    },
}
