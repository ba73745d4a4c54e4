//! Machines that prove who they are, by the word of the platform that runs them.

use std::fmt;

use async_trait::async_trait;
use tidegate_types::digest::Digest;

/// A machine's own side.
#[async_trait]
pub trait Prover: Send + Sync + fmt::Debug {
    /// A statement that only this machine can make, about `nonce` and nothing else. It holds no secret: whoever reads it
    /// can prove nothing but that this machine said that.
    ///
    /// # Errors
    /// Why there is none, for a person.
    async fn state(&self, nonce: &Digest) -> Result<String, String>;
}

/// What can go wrong with a statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It is not a statement of any machine there about that nonce, and will not be.
    #[error("{0}")]
    Refused(String),
    /// It was one, and is too old to be asked about.
    #[error("what its machine says of itself has expired")]
    Expired,
    /// Something that may pass.
    #[error("the platform could not be asked who a machine is: {0}")]
    Transient(String),
}

/// The other side: asks the platform.
#[async_trait]
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Which machine made a statement about `nonce`, in the words of [`super::Compute::machine`].
    async fn machine(&self, statement: &str, nonce: &Digest) -> Result<String, IdentityError>;
}
