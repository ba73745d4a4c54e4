//! Writes a catalog as a person would, for `init`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tidegate_types::IdentifierKind;
use tidegate_types::files::Catalog;
use tidegate_types::files::catalog::{Column, CsvOptions, Dataset};
use tidegate_types::label::Residency;

#[cfg(test)]
mod tests;

/// The text of a catalog, which [`tidegate_types::files::read_catalog`] reads back as the same value.
///
/// `comments` are written above the entry that their key names: `DATASET` or `DATASET.COLUMN`; one
/// under the empty key opens the file. What has its default value is left out.
#[must_use]
pub(crate) fn write_catalog(catalog: &Catalog, comments: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    comment(&mut out, 0, comments.get(""));
    if let Some(level) = catalog.task_files {
        line(&mut out, 0, "task_files", &level.to_string());
    }
    if catalog.datasets.is_empty() {
        out.push_str("datasets: {}\n");
        return out;
    }
    out.push_str("datasets:\n");
    for (name, dataset) in &catalog.datasets {
        comment(&mut out, 2, comments.get(name.as_str()));
        line(&mut out, 2, &scalar(name.as_str()), "");
        write_dataset(&mut out, dataset);
        if dataset.columns.is_empty() {
            line(&mut out, 4, "columns", "{}");
            continue;
        }
        line(&mut out, 4, "columns", "");
        for (column, facts) in &dataset.columns {
            comment(&mut out, 6, comments.get(&format!("{name}.{column}")));
            line(&mut out, 6, &scalar(column), &column_facts(facts));
        }
    }
    out
}

fn write_dataset(out: &mut String, dataset: &Dataset) {
    line(out, 4, "site", &scalar(dataset.site.as_str()));
    line(out, 4, "source", &scalar(&dataset.source));
    if let Some(subject) = &dataset.subject {
        line(out, 4, "subject", &scalar(subject));
    }
    line(
        out,
        4,
        "purposes",
        &list(dataset.purposes.iter().map(|purpose| purpose.as_str())),
    );
    line(out, 4, "least_k", &dataset.least_k.to_string());
    line(out, 4, "least_l", &dataset.least_l.to_string());
    if !dataset.tags.is_empty() {
        line(out, 4, "tags", &texts(&dataset.tags));
    }
    if let Residency::Only(places) = &dataset.residency {
        line(out, 4, "residency", &format!("{{only: {}}}", texts(places)));
    }
    if dataset.public {
        line(out, 4, "public", "true");
    }
    if dataset.csv != CsvOptions::default() {
        let delimiter = scalar(&dataset.csv.delimiter.to_string());
        let facts = format!("{{null: {}, delimiter: {delimiter}}}", texts(&dataset.csv.null));
        line(out, 4, "csv", &facts);
    }
}

fn column_facts(column: &Column) -> String {
    let mut facts = format!("{{role: {}", column.role);
    if column.kind != IdentifierKind::Value {
        let _ = write!(facts, ", kind: {}", column.kind);
    }
    if let Some(value_type) = column.value_type {
        let _ = write!(facts, ", type: {}", value_type);
    }
    facts.push('}');
    facts
}

fn line(out: &mut String, indent: usize, key: &str, value: &str) {
    let space = if value.is_empty() { "" } else { " " };
    let _ = writeln!(out, "{:indent$}{key}:{space}{value}", "");
}

fn comment(out: &mut String, indent: usize, text: Option<&String>) {
    for text in text.into_iter().flat_map(|text| text.lines()) {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "{}", format!("{:indent$}# {clean}", "").trim_end());
    }
}

fn texts(set: &BTreeSet<String>) -> String {
    list(set.iter().map(String::as_str))
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(scalar).collect::<Vec<_>>().join(", "))
}

/// A text as a YAML scalar: bare where nobody could read it as anything else, quoted otherwise.
fn scalar(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    // Words that some reader of YAML takes for a truth value, a missing value or a number.
    let special = [
        "true", "false", "yes", "no", "on", "off", "null", "y", "n", "inf", "nan", "infinity",
    ];
    if word && !special.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            // JSON's escapes are YAML's: everything else is written in a way that survives any editor.
            c if u32::from(c) <= 0xFFFF && !c.is_alphanumeric() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c if !c.is_alphanumeric() => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
