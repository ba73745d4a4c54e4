//! What can go wrong in a keeper.

use tidegate_types::refusal::Refusal;

/// A request was refused, or could not be answered. No text holds a value from the data or a key.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A rule said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the user gave is wrong: the query, the source, a value in it.
    #[error("{0}")]
    Input(String),
    /// It went wrong; asking again may help.
    #[error("the keeper failed while {what}: {why}")]
    Failed {
        /// What was being done to what.
        what: String,
        /// What happened.
        why: String,
    },
}

impl KeeperError {
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
    fn while_(self, what: &str) -> Result<T, KeeperError>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn while_(self, what: &str) -> Result<T, KeeperError> {
        self.map_err(|error| KeeperError::failed(what, error))
    }
}

/// A refusal in one expression.
pub(crate) fn refuse(rule: &str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Refusal {
    Refusal {
        rule: rule.to_owned(),
        what: what.into(),
        why: why.into(),
        fix: fix.into(),
    }
}
