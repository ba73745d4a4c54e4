//! From sets of source columns to labels, reasons and refusals.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::config::ConfigOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::analyzer::Analyzer;
use tidegate_types::column::Role;
use tidegate_types::files::pipeline::Profile;
use tidegate_types::label::{Label, Level};
use tidegate_types::report::{ColumnReport, LabelReport};

use super::Facts;
use super::analysis::Analysis;
use super::refusal;
use super::rules::{Rule, Rules};
use super::source::{SourceColumn, lowered_label, release_label, role_in_words};
use super::structure;
use super::taint::{Atom, Relation, Taint, Value};
use crate::profile::output_role;

pub(super) fn report(plan: &LogicalPlan, facts: &Facts<'_>, sql: &str, rules: Rules) -> LabelReport {
    let mut analysis = Analysis::new(facts, rules);
    let structure = structure::check(plan, facts.dataset, rules);
    let width = plan.schema().fields().len();
    // Casts that the engine adds when it makes types fit may fail, so they must be seen. On a plan
    // that was analysed before, this changes nothing.
    let analysed = structure
        .shallow
        .then(|| Analyzer::new().execute_and_check(plan.clone(), &ConfigOptions::default(), |_, _| {}));
    let relation = match analysed {
        Some(Ok(plan)) if plan.schema().fields().len() == width => analysis.relation(&plan),
        _ => analysis.unknown_relation(width, "a query that cannot be analysed"),
    };
    let judge = Judge {
        release: release_label(facts.facts, facts.profile, facts.to),
        analysis: &analysis,
    };
    let names: Vec<String> = plan
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    let mut refusals = structure.refusals;
    refusals.extend(refusal::refusals(&judge, &names, &relation));
    LabelReport {
        sql: sql.to_owned(),
        columns: names
            .iter()
            .zip(&relation.columns)
            .map(|(name, value)| judge.column(name, &value.taint, &relation))
            .collect(),
        row_label: judge.label(&relation.rows),
        row_reads: judge.reads(&relation.rows),
        release: judge.release.clone(),
        warnings: Vec::new(),
        refusals,
    }
}

/// Knows the labels of what was found.
pub(super) struct Judge<'a> {
    pub(super) release: Label,
    pub(super) analysis: &'a Analysis<'a>,
}

impl Judge<'_> {
    fn on(&self, rule: Rule) -> bool {
        self.analysis.on(rule)
    }

    pub(super) fn facts(&self) -> &Facts<'_> {
        self.analysis.facts
    }

    fn bottom(&self) -> Label {
        Label {
            residency: self.facts().facts.residency.clone(),
            ..Label::public()
        }
    }

    /// The join of the raw labels.
    fn label_before(&self, taint: &Taint) -> Label {
        taint.iter().fold(self.bottom(), |label, atom| {
            label.join(&self.analysis.source(atom.column()).label)
        })
    }

    /// The join of the labels after de-identification, on condition of the measurement.
    pub(super) fn label(&self, taint: &Taint) -> Label {
        taint
            .iter()
            .fold(self.bottom(), |label, atom| label.join(&self.label_of(atom)))
    }

    fn label_of(&self, atom: &Atom) -> Label {
        let facts = self.facts();
        let source = self.analysis.source(atom.column());
        let measured = || lowered_label(facts.facts, facts.to);
        match atom {
            _ if facts.facts.public => source.label,
            Atom::Lowered(_, call) if call.is_constant() => lowered_label(facts.facts, Level::Public),
            Atom::Lowered(column, _) if !self.is_ambiguous(column) && self.is_measured() => measured(),
            Atom::Raw(_)
                if source.label.level <= Level::Confidential
                    && facts.profile != Profile::None
                    && self.is_measured() =>
            {
                measured()
            }
            _ => source.label,
        }
    }

    /// Without a subject nobody can be counted, and nothing can be measured.
    pub(super) fn can_be_measured(&self) -> bool {
        self.facts().subject.is_some() || !self.on(Rule::SubjectNeeded)
    }

    /// Whether k and l stand between the output and its release. What stays as well guarded as the data
    /// is not measured, so nothing is lowered for it either.
    pub(super) fn is_measured(&self) -> bool {
        !self.facts().facts.public && self.facts().to < Level::Restricted && self.can_be_measured()
    }

    /// Whether two functions over one column could be combined to learn more than either tells.
    pub(super) fn is_ambiguous(&self, column: &Arc<str>) -> bool {
        self.on(Rule::OneFunctionPerColumn) && self.analysis.uses.get(column).is_some_and(|uses| uses.len() > 1)
    }

    /// What in `taint` is above the release label.
    pub(super) fn above<'t>(&self, taint: &'t Taint) -> Vec<&'t Atom> {
        taint
            .iter()
            .filter(|atom| !self.label_of(atom).flows_to(&self.release))
            .collect()
    }

    fn reads(&self, taint: &Taint) -> Vec<String> {
        let columns: BTreeSet<&str> = taint.iter().map(|atom| atom.column().as_ref()).collect();
        let dataset = self.facts().dataset;
        columns
            .into_iter()
            .map(|column| format!("{dataset}.{column}"))
            .collect()
    }

    /// The sources of `taint` and whether each is read through a function.
    pub(super) fn sources(&self, taint: &Taint) -> Vec<(SourceColumn, bool)> {
        taint
            .iter()
            .filter(|atom| !matches!(atom, Atom::Lowered(_, call) if call.is_constant()))
            .map(|atom| {
                let lowered = matches!(atom, Atom::Lowered(column, _) if !self.is_ambiguous(column));
                (self.analysis.source(atom.column()), lowered)
            })
            .collect()
    }

    fn column(&self, name: &str, own: &Taint, relation: &Relation) -> ColumnReport {
        let mut all = own.clone();
        if self.on(Rule::RowsJoinColumns) {
            all.extend(relation.rows.iter().cloned());
        }
        let functions: Vec<String> = own
            .iter()
            .filter_map(|atom| match atom {
                Atom::Lowered(column, call) if !self.is_ambiguous(column) => Some(call.over(column)),
                _ => None,
            })
            .collect();
        let label = self.label(&all);
        ColumnReport {
            name: name.to_owned(),
            reads: self.reads(own),
            label_before: self.label_before(&all),
            why: self.why(own, &relation.rows, &functions, &label),
            label,
            role: output_role(&self.sources(own)),
            function: (!functions.is_empty()).then(|| functions.join(", ")),
        }
    }

    fn why(&self, own: &Taint, rows: &Taint, functions: &[String], label: &Label) -> String {
        let facts = self.facts();
        if let Some(atom) = self.above(own).first() {
            return format!("may not leave: it reads {}", self.described(atom));
        }
        if let Some(atom) = self.free_text(own).first() {
            return format!("may not leave: it reads {}", self.described(atom));
        }
        if let Some(atom) = self.above(rows).first().filter(|_| self.on(Rule::RowsJoinColumns)) {
            return format!("may not leave: its rows depend on {}", self.described(atom));
        }
        if facts.facts.public {
            return "the dataset is public".to_owned();
        }
        if own.is_empty() {
            return "a constant".to_owned();
        }
        if facts.profile == Profile::None {
            return format!("its label {label} is not above {}", self.release);
        }
        if functions.is_empty() {
            let role = match output_role(&self.sources(own)) {
                Role::QuasiIdentifier => "quasi-identifier",
                Role::Sensitive => "sensitive",
                _ => "attribute",
            };
            return format!("{role}: may leave when the measured risk is within its bounds");
        }
        let constant = own
            .iter()
            .all(|atom| matches!(atom, Atom::Lowered(_, call) if call.is_constant()));
        if constant {
            return format!("{} is the same for everybody", functions.join(", "));
        }
        format!(
            "{} generalises it: may leave when the measured risk is within its bounds",
            functions.join(", ")
        )
    }

    /// A source column in words.
    pub(super) fn described(&self, atom: &Atom) -> String {
        let source = self.analysis.source(atom.column());
        format!(
            "`{}.{}` ({}, {})",
            self.facts().dataset,
            source.name,
            source.label.level,
            role_in_words(&source)
        )
    }

    /// Whether these sources mix a quasi-identifier with something sensitive.
    pub(super) fn mixes_roles(&self, own: &Taint) -> bool {
        if !self.is_measured() || !self.on(Rule::RolesStayApart) {
            return false;
        }
        let sources = self.sources(own);
        let roles: BTreeSet<Role> = sources
            .iter()
            .map(|source| output_role(std::slice::from_ref(source)))
            .collect();
        roles.contains(&Role::QuasiIdentifier) && roles.contains(&Role::Sensitive)
    }

    /// The sensitive columns in what decides over rows: everybody who is released would be alike in
    /// them, and the measurement of l would not see it.
    pub(super) fn sensitive_rows(&self, rows: &Taint) -> Vec<SourceColumn> {
        if !self.is_measured() || !self.on(Rule::SensitiveDecidesNoRows) {
            return Vec::new();
        }
        let sources = self.sources(rows).into_iter().map(|(source, _)| source);
        sources.filter(|source| source.role == Role::Sensitive).collect()
    }

    /// Whether a sensitive column was changed on the way out. Distinct values of what was made of it say
    /// nothing about the distinct values of the column itself: a little noise makes them all differ.
    pub(super) fn changes_sensitive(&self, value: &Value) -> bool {
        self.is_measured()
            && self.on(Rule::SensitiveUnchanged)
            && output_role(&self.sources(&value.taint)) == Role::Sensitive
            && (value.direct.is_none() || value.taint.len() > 1)
    }

    /// What in `taint` is free text of people.
    pub(super) fn free_text<'t>(&self, taint: &'t Taint) -> Vec<&'t Atom> {
        let refused = !self.facts().facts.public && self.on(Rule::TextNeverLeaves);
        let atoms = taint.iter().filter(|_| refused);
        atoms
            .filter(|atom| matches!(atom, Atom::Raw(column) if self.analysis.source(column).role == Role::Text))
            .collect()
    }

    pub(super) fn supplied_rows_refused(&self) -> bool {
        self.on(Rule::SuppliedRowsRefused) && !self.facts().facts.public
    }
}
