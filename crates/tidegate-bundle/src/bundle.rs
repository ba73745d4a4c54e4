//! The released bundle: a folder of fixed files under one signed list of digests.
//!
//! Building and opening work on bytes in memory and take signer and verifier as functions, so both
//! are pure; [`read_folder`] and [`write_folder`] are the edge. Every byte of a bundle is covered:
//! `bundle.sig` signs `bundle.json`, which names each other file with digest and length.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidegate_types::{Digest, to_canonical_json};

use crate::calibration::{Calibration, InvalidCalibration};
use crate::inspect::{InspectedModel, MAX_MODEL_BYTES, ModelRefusal, inspect};
use crate::schema::{FeatureSchema, InvalidSchema};

/// The only bundle format there is.
pub const BUNDLE_FORMAT: &str = "tidegate.bundle.v1";
/// The signed list of files.
pub const MANIFEST_FILE: &str = "bundle.json";
/// The signature: a DSSE envelope whose payload is `bundle.json`, byte for byte.
pub const SIGNATURE_FILE: &str = "bundle.sig";
const MODEL_FILE: &str = "model.onnx";
const RECIPE_FILE: &str = "recipe.json";
const SCHEMA_FILE: &str = "schema.json";
const CALIBRATION_FILE: &str = "calibration.json";
const CARD_FILE: &str = "card.md";
const METRICS_FILE: &str = "metrics.json";
/// The files that `bundle.json` lists, all of them, in every bundle.
pub const CONTENT_FILES: [&str; 6] = [
    CALIBRATION_FILE,
    CARD_FILE,
    METRICS_FILE,
    MODEL_FILE,
    RECIPE_FILE,
    SCHEMA_FILE,
];
/// The largest file other than the model, in bytes.
const MAX_SMALL_FILE_BYTES: u64 = 16 << 20;

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleManifest {
    /// Always [`BUNDLE_FORMAT`].
    pub format: String,
    /// Name of the model.
    pub name: String,
    /// Sequence number, counted from 1. A server never goes back to a lower one.
    pub version: u64,
    /// When it was released, RFC 3339.
    pub created: String,
    /// A calibrated probability from here on counts as positive.
    pub threshold: f64,
    /// Digests of what it was made from, by name: run, pipeline, training data, policy.
    pub provenance: BTreeMap<String, Digest>,
    /// Every other file but the signature.
    pub files: BTreeMap<String, BundleFile>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleFile {
    /// SHA-256 of its content.
    pub sha256: Digest,
    /// Length in bytes.
    pub bytes: u64,
}

/// What goes into a bundle.
#[derive(Debug, Clone)]
pub struct BundleContent<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Sequence number, counted from 1.
    pub version: u64,
    /// When it is released, RFC 3339.
    pub created: &'a str,
    /// Digests of what it was made from, by name.
    pub provenance: BTreeMap<String, Digest>,
    /// The inspected model.
    pub model: &'a InspectedModel,
    /// The frozen feature recipe, as its owner reads it.
    pub recipe: &'a [u8],
    /// What the input's columns mean.
    pub schema: &'a FeatureSchema,
    /// Calibration and threshold.
    pub calibration: Calibration,
    /// The model card in Markdown.
    pub card: &'a str,
    /// Rounded figures as JSON.
    pub metrics: &'a serde_json::Value,
}

/// An opened bundle: signature, digests, schema, calibration and model have been checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// SHA-256 of `bundle.json`: the bundle's name.
    pub digest: Digest,
    /// The signed list.
    pub manifest: BundleManifest,
    /// The inspected model.
    pub model: InspectedModel,
    /// The frozen feature recipe.
    pub recipe: Vec<u8>,
    /// What the input's columns mean.
    pub schema: FeatureSchema,
    /// Calibration and threshold.
    pub calibration: Calibration,
    /// The model card in Markdown.
    pub card: String,
    /// Rounded figures.
    pub metrics: serde_json::Value,
}

/// A bundle that cannot be built or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file is missing, or one is there that does not belong.
    #[error("the bundle's files are not the expected ones: `{name}` {problem}")]
    Files {
        /// Name of the file, shortened.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The signature is not that of an accepted key over `bundle.json`.
    #[error("the bundle's signature is not valid: {0}")]
    Signature(String),
    /// `bundle.json` cannot be read, or says something that cannot be.
    #[error("`bundle.json` is not valid: {0}")]
    Manifest(String),
    /// The schema is not valid.
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
    /// The calibration is not valid.
    #[error(transparent)]
    Calibration(#[from] InvalidCalibration),
    /// The model is refused.
    #[error(transparent)]
    Model(#[from] ModelRefusal),
    /// Reading or writing a file failed.
    #[error("{action} `{path}`: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn file_error(name: &str, problem: &'static str) -> BundleError {
    BundleError::Files {
        name: name.chars().filter(|c| !c.is_control()).take(60).collect(),
        problem,
    }
}

/// The SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut output = [0; 32];
    for (to, from) in output
        .iter_mut()
        .zip(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
    {
        *to = *from;
    }
    Digest::from_bytes(output)
}

/// Builds the files of a bundle. `sign` gets the bytes of `bundle.json` and returns the bytes of a
/// DSSE envelope over them.
///
/// # Errors
/// When the content contradicts itself, has no canonical JSON, or signing fails.
pub fn build<E: std::fmt::Display>(
    content: &BundleContent<'_>,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Files, BundleError> {
    let invalid = |error: tidegate_types::canonical::NotCanonical| BundleError::Manifest(error.to_string());
    content.schema.check()?;
    let mut files = Files::from([
        (MODEL_FILE.to_owned(), content.model.bytes().to_vec()),
        (RECIPE_FILE.to_owned(), content.recipe.to_vec()),
        (
            SCHEMA_FILE.to_owned(),
            to_canonical_json(content.schema).map_err(invalid)?,
        ),
        (
            CALIBRATION_FILE.to_owned(),
            to_canonical_json(&content.calibration).map_err(invalid)?,
        ),
        (CARD_FILE.to_owned(), content.card.as_bytes().to_vec()),
        (
            METRICS_FILE.to_owned(),
            to_canonical_json(content.metrics).map_err(invalid)?,
        ),
    ]);
    let entry = |(name, bytes): (&String, &Vec<u8>)| {
        (
            name.clone(),
            BundleFile {
                sha256: sha256(bytes),
                bytes: bytes.len() as u64,
            },
        )
    };
    let manifest = BundleManifest {
        format: BUNDLE_FORMAT.to_owned(),
        name: content.name.to_owned(),
        version: content.version,
        created: content.created.to_owned(),
        threshold: content.calibration.threshold,
        provenance: content.provenance.clone(),
        files: files.iter().map(entry).collect(),
    };
    let manifest = to_canonical_json(&manifest).map_err(invalid)?;
    let signature = sign(&manifest).map_err(|error| BundleError::Signature(error.to_string()))?;
    files.insert(MANIFEST_FILE.to_owned(), manifest);
    files.insert(SIGNATURE_FILE.to_owned(), signature);
    // What cannot be opened again is not released.
    let signed = files.get(MANIFEST_FILE).cloned().unwrap_or_default();
    open(files.clone(), |_| Ok::<_, BundleError>(signed))?;
    Ok(files)
}

/// Opens a bundle. `verify` gets the bytes of `bundle.sig`, checks the envelope's signature and
/// returns its payload.
///
/// # Errors
/// When a file is missing, unknown or altered, the signature does not cover `bundle.json`, or model,
/// schema or calibration are refused. Nothing of a bundle that fails may be used.
pub fn open<E: std::fmt::Display>(
    mut files: Files,
    verify: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Bundle, BundleError> {
    let mut take = |name: &str| files.remove(name).ok_or_else(|| file_error(name, "is missing"));
    let signature = take(SIGNATURE_FILE)?;
    let manifest_bytes = take(MANIFEST_FILE)?;
    let payload = verify(&signature).map_err(|error| BundleError::Signature(error.to_string()))?;
    if payload != manifest_bytes {
        return Err(BundleError::Signature("it covers another `bundle.json`".to_owned()));
    }
    let manifest: BundleManifest =
        serde_json::from_slice(&manifest_bytes).map_err(|error| BundleError::Manifest(error.to_string()))?;
    if manifest.format != BUNDLE_FORMAT {
        return Err(BundleError::Manifest("its format is not known".to_owned()));
    }
    if manifest.version == 0 || manifest.name.is_empty() {
        return Err(BundleError::Manifest("it needs a name and a version from 1".to_owned()));
    }
    if !manifest.files.keys().map(String::as_str).eq(CONTENT_FILES) {
        return Err(BundleError::Manifest(
            "it does not list the files of a bundle".to_owned(),
        ));
    }
    for (name, entry) in &manifest.files {
        let bytes = files.get(name).ok_or_else(|| file_error(name, "is missing"))?;
        if bytes.len() as u64 != entry.bytes || sha256(bytes) != entry.sha256 {
            return Err(file_error(name, "is not the file that was signed"));
        }
    }
    if let Some(name) = files.keys().find(|name| !CONTENT_FILES.contains(&name.as_str())) {
        return Err(file_error(name, "does not belong to a bundle"));
    }

    let mut take = |name: &str| files.remove(name).unwrap_or_default();
    let schema = FeatureSchema::from_json(&take(SCHEMA_FILE))?;
    let calibration = Calibration::from_json(&take(CALIBRATION_FILE))?;
    if calibration.threshold != manifest.threshold {
        return Err(BundleError::Manifest(
            "its threshold is not that of the calibration".to_owned(),
        ));
    }
    let model = inspect(&take(MODEL_FILE), &schema)?;
    let card = String::from_utf8(take(CARD_FILE)).map_err(|_| file_error(CARD_FILE, "is not UTF-8"))?;
    let metrics = serde_json::from_slice(&take(METRICS_FILE)).map_err(|_| file_error(METRICS_FILE, "is not JSON"))?;
    Ok(Bundle {
        digest: sha256(&manifest_bytes),
        manifest,
        model,
        recipe: take(RECIPE_FILE),
        schema,
        calibration,
        card,
        metrics,
    })
}

/// Reads a bundle's folder without opening it. Only plain files with the names of a bundle are read,
/// each up to a bound; symbolic links, folders and other names are refused.
///
/// # Errors
/// When the folder cannot be read or holds something else.
pub fn read_folder(folder: &Path) -> Result<Files, BundleError> {
    let error = |action, path: &Path| {
        let path = path.display().to_string();
        move |source| BundleError::Io { action, path, source }
    };
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder).map_err(error("reading the bundle's folder", folder))? {
        let entry = entry.map_err(error("reading the bundle's folder", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !CONTENT_FILES.contains(&name.as_str()) && name != MANIFEST_FILE && name != SIGNATURE_FILE {
            return Err(file_error(&name, "does not belong to a bundle"));
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(error("reading the bundle's file", &path))?;
        if !kind.is_file() {
            return Err(file_error(&name, "is not a plain file"));
        }
        let limit = if name == MODEL_FILE {
            MAX_MODEL_BYTES as u64
        } else {
            MAX_SMALL_FILE_BYTES
        };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&path).map_err(error("opening the bundle's file", &path))?;
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(error("reading the bundle's file", &path))?;
        if bytes.len() as u64 > limit {
            return Err(file_error(&name, "is too large"));
        }
        files.insert(name, bytes);
    }
    Ok(files)
}

/// Writes the files of a bundle as a new folder: all of it or nothing. The files go into a folder
/// beside it, are flushed, and the folder is renamed; one that is already there is left as it is when
/// it holds the same bytes, and is an error otherwise.
///
/// # Errors
/// When something else is at `folder`, or writing fails.
pub fn write_folder(folder: &Path, files: &Files) -> Result<(), BundleError> {
    if folder.exists() {
        return if read_folder(folder)? == *files {
            Ok(())
        } else {
            Err(file_error(
                &folder.to_string_lossy(),
                "is already there with other content",
            ))
        };
    }
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let write = || -> std::io::Result<()> {
        if partial.exists() {
            std::fs::remove_dir_all(partial)?;
        }
        std::fs::create_dir_all(partial)?;
        for (name, bytes) in files {
            let mut file = std::fs::File::create_new(partial.join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        std::fs::File::open(partial)?.sync_all()?;
        std::fs::rename(partial, folder)?;
        folder
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    if let Some(name) = files
        .keys()
        .find(|name| !CONTENT_FILES.contains(&name.as_str()) && *name != MANIFEST_FILE && *name != SIGNATURE_FILE)
    {
        return Err(file_error(name, "does not belong to a bundle"));
    }
    write().map_err(|source| BundleError::Io {
        action: "writing the bundle",
        path: folder.display().to_string(),
        source,
    })
}
