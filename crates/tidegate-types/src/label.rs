//! Labels: how sensitive something is, and where it may be.
//!
//! A label is an element of a lattice. [`Label::join`] is the least upper bound: whatever was made
//! from two things is at least as sensitive as both. [`Label::flows_to`] is the order.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How sensitive something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Anybody may see it.
    Public,
    /// Members of the organisation and its processors may see it.
    Internal,
    /// Only those who work on it may see it.
    Confidential,
    /// Only the owner's own site may see it.
    Restricted,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        })
    }
}

/// The jurisdictions in which something may be held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// No rule limits the place.
    #[default]
    Anywhere,
    /// Only these jurisdictions; the empty set means nowhere.
    Only(BTreeSet<String>),
}

impl Residency {
    /// Only the given jurisdictions.
    pub fn only<I: IntoIterator<Item = S>, S: Into<String>>(jurisdictions: I) -> Self {
        Self::Only(jurisdictions.into_iter().map(Into::into).collect())
    }

    /// The intersection: where both may be held.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Anywhere, r) | (r, Self::Anywhere) => r.clone(),
            (Self::Only(a), Self::Only(b)) => Self::Only(a.intersection(b).cloned().collect()),
        }
    }

    /// Whether something with this residency may be held in `jurisdiction`.
    #[must_use]
    pub fn allows(&self, jurisdiction: &str) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Only(set) => set.contains(jurisdiction),
        }
    }

    /// Whether every place that `other` allows is allowed by `self`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anywhere, _) => true,
            (Self::Only(_), Self::Anywhere) => false,
            (Self::Only(a), Self::Only(b)) => b.is_subset(a),
        }
    }
}

/// What may be done with something: level, tags and residency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// How sensitive it is.
    pub level: Level,
    /// Kinds of regulated data in it, such as `phi` or `pci`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Where it may be held.
    #[serde(default)]
    pub residency: Residency,
}

impl Label {
    /// The bottom of the lattice: public, untagged, anywhere.
    #[must_use]
    pub fn public() -> Self {
        Self::of(Level::Public)
    }

    /// A label of the given level, untagged, anywhere.
    #[must_use]
    pub fn of(level: Level) -> Self {
        Self {
            level,
            tags: BTreeSet::new(),
            residency: Residency::Anywhere,
        }
    }

    /// The least label above both.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        Self {
            level: self.level.max(other.level),
            tags: self.tags.union(&other.tags).cloned().collect(),
            residency: self.residency.join(&other.residency),
        }
    }

    /// The join of any number of labels; public when there are none.
    pub fn join_all<'a, I: IntoIterator<Item = &'a Self>>(labels: I) -> Self {
        labels
            .into_iter()
            .fold(Self::public(), |joined, label| joined.join(label))
    }

    /// Whether something with this label may become something with label `to` without lowering:
    /// the level is not above, no tag is lost, and `to` may be in no place that this may not.
    #[must_use]
    pub fn flows_to(&self, to: &Self) -> bool {
        self.level <= to.level && self.tags.is_subset(&to.tags) && self.residency.covers(&to.residency)
    }

    /// Whether a place in `jurisdiction` with the given clearance may hold it.
    #[must_use]
    pub fn may_be_held(&self, clearance: &Clearance, jurisdiction: &str) -> bool {
        self.level <= clearance.level && self.tags.is_subset(&clearance.tags) && self.residency.allows(jurisdiction)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        for tag in &self.tags {
            write!(f, "+{tag}")?;
        }
        if let Residency::Only(places) = &self.residency {
            write!(f, "@{}", places.iter().cloned().collect::<Vec<_>>().join("|"))?;
        }
        Ok(())
    }
}

/// The highest label that a site may hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Clearance {
    /// The highest level.
    pub level: Level,
    /// The tags that the site may hold.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
}
