//! One job: a folder, and at most one session of processes in its lifetime.
//!
//! | file | says | written by |
//! |---|---|---|
//! | `request.json` | id, owner and digest of the request | the starter, before it starts |
//! | `lock` | whoever holds it decides about the job | – |
//! | `stderr` | standard error; locked as long as the job lives | opened and locked by the starter, inherited by the job |
//! | `pid` | process id, start time, boot id | the supervisor, before the command |
//! | `exit` | the exit code | the supervisor, after the command |
//! | `ended` | that the end was told, and how | the observer, before it tells |
//! | `removed` | that the job was removed | whoever removed it, after the last process ended |
//!
//! Killed between fork and the writing of `pid`, the starter leaves a job that holds the lock: the next
//! one sees it and starts nothing. Without lock and `pid` nothing of the job has ever run.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tidegate_contracts::{JobRequest, JobState};
use tidegate_seal::digest::canonical_digest;
use tidegate_types::Digest;

use super::system::Leader;
use crate::disk;

const SUPERVISOR: &str = include_str!("supervise.sh");
/// How long a supervisor may need from its fork to its first file.
const START_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// What is kept of a request: enough to know it again, and not the ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) owner: String,
    request: Digest,
}

/// Why a step was not done.
pub(super) enum Refused {
    Invalid(String),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The state of a job that ended; without a code a signal ended it, or the machine.
fn state_of(code: Option<i32>) -> JobState {
    match code {
        Some(_) => JobState::Ended(code),
        None => JobState::Lost("a signal ended it, or the machine was started again".to_owned()),
    }
}

/// What `ended` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ended {
    code: Option<i32>,
}

pub(super) struct Job {
    folder: PathBuf,
}

impl Job {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn stdout(&self) -> PathBuf {
        self.folder.join("stdout")
    }

    pub(super) fn stderr(&self) -> PathBuf {
        self.folder.join("stderr")
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.folder.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        self.folder.join(name).try_exists()
    }

    /// What was asked for, where there is such a job.
    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        match self.read("request.json")? {
            Some(content) => Ok(Some(serde_json::from_slice(&content)?)),
            None => Ok(None),
        }
    }

    fn leader(&self) -> io::Result<Option<Leader>> {
        match self.read("pid")? {
            Some(content) => Ok(Some(Leader::parse(&content)?)),
            None => Ok(None),
        }
    }

    /// Decides about the job alone, until the file is dropped.
    fn alone(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn open_output(path: PathBuf) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    }

    /// Whether anything of the job lives that was not detached from its standard error. To be asked
    /// alone, since asking takes the lock for a moment.
    fn lives(&self) -> io::Result<bool> {
        let file = match OpenOptions::new().append(true).open(self.stderr()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        match file.try_lock() {
            // By hand: a process forked at this moment may still share the file for an instant.
            Ok(()) => file.unlock().map(|()| false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub(super) fn ensure(&self, request: &JobRequest) -> Result<(), Refused> {
        let invalid = |why: &str| Err(Refused::Invalid(why.to_owned()));
        if request.command.is_empty() {
            return invalid("it has no command");
        }
        let texts = request.command.iter().chain(request.environment.values());
        if texts.chain(request.environment.keys()).any(|text| text.contains('\0'))
            || request
                .environment
                .keys()
                .any(|key| key.is_empty() || key.contains('='))
        {
            return invalid("its command or environment holds a character that no process can be given");
        }
        let record = Record {
            id: request.id.clone(),
            owner: request.owner.clone(),
            request: canonical_digest(&request.identity()).map_err(|error| Refused::Invalid(error.to_string()))?,
        };
        disk::private_folder(&self.folder)?;
        let _alone = self.alone()?;
        if self.has("removed")? {
            return invalid("it was removed, and an id never runs again; use a new one");
        }
        match self.record()? {
            Some(known) if known == record => {}
            Some(_) => return invalid("another request has this id; use a new one"),
            None => {
                let content = serde_json::to_vec(&record).map_err(io::Error::from)?;
                disk::create_new(&self.folder.join("request.json"), &content)?;
                let parent = self.folder.parent().unwrap_or(&self.folder);
                disk::sync_folder(parent)?;
            }
        }
        if self.has("ended")? || self.has("pid")? || self.lives()? {
            return Ok(());
        }
        self.start(request)
    }

    fn start(&self, request: &JobRequest) -> Result<(), Refused> {
        let mut ticket = File::from(memfd_create("ticket", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
        ticket.write_all(request.ticket.as_bytes())?;
        ticket.rewind()?;
        let work = self.folder.join("work");
        disk::private_folder(&work)?;
        let stdout = Self::open_output(self.stdout())?;
        let stderr = Self::open_output(self.stderr())?;
        if let Err(TryLockError::Error(error)) = stderr.try_lock() {
            return Err(error.into());
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        // `setsid` does not fork here: the new process leads no group, so it becomes the session's leader.
        let spawned = Command::new("setsid")
            .args(["/bin/sh", "-c", SUPERVISOR, "sh"])
            .arg(&self.folder)
            .args(&request.command)
            .env_clear()
            .env("PATH", path)
            .envs(&request.environment)
            .current_dir(work)
            .stdin(Stdio::from(ticket))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Refused::Invalid(
                    "the program `setsid` is missing; install the package util-linux".to_owned(),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::ArgumentListTooLong => {
                return Err(Refused::Invalid("its command and environment are too long".to_owned()));
            }
            spawned => spawned?,
        };
        // Somebody has to wait for it, or it stays in the process table when it has ended.
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || child.wait())?;
        if self.wait_for_pid()? {
            Ok(())
        } else {
            Err(io::Error::other("its supervisor ended before it began; see `stderr` in the job's folder").into())
        }
    }

    /// Waits until a supervisor that was forked has written who it is; false when it ended instead.
    fn wait_for_pid(&self) -> io::Result<bool> {
        let until = Instant::now() + START_PATIENCE;
        loop {
            let lives = self.lives()?;
            if self.has("pid")? {
                return Ok(true);
            }
            if !lives {
                return Ok(false);
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(POLL);
        }
    }

    pub(super) fn observe(&self) -> io::Result<JobState> {
        if self.record()?.is_none() || self.has("removed")? {
            return Ok(JobState::Gone);
        }
        let _alone = self.alone()?;
        if self.has("removed")? {
            return Ok(JobState::Gone);
        }
        if let Some(content) = self.read("ended")? {
            let ended: Ended = serde_json::from_slice(&content)?;
            return Ok(state_of(ended.code));
        }
        // In this order: who has died after this line has written its exit code before the next.
        let lives = self.lives()?;
        let exit = self.read("exit")?;
        let leader = self.leader()?;
        match (exit, leader, lives) {
            (None, Some(_), true) => Ok(JobState::Running),
            (None, None, _) => Ok(JobState::Pending),
            (exit, leader, _) => {
                let code = exit.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
                // A shell tells a signal as 128 and the signal's number.
                let code = code.filter(|code| (0..=128).contains(code));
                if let Some(leader) = leader {
                    leader.end()?;
                }
                let content = serde_json::to_vec(&Ended { code })?;
                disk::replace(&self.folder.join("ended"), &content)?;
                Ok(state_of(code))
            }
        }
    }

    /// Ends and removes the job; says whether there was one.
    pub(super) fn delete(&self) -> Result<bool, Refused> {
        if self.record()?.is_none() || self.has("removed")? {
            return Ok(false);
        }
        let _alone = self.alone()?;
        if self.has("removed")? {
            return Ok(false);
        }
        if self.has("pid")? || self.wait_for_pid()? {
            // Once its end was told, its process ids may belong to somebody else.
            if !self.has("ended")?
                && let Some(leader) = self.leader()?
            {
                leader.end()?;
            }
        }
        disk::replace(&self.folder.join("removed"), b"")?;
        for name in ["pid", "exit", "ended", "stdout", "stderr", ".pid", ".exit"] {
            match std::fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        match std::fs::remove_dir_all(self.folder.join("work")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(true),
        }
    }
}
