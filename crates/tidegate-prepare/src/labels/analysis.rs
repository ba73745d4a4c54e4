//! The state of one analysis: what is known about the source, and what was noticed on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;

use super::Facts;
use super::expression::Objection;
use super::rules::{Rule, Rules};
use super::source::{SourceColumn, source_column_under};
use super::taint::{Atom, Call, Relation, Taint, Value};

pub(super) struct Analysis<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) rules: Rules,
    sources: BTreeMap<Arc<str>, SourceColumn>,
    /// Functions that lower, for each source column.
    pub(super) uses: BTreeMap<Arc<str>, BTreeSet<Call>>,
    /// Why functions over a source column do not lower.
    pub(super) objections: BTreeMap<Arc<str>, BTreeSet<Objection>>,
    /// What a source column decides about rows as.
    pub(super) causes: BTreeMap<Atom, BTreeSet<&'static str>>,
    /// What the analysis does not follow.
    pub(super) unknown: BTreeSet<String>,
}

impl<'a> Analysis<'a> {
    pub(super) fn new(facts: &'a Facts<'a>, rules: Rules) -> Self {
        let mut analysis = Self {
            facts,
            rules,
            sources: BTreeMap::new(),
            uses: BTreeMap::new(),
            objections: BTreeMap::new(),
            causes: BTreeMap::new(),
            unknown: BTreeSet::new(),
        };
        for column in &facts.columns {
            analysis.read(column, None);
        }
        analysis
    }

    pub(super) fn on(&self, rule: Rule) -> bool {
        self.rules.on(rule)
    }

    /// A raw value of the source column `name`.
    pub(super) fn read(&mut self, name: &str, data_type: Option<&DataType>) -> Value {
        let name: Arc<str> = name.into();
        // The type may only make it stricter; the first entry of a column has none.
        if data_type.is_some() || !self.sources.contains_key(&name) {
            let column = source_column_under(self.facts.facts, &name, data_type, self.rules);
            self.sources.insert(name.clone(), column);
        }
        Value {
            taint: [Atom::Raw(name.clone())].into(),
            direct: Some(name),
        }
    }

    /// What the catalog says about a source column.
    pub(super) fn source(&self, name: &str) -> SourceColumn {
        match self.sources.get(name) {
            Some(column) => column.clone(),
            None => source_column_under(self.facts.facts, name, None, self.rules),
        }
    }

    /// All raw columns, because of something that the analysis does not follow.
    pub(super) fn everything(&mut self, because_of: &str) -> Value {
        self.unknown.insert(because_of.to_owned());
        Value::computed(self.sources.keys().cloned().map(Atom::Raw).collect())
    }

    /// Whether `taint` holds every raw column.
    pub(super) fn is_everything(&self, taint: &Taint) -> bool {
        let raw = taint.iter().filter(|atom| matches!(atom, Atom::Raw(_)));
        raw.count() == self.sources.len()
    }

    /// A relation of `width` columns of which nothing is known.
    pub(super) fn unknown_relation(&mut self, width: usize, because_of: &str) -> Relation {
        let value = self.everything(because_of);
        let mut rows = Taint::new();
        self.decide(&mut rows, &value.taint, "what the analysis does not follow");
        Relation {
            columns: vec![value; width],
            rows,
            order: Taint::new(),
            supplied: false,
        }
    }

    /// Lets `taint` decide over rows, as a `cause`.
    pub(super) fn decide(&mut self, rows: &mut Taint, taint: &Taint, cause: &'static str) {
        for atom in taint {
            self.causes.entry(atom.clone()).or_default().insert(cause);
            rows.insert(atom.clone());
        }
    }

    /// Keeps why a function over these columns does not lower.
    pub(super) fn note(&mut self, taint: &Taint, objection: Objection) {
        for atom in taint {
            if let Atom::Raw(column) = atom {
                self.objections.entry(column.clone()).or_default().insert(objection);
            }
        }
    }
}
