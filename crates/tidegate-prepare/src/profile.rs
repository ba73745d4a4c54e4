//! What a profile makes of a dataset: the SQL that it writes, and the roles of what comes out.

use std::collections::BTreeSet;

use tidegate_types::column::{IdentifierKind, Role};
use tidegate_types::files::pipeline::Profile;

use crate::labels::{Facts, SourceColumn, source_column};

/// The query that the profile writes where the pipeline has none: one SELECT over the dataset, its
/// columns in order, the target last.
///
/// Safe Harbor (45 CFR 164.514(b)(2)): identifiers and free text are left out, dates become years, ZIP
/// codes three digits, ages bands of ten years; everything else stays as it is. The profile `none`
/// leaves out identifiers and free text and changes nothing. Columns in `drop` are left out, the target
/// never is.
#[must_use]
pub fn write_sql(facts: &Facts<'_>, drop: &BTreeSet<String>) -> String {
    let mut lines: Vec<String> = facts
        .columns
        .iter()
        .filter(|name| name.as_str() != facts.target && !drop.contains(*name))
        .filter(|name| facts.subject != Some(name.as_str()))
        .filter_map(|name| select(&source_column(facts.facts, name, None), facts.profile))
        .collect();
    lines.push(sql_name(facts.target));
    format!(
        "SELECT\n  {}\nFROM {}\n",
        lines.join(",\n  "),
        sql_name(facts.dataset.as_str())
    )
}

/// How a column is selected; `None` when it is left out.
fn select(column: &SourceColumn, profile: Profile) -> Option<String> {
    let name = sql_name(&column.name);
    if column.role == Role::Text {
        return None;
    }
    if profile == Profile::None || column.label.level == tidegate_types::Level::Public {
        return (column.role != Role::Identifier || column.label.level == tidegate_types::Level::Public)
            .then_some(name);
    }
    match column.kind {
        _ if column.role == Role::Identifier => None,
        IdentifierKind::ZipCode => Some(format!("zip3({name}) AS {name}")),
        IdentifierKind::Date => Some(format!("year({name}) AS {name}")),
        IdentifierKind::Age => Some(format!("age_band({name}, 10) AS {name}")),
        IdentifierKind::Value => Some(name),
        IdentifierKind::Name
        | IdentifierKind::RecordNumber
        | IdentifierKind::NationalId
        | IdentifierKind::Phone
        | IdentifierKind::Email
        | IdentifierKind::Street
        | IdentifierKind::OtherNumber => None,
    }
}

/// What an output column counts as in the measurement of risk, from the source columns that it is
/// computed from and whether each is read through a generalising function. The strictest wins:
/// identifier, free text, quasi-identifier, sensitive, attribute.
///
/// A generalised identifier is a quasi-identifier, and so is every column of a kind that identifies
/// (a date, an age, a ZIP code), whatever role the catalog gives it.
#[must_use]
pub fn output_role(sources: &[(SourceColumn, bool)]) -> Role {
    let role = |(column, lowered): &(SourceColumn, bool)| match column.role {
        Role::Identifier | Role::Text if !lowered => column.role,
        Role::Identifier | Role::Text | Role::QuasiIdentifier => Role::QuasiIdentifier,
        _ if column.kind != IdentifierKind::Value => Role::QuasiIdentifier,
        other => other,
    };
    let strictest = sources.iter().map(role).max_by_key(|role| role.strictness());
    strictest.unwrap_or(Role::Attribute)
}

/// A name as SQL reads it: quoted unless it is plain lower-case and no word of the language.
#[must_use]
pub fn sql_name(name: &str) -> String {
    use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
    let plain = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && ALL_KEYWORDS.binary_search(&name.to_ascii_uppercase().as_str()).is_err();
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
