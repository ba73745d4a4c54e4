//! Artifacts, and how they are described on both sides of a crossing.
//!
//! A [`Manifest`] says what an artifact is and exists before anything is sealed; its digest is the
//! artifact's name. A [`PackingList`] describes one sealing of it for one crossing and can be read
//! by anybody, so it holds nothing but digests and sizes. The [`SealedIndex`] is what only the
//! receiver reads.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, KeyedDigest};
use crate::ids::{ArtifactId, PermitId, RunId, SiteName, TaskName};
use crate::label::Label;

/// What kind of thing an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// Rows.
    Dataset,
    /// Programs and their settings.
    Code,
    /// The state of an unfinished training.
    Checkpoint,
    /// A trained model as its worker wrote it.
    Model,
    /// Figures about a model or a dataset.
    Report,
    /// A released model with its recipe, schema, card and provenance.
    Bundle,
}

impl ArtifactKind {
    /// The kind in lower-case words, as written in canonical JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Code => "code",
            Self::Checkpoint => "checkpoint",
            Self::Model => "model",
            Self::Report => "report",
            Self::Bundle => "bundle",
        }
    }
}

/// The only manifest format there is.
pub const MANIFEST_FORMAT: &str = "tidegate.manifest.v1";
/// The only packing list format there is.
pub const PACKING_LIST_FORMAT: &str = "tidegate.packing-list.v1";
/// The only sealed index format there is.
pub const SEALED_INDEX_FORMAT: &str = "tidegate.sealed-index.v1";
/// Plaintext bytes in every shard of an artifact but the last: 64 MiB.
pub const SHARD_PLAINTEXT_BYTES: u64 = 64 << 20;

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// The path inside the artifact: relative, `/` between components, no `.`, `..` or empty ones.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Of the content under the owner's digest key, so that nobody can guess a small file's content from its manifest's
    /// digest.
    pub keyed_digest: KeyedDigest,
}

/// What an artifact is. Its canonical JSON's SHA-256 names the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`MANIFEST_FORMAT`].
    pub format: String,
    /// What kind of thing it is.
    pub kind: ArtifactKind,
    /// A name for people, such as `admissions/train`.
    pub name: String,
    /// The organisation that owns it.
    pub organisation: String,
    /// The site that owns it.
    pub owner: SiteName,
    /// How sensitive it is.
    pub label: Label,
    /// The label it had before anything was lowered.
    pub lowered_from: Option<Label>,
    /// Its files in the order in which their bytes are laid into shards.
    pub files: Vec<FileEntry>,
    /// Columns in order, for a dataset; empty otherwise.
    pub columns: Vec<String>,
    /// Artifacts that it was made from.
    pub lineage: BTreeSet<ArtifactId>,
    /// The task that made it.
    pub task: TaskName,
    /// A digest over everything that the making depended on; equal keys mean equal content.
    pub step_key: Digest,
}

impl Manifest {
    /// The sum of all files' lengths.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

/// One sealed object, as anybody may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SealedObject {
    /// SHA-256 of the ciphertext, which also names the object in the store.
    pub digest: Digest,
    /// Length of the ciphertext in bytes.
    pub bytes: u64,
}

/// One sealing of one artifact for one crossing. Signed by the sender; readable by anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackingList {
    /// Always [`PACKING_LIST_FORMAT`].
    pub format: String,
    /// The organisation whose keys are used.
    pub organisation: String,
    /// Where it comes from.
    pub from: SiteName,
    /// Where it goes.
    pub to: SiteName,
    /// The run that it belongs to.
    pub run: RunId,
    /// The manifest's digest.
    pub artifact: ArtifactId,
    /// The permit that allows the crossing, and the digest of its signed statement.
    pub permit: PermitId,
    /// SHA-256 of the permit's DSSE payload.
    pub permit_digest: Digest,
    /// HMAC-SHA-256 of a fixed context under the data key: shows that a key is the right one without
    /// showing the key.
    pub key_commitment: Digest,
    /// The shards in order.
    pub shards: Vec<SealedObject>,
    /// The sealed index.
    pub index: SealedObject,
}

/// How one shard is opened.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardKey {
    /// The shard's own random id, 16 bytes in hexadecimal; part of the associated data.
    pub id: String,
    /// The shard's own random key, 32 bytes in hexadecimal.
    pub key: String,
    /// Bytes after opening and decompressing.
    pub plaintext_bytes: u64,
    /// Whether the plaintext is one zstd frame.
    pub zstd: bool,
}

impl std::fmt::Debug for ShardKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardKey")
            .field("id", &self.id)
            .field("key", &"[secret]")
            .finish_non_exhaustive()
    }
}

/// What only the receiver of a crossing reads: sealed under the artifact's data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedIndex {
    /// Always [`SEALED_INDEX_FORMAT`].
    pub format: String,
    /// The whole manifest.
    pub manifest: Manifest,
    /// One key for each shard, in order.
    pub shards: Vec<ShardKey>,
}
