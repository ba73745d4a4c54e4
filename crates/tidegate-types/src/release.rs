//! Release records: how a site that serves learns that there is a new bundle.
//!
//! A record is an object `releases/MODEL/VERSION.json` of the site's store, its version in ten
//! digits, and is a DSSE envelope signed by the owner's keeper over the canonical JSON of
//! [`ReleaseRecord`]. It needs no connection to be read: an edge site finds everything in its own
//! store.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{ArtifactId, PipelineName, SiteName};
use crate::permit::Envelope;

/// The only release record format there is.
pub const RELEASE_FORMAT: &str = "tidegate.release.v1";
/// DSSE payload type of a release record.
pub const RELEASE_PAYLOAD: &str = "application/vnd.tidegate.release+json";
/// DSSE payload type of a bundle's signature over its `bundle.json`.
pub const BUNDLE_PAYLOAD: &str = "application/vnd.tidegate.bundle+json";
/// Object of a serving site's store that holds its age recipient as JSON ([`Enrolment`]).
pub const ENROLMENT_OBJECT: &str = "site/enrolment.json";

/// What a serving site publishes so that bundles can be sealed to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The site.
    pub site: SiteName,
    /// Its age recipient (`age1pq1…`, or `age1…`).
    pub recipient: String,
}

/// One released bundle at one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRecord {
    /// Always [`RELEASE_FORMAT`].
    pub format: String,
    /// The organisation.
    pub organisation: String,
    /// The site whose keeper signed.
    pub owner: SiteName,
    /// The site that may open it.
    pub site: SiteName,
    /// The model.
    pub model: PipelineName,
    /// Counts from 1; a site never goes back.
    pub version: u64,
    /// The bundle.
    pub bundle: ArtifactId,
    /// The permit under which it crossed.
    pub permit: Envelope,
    /// Object name of the packing list.
    pub packing_list: String,
    /// SHA-256 of that object.
    pub packing_list_digest: Digest,
    /// Must equal the packing list's.
    pub key_commitment: Digest,
    /// base64 of an age file to the site's recipient holding the 32-byte data key.
    pub sealed_key: String,
}

impl ReleaseRecord {
    /// The record's object name.
    #[must_use]
    pub fn object(model: &PipelineName, version: u64) -> String {
        format!("releases/{model}/{version:010}.json")
    }
}
