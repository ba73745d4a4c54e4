//! A copy of a folder that somebody is writing into: what stood there at one moment, where nothing shows that it was not
//! finished.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, linkat};

use crate::error::TransferError;
use crate::tree::{files_of, open_file, open_folder, open_parent};

/// Ends of names that programs give to what they have not finished.
const UNFINISHED: [&str; 3] = [".tmp", ".part", ".partial"];

/// The finished files in a folder at one moment: equal to a later look exactly where none of them was replaced, written or
/// moved in between.
///
/// Names that begin with `.` and names that end in `.tmp`, `.part` or `.partial`, also of folders, are unfinished: what they
/// hold is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    files: Vec<(String, Identity)>,
}

/// What changes when somebody writes into a file or puts another in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            inode: about.ino(),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        })
    }
}

impl Standing {
    /// Looks. Blocks.
    ///
    /// # Errors
    /// [`TransferError::NotAFile`] where something could not be part of an artifact, such as a symbolic link;
    /// [`TransferError::Local`] where something cannot be read, or vanished while it was looked at.
    pub fn of(folder: &Path) -> Result<Self, TransferError> {
        let root = open_folder(folder).map_err(TransferError::local("opening the folder to copy"))?;
        let mut files = Vec::new();
        for (path, _) in files_of(&root, is_finished)? {
            let looking = || TransferError::local(format!("looking at file `{path}`"));
            let file = open_file(&root, &path).map_err(looking())?;
            let identity = Identity::of(&file).map_err(looking())?;
            files.push((path, identity));
        }
        Ok(Self { files })
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, (_, identity)| sum.saturating_add(identity.bytes))
    }

    /// Whether the same names are in both, whatever stands under them.
    #[must_use]
    pub fn has_names_of(&self, other: &Self) -> bool {
        let names = self.files.iter().map(|(name, _)| name);
        names.eq(other.files.iter().map(|(name, _)| name))
    }

    /// Looks, and holds what is there by further names in `held`, a new folder on the same file system whose parent is
    /// there: whoever puts another file in the place of one takes nothing from it. Nothing where somebody was faster.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn hold(folder: &Path, held: &Path) -> Result<Option<Self>, TransferError> {
        let standing = Self::of(folder)?;
        let holding = || TransferError::local("holding the files of a folder");
        DirBuilder::new().mode(0o700).create(held).map_err(holding())?;
        let root = open_folder(folder).map_err(holding())?;
        for (path, _) in &standing.files {
            let target = held.join(path);
            let parent = target.parent().unwrap_or(held);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(holding())?;
            let linked = open_parent(&root, path).and_then(|(parent, name)| {
                let parent = parent.as_ref().unwrap_or(&root);
                Ok(linkat(parent, name, CWD, &target, AtFlags::empty())?)
            });
            if linked.is_err() {
                break;
            }
        }
        // Links are followed nowhere, so that only what was looked at can be what is held.
        if Self::of(held).is_ok_and(|now| now == standing) {
            return Ok(Some(standing));
        }
        std::fs::remove_dir_all(held).map_err(holding())?;
        Ok(None)
    }

    /// Copies what is held in `held` into `copy`, a new folder whose parent is there; false where any of it was written
    /// since, and then nothing is left. Blocks.
    ///
    /// # Errors
    /// [`TransferError::Local`] when the copy cannot be written.
    pub fn copy(&self, held: &Path, copy: &Path) -> Result<bool, TransferError> {
        let making = || TransferError::local("copying a folder");
        DirBuilder::new().mode(0o700).create(copy).map_err(making())?;
        let copied = self.copy_files(held, copy);
        let same = matches!(&copied, Ok(true)) && Self::of(held).is_ok_and(|now| now == *self);
        if !same {
            std::fs::remove_dir_all(copy).map_err(making())?;
        }
        copied.map(|_| same)
    }

    fn copy_files(&self, held: &Path, copy: &Path) -> Result<bool, TransferError> {
        let root = open_folder(held).map_err(TransferError::local("opening the folder to copy"))?;
        for (path, identity) in &self.files {
            let writing = || TransferError::local(format!("copying file `{path}`"));
            let file = open_file(&root, path).map_err(writing())?;
            let target = copy.join(path);
            let parent = target.parent().unwrap_or(copy);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(writing())?;
            let mut to = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&target)
                .map_err(writing())?;
            // One that grows for ever must not fill the disk.
            let copied = io::copy(&mut file.take(identity.bytes), &mut to).map_err(writing())?;
            if copied != identity.bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn is_finished(name: &str) -> bool {
    !name.starts_with('.') && !UNFINISHED.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn replace(folder: &Path, path: &str, text: &str) {
        fs::write(folder.join("new.tmp"), text).unwrap();
        fs::rename(folder.join("new.tmp"), folder.join(path)).unwrap();
    }

    #[test]
    fn what_stood_there_at_one_moment_is_copied_whatever_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let [from, held, copy] = ["from", "held", "copy"].map(|name| folder.path().join(name));
        write(
            &from,
            &[
                ("step-1/weights", "one"),
                ("step-2.tmp/weights", "half"),
                (".weights.xyz", "half"),
                ("w.part", "half"),
                ("latest", "step-1"),
            ],
        );
        let standing = Standing::hold(&from, &held).unwrap().unwrap();
        assert_eq!(standing.bytes(), 9);
        assert_eq!(standing, Standing::of(&from).unwrap());
        // Of the same length, in the same place: it is another one all the same.
        replace(&from, "step-1/weights", "two");
        let later = Standing::of(&from).unwrap();
        assert!(later != standing && later.has_names_of(&standing));
        assert!(standing.copy(&held, &copy).unwrap());
        let mut names: Vec<_> = fs::read_dir(&copy)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["latest", "step-1"]);
        assert_eq!(fs::read(copy.join("step-1/weights")).unwrap(), b"one");
        write(&from, &[("step-1/moments", "two")]);
        assert!(!Standing::of(&from).unwrap().has_names_of(&standing));
    }

    #[test]
    fn what_is_written_meanwhile_and_what_is_no_file_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        let [from, held, copy] = ["from", "held", "copy"].map(|name| folder.path().join(name));
        write(&from, &[("weights", "one")]);
        let standing = Standing::hold(&from, &held).unwrap().unwrap();
        let mut file = OpenOptions::new().append(true).open(from.join("weights")).unwrap();
        io::Write::write_all(&mut file, b" more").unwrap();
        assert!(!standing.copy(&held, &copy).unwrap() && !copy.exists());
        std::os::unix::fs::symlink("weights", from.join("latest")).unwrap();
        let refused = Standing::of(&from).unwrap_err();
        assert!(refused.to_string().contains("symbolic link"), "{refused}");
    }
}
