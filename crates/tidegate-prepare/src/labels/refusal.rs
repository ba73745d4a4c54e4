//! Refusals that say what to do instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_types::Refusal;
use tidegate_types::column::{IdentifierKind, Role};
use tidegate_types::files::pipeline::Profile;

use super::expression::Objection;
use super::report::Judge;
use super::rules::Rule;
use super::source::SourceColumn;
use super::taint::{Atom, Relation, Taint};
use crate::functions::{Function, LEAST_AGE_BAND, OLDEST_AGE};
use crate::profile::sql_name;

/// Every reason why the output may not leave.
pub(super) fn refusals(judge: &Judge<'_>, names: &[String], relation: &Relation) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if !judge.facts().facts.public && !judge.can_be_measured() {
        refusals.push(without_subject(judge));
    }
    if relation.supplied && judge.supplied_rows_refused() {
        refusals.push(supplied_rows());
    }
    let rows: BTreeSet<&Atom> = judge.above(&relation.rows).into_iter().collect();
    if !rows.is_empty() && judge.analysis.on(Rule::RowsJoinColumns) {
        let causes: BTreeSet<&str> = rows
            .iter()
            .filter_map(|atom| judge.analysis.causes.get(*atom))
            .flatten()
            .copied()
            .collect();
        let causes = causes.into_iter().collect::<Vec<_>>().join(" and ");
        let what = format!("releasing rows that {causes} has chosen");
        refusals.push(explain(
            judge,
            &relation.rows,
            &rows,
            what,
            "what decides over rows joins every column",
        ));
    }
    if rows.is_empty() {
        refusals.extend(judge.sensitive_rows(&relation.rows).iter().map(sensitive_rows));
    }
    for (name, value) in names.iter().zip(&relation.columns) {
        let above: BTreeSet<&Atom> = judge.above(&value.taint).into_iter().collect();
        if above.is_empty() {
            let text: BTreeSet<&Atom> = judge.free_text(&value.taint).into_iter().collect();
            if !text.is_empty() {
                let what = format!("releasing the output column `{name}`");
                refusals.push(explain(judge, &value.taint, &text, what, "free text never leaves"));
            } else if judge.mixes_roles(&value.taint) {
                refusals.push(mixed_roles(name));
            } else if judge.changes_sensitive(value) {
                refusals.push(changed_sensitive(name));
            }
        } else if !above.is_subset(&rows) {
            let what = format!("releasing the output column `{name}` as {}", judge.release);
            refusals.push(explain(judge, &value.taint, &above, what, "its label is above that"));
        }
    }
    refusals
}

/// The refusal of something that depends on `taint`, of which `above` is above the release label.
fn explain(judge: &Judge<'_>, taint: &Taint, above: &BTreeSet<&Atom>, what: String, because: &str) -> Refusal {
    const SHOWN: usize = 3;
    let columns: BTreeSet<&Arc<str>> = above.iter().map(|atom| atom.column()).collect();
    let mut reads: Vec<String> = above.iter().take(SHOWN).map(|atom| judge.described(atom)).collect();
    if above.len() > SHOWN {
        reads.push(format!("{} more", above.len() - SHOWN));
    }
    let reads = reads.join(", ");
    let unknown = &judge.analysis.unknown;
    if !unknown.is_empty() && judge.analysis.is_everything(taint) {
        let not_followed = unknown.iter().cloned().collect::<Vec<_>>().join("; ");
        return Refusal {
            rule: "label-above-clearance".to_owned(),
            what,
            why: format!(
                "{because}: the query has {not_followed}, which the analysis does not follow, so it counts as reading \
                 every column: {reads}"
            ),
            fix: format!("write the query without {not_followed}"),
        };
    }
    let objections = columns.iter().flat_map(|column| {
        let second = judge.is_ambiguous(column).then_some(Objection::SecondFunction);
        let noted = judge.analysis.objections.get(*column).into_iter().flatten().copied();
        second
            .into_iter()
            .chain(noted)
            .map(move |objection| (*column, objection))
    });
    let objections: Vec<_> = objections.collect();
    if let Some((column, objection)) = objections.first() {
        let source = judge.analysis.source(column);
        let (rule, reason, fix) = object(judge, *objection, &source);
        return Refusal {
            rule: rule.to_owned(),
            what,
            why: format!("{because}: it reads {reads}; {reason}"),
            fix,
        };
    }
    let sources: Vec<SourceColumn> = columns.iter().map(|column| judge.analysis.source(column)).collect();
    let rule = if sources.iter().any(|source| source.role == Role::Text) {
        "text-selected"
    } else {
        "label-above-clearance"
    };
    let fixes: BTreeSet<String> = sources
        .iter()
        .take(SHOWN)
        .map(|source| instead(judge, source))
        .collect();
    Refusal {
        rule: rule.to_owned(),
        what,
        why: format!("{because}: it reads {reads}"),
        fix: fixes.into_iter().collect::<Vec<_>>().join("; "),
    }
}

/// The rule, the reason and the way out of a function that does not lower.
fn object(judge: &Judge<'_>, objection: Objection, source: &SourceColumn) -> (&'static str, String, String) {
    let name = sql_name(&source.name);
    let call = |function: Function| match function {
        Function::AgeBand => format!("age_band({name}, 10)"),
        Function::TopCode => format!("top_code({name}, {OLDEST_AGE})"),
        other => format!("{}({name})", other.name()),
    };
    match objection {
        Objection::Computed(function) => (
            "direct-reference",
            format!(
                "`{}()` lowers a label only over a direct reference to one source column, and its argument is computed",
                function.name()
            ),
            format!(
                "apply the function to the source column itself, as in `{}`, and compute with its result",
                call(function)
            ),
        ),
        Objection::Parameter(function) => (
            "constant-parameter",
            format!(
                "`{}()` lowers a label only with a constant as parameter",
                function.name()
            ),
            format!("write `{}`", call(function)),
        ),
        Objection::Bounds(function) => (
            "parameter-bounds",
            format!(
                "the parameter of `{}()` is outside the bounds of the profile",
                function.name()
            ),
            match function {
                Function::AgeBand => format!(
                    "use a width of {LEAST_AGE_BAND} to {OLDEST_AGE} years, as in `{}`",
                    call(function)
                ),
                _ => format!("use a limit of at most {OLDEST_AGE}, as in `{}`", call(function)),
            },
        ),
        Objection::Kind(function) => (
            "function-kind",
            format!("`{}()` is not made for a column of that kind", function.name()),
            instead(judge, source),
        ),
        Objection::DerivedCode => (
            "derived-code",
            "the profile accepts no codes that are derived from an identifier (45 CFR 164.514(c)), so `token()` does \
             not lower its label"
                .to_owned(),
            format!("leave `{}` out, or write `mask({name})`", source.name),
        ),
        Objection::NoProfile(_) => (
            "profile-none",
            "the profile `none` lowers nothing".to_owned(),
            instead(judge, source),
        ),
        Objection::SecondFunction => {
            let uses = judge.analysis.uses.get(source.name.as_str()).into_iter().flatten();
            let uses: Vec<String> = uses.map(|call| format!("`{}`", call.over(&name))).collect();
            (
                "one-function-per-column",
                format!("{} together tell more than each of them", uses.join(" and ")),
                format!("keep one of {}", uses.join(" and ")),
            )
        }
    }
}

/// What to write in place of a raw column.
fn instead(judge: &Judge<'_>, source: &SourceColumn) -> String {
    let name = sql_name(&source.name);
    if source.role == Role::Text {
        let plain = &source.name;
        return format!("leave `{plain}` out: free text never leaves; `redact({name})` keeps an empty column");
    }
    if judge.facts().profile == Profile::None {
        return format!(
            "set `profile: hipaa-safe-harbor`, which de-identifies, or release only to sites cleared for {}",
            source.label
        );
    }
    let plain = &source.name;
    let in_place = |call: String| format!("use `{call}` in place of `{plain}`, in conditions too");
    match source.kind {
        IdentifierKind::ZipCode => in_place(format!("zip3({name})")),
        IdentifierKind::Date => in_place(format!("year({name})")),
        IdentifierKind::Age => in_place(format!("age_band({name}, 10)")),
        _ => format!("leave `{plain}` out, also of conditions; `mask({name})` keeps a column without its values"),
    }
}

fn without_subject(judge: &Judge<'_>) -> Refusal {
    Refusal {
        rule: "subject-needed".to_owned(),
        what: format!("releasing rows of the dataset {}", judge.facts().dataset),
        why: "the catalog names no column that tells people apart, so nobody can count how many share a row".to_owned(),
        fix: "name the `subject:` of the dataset in the catalog, or say `public: true` if nobody's data is in it"
            .to_owned(),
    }
}

fn supplied_rows() -> Refusal {
    Refusal {
        rule: "supplied-rows".to_owned(),
        what: "releasing rows that the query brings along (VALUES, or a SELECT without FROM)".to_owned(),
        why: "rows that are nobody's could make a group of people look larger than it is".to_owned(),
        fix: "select from the dataset alone".to_owned(),
    }
}

fn sensitive_rows(source: &SourceColumn) -> Refusal {
    let name = &source.name;
    Refusal {
        rule: "sensitive-in-rows".to_owned(),
        what: format!("releasing rows that the sensitive column `{name}` has chosen"),
        why: "all who are released would be alike in it, and whoever finds a person among them knows its value"
            .to_owned(),
        fix: format!("leave `{name}` out of conditions; output it as a column, in which different values are counted"),
    }
}

fn changed_sensitive(name: &str) -> Refusal {
    Refusal {
        rule: "sensitive-changed".to_owned(),
        what: format!("releasing the output column `{name}`"),
        why: "it is computed from a sensitive column, so its different values are not those of the column, which l \
              counts"
            .to_owned(),
        fix: "output the sensitive column as it is, and compute with it where the output is used".to_owned(),
    }
}

fn mixed_roles(name: &str) -> Refusal {
    Refusal {
        rule: "roles-apart".to_owned(),
        what: format!("releasing the output column `{name}`"),
        why: "it is computed from a quasi-identifier and from a sensitive column at once, so it can be counted as \
              neither"
            .to_owned(),
        fix: "output the two as columns of their own".to_owned(),
    }
}
