//! Fakes that pass the conformance suites, for tests of what uses a trait.
//!
//! They keep everything in memory and share it between clones, so that a test can hold one clone and
//! look at what the code under test did with the other. None of them protects anything: they are for
//! tests alone.

mod compute;
mod custody;
mod journal;
mod store;

pub use compute::FakeCompute;
pub use custody::MemoryCustody;
pub use journal::MemoryJournal;
pub use store::MemoryStore;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic in a test that held the lock must not hide behind a second one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
