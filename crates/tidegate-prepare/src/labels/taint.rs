//! What a value depends on, as a set. Labels are computed from the set at the end, so that a report
//! can say which column is the reason.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::functions::Function;

/// One thing that a value depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    /// A source column's raw value.
    Raw(Arc<str>),
    /// A source column through a de-identifying function that was applied as it must be.
    Lowered(Arc<str>, Call),
}

impl Atom {
    pub(super) fn column(&self) -> &Arc<str> {
        match self {
            Self::Raw(column) | Self::Lowered(column, _) => column,
        }
    }
}

/// A de-identifying function with its constant parameter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) function: Function,
    pub(super) parameter: Option<i64>,
}

impl Call {
    /// As written over `column`: `age_band(age, 10)`.
    pub(super) fn over(&self, column: &str) -> String {
        let name = self.function.name();
        match self.parameter {
            Some(parameter) => format!("{name}({column}, {parameter})"),
            None => format!("{name}({column})"),
        }
    }

    /// Whether the result is the same for every value.
    pub(super) fn is_constant(&self) -> bool {
        matches!(self.function, Function::Mask | Function::Redact)
    }
}

pub(super) type Taint = BTreeSet<Atom>;

/// One column of a relation, or the result of an expression.
#[derive(Debug, Clone, Default)]
pub(super) struct Value {
    pub(super) taint: Taint,
    /// The source column whose unchanged value it is.
    pub(super) direct: Option<Arc<str>>,
}

impl Value {
    pub(super) fn computed(taint: Taint) -> Self {
        Self { taint, direct: None }
    }
}

/// A relation: its columns in order, and what decides which rows there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Relation {
    pub(super) columns: Vec<Value>,
    pub(super) rows: Taint,
    /// What the order of the rows depends on, as far as no operator has made use of it yet.
    pub(super) order: Taint,
    /// Whether rows come from the query text instead of the dataset.
    pub(super) supplied: bool,
}
