//! Files that are whole or not there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use tidegate_seal::random::random_bytes;

/// A name that nobody else chose.
pub(crate) fn random_name(prefix: &str) -> io::Result<String> {
    let random: [u8; 12] = random_bytes().map_err(io::Error::other)?;
    let mut name = prefix.to_owned();
    for byte in random {
        name.push_str(&format!("{byte:02x}"));
    }
    Ok(name)
}

/// Makes a folder and all that it lies in, readable by its owner alone.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the names in a folder survive a crash.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a file with this content and mode 0600: whole and on disk, or not at all.
///
/// # Errors
/// `AlreadyExists` when a file of that name is there, which is then not changed.
pub(crate) fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    write_beside(path, content, |new| std::fs::hard_link(new, path))
}

/// As [`create_new`], replacing what is there.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    write_beside(path, content, |new| std::fs::rename(new, path))
}

fn write_beside(path: &Path, content: &[u8], publish: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let new = folder.join(random_name(".new-")?);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
    let published = written.and_then(|()| publish(&new));
    // After a rename it is gone already; after a failure it must not stay.
    let _ = std::fs::remove_file(&new);
    published?;
    sync_folder(folder)
}
