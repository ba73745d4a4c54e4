//! What can go wrong with bytes.

/// Why bytes could not be sealed, opened, signed or verified.
///
/// No variant holds key material, plaintext or a value from the data: where a parser's message could
/// quote what it read, only the position is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The bytes do not begin to open: another key, or another identity of what is opened.
    #[error("{what} does not open: the key belongs to something else, or its beginning was altered; {fix}")]
    WrongKey {
        /// What was being opened.
        what: &'static str,
        /// What can be done.
        fix: &'static str,
    },
    /// The key is right, and a later part does not authenticate.
    #[error("{what} was altered: {part} does not authenticate; fetch it again from its sender")]
    Altered {
        /// What was being opened.
        what: &'static str,
        /// Which part.
        part: String,
    },
    /// What is there is genuine, and its end is missing.
    #[error("{what} ends too early after {bytes} bytes; fetch it again")]
    Truncated {
        /// What was being opened.
        what: &'static str,
        /// How many bytes there are.
        bytes: u64,
    },
    /// No signature of the expected key is on it.
    #[error("{what} is not signed by key `{key_id}`; do not use it, and ask its sender for one that is")]
    Signature {
        /// What was being verified.
        what: String,
        /// The id of the key that should have signed.
        key_id: String,
    },
    /// The bytes are not of the form that they should have.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong, without quoting content.
        why: String,
    },
    /// It is genuine, and it is not what was expected here.
    #[error("{what} is not the expected one: {why}")]
    Mismatch {
        /// What was being checked.
        what: &'static str,
        /// What differs; digests and names only.
        why: String,
    },
    /// It is larger than what is accepted, whatever its content.
    #[error("{what} has {bytes} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The value cannot be written so that everybody reads the same.
    #[error("{what} has no canonical JSON form: {why}")]
    NotCanonical {
        /// What was being written.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes; nothing was made")]
    Random,
    /// The cryptographic library refused; with keys and sizes already checked this is not expected.
    #[error("the cryptographic library failed while {0}")]
    Library(&'static str),
}

impl SealError {
    pub(crate) fn malformed(what: &'static str, why: impl Into<String>) -> Self {
        Self::Malformed { what, why: why.into() }
    }

    pub(crate) fn mismatch(what: &'static str, why: impl Into<String>) -> Self {
        Self::Mismatch { what, why: why.into() }
    }

    /// Refuses what is larger than `limit`.
    pub(crate) fn check_size(what: &'static str, bytes: usize, limit: usize) -> Result<(), Self> {
        if bytes <= limit {
            Ok(())
        } else {
            Err(Self::TooLarge {
                what,
                bytes: bytes as u64,
                limit: limit as u64,
            })
        }
    }
}
