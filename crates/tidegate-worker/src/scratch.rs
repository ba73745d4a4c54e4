//! The folders of one attempt, wiped when it ends.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tidegate_types::Digest;
use tidegate_types::message::Attempt;

use crate::error::{WorkerError, folder};

/// The private folders of one attempt. Dropping it removes them all.
#[derive(Debug)]
pub(crate) struct Scratch {
    root: PathBuf,
    /// Beside the root, because it outlives a worker that is killed.
    hello: PathBuf,
}

impl Scratch {
    /// Makes the attempt's folder below `work`, readable by this user only. What a killed worker of
    /// the same attempt left there is removed; nothing else in `work` is touched.
    pub(crate) fn create(work: &Path, attempt: &Attempt) -> Result<Self, WorkerError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(work)
            .map_err(folder("making the work folder", work))?;
        // Rules of the sandbox are about real paths.
        let work = work.canonicalize().map_err(folder("finding the work folder", work))?;
        let name = format!("{}-{}-{}-{}", attempt.run, attempt.task, attempt.attempt, attempt.rank);
        let hello = work.join(format!("{name}.hello"));
        let root = work.join(name);
        wipe(&root).map_err(folder("removing what a killed worker left in", &root))?;
        let scratch = Self { root, hello };
        for path in [
            &scratch.root,
            &scratch.inputs(),
            &scratch.output(),
            &scratch.checkpoint(),
            &scratch.home(),
            &scratch.temporary(),
            &scratch.metrics_folder(),
            &scratch.notice_folder(),
            &scratch.state(),
        ] {
            DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(folder("making the folder", path))?;
        }
        Ok(scratch)
    }

    /// Notes the digest of the hello that is about to be said; gives the one that a killed worker of the
    /// same attempt noted here.
    pub(crate) fn note_hello(&self, digest: &Digest) -> Result<Option<Digest>, WorkerError> {
        let noting = || folder("noting the hello in", &self.hello);
        let before = match fs::read_to_string(&self.hello) {
            Ok(text) => text.parse().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(noting()(error)),
        };
        let new = self.hello.with_extension("hello-new");
        fs::write(&new, digest.to_string()).map_err(noting())?;
        fs::rename(&new, &self.hello).map_err(noting())?;
        Ok(before)
    }

    /// The folder of them all.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn code(&self) -> PathBuf {
        self.root.join("code")
    }

    /// Made when there is no code artifact to make it.
    pub(crate) fn create_code(&self) -> Result<(), WorkerError> {
        let path = self.code();
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(folder("making the folder", &path))
    }

    pub(crate) fn inputs(&self) -> PathBuf {
        self.root.join("input")
    }

    pub(crate) fn input(&self, name: &str) -> PathBuf {
        self.inputs().join(name)
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Holds nothing but the metrics file, so that the command can write that and no other name
    /// beside the worker's own.
    pub(crate) fn metrics_folder(&self) -> PathBuf {
        self.root.join("metrics")
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.metrics_folder().join("metrics.jsonl")
    }

    /// Holds nothing but the notice: the command reads it there.
    pub(crate) fn notice_folder(&self) -> PathBuf {
        self.root.join("notice")
    }

    pub(crate) fn notice(&self) -> PathBuf {
        self.notice_folder().join("notice.json")
    }

    /// Where the sending of the output notes what it has sent: out of the command's reach.
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = wipe(&self.root) {
            tracing::warn!(folder = %self.root.display(), %error, "the work folder could not be removed");
        }
        let _ = fs::remove_file(&self.hello);
    }
}

/// Removes a folder also when a command took the rights to it from us.
pub(crate) fn wipe(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    if fs::remove_dir_all(path).is_err() {
        open_folders(path)?;
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn open_folders(root: &Path) -> io::Result<()> {
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            // Not through links: what they point to is not ours.
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidegate_types::{RunId, TaskName};

    use super::*;

    fn attempt() -> Attempt {
        Attempt {
            run: RunId::new("r1").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        }
    }

    #[test]
    fn is_private_and_goes_with_all_it_holds() {
        let work = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        fs::write(work.path().join("kept"), "x").unwrap();
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        let root = scratch.root.clone();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        let locked = scratch.output().join("a");
        fs::create_dir_all(locked.join("b")).unwrap();
        fs::write(locked.join("b/file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), locked.join("link")).unwrap();
        fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
        drop(scratch);
        assert!(!root.exists());
        assert!(outside.path().join("kept").exists() && work.path().join("kept").exists());
    }

    #[test]
    fn what_a_killed_worker_left_is_removed_first() {
        let work = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        fs::write(scratch.output().join("old"), "x").unwrap();
        std::mem::forget(scratch);
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        assert_eq!(fs::read_dir(scratch.output()).unwrap().count(), 0);
    }

    #[test]
    fn a_killed_workers_hello_is_known_and_an_ended_ones_is_not() {
        let work = tempfile::tempdir().unwrap();
        let (first, second) = (Digest::from_bytes([1; 32]), Digest::from_bytes([2; 32]));
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        assert_eq!(scratch.note_hello(&first).unwrap(), None);
        std::mem::forget(scratch);
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        assert_eq!(scratch.note_hello(&second).unwrap(), Some(first));
        drop(scratch);
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
        let scratch = Scratch::create(work.path(), &attempt()).unwrap();
        assert_eq!(scratch.note_hello(&second).unwrap(), None);
    }
}
