//! Why a policy text was not accepted.

/// A policy text that cannot be used. Names files, lines and policies; the texts are the
/// organisation's own and hold no data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is not Cedar.
    #[error("{file}:{line}:{column}: this is not a Cedar policy: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// The policy does not fit the schema: it could fail, or could never apply.
    #[error("{file}:{line}:{column}: policy `{policy}` does not fit the schema: {reason}")]
    Schema {
        /// The file.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// The policy's id.
        policy: String,
        /// What the validator says.
        reason: String,
    },
    /// The policy fits the schema and could still raise an error when it is asked.
    #[error("{file}:{line}: policy `{policy}` could fail when it is asked: {reason}")]
    MayFail {
        /// The file.
        file: String,
        /// Line where the policy begins, counted from 1.
        line: usize,
        /// The policy's id.
        policy: String,
        /// What could fail, and what to write instead.
        reason: &'static str,
    },
    /// The policy has no usable `@id`.
    #[error(
        "{file}:{line}: a policy needs `@id(\"…\")` with 1 to 100 letters, digits, `-`, `_` or `.`: refusals name it"
    )]
    NoId {
        /// The file.
        file: String,
        /// Line where the policy begins, counted from 1.
        line: usize,
    },
    /// Two policies have the same id.
    #[error("{file}:{line}: the id `{policy}` is taken by the policy at {first}: give this one another")]
    SameId {
        /// The file.
        file: String,
        /// Line where the policy begins, counted from 1.
        line: usize,
        /// The id.
        policy: String,
        /// File and line of the first policy with it.
        first: String,
    },
    /// Two texts have the same file name.
    #[error("the policy file `{file}` was given twice")]
    SameFile {
        /// The file.
        file: String,
    },
    /// More than any organisation writes by hand.
    #[error("{file}: {what} is more than the {limit} that are read")]
    TooMuch {
        /// The file.
        file: String,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The built-in schema or rules do not load: a defect of the product.
    #[error("the built-in rules do not load: {0}")]
    BuiltIn(String),
}
