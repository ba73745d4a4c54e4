//! Preparation on another machine of the same site: what it needs, and what it made.
//!
//! Both ends have a folder as [`crate::prepare()`] has it. What is prepared is named by what it was made from and sealed by the
//! site's key, so that whoever has it beside the same source finds it, and whatever was altered counts for nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::PrepareError;
use crate::home::Home;
use crate::ingest::durable;
use crate::ingest::snapshot::digest_of_file;
use crate::ingest::{Snapshot, SourceFile};
use crate::prepare::{PrepareInput, lock, open};
use crate::split::Keys;

const TAKING: &str = "taking over what another machine prepared";
const RELEASES: &str = "releases";
const PREPARED: &str = "prepared";

/// What another machine needs in order to prepare.
#[derive(Debug, Clone)]
pub struct Needed {
    /// The files of the source, with their names there: copies that nothing changes.
    pub files: Vec<SourceFile>,
    /// The folder with the register of earlier releases; it may not be there.
    pub releases: PathBuf,
}

/// Takes a snapshot, and looks whether all of the preparation is there; gives what it needs where it is not.
///
/// # Errors
/// When the source cannot be read.
pub async fn look(input: &PrepareInput<'_>) -> Result<Option<Needed>, PrepareError> {
    let (name, dataset) = input.dataset()?;
    let _lock = lock(input.folder).await?;
    let snapshot = Snapshot::take(&input.sources(dataset)?, &input.folder.join("snapshots"))?;
    let target = input.target(name, dataset, &snapshot.digest)?;
    if open(&target, input.keys)?.is_some() {
        return Ok(None);
    }
    let files = snapshot.files.into_iter().map(|file| SourceFile {
        path: file.path,
        name: file.shown,
    });
    Ok(Some(Needed {
        files: files.collect(),
        releases: input.folder.join(RELEASES),
    }))
}

/// The folders below the stage's own folder that [`crate::home_rows`] and [`crate::raw_rows`] read for `home`.
///
/// # Errors
/// When `home` is none.
pub fn home_folders(home: &Path) -> Result<[PathBuf; 2], PrepareError> {
    let snapshot = Home::read(home)?.snapshot_folder(home);
    Ok([home.parent().unwrap_or(home).to_owned(), snapshot])
}

/// Takes over what was prepared in the folder `from` into `folder`, and leaves there what is asked for again after a kill. What
/// is whole here already stays.
///
/// # Errors
/// When the register of releases has changed since it was given away: what was prepared does not count those that came since.
/// Nothing of it is taken then.
pub async fn take_over(folder: &Path, from: &Path, keys: &Keys) -> Result<(), PrepareError> {
    let _lock = lock(folder).await?;
    let (ours, theirs) = (folder.join(RELEASES), from.join(RELEASES));
    for file in files(&ours)?.into_iter().filter(|file| is_release(file)) {
        let same = theirs.join(file.file_name().unwrap_or_default());
        if !same.is_file() || digest_of_file(&same)? != digest_of_file(&file)? {
            return Err(PrepareError::failed(
                TAKING,
                "something else was prepared meanwhile",
                "Run again",
            ));
        }
    }
    // Before anything can be used, it counts as released; of the register, the head comes last, as a kill leaves it.
    fs::create_dir_all(&ours).map_err(|source| PrepareError::file(TAKING, &ours, source))?;
    let (releases, heads): (Vec<_>, Vec<_>) = files(&theirs)?.into_iter().partition(|file| is_release(file));
    for file in releases.into_iter().chain(heads) {
        let target = ours.join(file.file_name().unwrap_or_default());
        if !is_release(&file) || !target.exists() {
            durable::write_with(&target, |to| {
                let copied = fs::File::open(&file).and_then(|mut from| std::io::copy(&mut from, to));
                copied
                    .map(drop)
                    .map_err(|source| PrepareError::file(TAKING, &file, source))
            })?;
        }
    }
    let prepared = folder.join(PREPARED);
    fs::create_dir_all(&prepared).map_err(|source| PrepareError::file(TAKING, &prepared, source))?;
    durable::sweep(&prepared)?;
    for made in files(&from.join(PREPARED))? {
        let target = prepared.join(made.file_name().unwrap_or_default());
        if open(&target, keys)?.is_some() {
            continue;
        }
        durable::set_aside(&target)?;
        durable::sync_tree(&made)?;
        fs::rename(&made, &target).map_err(|source| PrepareError::file(TAKING, &target, source))?;
    }
    durable::sync_folder(&prepared)
}

fn is_release(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "release")
}

/// What stands in a folder, by name; nothing where it is not there.
fn files(folder: &Path) -> Result<Vec<PathBuf>, PrepareError> {
    let failed = |source| PrepareError::file("listing", folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut all = Vec::new();
    for entry in entries {
        all.push(entry.map_err(failed)?.path());
    }
    all.sort();
    Ok(all)
}
