//! Custody: the key-encryption key of a private site, which wraps data keys and never leaves.

use std::fmt;

use async_trait::async_trait;

/// What can go wrong with custody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CustodyError {
    /// The key or the service is out of reach.
    #[error("key custody is out of reach while {what}: {why}")]
    Unreachable {
        /// What was being done.
        what: String,
        /// What happened.
        why: String,
    },
    /// The wrapped key does not belong to this custody or this context, or was altered.
    #[error(
        "the wrapped key of `{context}` cannot be opened: it was made by another key, for another context, or altered"
    )]
    WrongKey {
        /// The context that was given.
        context: String,
    },
}

/// Wraps data keys.
///
/// # Contract
/// - What [`Custody::wrap`] gave opens only by [`Custody::unwrap_key`] of the same custody with exactly
///   the same context.
/// - After [`Custody::rotate`] a new key wraps, and what earlier ones wrapped still opens; after
///   [`Custody::retire`] of its number nothing opens that a key before it wrapped, in every process that opens the
///   custody anew.
/// - No error holds key material.
#[async_trait]
pub trait Custody: Send + Sync + fmt::Debug {
    /// Wraps a 32-byte key; `context` is authenticated.
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError>;

    /// Opens a wrapped key.
    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError>;

    /// Makes a new key, and gives its number: it, or one after it, wraps from now on.
    async fn rotate(&self) -> Result<u64, CustodyError>;

    /// Destroys all keys before the one with this number, which [`Custody::rotate`] gave. There is no way back.
    async fn retire(&self, before: u64) -> Result<(), CustodyError>;
}
