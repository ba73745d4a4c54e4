//! What can go wrong, in words that hold no value from the data.

use std::io;
use std::path::Path;

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use tidegate_types::Refusal;

use crate::session::mistake;

/// Why a preparation did not end well. No variant holds a cell of the data or a key, so that every
/// text may be logged and shown to an engineer who is not cleared for the rows.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A rule said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A record of the source cannot be used.
    #[error("{file}:{line}: {why}. {fix}")]
    Data {
        /// The source file, as the catalog's folder sees it.
        file: String,
        /// The line on which the record begins (CSV), or its number in the file (Parquet); from 1.
        line: u64,
        /// What is wrong; names columns, never values.
        why: String,
        /// What the user can do.
        fix: String,
    },
    /// What the user gave is wrong in something else than a record: a file's form, a column, the query.
    #[error("{doing}: {why}. {fix}")]
    Input {
        /// What was being done to what.
        doing: String,
        /// What is wrong.
        why: String,
        /// What the user can do.
        fix: String,
    },
    /// What preparation keeps for itself is not as it left it.
    #[error("{doing}: {why}. {fix}")]
    Failed {
        /// What was being done to what.
        doing: String,
        /// What went wrong.
        why: String,
        /// What the user can do.
        fix: String,
    },
    /// The operating system would not read or write a file.
    #[error("{doing} `{path}`: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl PrepareError {
    /// The refusal, where a rule said no.
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn failed(doing: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Failed {
            doing: doing.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    pub(crate) fn input(doing: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Input {
            doing: doing.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            doing,
            path: path.display().to_string(),
            source,
        }
    }

    /// Maps an error of planning: it speaks of the query's text and the schema, which are the
    /// engineer's own, so it may be shown.
    pub(crate) fn planning(error: DataFusionError) -> Self {
        Self::own(&error).unwrap_or_else(|| {
            Self::input(
                "planning the query",
                mistake::told(&error),
                "Correct the query; `tidegate plan --sql` prints the one that the profile writes",
            )
        })
    }

    /// Maps an error of execution. The engine's own words may hold values (`Cannot cast string ...`),
    /// so only the kind of the error is told.
    pub(crate) fn executing(error: DataFusionError) -> Self {
        if let Some(own) = Self::own(&error) {
            return own;
        }
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Self::input(
                "executing the query",
                "it needs more memory than a query may use",
                "Select fewer columns, or simplify the query",
            ),
            _ => Self::input(
                "executing the query",
                "an expression failed on a value of the data, which is not shown",
                "Use expressions that cannot fail: `try_cast` in place of `cast`, `nullif(x, 0)` below a division",
            ),
        }
    }

    /// Our own errors travel through the engine as external errors, wrapped and sometimes shared by
    /// several streams; find them again.
    fn own(error: &DataFusionError) -> Option<Self> {
        match error {
            DataFusionError::External(inner) => inner.downcast_ref::<Self>().map(Self::again),
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => Self::own(inner),
            DataFusionError::Shared(inner) => Self::own(inner),
            DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
                ArrowError::ExternalError(inner) => inner.downcast_ref::<DataFusionError>().and_then(Self::own),
                _ => None,
            },
            _ => None,
        }
    }

    fn again(&self) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(refusal.clone()),
            Self::Data { file, line, why, fix } => Self::Data {
                file: file.clone(),
                line: *line,
                why: why.clone(),
                fix: fix.clone(),
            },
            Self::Input { doing, why, fix } => Self::input(doing, why, fix),
            Self::Failed { doing, why, fix } => Self::failed(doing, why, fix),
            Self::File { doing, path, source } => Self::File {
                doing,
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
        }
    }
}

impl From<PrepareError> for DataFusionError {
    fn from(error: PrepareError) -> Self {
        Self::External(Box::new(error))
    }
}
