//! What preparation made, held to what it wrote: `report.json` lists every other file of the folder with
//! its digest, and `report.seal` is the keyed digest of the list. A file that was changed or taken away, or
//! added to what may cross, is found before anything is used again. Later stages keep files of their own in
//! `home/`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidegate_types::Digest;

use crate::error::PrepareError;
use crate::ingest::snapshot::digest_of_file;
use crate::prepare::Report;
use crate::split::{Keys, Prf};

const REPORT: &str = "report.json";
const SEAL: &str = "report.seal";
/// What the names of files begin with that stay home.
const HOME: &str = "home/";

/// `report.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<R> {
    report: R,
    /// SHA-256 of every file, by its path in the folder.
    files: BTreeMap<String, Digest>,
}

fn prf(keys: &Keys) -> Prf {
    Prf::derive(&keys.values, "prepared", b"")
}

/// Writes the report of what stands in `folder`.
pub(crate) fn write(folder: &Path, keys: &Keys, report: &Report) -> Result<(), PrepareError> {
    let mut files = BTreeMap::new();
    digests(folder, "", &mut files)?;
    let bytes = serde_json::to_vec_pretty(&Sealed { report, files })
        .map_err(|error| PrepareError::failed("writing the report", error.to_string(), "Report this"))?;
    let seal = prf(keys).digest(&bytes);
    for (name, bytes) in [(REPORT, bytes.as_slice()), (SEAL, seal.as_slice())] {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| PrepareError::file("writing", &path, source))?;
    }
    Ok(())
}

/// The report of `folder`, if everything in it is as it was written.
pub(crate) fn open(folder: &Path, keys: &Keys) -> Result<Option<Report>, PrepareError> {
    let Some(sealed) = read(folder, keys)? else {
        return Ok(None);
    };
    let mut files = BTreeMap::new();
    digests(folder, "", &mut files)?;
    files.retain(|name, _| {
        let own = name == REPORT || name == SEAL;
        !own && (sealed.files.contains_key(name) || !name.starts_with(HOME))
    });
    Ok((files == sealed.files).then_some(sealed.report))
}

/// Checks the part of a preparation that stays home.
///
/// # Errors
/// When a file in `home` is not as it was written.
pub(crate) fn check_home(home: &Path, keys: &Keys) -> Result<(), PrepareError> {
    let folder = home.parent().unwrap_or(home);
    let mut found = BTreeMap::new();
    digests(home, HOME, &mut found)?;
    if let Some(sealed) = read(folder, keys)? {
        let mut written = sealed.files.iter().filter(|(name, _)| name.starts_with(HOME));
        if written.all(|(name, digest)| found.get(name) == Some(digest)) {
            return Ok(());
        }
    }
    Err(PrepareError::failed(
        format!("reading `{}`", home.display()),
        "it is not what preparation wrote",
        "Prepare again",
    ))
}

fn read(folder: &Path, keys: &Keys) -> Result<Option<Sealed<Report>>, PrepareError> {
    let mut read = Vec::new();
    for name in [REPORT, SEAL] {
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => read.push(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PrepareError::file("reading", &path, source)),
        }
    }
    let [report, seal] = read.as_slice() else {
        return Ok(None);
    };
    if prf(keys).digest(report).as_slice() != seal.as_slice() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(report).ok())
}

/// The digests of all files below `folder`, by their paths after `before`.
fn digests(folder: &Path, before: &str, files: &mut BTreeMap<String, Digest>) -> Result<(), PrepareError> {
    let failed = |source| PrepareError::file("listing", folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            digests(&path, &format!("{name}/"), files)?;
        } else {
            files.insert(name, digest_of_file(&path)?);
        }
    }
    Ok(())
}
