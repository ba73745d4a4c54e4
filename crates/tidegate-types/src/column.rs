//! Roles of columns: what a value says about the person behind the row.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a column is, in the data owner's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Names a person by itself (a name, a record number).
    Identifier,
    /// Names a person together with others (age, sex, place).
    QuasiIdentifier,
    /// What must not be learned about a person (a diagnosis, an income).
    Sensitive,
    /// Anything else about the person.
    Attribute,
    /// Free text, which may hold anything.
    Text,
}

impl Role {
    /// How much less a column of this role may leave than others: identifiers least of all.
    #[must_use]
    pub const fn strictness(self) -> u8 {
        match self {
            Self::Identifier => 4,
            Self::Text => 3,
            Self::QuasiIdentifier => 2,
            Self::Sensitive => 1,
            Self::Attribute => 0,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Identifier => "identifier",
            Self::QuasiIdentifier => "quasi_identifier",
            Self::Sensitive => "sensitive",
            Self::Attribute => "attribute",
            Self::Text => "text",
        })
    }
}

/// What kind of value a column holds. A de-identifying function accepts only the kinds it was made
/// for; `value` is any number or category with no kind of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentifierKind {
    /// A person's name.
    Name,
    /// A number that names a record or a person inside an organisation.
    RecordNumber,
    /// A social security number or another national number.
    NationalId,
    /// A telephone or fax number.
    Phone,
    /// An electronic mail address.
    Email,
    /// A street address.
    Street,
    /// A postal code of the United States, five or nine digits.
    ZipCode,
    /// A calendar date about a person.
    Date,
    /// An age in years.
    Age,
    /// Any other number that names one thing: account, licence, plate, device, address on a network.
    OtherNumber,
    /// A number or category without a kind of its own.
    #[default]
    Value,
}

impl fmt::Display for IdentifierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Name => "name",
            Self::RecordNumber => "record_number",
            Self::NationalId => "national_id",
            Self::Phone => "phone",
            Self::Email => "email",
            Self::Street => "street",
            Self::ZipCode => "zip_code",
            Self::Date => "date",
            Self::Age => "age",
            Self::OtherNumber => "other_number",
            Self::Value => "value",
        })
    }
}
