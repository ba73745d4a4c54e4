//! The transfer engine: how an artifact gets from one site's folder into another site's, through a
//! store whose operator may read, reorder, replay or lose whatever is in it.
//!
//! ```text
//! describe ─▶ Manifest ─▶ Permitted::verify ─▶ send ──▶ store: sealed/… shards and index
//!              (names the    (only with the              packing/… signed list, put last
//!               artifact)     owner's signature)             │
//!                                                   receive ◀┘ ─▶ folder, whole or not at all
//! ```
//!
//! [`send()`] takes a [`Permitted`], which nothing makes but the functions that verify a permit: no
//! permit, no bytes. It seals the files into shards of 64 MiB, writes down what it is about to put
//! before it puts it, and puts the signed packing list last; killed at any instruction and called
//! again it ends with the same packing list and puts nothing twice. [`receive()`] believes only what
//! the packing list's digest, its sender's signature, the data key and the authenticated shards
//! prove, and lets the folder appear by one rename.
//!
//! What stands sealed at another site already need not be sent again: [`send_copied()`] names it there, and whoever may open
//! it brings it over as it is ([`Copying`]).
//!
//! [`mailbox`] carries the messages between keeper and worker over the same stores.

mod clock;
mod copy;
mod describe;
mod error;
mod known;
pub mod mailbox;
mod permitted;
mod receive;
mod resume;
mod retry;
mod send;
mod snapshot;
mod source;
mod sweep;
mod tree;

pub use copy::{Copying, SentShards, missing, object_name, sent_shards};
pub use describe::{Description, describe};
pub use error::TransferError;
pub use known::KnownShards;
pub use permitted::{PermitCheck, Permitted, permit_missing};
pub use receive::{Expected, Received, packing_list, receive};
pub use resume::{is_sending, names_in_flight};
pub use retry::patiently;
pub use send::{Crossing, Gate, Sent, packing_list_name, send, send_copied};
pub use snapshot::Standing;
pub use sweep::{named_by, remove, stored};
