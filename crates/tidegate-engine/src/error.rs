//! What can go wrong in a run.

use tidegate_types::refusal::Refusal;

/// Why a run did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A rule said no; nothing moved that it forbids.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the user gave is wrong: the query, the source, a value in it.
    #[error("{0}")]
    Input(String),
    /// It went wrong; the same command again goes on from here.
    #[error("failed while {what}: {why}")]
    Failed {
        /// What was being done to what.
        what: String,
        /// What happened.
        why: String,
    },
    /// Somebody asked to stop.
    #[error("run `{0}` was cancelled; its attempts are fenced and no output of it will be accepted")]
    Cancelled(String),
}

impl EngineError {
    pub(crate) fn failed(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Failed {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// Says what was being done when a call into another crate failed.
pub(crate) trait While<T> {
    /// Wraps the error.
    fn while_(self, what: &str) -> Result<T, EngineError>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn while_(self, what: &str) -> Result<T, EngineError> {
        self.map_err(|error| EngineError::failed(what, error))
    }
}
