use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_contracts::later::Later;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_seal::digest::sha256;
use tidegate_types::Digest;
use tidegate_types::message::Attempt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::exchange::{HostAnswer, HostRequest, THIS_PROGRAM};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the program may take to get to a host.
const UPLOAD: Duration = Duration::from_secs(900);
/// The longest answer that is read.
const ANSWER_BYTES: u64 = 4 << 20;
/// Each look is a connection.
const OBSERVE_EVERY: Duration = Duration::from_secs(5);
/// The exit code that says that the program is not there. `ssh` itself ends with 255.
const MISSING: i32 = 86;
/// Nobody is there to be asked, a host that is gone is told within seconds, and nothing of this machine is lent to it. A
/// connection that is there already could have other rules.
const OPTIONS: [&str; 10] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "ControlMaster=no",
    "ControlPath=none",
];
/// The longest part of `ssh`'s own words that is shown.
const TOLD: usize = 200;

/// The machines of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
    config: Option<PathBuf>,
    folder: String,
}

/// Why something cannot name hosts, or a folder on them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidHosts(String);

impl Hosts {
    /// Hosts as `ssh` is told them, `NAME` or `USER@NAME`; `config` is a file for `ssh` in place of the user's own, and
    /// `folder` is where everything is kept on each of them, `.tidegate` in the home of the user there without it.
    ///
    /// # Errors
    /// When there is none, or a name or the folder holds signs that a shell or `ssh` could read as something else.
    pub fn new(names: &[String], config: Option<PathBuf>, folder: Option<&str>) -> Result<Self, InvalidHosts> {
        if names.is_empty() {
            return Err(InvalidHosts("no host is named".to_owned()));
        }
        for name in names {
            let plain = name
                .chars()
                .all(|one| one.is_ascii_alphanumeric() || ".-_@".contains(one));
            if name.is_empty() || name.len() > 255 || name.starts_with('-') || !plain {
                let why = "is no host: letters, digits, `.`, `-` and `_`, and a user before an `@`; a port stands in the \
                           configuration of ssh";
                return Err(InvalidHosts(format!("`{}` {why}", name.escape_default())));
            }
        }
        let folder = folder.unwrap_or(".tidegate");
        let plain = folder
            .chars()
            .all(|one| one.is_ascii_alphanumeric() || ".-_/".contains(one));
        if folder.is_empty() || folder.len() > 255 || folder.starts_with('-') || !plain {
            let why = "is no folder here: letters, digits, `.`, `-`, `_` and `/`";
            return Err(InvalidHosts(format!("`{}` {why}", folder.escape_default())));
        }
        Ok(Self {
            names: names.to_vec(),
            config,
            folder: folder.to_owned(),
        })
    }

    /// The host that an attempt goes to: the one whose digest with it is the greatest (Thaler and Ravishankar, 1998), so
    /// that a host more or less moves no more of them than it must. Where it has several machines, each next one has the
    /// next host.
    fn of(&self, attempt: &Attempt) -> &str {
        let job = format!("{}-{}-{}", attempt.run, attempt.task, attempt.attempt);
        let weight = |name: &&String| *sha256(format!("{name}\n{job}").as_bytes()).as_bytes();
        let mut names: Vec<&String> = self.names.iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(weight(name)));
        let rank = usize::try_from(attempt.rank).unwrap_or(usize::MAX);
        let at = rank.checked_rem(names.len()).unwrap_or(0);
        names.get(at).map_or("", |name| name.as_str())
    }
}

/// Compute on hosts that are reached by `ssh`.
#[derive(Debug, Clone)]
pub struct SshDriver {
    hosts: Hosts,
    /// The program that runs jobs there, and its digest.
    program: PathBuf,
    digest: Later<Result<Digest, String>>,
}

/// Why a call did not get an answer.
struct Broken {
    why: String,
}

impl SshDriver {
    /// The driver of `hosts`, whose jobs are run by `program`, this machine's own copy of it.
    #[must_use]
    pub fn new(hosts: Hosts, program: PathBuf, digest: Later<Result<Digest, String>>) -> Self {
        Self { hosts, program, digest }
    }

    /// `compressed` is for programs, which shrink to a third.
    fn ssh(&self, host: &str, command: &str, compressed: bool) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-T");
        for option in OPTIONS {
            ssh.args(["-o", option]);
        }
        if compressed {
            ssh.args(["-o", "Compression=yes"]);
        }
        if let Some(config) = &self.hosts.config {
            ssh.arg("-F").arg(config);
        }
        ssh.arg("--").arg(host).arg(command);
        ssh.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        ssh
    }

    async fn run(mut ssh: Command, input: Input<'_>, patience: Duration) -> Result<Output, Broken> {
        let broken = |error: io::Error| Broken {
            why: format!("running ssh: {error}"),
        };
        let mut child = ssh.spawn().map_err(broken)?;
        let mut stdin = child.stdin.take();
        let told = async {
            // A host that does not listen to the end says why in its exit code.
            if let Some(stdin) = stdin.as_mut() {
                let _ = match input {
                    Input::Bytes(bytes) => stdin.write_all(bytes).await,
                    Input::File(path) => match tokio::fs::File::open(path).await {
                        Ok(mut file) => tokio::io::copy(&mut file, stdin).await.map(|_| ()),
                        Err(error) => Err(error),
                    },
                };
            }
            drop(stdin);
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = async {
            let ((), stdout, stderr, status) = tokio::join!(told, heard(stdout), heard(stderr), child.wait());
            io::Result::Ok(Output {
                status: status?,
                stdout: stdout?,
                stderr: stderr?,
            })
        };
        match tokio::time::timeout(patience, ended).await {
            Ok(output) => output.map_err(broken),
            Err(_) => Err(Broken {
                why: format!("no answer came within {} s", patience.as_secs()),
            }),
        }
    }

    /// Where the program is on a host.
    fn place(&self) -> Result<(String, String), Broken> {
        let digest = self.digest.get().as_ref().map_err(|why| Broken { why: why.clone() })?;
        let hex = digest.to_hex();
        Ok((format!("{}/bin/{hex}", self.hosts.folder), hex))
    }

    /// Brings the program to a host, under its own name once it is whole and verified.
    async fn upload(&self, host: &str) -> Result<(), Broken> {
        let (place, hex) = self.place()?;
        let command = format!(
            "umask 077 && mkdir -p {place} && part={place}/.part.$$ && trap 'rm -f \"$part\"' EXIT && cat > \"$part\" && \
             echo \"{hex}  $part\" | sha256sum -c --status - && chmod 700 \"$part\" && sync \"$part\" && \
             {{ ln \"$part\" {place}/tidegate 2>/dev/null || test -x {place}/tidegate; }}"
        );
        tracing::info!(host, "bringing the program");
        let output = Self::run(self.ssh(host, &command, true), Input::File(&self.program), UPLOAD).await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(told("bringing the program", &output))
        }
    }

    async fn ask(&self, host: &str, request: &HostRequest) -> Result<HostAnswer, Broken> {
        let (place, _) = self.place()?;
        let folder = &self.hosts.folder;
        let command =
            format!("test -x {place}/tidegate || exit {MISSING}; exec {place}/tidegate jobs --folder {folder}/jobs");
        let text = serde_json::to_vec(request).map_err(|error| Broken { why: error.to_string() })?;
        for again in [false, true] {
            let output = Self::run(self.ssh(host, &command, false), Input::Bytes(&text), PATIENCE).await?;
            match output.status.code() {
                Some(0) => {
                    return serde_json::from_slice(&output.stdout).map_err(|_| Broken {
                        why: "its answer is not that of this program".to_owned(),
                    });
                }
                Some(MISSING) if !again => self.upload(host).await?,
                _ => return Err(told("asking it", &output)),
            }
        }
        Err(Broken {
            why: "the program that was brought there is not there".to_owned(),
        })
    }

    /// Asks the host; what it does not say itself is something that may pass.
    async fn asked(&self, host: &str, what: &str, id: &str, request: &HostRequest) -> Result<HostAnswer, ComputeError> {
        let transient = |why: String| ComputeError::Transient {
            what: format!("{what} on host `{host}`"),
            source: io::Error::other(why),
        };
        match self.ask(host, request).await {
            Ok(HostAnswer::Capacity(why)) => Err(ComputeError::Capacity {
                id: id.to_owned(),
                why: format!("host `{host}`: {why}"),
            }),
            Ok(HostAnswer::Invalid(why)) => Err(ComputeError::Invalid { id: id.to_owned(), why }),
            Ok(HostAnswer::Failed(why)) => Err(transient(why)),
            Ok(answer) => Ok(answer),
            Err(Broken { why }) => Err(transient(why)),
        }
    }

    /// The host that a handle names. A handle of another driver names none.
    fn host_of(handle: &Handle) -> Option<&str> {
        handle.platform.strip_prefix("ssh:")
    }
}

/// What a host says, as far as it is listened to; whoever says more finds nobody there.
async fn heard(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(ANSWER_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// What goes to a host.
enum Input<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

/// How a command on a host ended, with the last that `ssh` or the host said: nothing secret was said to either but in
/// the connection.
fn told(what: &str, output: &Output) -> Broken {
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    let last: String = last
        .unwrap_or_default()
        .chars()
        .filter(|one| !one.is_control())
        .take(TOLD)
        .collect();
    let code = output
        .status
        .code()
        .map_or("a signal".to_owned(), |code| format!("exit code {code}"));
    Broken {
        why: format!("{what} ended with {code}: {last}"),
    }
}

fn strange(what: &str) -> ComputeError {
    ComputeError::Transient {
        what: what.to_owned(),
        source: io::Error::other("the host answered another question"),
    }
}

#[async_trait]
impl Compute for SshDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let host = self.hosts.of(&request.attempt);
        let mut job = request.clone();
        if let Some(first) = job
            .command
            .first_mut()
            .filter(|first| Path::new(first.as_str()) == self.program)
        {
            THIS_PROGRAM.clone_into(first);
        }
        let what = format!("starting job `{}`", request.id);
        match self.asked(host, &what, &request.id, &HostRequest::Ensure(job)).await? {
            HostAnswer::Ensured => Ok(Handle {
                id: request.id.clone(),
                platform: format!("ssh:{host}"),
            }),
            _ => Err(strange(&what)),
        }
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let Some(host) = Self::host_of(handle) else {
            return Ok(JobState::Gone);
        };
        let what = format!("observing job `{}`", handle.id);
        match self
            .asked(host, &what, &handle.id, &HostRequest::Observe(handle.clone()))
            .await?
        {
            HostAnswer::Pending => Ok(JobState::Pending),
            HostAnswer::Running => Ok(JobState::Running),
            HostAnswer::Ended(code) => Ok(JobState::Ended(code)),
            HostAnswer::Lost(why) => Ok(JobState::Lost(why)),
            HostAnswer::Gone => Ok(JobState::Gone),
            _ => Err(strange(&what)),
        }
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let Some(host) = Self::host_of(handle) else {
            return Ok(());
        };
        let what = format!("ending job `{}`", handle.id);
        match self
            .asked(host, &what, &handle.id, &HostRequest::Delete(handle.clone()))
            .await?
        {
            HostAnswer::Deleted => Ok(()),
            _ => Err(strange(&what)),
        }
    }

    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let (mut swept, mut failure) = (Vec::new(), None);
        // One that is gone keeps nobody from tidying the others.
        for host in &self.hosts.names {
            let request = HostRequest::Sweep {
                owner: owner.to_owned(),
                keep: keep.to_vec(),
            };
            match self.asked(host, "ending jobs", "", &request).await {
                Ok(HostAnswer::Swept(ids)) => swept.extend(ids),
                Ok(_) => failure = Some(strange("ending jobs")),
                Err(error) => failure = Some(error),
            }
        }
        swept.sort();
        match failure {
            None => Ok(swept),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_no_host_and_no_folder() {
        for host in ["", "-oProxyCommand=sh", "a b", "a;b", "$(id)", "host:22", "a\nb"] {
            assert!(Hosts::new(&names(&["good", host]), None, None).is_err(), "{host}");
        }
        for folder in ["", "-x", "~/x", "a b", "$HOME", "a'b"] {
            assert!(Hosts::new(&names(&["good"]), None, Some(folder)).is_err(), "{folder}");
        }
        assert!(Hosts::new(&[], None, None).is_err());
        assert!(Hosts::new(&names(&["ml@gpu-1.st-mary.example"]), None, Some("/srv/tidegate")).is_ok());
    }

    #[test]
    fn a_job_keeps_its_host_when_another_one_comes() {
        let before = Hosts::new(&names(&["a", "b", "c"]), None, None).unwrap();
        let after = Hosts::new(&names(&["d", "c", "b", "a"]), None, None).unwrap();
        let attempt = |number: u32, rank| Attempt {
            run: format!("run-{number}").parse().unwrap(),
            task: "train".parse().unwrap(),
            attempt: 1,
            rank,
        };
        let all: Vec<Attempt> = (0..200).map(|number| attempt(number, 0)).collect();
        let moved: Vec<_> = all.iter().filter(|one| before.of(one) != after.of(one)).collect();
        assert!(moved.iter().all(|one| after.of(one) == "d"));
        assert!((20..90).contains(&moved.len()), "{}", moved.len());
        for host in ["a", "b", "c"] {
            assert!(all.iter().filter(|one| before.of(one) == host).count() > 30);
        }
        // Several machines of one attempt are several hosts.
        for number in 0..20 {
            let hosts: std::collections::BTreeSet<_> = (0..3).map(|rank| before.of(&attempt(number, rank))).collect();
            assert_eq!(hosts.len(), 3);
        }
    }
}
