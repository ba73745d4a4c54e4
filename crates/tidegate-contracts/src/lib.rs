//! The seams of Tidegate: traits at the edges, their contracts in words, fakes for tests, and one
//! public conformance suite for each trait that every implementation passes.
//!
//! Traits are small, object-safe and asynchronous where the real thing is far away. What a trait's
//! documentation promises is what its suite in [`conformance`] checks; a driver's author reads one
//! and runs the other.

pub mod compute;
pub mod conformance;
pub mod custody;
pub mod fakes;
pub mod identity;
pub mod journal;
pub mod later;
pub mod stage;
pub mod store;

pub use compute::{Compute, ComputeError, Handle, JobRequest, JobState};
pub use custody::{Custody, CustodyError};
pub use journal::{Batch, Journal, JournalError};
pub use store::{ObjectInfo, ObjectName, Pace, Patience, Store, StoreAccess, StoreError, StoreExt, WorkerStores};
