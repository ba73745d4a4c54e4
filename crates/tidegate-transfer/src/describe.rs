use std::collections::BTreeSet;
use std::path::Path;

use tidegate_seal::digest::keyed_reader;
use tidegate_types::artifact::MANIFEST_FORMAT;
use tidegate_types::{ArtifactId, ArtifactKind, Digest, FileEntry, Label, Manifest, SiteName, TaskName};

use crate::error::TransferError;
use crate::tree::{files_of, open_file, open_folder};

/// What a manifest says beyond its files. The fields are those of [`Manifest`].
#[derive(Debug, Clone)]
pub struct Description {
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
    /// Columns in order, for a dataset; empty otherwise.
    pub columns: Vec<String>,
    /// Artifacts that it was made from.
    pub lineage: BTreeSet<ArtifactId>,
    /// The task that made it.
    pub task: TaskName,
    /// A digest over everything that the making depended on.
    pub step_key: Digest,
}

/// Describes all files below a folder. Reads every byte; blocks.
///
/// Files are sorted by path, each with its keyed BLAKE3 under the owner's `digest_key`. Folders
/// without files are not part of an artifact.
///
/// # Errors
/// [`TransferError::NotAFile`] where there is a symbolic link, a device or a name that does not
/// travel; [`TransferError::Changed`] where a file grows while it is read; [`TransferError::Local`]
/// where the folder cannot be read.
pub fn describe(folder: &Path, description: Description, digest_key: &[u8; 32]) -> Result<Manifest, TransferError> {
    let root = open_folder(folder).map_err(TransferError::local("opening the folder to describe"))?;
    let mut files = Vec::new();
    for (path, bytes) in files_of(&root, |_| true)? {
        let reading = || TransferError::local(format!("reading file `{path}`"));
        let file = open_file(&root, &path).map_err(reading())?;
        let (keyed_digest, read) = keyed_reader(digest_key, file).map_err(reading())?;
        if read != bytes {
            return Err(TransferError::Changed { path });
        }
        files.push(FileEntry {
            path,
            bytes,
            keyed_digest,
        });
    }
    Ok(Manifest {
        format: MANIFEST_FORMAT.to_owned(),
        kind: description.kind,
        name: description.name,
        organisation: description.organisation,
        owner: description.owner,
        label: description.label,
        lowered_from: description.lowered_from,
        files,
        columns: description.columns,
        lineage: description.lineage,
        task: description.task,
        step_key: description.step_key,
    })
}
