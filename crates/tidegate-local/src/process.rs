use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::io::Errno;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};

use crate::disk;

mod job;
mod system;

use job::{Job, Refused};

/// Compute that is this machine: every job is a detached process with a session and a folder of its own.
///
/// Jobs outlive the process that started them, also by `kill -9`, and whoever opens the same folder
/// finds them again. A job folder holds what is needed for that and nothing secret: the ticket reaches
/// the job through memory that has no name. Exit codes above 128 are told as `None`, because the shell
/// that supervises a job reports a signal that way.
///
/// [`Compute::delete`] ends the job's session, its process group and everything that descends from
/// them. A process that both began a session of its own and lost its parents is not found again; the
/// sandbox of a worker's command is what keeps such from doing harm. A removed job leaves a folder with
/// two small files, so that its id never runs again.
#[derive(Debug, Clone)]
pub struct ProcessDriver {
    folder: PathBuf,
}

impl ProcessDriver {
    /// Opens the driver whose jobs are kept in `folder`, making it where there is none.
    ///
    /// # Errors
    /// [`ComputeError::Transient`] when the folder cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, ComputeError> {
        let folder = folder.into();
        // Jobs run in other folders, so a relative path would mean another place to them.
        let made = disk::private_folder(&folder).and_then(|()| folder.canonicalize());
        let folder = made.map_err(|source| ComputeError::Transient {
            what: format!("opening the job folder `{}`", folder.display()),
            source,
        })?;
        Ok(Self { folder })
    }

    /// Where a job's standard output is kept until it is removed.
    ///
    /// # Errors
    /// [`ComputeError::Invalid`] when the id cannot name a job.
    pub fn stdout(&self, id: &str) -> Result<PathBuf, ComputeError> {
        Ok(self.job(id)?.stdout())
    }

    /// Where a job's standard error is kept until it is removed.
    ///
    /// # Errors
    /// [`ComputeError::Invalid`] when the id cannot name a job.
    pub fn stderr(&self, id: &str) -> Result<PathBuf, ComputeError> {
        Ok(self.job(id)?.stderr())
    }

    fn job(&self, id: &str) -> Result<Job, ComputeError> {
        let name = folder_name(id).ok_or_else(|| ComputeError::Invalid {
            id: id.chars().take(80).collect(),
            why: "an id has 1 to 200 bytes, those counted three times that are no letters, digits, `.`, `_` or `-`"
                .to_owned(),
        })?;
        Ok(Job::new(self.folder.join(name)))
    }

    async fn run<T: Send + 'static>(
        &self,
        id: &str,
        what: &'static str,
        work: impl FnOnce(&Job) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, ComputeError> {
        let job = self.job(id)?;
        let id = id.to_owned();
        let transient = |source| ComputeError::Transient {
            what: format!("{what} job `{id}`"),
            source,
        };
        match tokio::task::spawn_blocking(move || work(&job)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Refused::Invalid(why))) => Err(ComputeError::Invalid { id, why }),
            Ok(Err(Refused::Io(error))) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC) => {
                    Err(ComputeError::Capacity {
                        id,
                        why: error.to_string(),
                    })
                }
                _ => Err(transient(error)),
            },
            Err(_) => Err(transient(std::io::Error::other("the step was stopped"))),
        }
    }
}

/// The folder of a job: its id with every byte that is unusual in a name written as `+` and two
/// hexadecimal digits.
fn folder_name(id: &str) -> Option<String> {
    let mut name = String::new();
    for (position, byte) in id.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || byte == b'.' && position > 0 {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("+{byte:02x}"));
        }
    }
    (1..=200).contains(&name.len()).then_some(name)
}

#[async_trait]
impl Compute for ProcessDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let handle = Handle {
            id: request.id.clone(),
            platform: format!("process:{}", request.id),
        };
        let request = request.clone();
        let id = request.id.clone();
        self.run(&id, "starting", move |job| job.ensure(&request)).await?;
        Ok(handle)
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        self.run(&handle.id, "observing", |job| Ok(job.observe()?)).await
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        self.run(&handle.id, "ending", |job| job.delete().map(|_| ())).await
    }

    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let listing = |source| ComputeError::Transient {
            what: "listing jobs".to_owned(),
            source,
        };
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || owned_jobs(&folder)).await;
        let jobs = listed
            .map_err(|_| listing(std::io::Error::other("the step was stopped")))?
            .map_err(listing)?;
        let mut ended = Vec::new();
        for (id, its_owner) in jobs {
            if its_owner == owner && !keep.contains(&id) && self.run(&id, "ending", Job::delete).await? {
                ended.push(id);
            }
        }
        ended.sort();
        Ok(ended)
    }
}

/// Ids and owners of all jobs that have a folder.
fn owned_jobs(folder: &Path) -> std::io::Result<Vec<(String, String)>> {
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        if let Some(record) = Job::new(entry?.path()).record()? {
            jobs.push((record.id, record.owner));
        }
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_folder_names_one_to_one() {
        for (id, name) in [
            ("run-1/train/1-0", "run-1+2ftrain+2f1-0"),
            ("..", "+2e."),
            ("a+2f", "a+2b2f"),
            (".x", "+2ex"),
            ("é", "+c3+a9"),
        ] {
            assert_eq!(folder_name(id).as_deref(), Some(name));
        }
        assert_eq!(folder_name(""), None);
        assert_eq!(folder_name(&"a".repeat(201)), None);
        assert_eq!(folder_name(&"/".repeat(67)), None);
    }
}
