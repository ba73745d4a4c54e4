use std::io;

use tidegate_contracts::{ObjectName, StoreError};
use tidegate_seal::SealError;
use tidegate_types::{Digest, Refusal};

/// Why a transfer did not happen. No variant holds content of a file or key material; paths are those
/// inside the artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A permit does not allow it (any more); nothing more moves.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed, and trying again did not help.
    #[error("{what} failed: {source}")]
    Store {
        /// What was being done.
        what: &'static str,
        /// What the store said last.
        source: StoreError,
    },
    /// Bytes could not be sealed, opened or verified.
    #[error("{what} failed: {source}")]
    Seal {
        /// What was being done.
        what: &'static str,
        /// What was wrong.
        source: SealError,
    },
    /// The local file system failed.
    #[error("{what} failed: {source}")]
    Local {
        /// What was being done, with a path inside the artifact where there is one.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not of the kind that can cross.
    #[error("`{path}` cannot be part of an artifact: {why}")]
    NotAFile {
        /// Where it is, inside the folder.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is not what the manifest says; nothing that was read from it has been sent.
    #[error("file `{path}` is not what was described and permitted; describe it again and ask for a permit")]
    Changed {
        /// Where it is, inside the folder.
        path: String,
    },
    /// Something else is stored under the name of what was to be put.
    #[error(
        "object `{0}` is in the store with other bytes: somebody else wrote it, or it was altered; nothing was changed"
    )]
    Occupied(ObjectName),
    /// An object is not what the packing list, or whoever named it, says.
    #[error("object `{name}` is not the expected one: {why}; fetch it again from its sender")]
    Unexpected {
        /// Which object.
        name: ObjectName,
        /// What differs; names, sizes and digests only.
        why: String,
    },
    /// Whoever let it go on does so no more.
    #[error("the crossing was stopped: {0}; what crossed so far is kept, and the same again goes on from there")]
    Shut(&'static str),
    /// The notes about an unfinished crossing cannot be used.
    #[error("the resume file of permit `{permit}` and artifact `{artifact}` cannot be used: {why}")]
    Resume {
        /// The permit of the crossing.
        permit: String,
        /// The artifact of the crossing.
        artifact: Digest,
        /// What is wrong, and what can be done.
        why: String,
    },
    /// The folder to receive into is there already and holds something else.
    #[error(
        "the folder to receive into is there already, and file `{path}` is not what was sent; choose another folder"
    )]
    Destination {
        /// The first difference.
        path: String,
    },
}

impl TransferError {
    pub(crate) fn store(what: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { what, source }
    }

    pub(crate) fn seal(what: &'static str) -> impl FnOnce(SealError) -> Self {
        move |source| Self::Seal { what, source }
    }

    pub(crate) fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Local { what, source }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_transient())
    }
}
