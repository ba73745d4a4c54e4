//! How a command ends when it does not end well.

use tidegate_engine::EngineError;
use tidegate_types::files::FileError;
use tidegate_types::refusal::{ExitCode, Refusal};

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user's files are wrong.
    File(Vec<FileError>),
    /// The command line, or what it names, is wrong.
    Usage(String),
    /// A rule said no.
    Refused(Refusal),
    /// Somebody stopped it.
    Stopped(String),
    /// It went wrong.
    Failed(String),
}

impl Failure {
    pub(crate) fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Failed(format!("failed while {what}: {why}"))
    }

    /// The process's exit code.
    pub(crate) const fn exit_code(&self) -> ExitCode {
        match self {
            Self::File(_) | Self::Usage(_) => ExitCode::Usage,
            Self::Refused(_) => ExitCode::Refused,
            Self::Stopped(_) | Self::Failed(_) => ExitCode::Failed,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(errors) => {
                for (number, error) in errors.iter().enumerate() {
                    if number > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "{error}")?;
                }
                Ok(())
            }
            Self::Usage(text) | Self::Stopped(text) | Self::Failed(text) => f.write_str(text),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(refusal) => Self::Refused(refusal),
            cancelled @ EngineError::Cancelled(_) => Self::Stopped(cancelled.to_string()),
            failed @ EngineError::Failed { .. } => Self::Failed(failed.to_string()),
        }
    }
}

/// Says what was being done when a call into another crate failed.
pub(crate) trait While<T> {
    /// Wraps the error.
    fn while_(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn while_(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(what, error))
    }
}
