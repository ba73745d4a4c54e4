//! Names and numbers of things. Names that a user writes are checked once, here.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// An artifact is named by the digest of its manifest.
pub type ArtifactId = Digest;

/// A text that may not name a site, dataset, run or task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 63 lower-case letters, digits, `-` and `_`, beginning with a letter or digit")]
pub struct InvalidName(pub String);

fn check_name(text: &str) -> Result<(), InvalidName> {
    let ok = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !text.starts_with(['-', '_']);
    if ok {
        Ok(())
    } else {
        Err(InvalidName(text.chars().take(80).collect()))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(transparent)]
        pub struct $type(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,62}$"))] String);

        impl $type {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// When the text is not 1 to 63 characters of `a-z`, `0-9`, `-` and `_`, or begins with
            /// a sign.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                check_name(&text)?;
                Ok(Self(text))
            }

            /// The name as text; safe as one component of a path or object name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`{}`", self.0)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A site: a place with a store and, mostly, compute.
    SiteName
);
name!(
    /// A dataset of the catalog.
    DatasetName
);
name!(
    /// A pipeline: the engineer's file.
    PipelineName
);
name!(
    /// One execution of a pipeline.
    RunId
);
name!(
    /// One node of a run's graph, such as `prepare` or `train`.
    TaskName
);
name!(
    /// A permit: one signed permission for one crossing.
    PermitId
);
name!(
    /// A purpose of use that the data owner has written into the catalog.
    Purpose
);

/// The number of a try of one task, counted from 1. A later attempt fences every earlier one.
pub type AttemptNumber = u32;
