//! Checkpoints (C2SP `tlog-checkpoint`): size and root of a log, signed.
//!
//! The log's own key signs every checkpoint. A *cosigner* (the keeper of a private site) adds its
//! plain Ed25519 note signature, of the same type as the log's, and only after it has seen that the
//! log continues the last one it signed: see [`witness`]. Its line carries no time stamp, unlike the
//! `cosignature/v1` of public witnesses, since the events carry their own times.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tidegate_types::Digest;

use crate::LedgerError;
use crate::merkle::{empty_root, verify_consistency};
use crate::note::{Note, SignFn, VerifierKey};

/// The head of a log at one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's unique name, such as `tidegate.dev/st-mary`: not empty, one line.
    pub origin: String,
    /// The number of leaves.
    pub size: u64,
    /// The Merkle tree hash of the leaves.
    pub root: Digest,
}

impl Checkpoint {
    /// The text that is signed: origin, size and base64 of the root, each with a newline.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64.encode(self.root.as_bytes())
        )
    }

    /// Reads the text of a checkpoint. Extension lines are refused, since no auditor can check them.
    ///
    /// # Errors
    /// [`LedgerError::BadCheckpoint`] when it is malformed.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        let bad = LedgerError::BadCheckpoint;
        let text = text.strip_suffix('\n').ok_or(bad("it does not end with a newline"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines.as_slice() else {
            return Err(bad("it must have three lines: the log's name, the size and the root"));
        };
        if origin.is_empty() {
            return Err(bad("the log's name is empty"));
        }
        let size = parse_decimal(size).ok_or(bad("the size is not a decimal number without leading zeros"))?;
        let root = parse_hash(root).ok_or(bad("the root is not base64 of 32 bytes"))?;
        if size == 0 && root != empty_root() {
            return Err(bad("the root is not that of the log without leaves"));
        }
        Ok(Self {
            origin: (*origin).to_owned(),
            size,
            root,
        })
    }
}

/// A number as these formats write it: decimal digits, no leading zero.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// A hash as these formats write it: base64 of 32 bytes.
pub(crate) fn parse_hash(text: &str) -> Option<Digest> {
    Some(Digest::from_bytes(BASE64.decode(text).ok()?.try_into().ok()?))
}

/// Whose signatures make a checkpoint of one log believable: all of them.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    /// The log's own key; its name is the log's origin.
    pub log: VerifierKey,
    /// Cosigners that must have signed as well. Without any, whoever holds the log's key can show
    /// different histories to different readers.
    pub cosigners: Vec<VerifierKey>,
}

impl TrustedKeys {
    /// Trust in the log's key alone.
    #[must_use]
    pub const fn single(log: VerifierKey) -> Self {
        Self {
            log,
            cosigners: Vec::new(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &VerifierKey> {
        std::iter::once(&self.log).chain(&self.cosigners)
    }
}

/// A checkpoint with its signatures, as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
}

impl SignedCheckpoint {
    /// Signs the head of a log with the log's own key.
    ///
    /// # Errors
    /// When the key's name is not the log's origin, or the closure signs with another key.
    pub fn sign(checkpoint: Checkpoint, key: &VerifierKey, sign: SignFn<'_>) -> Result<Self, LedgerError> {
        check_origin(key, &checkpoint)?;
        let mut note = Note::new(checkpoint.text())?;
        note.sign(key, sign)?;
        Ok(Self { checkpoint, note })
    }

    /// Reads a signed checkpoint and believes nothing yet.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Self, LedgerError> {
        let note = Note::parse(text)?;
        Ok(Self {
            checkpoint: Checkpoint::parse(note.text())?,
            note,
        })
    }

    /// Reads a signed checkpoint and checks every trusted key's signature and the log's name.
    ///
    /// # Errors
    /// When it is malformed, of another log, or not signed by all trusted keys.
    pub fn open(text: &str, keys: &TrustedKeys) -> Result<Self, LedgerError> {
        let signed = Self::parse(text)?;
        signed.verify(keys)?;
        Ok(signed)
    }

    /// Checks every trusted key's signature and the log's name.
    ///
    /// # Errors
    /// When the checkpoint is of another log, or not signed by all trusted keys.
    pub fn verify(&self, keys: &TrustedKeys) -> Result<(), LedgerError> {
        check_origin(&keys.log, &self.checkpoint)?;
        self.note.verify(keys.all())
    }

    /// What was signed.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl std::fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.note.fmt(f)
    }
}

fn check_origin(key: &VerifierKey, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
    if key.name() == checkpoint.origin {
        return Ok(());
    }
    Err(LedgerError::OtherLog {
        expected: key.name().to_owned(),
        found: checkpoint.origin.clone(),
    })
}

/// Cosigns a checkpoint, as a keeper does before it lets anything go that the checkpoint covers.
///
/// `last` is the checkpoint that this cosigner signed before, from its own state (`None` the first
/// time only), and `proof` the consistency proof from there
/// ([`Tree::consistency_proof`](crate::Tree::consistency_proof)). The caller stores the result as its
/// new `last` before it hands it out: a cosigner that forgets can be shown two histories.
///
/// # Errors
/// When the checkpoint is of another log or not signed by it, when the log went back or does not
/// continue `last`, or when the closure signs with another key.
pub fn witness(
    last: Option<&Checkpoint>,
    new: &str,
    proof: &[Digest],
    log: &VerifierKey,
    cosigner: &VerifierKey,
    sign: SignFn<'_>,
) -> Result<SignedCheckpoint, LedgerError> {
    let mut signed = SignedCheckpoint::parse(new)?;
    check_origin(log, &signed.checkpoint)?;
    signed.note.verify([log])?;
    if let Some(last) = last {
        check_origin(log, last)?;
        let new = &signed.checkpoint;
        if new.size < last.size {
            return Err(LedgerError::WentBack {
                old: last.size,
                new: new.size,
            });
        }
        verify_consistency(last.size, &last.root, new.size, &new.root, proof)?;
    }
    signed.note.sign(cosigner, sign)?;
    Ok(signed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn malformed_texts_are_refused() {
        let root = BASE64.encode([7; 32]);
        let good = format!("log\n1\n{root}\n");
        assert_eq!(Checkpoint::parse(&good).unwrap().text(), good);
        for bad in [
            format!("log\n01\n{root}\n"),
            format!("log\n+1\n{root}\n"),
            format!("log\n-1\n{root}\n"),
            format!("log\n0\n{root}\n"),
            format!("\n1\n{root}\n"),
            format!("log\n1\n{root}"),
            format!("log\n1\n{root}\nextension\n"),
            format!("log\n99999999999999999999\n{root}\n"),
            "log\n1\nAAAA\n".to_owned(),
            "log\n1\n".to_owned(),
        ] {
            assert!(Checkpoint::parse(&bad).is_err(), "{bad:?}");
        }
    }
}
