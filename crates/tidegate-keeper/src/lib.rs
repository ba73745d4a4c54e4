//! The keeper: the actor of a private site that alone holds the site's keys.
//!
//! Nobody can connect to it. It polls a mailbox for the control plane's requests, and for every
//! attempt that it gave a ticket for, the mailbox of that attempt's worker:
//!
//! ```text
//!   control plane ──request──▶ mailbox ──▶ Keeper::run ──▶ answer ──reply──▶ mailbox
//!                                             │
//!          home stages (rows) ◀───────────────┼──▶ permits, data keys, transfer::send
//!                                             │
//!   worker ◀── grants, leases ──── attempt ◀──┘ ── output ──▶ artifacts at home
//! ```
//!
//! A keeper believes nothing that it can know better: labels, purposes and sites come from its own
//! files, evidence from its own records, and the ledger's growth from the checkpoint that it saw
//! last. Two functions let something go, and each takes a type that only a verification makes:
//! [`tidegate_transfer::send`] takes a `Permitted<Manifest>`, and [`admission::release_key`] takes an
//! [`admission::Admitted`] worker or serving site.
//!
//! Everything is in the journal before it is done, and every request can be asked again: a keeper
//! that is killed at any instruction continues when it is started again.
//!
//! - [`keys`]: the site's keys, wrapped by custody
//! - [`admission`]: who may have a data key
//! - `records`: what the journal holds
//! - `witness`: the ledger as this site saw it
//! - `permits`, `crossing`: signing and sending; `underway`: what goes on between two questions
//! - `transfers`: what a person sees of that, pauses and lets go on; `needless`: what can be removed of it
//! - `attempt`: one worker from hello to output
//! - `custodian`: what a person does with the site's keys: renew, destroy
//! - `home`: the stages that read rows; `release`: what they make of a model; `deploy`: where that goes
//! - `events`: this site's own log
//! - `service`: the mailbox loop

pub mod admission;
mod attempt;
mod away;
mod copies;
mod crossing;
mod custodian;
mod deploy;
mod error;
mod events;
mod home;
pub mod keys;
mod needless;
mod permits;
mod records;
mod release;
mod service;
mod transfers;
mod underway;
mod witness;

pub use custodian::backup::{BackedUp, Restored};
pub use custodian::{Custodian, Grantee, KeptArtifact, Rotated};
pub use error::KeeperError;
pub use needless::{Needless, NeedlessObject, Removal, Sweep};
pub use records::newest_inputs;
pub use service::{Keeper, Setup};
pub use transfers::{Transfer, TransferState, Transfers};
pub use witness::{cosigner_name, log_origin, organisation};
