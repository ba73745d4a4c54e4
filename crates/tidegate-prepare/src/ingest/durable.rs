//! Files and folders that are whole or not there: written under another name, forced to the disk,
//! renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::PrepareError;

/// What temporary names begin with. A kill leaves them behind; nothing ever reads them, and
/// [`sweep`] removes them.
const TEMPORARY: &str = ".partial-";

/// Writes `bytes` as `path`, whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), PrepareError> {
    write_with(path, |file| {
        file.write_all(bytes)
            .map_err(|source| PrepareError::file("writing", path, source))
    })
}

/// Writes as `path` what `fill` writes, whole or not at all.
pub(crate) fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let folder = parent(path);
    let failed = |source| PrepareError::file("writing", path, source);
    fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut buffered = BufWriter::with_capacity(1 << 16, file.as_file_mut());
    fill(&mut buffered)?;
    buffered.flush().map_err(failed)?;
    drop(buffered);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_folder(folder)
}

/// A folder under a temporary name beside the one that it will become. Removed when it is dropped
/// without [`Draft::publish`].
#[derive(Debug)]
pub(crate) struct Draft {
    folder: tempfile::TempDir,
    target: PathBuf,
}

impl Draft {
    pub(crate) fn new(target: &Path) -> Result<Self, PrepareError> {
        let beside = parent(target);
        let failed = |source| PrepareError::file("creating", target, source);
        fs::create_dir_all(beside).map_err(failed)?;
        let folder = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(beside)
            .map_err(failed)?;
        Ok(Self {
            folder,
            target: target.to_path_buf(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Forces everything to the disk and gives the folder its name. When the name is taken, what is
    /// there stays: equal names mean equal content.
    pub(crate) fn publish(self) -> Result<(), PrepareError> {
        sync_tree(self.folder.path())?;
        let beside = parent(&self.target);
        match fs::rename(self.folder.path(), &self.target) {
            Ok(()) => {
                // The folder has moved: there is nothing left to remove.
                let _ = self.folder.keep();
            }
            Err(_) if self.target.is_dir() => {}
            Err(source) => return Err(PrepareError::file("publishing", &self.target, source)),
        }
        sync_folder(beside)
    }
}

/// Gives what stands at `path`, if anything does, a temporary name beside it.
pub(crate) fn set_aside(path: &Path) -> Result<(), PrepareError> {
    let beside = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = beside.join(format!("{TEMPORARY}aside-{name}"));
    match fs::rename(path, &aside) {
        Ok(()) => sync_folder(beside),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PrepareError::file("setting aside", path, source)),
    }
}

/// Removes what killed processes left half-written in `folder`. Only the holder of the folder's lock
/// may call it.
pub(crate) fn sweep(folder: &Path) -> Result<(), PrepareError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PrepareError::file("listing", folder, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| PrepareError::file("listing", folder, source))?;
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|source| PrepareError::file("removing", &path, source))?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn sync_folder(folder: &Path) -> Result<(), PrepareError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| PrepareError::file("forcing to the disk", folder, source))
}

pub(crate) fn sync_tree(folder: &Path) -> Result<(), PrepareError> {
    let failed = |source| PrepareError::file("forcing to the disk", folder, source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_appears_whole_and_what_a_kill_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        let draft = Draft::new(&target).unwrap();
        fs::write(draft.path().join("x"), "1").unwrap();
        assert!(!target.exists());
        draft.publish().unwrap();
        assert_eq!(fs::read(target.join("x")).unwrap(), b"1");

        let killed = folder.path().join(".partial-123");
        fs::create_dir(&killed).unwrap();
        fs::write(killed.join("y"), "half").unwrap();
        sweep(folder.path()).unwrap();
        assert!(!killed.exists() && target.exists());
    }

    #[test]
    fn the_first_of_two_drafts_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        for content in ["1", "2"] {
            let draft = Draft::new(&target).unwrap();
            fs::write(draft.path().join("x"), content).unwrap();
            draft.publish().unwrap();
        }
        assert_eq!(fs::read(target.join("x")).unwrap(), b"1");
    }
}
