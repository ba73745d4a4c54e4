//! Source columns: what the catalog says about them, and the label that follows.

use datafusion::arrow::datatypes::DataType;
use tidegate_types::column::{IdentifierKind, Role};
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::pipeline::Profile;
use tidegate_types::label::{Label, Level};

use super::rules::{Rule, Rules};

/// The tag that de-identification by Safe Harbor removes: what is de-identified is no longer
/// protected health information (45 CFR 164.502(d)(2)).
const PROTECTED_HEALTH_INFORMATION: &str = "phi";

/// One column of a dataset, as the catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// Its role; an identifier where the catalog names neither it nor a default.
    pub role: Role,
    /// Its kind; a date where its type is one.
    pub kind: IdentifierKind,
    /// The label of its raw values.
    pub label: Label,
}

/// What the catalog says about one column. `data_type` is the type that it was read as, where known.
#[must_use]
pub fn source_column(dataset: &Dataset, name: &str, data_type: Option<&DataType>) -> SourceColumn {
    source_column_under(dataset, name, data_type, Rules::default())
}

pub(super) fn source_column_under(
    dataset: &Dataset,
    name: &str,
    data_type: Option<&DataType>,
    rules: Rules,
) -> SourceColumn {
    let unnamed = if rules.on(Rule::UnnamedIsIdentifier) {
        (Role::Identifier, IdentifierKind::OtherNumber)
    } else {
        (Role::Attribute, IdentifierKind::Value)
    };
    let (role, mut kind) = dataset
        .column(name)
        .map_or(unnamed, |column| (column.role, column.kind));
    let temporal = data_type.is_some_and(DataType::is_temporal);
    if temporal && kind == IdentifierKind::Value && rules.on(Rule::TemporalIsDate) {
        kind = IdentifierKind::Date;
    }
    let level = if dataset.public {
        Level::Public
    } else if matches!(role, Role::Identifier | Role::Text)
        || (kind != IdentifierKind::Value && rules.on(Rule::KindRestricts))
    {
        Level::Restricted
    } else {
        Level::Confidential
    };
    SourceColumn {
        name: name.to_owned(),
        role,
        kind,
        label: Label {
            level,
            tags: dataset.tags.clone(),
            residency: dataset.residency.clone(),
        },
    }
}

/// The label that the output must not exceed.
pub(super) fn release_label(dataset: &Dataset, profile: Profile, to: Level) -> Label {
    Label {
        level: to,
        // What is as well guarded as the data is not measured, so it is protected as before.
        tags: if dataset.public || profile == Profile::None || to >= Level::Restricted {
            dataset.tags.clone()
        } else {
            without_health_tag(dataset)
        },
        residency: dataset.residency.clone(),
    }
}

/// The label of what a profile has de-identified, at most at `level`.
pub(super) fn lowered_label(dataset: &Dataset, level: Level) -> Label {
    Label {
        level,
        tags: without_health_tag(dataset),
        residency: dataset.residency.clone(),
    }
}

fn without_health_tag(dataset: &Dataset) -> std::collections::BTreeSet<String> {
    let tags = dataset.tags.iter();
    tags.filter(|tag| *tag != PROTECTED_HEALTH_INFORMATION)
        .cloned()
        .collect()
}

/// The role in words, for a reader.
pub(super) fn role_in_words(column: &SourceColumn) -> String {
    let role = match column.role {
        Role::Identifier => "identifier",
        Role::QuasiIdentifier => "quasi-identifier",
        Role::Sensitive => "sensitive column",
        Role::Attribute => "attribute",
        Role::Text => "free text",
    };
    if column.kind == IdentifierKind::Value {
        return role.to_owned();
    }
    format!("{role} of kind {}", column.kind)
}
