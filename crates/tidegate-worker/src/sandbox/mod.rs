//! The sandbox: runs a command that must be taken for hostile.
//!
//! A program that limits itself cannot be tricked by what it starts, so the worker starts the command
//! through itself: [`spawn`] runs `EXECUTABLE sandbox-exec`, hands it the policy and the command over
//! standard input, and [`sandbox_exec_main`] limits the process (file system by Landlock, network and
//! dangerous system calls by seccomp and a network namespace where one may be made, a root of its own where mounts may be
//! made, resources by rlimits, no capabilities) and then becomes the command. A thread beside it (`watch`) ends the
//! whole process group when it takes more time, memory or processes than allowed.
//!
//! Nothing is best effort in silence: where files or the network cannot be closed, the command is not
//! started. [`self_test`] finds out by trying what a machine enforces.
//!
//! What it does not stop: a command may change modes and times of files that the worker's own user
//! owns (it can neither read, write nor name their content), see the names of processes in `/proc`,
//! and use as much processor time as its wall clock allows.

mod confine;
mod filter;
mod joined;
mod order;
mod probe;
mod room;
mod root;
mod shared;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tidegate_types::message::SandboxEvidence;
use tokio::sync::oneshot;

use order::{Answer, Order};
use shared::Shared;
use watch::Begun;

pub use confine::sandbox_exec_main;
pub use joined::{INTERFACE, Joined, address};
pub use probe::{self_test, try_node};
pub use room::ROOM;
pub(crate) use room::renamed;

/// The subcommand of the executable that must lead to [`sandbox_exec_main`].
pub const SUBCOMMAND: &str = "sandbox-exec";

/// What [`SandboxEvidence::network`] says of commands that have sockets in a network of their own.
pub(crate) const SPEAKING: &str = "network-namespace";
/// And of those that have local sockets too, in a root of their own.
pub(crate) const ROOTED: &str = "network-namespace+root";

/// What a command may do. A limit of 0 means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Files and folders that may be read and executed, besides those of [`system_paths`].
    pub read: Vec<PathBuf>,
    /// Files and folders that may be read, executed and changed.
    pub write: Vec<PathBuf>,
    /// Devices, and folders of devices, that may be used.
    pub devices: Vec<PathBuf>,
    /// A folder that the command sees at [`ROOM`], where the machine allows that. It opens nothing: that is for `read` and
    /// `write`.
    pub room: Option<PathBuf>,
    /// Whether internet sockets may be made.
    pub network: bool,
    /// Which machine of several it is: internet sockets may be made then, and reach the others and nobody else.
    pub node: Option<u32>,
    /// Whether its processes may speak to each other over internet sockets in a network of its own that reaches nobody, where
    /// the machine allows that.
    pub local: bool,
    /// Whether they may also over local sockets, in a root of its own that has none of the machine's, where the machine allows
    /// that.
    pub own_root: bool,
    /// Whether its processes may share memory by name, in a `/dev/shm` of its own, where the machine allows that.
    pub shared_memory: bool,
    /// The most memory of all its processes together, in bytes.
    pub memory_bytes: u64,
    /// The longest it may run, in seconds of wall clock.
    pub seconds: u64,
    /// The most processes and threads at once.
    pub processes: u64,
    /// The longest file that it may write, in bytes.
    pub file_bytes: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which was not ours.
    Signalled(i32),
    /// It wrote a file longer than [`Policy::file_bytes`] and did not handle it.
    OverFileSize,
    /// It was ended: more memory than [`Policy::memory_bytes`].
    OverMemory,
    /// It was ended: longer than [`Policy::seconds`].
    OverTime,
    /// It was ended: more processes than [`Policy::processes`].
    OverProcesses,
    /// It was ended because we asked for it.
    Stopped,
    /// The machine would not let us watch it any longer, so it was ended.
    Lost,
}

/// What can go wrong before a command runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The sandbox program cannot be started.
    #[error("starting the sandbox program `{}`: {source}", executable.display())]
    Start {
        /// Which program.
        executable: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The machine does not let the sandbox close something, so nothing was run.
    #[error("the sandbox cannot be closed on this machine ({what}): the command was not started")]
    NotEnforced {
        /// What could not be enforced.
        what: String,
    },
    /// The sandbox program did not say that it is ready.
    #[error("the sandbox program `{}` ended before the command was started; is it a worker program?", executable.display())]
    Silent {
        /// Which program.
        executable: PathBuf,
    },
}

/// A command inside the sandbox.
#[derive(Debug)]
pub struct Running {
    /// What is enforced on it.
    pub evidence: SandboxEvidence,
    /// Why it has no memory that its processes share by name, where the policy gives it some.
    pub unshared: Option<String>,
    /// Whether it sees [`Policy::room`] at [`ROOM`].
    pub in_room: bool,
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<Ended>,
    how: Option<Ended>,
    pipes: Option<(ChildStdout, ChildStderr)>,
    joined: Option<Joined>,
}

/// Everything a short command wrote, and how it ended.
#[derive(Debug)]
pub struct Completed {
    /// How it ended.
    pub ended: Ended,
    /// What is enforced on it.
    pub evidence: SandboxEvidence,
    /// Its standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Its standard error, cut at the limit.
    pub stderr: Vec<u8>,
}

/// Starts a command inside the sandbox, in `folder`, with exactly `environment`. Returns once the
/// sandbox is closed, immediately before the command takes over.
///
/// The caller must read both [`Running::take_pipes`] to their ends, or the command will stall. Dropping
/// [`Running`] ends the command.
///
/// # Errors
/// [`SandboxError`] when the program cannot be started or the machine does not let it close files or
/// network; the command was not started then.
pub fn spawn(
    executable: &Path,
    policy: &Policy,
    command: &[OsString],
    environment: &BTreeMap<String, String>,
    folder: &Path,
) -> Result<Running, SandboxError> {
    let order = Order {
        parent: std::process::id(),
        policy: policy.clone(),
        command: command.to_vec(),
        environment: environment.clone(),
        probe: None,
    };
    start(executable, order, folder, watch::Limits::of(policy))
}

fn start(executable: &Path, order: Order, folder: &Path, limits: watch::Limits) -> Result<Running, SandboxError> {
    let failed = |source| SandboxError::Start {
        executable: executable.to_owned(),
        source,
    };
    let (socket, theirs) = UnixStream::pair().map_err(failed)?;
    let mut program = Command::new(executable);
    program
        .arg(SUBCOMMAND)
        .env_clear()
        .current_dir(folder)
        .process_group(0)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, started) = std::sync::mpsc::channel();
    let (tell, ended) = oneshot::channel();
    let stopper = Arc::clone(&stop);
    let closed = Arc::new(OnceLock::new());
    let begins = Arc::clone(&closed);
    // The kernel ends the command when the thread that started it ends, so that thread has to live as
    // long as the command.
    let thread = move || {
        let child = program.spawn();
        // Our own copy of the program's end of the socket goes with it: else we would not see that it has ended.
        drop(program);
        match child {
            Err(source) => drop(begun.send(Err(source))),
            Ok(mut child) => {
                let pipes = (child.stdout.take(), child.stderr.take());
                // The receiver waits below, or is gone and the drop of `Running` set the stop flag.
                let _ = begun.send(Ok(pipes));
                let _ = tell.send(watch::until_ended(&mut child, &limits, &begins, &stopper));
            }
        }
    };
    std::thread::Builder::new()
        .name("sandbox".to_owned())
        .spawn(thread)
        .map_err(failed)?;
    let silent = || SandboxError::Silent {
        executable: executable.to_owned(),
    };
    let (stdout, stderr) = started.recv().map_err(|_| silent())?.map_err(failed)?;
    let mut running = Running {
        evidence: SandboxEvidence::default(),
        unshared: None,
        in_room: false,
        stop,
        ended,
        how: None,
        pipes: stdout.zip(stderr),
        joined: None,
    };
    order.send(&socket).map_err(|_| silent())?;
    let answer = Answer::take(&socket).ok_or_else(silent)?;
    if let Some(what) = answer.refused {
        return Err(SandboxError::NotEnforced { what });
    }
    let shared = answer.shared.map(Shared::new).transpose().map_err(failed)?;
    let _ = closed.set(Begun {
        at: Instant::now(),
        shared,
    });
    running.evidence = answer.evidence;
    running.unshared = answer.unshared;
    running.in_room = answer.in_room;
    running.joined = answer.joined;
    Ok(running)
}

impl Running {
    /// Standard output and standard error; `None` when they were taken already.
    pub const fn take_pipes(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        self.pipes.take()
    }

    /// The worker's end of the command's own network, where it has one; `None` when it was taken already.
    pub const fn take_joined(&mut self) -> Option<Joined> {
        self.joined.take()
    }

    /// Ends the command and everything that it started, within milliseconds.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until the command and everything that it started have ended. May be dropped and called
    /// again.
    pub async fn ended(&mut self) -> Ended {
        if let Some(how) = self.how {
            return how;
        }
        let how = (&mut self.ended).await.unwrap_or(Ended::Lost);
        self.how = Some(how);
        how
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a command inside the sandbox to its end, and keeps at most `output_bytes` of each of its two
/// streams. Blocks; not for use inside an asynchronous task.
///
/// # Errors
/// As [`spawn`].
pub fn run(
    executable: &Path,
    policy: &Policy,
    command: &[OsString],
    environment: &BTreeMap<String, String>,
    folder: &Path,
    output_bytes: u64,
) -> Result<Completed, SandboxError> {
    complete(
        spawn(executable, policy, command, environment, folder)?,
        executable,
        output_bytes,
    )
}

fn complete(mut running: Running, executable: &Path, output_bytes: u64) -> Result<Completed, SandboxError> {
    let failed = |source| SandboxError::Start {
        executable: executable.to_owned(),
        source,
    };
    let (stdout, stderr) = running
        .take_pipes()
        .ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
    let drain = std::thread::Builder::new()
        .spawn(move || keep_first(stderr, output_bytes))
        .map_err(failed)?;
    let stdout = keep_first(stdout, output_bytes);
    let stderr = drain.join().unwrap_or_default();
    let (evidence, ended) = (running.evidence.clone(), &mut running.ended);
    let ended = loop {
        match ended.try_recv() {
            Ok(how) => break how,
            Err(oneshot::error::TryRecvError::Closed) => break Ended::Lost,
            Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(watch::TICK),
        }
    };
    Ok(Completed {
        ended,
        evidence,
        stdout,
        stderr,
    })
}

/// Reads to the end, so that the writer never stalls, and keeps the beginning.
fn keep_first(mut from: impl Read, limit: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    // An error of a pipe is its end: the writer is gone.
    let _ = from.by_ref().take(limit).read_to_end(&mut kept);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    kept
}

/// What every command may read: the system's programs and libraries, the time zone, certificates, and
/// what runtimes read about the machine. No other file of `/etc`, nothing below a home folder.
#[must_use]
pub fn system_paths() -> Vec<PathBuf> {
    [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/opt",
        "/etc/alternatives",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/etc/localtime",
        "/etc/timezone",
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/hosts",
        "/etc/host.conf",
        "/etc/resolv.conf",
        "/etc/gai.conf",
        "/etc/services",
        "/etc/protocols",
        "/etc/ssl/certs",
        "/etc/ssl/openssl.cnf",
        "/etc/ca-certificates",
        "/etc/pki",
        "/etc/mime.types",
        "/etc/fonts",
        "/etc/debian_version",
        "/etc/os-release",
        "/etc/python3",
        "/etc/python3.11",
        "/proc",
        "/sys/devices/system",
        "/sys/fs/cgroup",
        "/sys/kernel/mm",
        "/run/systemd/resolve",
    ]
    .into_iter()
    .map(PathBuf::from)
    .collect()
}

/// Devices without memory, which every command may read and write.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
