//! What can go wrong while training. Messages name files, columns and positions, never a value.

use std::path::PathBuf;

use tidegate_bundle::schema::{EncodeError, InvalidSchema, MAX_LEVELS};

/// A training that did not give a model.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// Reading or writing a file failed.
    #[error("{action} `{}`: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A folder of training data without a single `*.csv`.
    #[error("`{}` holds no `*.csv` file; the trainer reads every file of that name in it", .0.display())]
    NoFiles(PathBuf),
    /// A `*.csv` that is a folder, a link or a device.
    #[error("`{}` is not a plain file", .0.display())]
    NotPlainFile(PathBuf),
    /// A file that is no CSV in UTF-8 with as many fields in each record as in the header.
    #[error("reading `{}`: {reason}", .path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// What is wrong, with a position.
        reason: String,
    },
    /// Files of one folder that do not belong together.
    #[error("`{}` has another header than the files before it; all files of a folder must have the same columns in the same order", .0.display())]
    HeaderDiffers(PathBuf),
    /// A column that stands twice.
    #[error("column `{0}` stands twice in the header")]
    ColumnTwice(String),
    /// More text than is held in memory.
    #[error("the data has more than {limit} bytes of text, which is the most that the built-in trainer reads")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// A record of another width than the header.
    #[error("record {record} has {found} fields, the header has {expected}")]
    Width {
        /// Position of the record, counted from 1.
        record: usize,
        /// Fields found.
        found: usize,
        /// Fields of the header.
        expected: usize,
    },
    /// The column to be learned is not there.
    #[error("the target column `{0}` is not in the header of the {1} data")]
    NoTarget(String, &'static str),
    /// The target of a record is neither 0 nor 1.
    #[error("column `{column}`, record {record} of the {part} data: the target must be 0 or 1, or true or false")]
    Target {
        /// The target column.
        column: String,
        /// Position of the record, counted from 1.
        record: usize,
        /// `training` or `validation`.
        part: &'static str,
    },
    /// Nothing to tell apart.
    #[error("all {rows} training rows have the same value in the target column `{column}`; both outcomes are needed")]
    OneOutcome {
        /// The target column.
        column: String,
        /// Training rows.
        rows: usize,
    },
    /// `csv-metadata.json` is there and does not say what the columns are.
    #[error("`{0}` is no metadata of CSV on the Web with `tableSchema` and `columns`")]
    Metadata(PathBuf),
    /// A text column with too many different values.
    #[error(
        "column `{column}` has more than {MAX_LEVELS} different texts ({numbers} % of its values are numbers); leave it out, group its values, or let what is not a number be null"
    )]
    TooManyLevels {
        /// The column.
        column: String,
        /// Per cent of its values that are numbers.
        numbers: u32,
    },
    /// No column to learn from.
    #[error("the training data has no column with a value beside the target")]
    NoFeature,
    /// A record that does not fit the schema.
    #[error("encoding the {part} data: {source}")]
    Encode {
        /// `training` or `validation`.
        part: &'static str,
        /// What is wrong with it.
        source: EncodeError,
    },
    /// The columns cannot be a schema.
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
    /// A setting outside of what the trainer can do.
    #[error("trainer setting `{setting}`: it must be {reason}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// Early stopping without anything to watch.
    #[error(
        "`early_stopping` needs validation rows; give `split.validation` a share above 0, or leave `early_stopping` out"
    )]
    NoValidation,
    /// The loss is not a number any more.
    #[error("the loss is not finite after epoch {0}; a lower `learning_rate` may help")]
    Diverged(u32),
    /// Where the training is cannot be written down.
    #[error("the unfinished training cannot be written as a file")]
    Unfinished,
    /// The model that was made does not pass inspection.
    #[error("the trained model does not pass inspection: {0}")]
    Refused(#[from] tidegate_bundle::ModelRefusal),
    /// A variable that the worker sets is missing.
    #[error("the environment variable `{0}` is not set; the worker sets it for every training command")]
    Variable(&'static str),
    /// The settings file cannot be read as settings.
    #[error("reading `{}`: {reason}", .path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
}

impl LearnError {
    /// For `map_err`: wraps an I/O error with what was being done to what.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
