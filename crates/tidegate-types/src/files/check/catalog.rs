//! `catalog.yaml` against `sites.yaml`.

use super::Findings;
use crate::column::Role;
use crate::files::catalog::Dataset;
use crate::files::sites::SiteKind;
use crate::files::source::suggest;
use crate::files::{Catalog, Sites};
use crate::label::{Label, Level, Residency};

/// Stores of clouds that records are read from.
const CLOUDS: [&str; 3] = ["s3", "gs", "az"];

pub(super) fn check(catalog: &Catalog, sites: &Sites, findings: &mut Findings<'_>) {
    if catalog.datasets.is_empty() {
        findings.key(
            &["datasets"],
            "no dataset is described",
            "`tidegate init --from FILE` writes a first catalog",
        );
    }
    for (name, dataset) in &catalog.datasets {
        let at = |key| ["datasets", name.as_str(), key];
        check_site(dataset, sites, findings, &at("site"));
        check_source(dataset, findings, &at("source"));
        check_people(dataset, findings, name.as_str());
        if dataset.purposes.is_empty() {
            findings.key(
                &at("purposes"),
                "no purpose is named, so nothing may be done with the data",
                "",
            );
        }
        for tag in &dataset.tags {
            if !is_word(tag) {
                let help = "use lower-case letters, digits and `-`";
                findings.value(&at("tags"), format!("`{tag}` is not a tag"), help);
            }
        }
        if dataset.residency == Residency::only([""; 0]) {
            let help = "name a jurisdiction, or remove the key";
            findings.value(
                &at("residency"),
                "the empty list means that the data may be nowhere",
                help,
            );
        }
        let delimiter = dataset.csv.delimiter;
        if !delimiter.is_ascii() || matches!(delimiter, '"' | '\n' | '\r' | '\0') {
            let path = ["datasets", name.as_str(), "csv", "delimiter"];
            findings.value(
                &path,
                "the character between fields must be a single ASCII character",
                "use `,` or `;`",
            );
        }
        if dataset.columns.is_empty() {
            let help = "a column that is not named is a restricted identifier; write `\"*\": {role: …}` for a default";
            findings.key(&at("columns"), "no column is described", help);
        }
    }
}

fn check_site(dataset: &Dataset, sites: &Sites, findings: &mut Findings<'_>, path: &[&str]) {
    let home = &dataset.site;
    let Some(site) = sites.sites.get(home) else {
        let help = suggest(
            home.as_str(),
            "known sites",
            sites.sites.keys().map(|site| site.as_str()),
        );
        findings.value(path, format!("site `{home}` is not in the sites file"), help);
        return;
    };
    if site.kind != SiteKind::Private {
        let message = format!(
            "site `{home}` is {}, but a dataset is owned by a private site",
            site.kind.as_str()
        );
        findings.value(path, message, "");
    }
    let label = Label {
        level: if dataset.public {
            Level::Public
        } else {
            Level::Restricted
        },
        tags: dataset.tags.clone(),
        residency: dataset.residency.clone(),
    };
    if !label.may_be_held(&site.clearance, &site.jurisdiction) {
        let message = format!("site `{home}` may not hold its own dataset, whose label is `{label}`");
        let help = "raise the site's clearance in the sites file, or correct tags and residency here";
        findings.value(path, message, help);
    }
}

fn check_source(dataset: &Dataset, findings: &mut Findings<'_>, path: &[&str]) {
    let source = dataset.source.trim();
    if source.is_empty() {
        findings.value(
            path,
            "no source is named",
            "name a file, a folder or a glob of CSV or Parquet",
        );
    } else if let Some((scheme, _)) = source.split_once("://") {
        if !CLOUDS.contains(&scheme) {
            let help = "name a file, a folder or a glob of CSV or Parquet, or `s3://…`, `gs://…` or `az://…`";
            findings.value(
                path,
                format!("sources of the kind `{scheme}://` are not supported yet"),
                help,
            );
        }
    } else if source.contains('\0') {
        findings.value(path, "a path cannot hold a NUL character", "");
    }
}

fn check_people(dataset: &Dataset, findings: &mut Findings<'_>, name: &str) {
    let at = |key| ["datasets", name, key];
    match &dataset.subject {
        None if !dataset.public => {
            let help = "name the column that tells people apart, or write `public: true` when nobody's data is in it";
            findings.key(&at("subject"), "key `subject` is missing here", help);
        }
        None => {}
        Some(_) if dataset.public => {
            let help = "remove `subject`, or remove `public: true`";
            findings.key(
                &at("subject"),
                "a dataset with subjects holds data about people and is not public",
                help,
            );
        }
        Some(subject) => match dataset.column(subject) {
            None => {
                let help = suggest(subject, "described columns", dataset.columns.keys().map(String::as_str));
                findings.value(
                    &at("subject"),
                    format!("column `{subject}` is not described under `columns`"),
                    help,
                );
            }
            Some(column) if column.role != Role::Identifier => {
                let help = format!("write `{subject}: {{role: identifier, kind: record_number}}` under `columns`");
                let message = format!("column `{subject}` tells people apart, so its role is `identifier`");
                findings.value(&at("subject"), message, help);
            }
            Some(_) => {}
        },
    }
    if dataset.public && !dataset.tags.is_empty() {
        let help = "remove the tags, or remove `public: true`";
        findings.key(&at("tags"), "a public dataset carries no tag", help);
    }
    for (key, least) in [("least_k", dataset.least_k), ("least_l", dataset.least_l)] {
        if least == 0 {
            findings.value(&at(key), format!("`{key}` is at least 1"), "");
        }
    }
}

/// Whether a text is one lower-case word, as tags are.
pub(super) fn is_word(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
}
