//! The append-only signed Merkle log.
//!
//! The ledger is a list of leaves that only grows. A *leaf* is one event (CloudEvents 1.0 in
//! canonical JSON; opaque bytes to most of this crate). The leaves are hashed into a Merkle tree
//! (RFC 6962, SHA-256), and a *checkpoint* is a signed statement of the tree's size and root. Whoever
//! kept an older checkpoint can see that nothing before it was changed or cut; whoever holds a
//! checkpoint and a *proof* can see that one leaf is in the log without reading the others.
//!
//! The crate is pure over bytes. The table of leaves is somebody else's (the journal); files are
//! written and read by the caller. Everything that leaves the crate is a published format, so that an
//! auditor needs none of this code:
//!
//! | module | what | format |
//! |---|---|---|
//! | [`merkle`] | leaf and node hashes, roots, proofs and their verification | RFC 6962, RFC 9162 section 2.1 |
//! | [`tiles`] | the log as a folder of small files | C2SP `tlog-tiles` |
//! | [`note`] | text signed by one or more Ed25519 keys | C2SP `signed-note` |
//! | [`checkpoint`] | size and root, signed by the log and cosigned by others | C2SP `tlog-checkpoint` |
//! | [`proof`] | one leaf's inclusion as a file of its own | C2SP `tlog-proof` |
//! | [`verify`] | the offline audit of a whole log | – |
//!
//! Writing goes: [`merkle::Tree::append`] for each leaf of the journal, [`checkpoint::SignedCheckpoint::sign`]
//! over the tree's size and root, [`checkpoint::witness`] by the keeper, and [`tiles::hash_tiles`] with
//! [`tiles::entry_bundles`] for what is new since the last time. Private keys never come here: signing
//! is a closure.

pub mod checkpoint;
mod error;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tiles;
pub mod verify;

pub use checkpoint::{Checkpoint, SignedCheckpoint, TrustedKeys, witness};
pub use error::LedgerError;
pub use merkle::{CompactRange, Tree};
pub use note::VerifierKey;
pub use proof::LeafProof;
pub use verify::{Report, verify_log, verify_tiles};
