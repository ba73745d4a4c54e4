//! What can go wrong with a worker, and what the keeper is told about it.

use std::path::PathBuf;

use tidegate_seal::SealError;
use tidegate_transfer::mailbox::MailboxError;
use tidegate_types::Digest;

/// Why a worker ended without an accepted attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The ticket cannot be used.
    #[error("the ticket cannot be used: {0}; ask for a new attempt")]
    Ticket(&'static str),
    /// This program is not the one that the ticket names.
    #[error(
        "this worker program has the digest {found}, the ticket is for {expected}: install that program and try again"
    )]
    OtherProgram {
        /// The ticket's.
        expected: Digest,
        /// Ours.
        found: Digest,
    },
    /// Another worker has already said hello with this ticket.
    #[error("another worker has already used this ticket, and the keeper was told so; start another attempt")]
    TicketUsed,
    /// The work folder cannot be made, read or removed.
    #[error("{what} `{}`: {source}", path.display())]
    Folder {
        /// What was being done.
        what: &'static str,
        /// Which folder or file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The mailbox cannot be used.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// The site's store cannot be opened as the ticket says.
    #[error("the store of the ticket's site cannot be opened: {0}")]
    Store(String),
    /// Keys cannot be made or used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A part of the worker ended in an unforeseen way.
    #[error("the worker failed inside while {0}")]
    Inside(&'static str),
    /// The attempt failed, and the keeper was told so where the store allowed it.
    #[error("the attempt failed ({}): {reason}", stage.as_str())]
    Failed {
        /// What failed.
        stage: Stage,
        /// In fixed words; never output of the command.
        reason: String,
        /// The command's exit code, where there is one.
        exit_code: Option<i32>,
    },
}

/// What failed: the fixed words of [`WorkerMessage::Failed`](tidegate_types::message::WorkerMessage).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The setup command.
    Setup,
    /// The command.
    Command,
    /// The command took more memory than allowed.
    Memory,
    /// The command ran longer than allowed.
    Time,
    /// The command started more processes than allowed.
    Processes,
    /// The keeper did not renew the lease in time.
    Lease,
    /// The keeper cancelled the attempt.
    Cancelled,
    /// The keeper refused, or what it granted cannot be believed.
    Grant,
    /// An input could not be opened.
    Input,
    /// An input is not what its permit names: somebody altered it.
    Tampered,
    /// The output could not be described, sealed or sent, or is too large.
    Output,
    /// The sandbox could not be closed.
    Sandbox,
    /// The machine is taken away.
    Machine,
}

impl Stage {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Command => "command",
            Self::Memory => "memory",
            Self::Time => "time",
            Self::Processes => "processes",
            Self::Lease => "lease",
            Self::Cancelled => "cancelled",
            Self::Grant => "grant",
            Self::Input => "input",
            Self::Tampered => "tampered",
            Self::Output => "output",
            Self::Sandbox => "sandbox",
            Self::Machine => "machine",
        }
    }
}

/// A failure on its way to the keeper.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) reason: String,
    pub(crate) exit_code: Option<i32>,
}

impl Failure {
    pub(crate) fn new(stage: Stage, reason: impl Into<String>) -> Self {
        Self {
            stage,
            reason: reason.into(),
            exit_code: None,
        }
    }
}

impl From<Failure> for WorkerError {
    fn from(failure: Failure) -> Self {
        let Failure {
            stage,
            reason,
            exit_code,
        } = failure;
        Self::Failed {
            stage,
            reason,
            exit_code,
        }
    }
}

/// For `map_err`: an operation on a folder or file failed.
pub(crate) fn folder<'a>(
    what: &'static str,
    path: &'a std::path::Path,
) -> impl FnOnce(std::io::Error) -> WorkerError + 'a {
    move |source| WorkerError::Folder {
        what,
        path: path.to_owned(),
        source,
    }
}
