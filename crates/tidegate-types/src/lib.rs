//! The words of Tidegate, as types.
//!
//! Everything that two crates must agree on is written down here once: labels and roles, the three
//! files that users write, what an artifact is, what a permit says, what travels through a mailbox
//! and what the ledger records. The crate does no I/O, reads no clock and draws no random number,
//! so everything in it can be tested by value.
//!
//! Start with [`label`] (what may be where), then [`artifact`] (what moves), [`permit`] (why it may)
//! and [`message`] (how keeper and worker talk). [`files`] holds what a user writes.

pub mod artifact;
pub mod canonical;
pub mod column;
pub mod digest;
pub mod event;
pub mod files;
pub mod glob;
pub mod ids;
pub mod keeper;
pub mod label;
pub mod message;
pub mod permit;
pub mod quantity;
pub mod refusal;
pub mod release;
pub mod report;

pub use artifact::{ArtifactKind, FileEntry, Manifest, PackingList};
pub use canonical::to_canonical_json;
pub use column::{IdentifierKind, Role};
pub use digest::{Digest, KeyedDigest};
pub use ids::{ArtifactId, AttemptNumber, RunId, SiteName, TaskName};
pub use label::{Label, Level, Residency};
pub use refusal::{ExitCode, Refusal};
