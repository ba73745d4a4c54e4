//! How a command ends when it does not end well.

use tidegate_engine::EngineError;
use tidegate_machine::MachineError;
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
    /// Nobody reads the answer any more, as in `tidegate audit show | head -1`.
    ReaderGone,
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
            Self::ReaderGone => ExitCode::Done,
        }
    }

    /// The one object that `--format json` writes on standard error.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::json!({
            "event": "error",
            "status": match self {
                Self::Refused(_) => "refused",
                Self::Stopped(_) => "cancelled",
                Self::File(_) | Self::Usage(_) | Self::Failed(_) | Self::ReaderGone => "failed",
            },
            "exit_code": self.exit_code() as u8,
            "error": self.to_string(),
        });
        match self {
            Self::Refused(refusal) => {
                object["rule"] = refusal.rule.as_str().into();
                object["what"] = refusal.what.as_str().into();
                object["why"] = refusal.why.as_str().into();
                object["fix"] = refusal.fix.as_str().into();
            }
            Self::File(errors) => {
                object["places"] = errors
                    .iter()
                    .map(|error| {
                        serde_json::json!({
                            "file": error.file,
                            "line": error.line,
                            "column": error.column,
                            "message": error.message,
                            "help": error.help,
                        })
                    })
                    .collect();
            }
            Self::Usage(_) | Self::Stopped(_) | Self::Failed(_) | Self::ReaderGone => {}
        }
        object
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        Self::failed(error.what, error.why)
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
            Self::ReaderGone => f.write_str("nobody reads the answer any more"),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(refusal) => Self::Refused(refusal),
            EngineError::Input(why) => Self::Usage(why),
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
