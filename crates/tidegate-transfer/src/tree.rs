//! Folders whose content nobody vouches for: a worker's output was written by a stranger's command.
//! Every component is opened without following symbolic links, so that what is read lies in the folder.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, open, openat};

use crate::error::TransferError;

/// The most files of one artifact.
pub(crate) const MAX_FILES: usize = 100_000;
/// The deepest nesting of folders in one artifact.
const MAX_DEPTH: usize = 32;
const MAX_PATH_BYTES: usize = 1024;
const MAX_COMPONENT_BYTES: usize = 255;

/// What is wrong with a path inside an artifact, or nothing.
pub(crate) fn path_fault(path: &str) -> Option<&'static str> {
    if path.len() > MAX_PATH_BYTES {
        return Some("the path is longer than 1,024 bytes");
    }
    if path.split('/').count() > MAX_DEPTH + 1 {
        return Some("the path goes through more than 32 folders");
    }
    for component in path.split('/') {
        let fault = match component {
            "" => Some("the path has an empty component or begins with `/`"),
            "." | ".." => Some("the path has a component `.` or `..`"),
            c if c.len() > MAX_COMPONENT_BYTES => Some("a component of the path is longer than 255 bytes"),
            c if c.contains('\\') || c.chars().any(char::is_control) => {
                Some("the path has a backslash or a control character")
            }
            _ => None,
        };
        if fault.is_some() {
            return fault;
        }
    }
    None
}

/// Opens a folder to look into it.
pub(crate) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a regular file below `folder` by a relative path whose components are real folders.
pub(crate) fn open_file(folder: &OwnedFd, path: &str) -> io::Result<File> {
    let (parent, name) = open_parent(folder, path)?;
    // Without NONBLOCK a pipe in the place of a file would hold the reader for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(parent.as_ref().unwrap_or(folder), name, flags, Mode::empty())?;
    let file = File::from(file);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Opens the real folder that a relative path is in, where that is not `folder` itself; gives the path's last component too.
pub(crate) fn open_parent<'p>(folder: &OwnedFd, path: &'p str) -> io::Result<(Option<OwnedFd>, &'p str)> {
    let Some((parents, name)) = path.rsplit_once('/') else {
        return Ok((None, path));
    };
    let mut parent: Option<OwnedFd> = None;
    for component in parents.split('/') {
        let within = parent.as_ref().unwrap_or(folder);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECTORY;
        parent = Some(openat(within, component, flags, Mode::empty())?);
    }
    Ok((parent, name))
}

/// All regular files below a folder with their lengths, sorted by path; without what has, or is in a folder that has, a
/// name that `counts` is false for.
pub(crate) fn files_of(folder: &OwnedFd, counts: fn(&str) -> bool) -> Result<Vec<(String, u64)>, TransferError> {
    let mut files = Vec::new();
    collect(folder, "", MAX_DEPTH, counts, &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(
    folder: &OwnedFd,
    within: &str,
    depth: usize,
    counts: fn(&str) -> bool,
    files: &mut Vec<(String, u64)>,
) -> Result<(), TransferError> {
    let reading = || TransferError::local(format!("reading folder `{within}`"));
    let entries = Dir::read_from(folder).map_err(io::Error::from).map_err(reading())?;
    for entry in entries {
        let entry = entry.map_err(io::Error::from).map_err(reading())?;
        let bytes = entry.file_name().to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        let shown = format!("{within}{}", String::from_utf8_lossy(bytes));
        let refuse = |why| {
            Err(TransferError::NotAFile {
                path: shown.clone(),
                why,
            })
        };
        let Ok(name) = std::str::from_utf8(bytes) else {
            return refuse("its name is not UTF-8");
        };
        if !counts(name) {
            continue;
        }
        let path = format!("{within}{name}");
        if let Some(why) = path_fault(&path) {
            return refuse(why);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opening = || TransferError::local(format!("reading `{path}`"));
        let there = openat(folder, name, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(opening())?;
        let stat = fstat(&there).map_err(io::Error::from).map_err(opening())?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if files.len() >= MAX_FILES => {
                return refuse("an artifact has at most 100,000 files");
            }
            FileType::RegularFile => files.push((path, u64::try_from(stat.st_size).unwrap_or_default())),
            FileType::Directory if depth == 0 => return refuse("folders are nested deeper than 32 levels"),
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = openat(folder, name, flags, Mode::empty())
                    .map_err(io::Error::from)
                    .map_err(opening())?;
                collect(&inner, &format!("{path}/"), depth - 1, counts, files)?;
            }
            FileType::Symlink => return refuse("it is a symbolic link; copy the file that it points to"),
            _ => return refuse("it is neither a file nor a folder"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_folder_or_fool_a_reader_are_refused() {
        let deepest = "a/".repeat(32) + "x";
        for good in ["a", "a/b.csv", "Größe = 1/x y", "-", "...", ".hidden", &deepest] {
            assert_eq!(path_fault(good), None, "{good}");
        }
        let long = "a".repeat(256);
        let wide = "ab/".repeat(400) + "x";
        let deep = "a/".repeat(33) + "x";
        for bad in [
            "", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\0", "a\nb", "\u{7f}", &long, &wide, &deep,
        ] {
            assert!(path_fault(bad).is_some(), "{bad:?}");
        }
    }
}
