//! What a program is known by: the SHA-256 of its file.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidegate_seal::digest::sha256_reader;
use tidegate_types::Digest;

use crate::disk;

/// A file as the system tells it from others, and from itself after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    file: Identity,
    digest: Digest,
}

/// SHA-256 of the file of `program`, which is remembered in the file `memory`, where one is given, for as long
/// as the system says that the program's file has not changed: reading a large program takes a tenth of a
/// second.
///
/// `memory` must lie where only those may write who may say what the program is.
///
/// # Errors
/// When the program's file cannot be read, or changes meanwhile. What cannot be remembered is no error.
pub fn program_digest(program: &Path, memory: Option<&Path>) -> io::Result<Digest> {
    let file = File::open(program)?;
    let identity = Identity::of(&file.metadata()?);
    let remembered = memory.and_then(|memory| std::fs::read(memory).ok());
    let remembered = remembered.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    if let Some(remembered) = remembered.filter(|remembered| remembered.file == identity) {
        return Ok(remembered.digest);
    }
    let (digest, _) = sha256_reader(&file)?;
    if Identity::of(&file.metadata()?) != identity {
        return Err(io::Error::other("it changed while it was read"));
    }
    if let Some(memory) = memory {
        let note = serde_json::to_vec(&Remembered { file: identity, digest })?;
        // Otherwise it is taken again the next time.
        let _ = disk::replace(memory, &note);
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (program, memory) = (folder.path().join("program"), folder.path().join("memory.json"));
        let digest_of = |text: &[u8]| tidegate_seal::digest::sha256(text);
        std::fs::write(&program, "one").unwrap();
        assert_eq!(program_digest(&program, Some(&memory)).unwrap(), digest_of(b"one"));
        // That it is remembered shows in what a lie there does.
        let noted = std::fs::read_to_string(&memory).unwrap();
        let lie = noted.replace(&digest_of(b"one").to_string(), &digest_of(b"lie").to_string());
        std::fs::write(&memory, &lie).unwrap();
        assert_eq!(program_digest(&program, Some(&memory)).unwrap(), digest_of(b"lie"));
        // A program of the same length in the same second, in its place and beside it.
        std::fs::write(&program, "two").unwrap();
        let at = std::fs::metadata(&program).unwrap().modified().unwrap();
        assert_eq!(program_digest(&program, Some(&memory)).unwrap(), digest_of(b"two"));
        let new = folder.path().join("new");
        std::fs::write(&new, "six").unwrap();
        File::options()
            .write(true)
            .open(&new)
            .unwrap()
            .set_modified(at)
            .unwrap();
        std::fs::rename(&new, &program).unwrap();
        assert_eq!(program_digest(&program, Some(&memory)).unwrap(), digest_of(b"six"));
        for rubbish in ["", "{}", "null", &"x".repeat(1 << 16)] {
            std::fs::write(&memory, rubbish).unwrap();
            assert_eq!(
                program_digest(&program, Some(&memory)).unwrap(),
                digest_of(b"six"),
                "{rubbish:.5}"
            );
        }
        let nowhere = folder.path().join("no/where");
        assert_eq!(program_digest(&program, Some(&nowhere)).unwrap(), digest_of(b"six"));
        assert!(program_digest(&nowhere, Some(&memory)).is_err());
        std::fs::write(&memory, lie).unwrap();
        assert_eq!(program_digest(&program, None).unwrap(), digest_of(b"six"));
    }
}
