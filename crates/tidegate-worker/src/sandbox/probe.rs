//! Finds out by trying what the sandbox enforces on this machine.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_types::message::SandboxEvidence;

use super::watch::Limits;
use super::{Completed, Ended, Order, Policy, SandboxError, complete, start};

/// Exit code of a probe that got through.
const OPEN_NETWORK: u8 = 41;
const OPEN_FILES: u8 = 42;
const NO_LIMIT: u8 = 43;
/// Exit code of a probe that was stopped with an error it could see.
const STOPPED: u8 = 40;
/// Memory that the memory probe is allowed.
const MEMORY: u64 = 16 << 20;
/// Tasks that the process probe is allowed.
const TASKS: u64 = 4;
/// Bytes that the file probe is allowed.
const FILE: u64 = 4096;
/// Wall clock that the time probe is allowed.
const TIME: Duration = Duration::from_millis(20);

/// What is tried inside the sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Probe {
    /// Connects somewhere, reads a file and writes one, all of which works outside.
    Escape {
        /// Somebody listens here.
        listener: SocketAddr,
        /// Whether anybody can be reached outside. Where a machine has not even a network with itself, having a socket
        /// counts.
        reachable: bool,
        /// A service of the machine listens here, in a folder that the command may read.
        service: PathBuf,
        /// A file that the worker may read.
        secret: PathBuf,
        /// A path that the worker may write.
        outside: PathBuf,
    },
    /// Writes a file longer than allowed.
    FileSize { file: PathBuf },
    /// Takes memory for as long as it gets some.
    Memory,
    /// Starts more tasks than allowed, and waits.
    Tasks,
    /// Waits.
    Time,
}

impl Probe {
    /// Runs in the sandbox program, after it has limited itself.
    pub(super) fn attempt(&self) -> ExitCode {
        let code = match self {
            Self::Escape {
                listener,
                reachable,
                service,
                secret,
                outside,
            } => {
                let socket = || std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
                if (!reachable && socket()) || TcpStream::connect(listener).is_ok() || is_served(service) {
                    OPEN_NETWORK
                } else if fs::read(secret).is_ok() || fs::write(outside, "x").is_ok() {
                    OPEN_FILES
                } else {
                    STOPPED
                }
            }
            Self::FileSize { file } => {
                let body = vec![1; usize::try_from(FILE).unwrap_or(usize::MAX).saturating_add(1)];
                let written = fs::File::create(file).and_then(|mut file| file.write_all(&body));
                if written.is_ok() { NO_LIMIT } else { STOPPED }
            }
            Self::Memory => take_memory(),
            Self::Tasks => {
                let waiting: Vec<_> = (0..TASKS * 2)
                    .filter_map(|_| std::thread::Builder::new().spawn(|| std::thread::sleep(LONG)).ok())
                    .collect();
                if (waiting.len() as u64) < TASKS {
                    STOPPED
                } else {
                    std::thread::sleep(LONG);
                    NO_LIMIT
                }
            }
            Self::Time => {
                std::thread::sleep(LONG);
                NO_LIMIT
            }
        };
        ExitCode::from(code)
    }
}

/// How long a probe waits to be ended before it says that nothing ended it.
const LONG: Duration = Duration::from_secs(2);

/// Takes and touches memory far beyond the limit, then waits to be ended.
fn take_memory() -> u8 {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..256 {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(1 << 20).is_err() {
            return STOPPED;
        }
        piece.resize(1 << 20, 1);
        taken.push(piece);
    }
    std::thread::sleep(LONG);
    if taken.iter().all(|piece| piece.first() == Some(&1)) {
        NO_LIMIT
    } else {
        STOPPED
    }
}

/// What the sandbox enforces here: every word of the answer was tried, with a control that the same
/// act works outside. `executable` is the program whose subcommand `sandbox-exec` leads to
/// [`super::sandbox_exec_main`]; `within` is a folder of the caller's own, in which the test makes one
/// and removes it. Takes about a twentieth of a second; blocks.
#[must_use]
pub fn self_test(executable: &Path, within: &Path) -> SandboxEvidence {
    Folder::new(within)
        .and_then(|folder| test_in(executable, &folder.0))
        .unwrap_or_default()
}

/// What the sandbox enforces on a command that works with other machines: that it reaches nobody here is tried, as
/// [`self_test`] does; the rest is as in `evidence`. Blocks for half a minute at the most.
///
/// # Errors
/// As [`super::spawn`], and where the command reaches somebody.
pub fn try_node(
    executable: &Path,
    within: &Path,
    rank: u32,
    evidence: &SandboxEvidence,
) -> Result<SandboxEvidence, SandboxError> {
    let failed = |what: &str| SandboxError::NotEnforced { what: what.to_owned() };
    let folder = Folder::new(within).ok_or_else(|| failed("a folder to try it in"))?;
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|_| failed("somebody to be reached"))?;
    let listener = listener.local_addr().map_err(|_| failed("somebody to be reached"))?;
    let service = Service::new(&folder.0).ok_or_else(|| failed("a service to be reached"))?;
    let inside = folder.0.join("inside");
    let made = fs::DirBuilder::new().mode(0o700).create(&inside);
    made.map_err(|_| failed("a folder to try it in"))?;
    let policy = Policy {
        node: Some(rank),
        local: true,
        own_root: true,
        read: vec![service.folder.clone()],
        write: vec![inside.clone()],
        seconds: 30,
        ..Policy::default()
    };
    let order = Order {
        parent: std::process::id(),
        policy: policy.clone(),
        command: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        probe: Some(Probe::Escape {
            listener,
            reachable: true,
            service: service.path,
            secret: folder.0.join("secret"),
            outside: folder.0.join("outside"),
        }),
    };
    let done = complete(start(executable, order, &inside, Limits::of(&policy))?, executable, 0)?;
    match done.ended {
        Ended::Exited(code) if code == i32::from(STOPPED) => Ok(SandboxEvidence {
            network: done.evidence.network,
            ..evidence.clone()
        }),
        _ => Err(failed("the network around a command that works with other machines")),
    }
}

fn test_in(executable: &Path, folder: &Path) -> Option<SandboxEvidence> {
    let inside = folder.join("inside");
    fs::DirBuilder::new().mode(0o700).create(&inside).ok()?;
    let (secret, outside) = (folder.join("secret"), folder.join("outside"));
    fs::write(&secret, "x").ok()?;
    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
    let address = listener.local_addr().ok()?;
    // The control: what is refused inside works outside.
    let reachable = TcpStream::connect(address).is_ok();
    std::net::UdpSocket::bind("127.0.0.1:0").ok()?;
    fs::write(&outside, "x").and_then(|()| fs::read(&secret)).ok()?;
    let service = Service::new(folder)?;

    let base = Policy {
        // Without a network of the machine nobody can be tried to be reached, and no sockets are given.
        local: reachable,
        own_root: reachable,
        read: vec![service.folder.clone()],
        write: vec![inside.clone()],
        ..Policy::default()
    };
    let none = Limits::of(&base);
    let attempt = |probe, policy: Policy, limits: Limits| -> Result<Completed, SandboxError> {
        let order = Order {
            parent: std::process::id(),
            policy,
            command: Vec::new(),
            environment: std::collections::BTreeMap::new(),
            probe: Some(probe),
        };
        complete(start(executable, order, &inside, limits)?, executable, 0)
    };
    let attempt = &attempt;
    let escape = Probe::Escape {
        listener: address,
        reachable,
        service: service.path,
        secret,
        outside,
    };
    let long = Probe::FileSize {
        file: inside.join("long"),
    };
    let short_files = Policy {
        file_bytes: FILE,
        ..base.clone()
    };
    let small = Policy {
        memory_bytes: MEMORY,
        ..base.clone()
    };
    let tries = [
        (escape, base.clone(), none),
        (long, short_files, none),
        (
            Probe::Memory,
            small,
            Limits {
                memory_bytes: MEMORY,
                ..none
            },
        ),
        (
            Probe::Tasks,
            base.clone(),
            Limits {
                processes: TASKS,
                ..none
            },
        ),
        (Probe::Time, base.clone(), Limits { time: TIME, ..none }),
    ];
    // At once, because most of the time goes by while programs start.
    let [escape, file_size, memory, tasks, time] = std::thread::scope(|scope| {
        tries
            .map(|(probe, policy, limits)| scope.spawn(move || attempt(probe, policy, limits)))
            .map(|tried| tried.join().ok().and_then(Result::ok))
    });
    let mut evidence = SandboxEvidence::default();
    let stopped = Ended::Exited(i32::from(STOPPED));
    if let Some(Completed {
        ended,
        evidence: claimed,
        ..
    }) = escape
    {
        if ended == stopped {
            evidence = SandboxEvidence {
                limits: Vec::new(),
                ..claimed
            };
        } else if ended == Ended::Exited(i32::from(OPEN_FILES)) {
            evidence.network = claimed.network;
        }
    }
    let ended_by = |done: Option<Completed>, ways: &[Ended]| done.is_some_and(|done| ways.contains(&done.ended));
    let limits = [
        ("file-size", ended_by(file_size, &[Ended::OverFileSize, stopped])),
        ("memory", ended_by(memory, &[Ended::OverMemory, stopped])),
        ("processes", ended_by(tasks, &[Ended::OverProcesses, stopped])),
        ("time", ended_by(time, &[Ended::OverTime])),
    ];
    evidence.limits = limits
        .into_iter()
        .filter(|(_, kept)| *kept)
        .map(|(name, _)| name.to_owned())
        .collect();
    Some(evidence)
}

/// A service in a folder, as those of the machine are: whoever finds it speaks to it.
struct Service {
    folder: PathBuf,
    path: PathBuf,
    _listener: UnixListener,
}

impl Service {
    /// One that listens, and can be spoken to.
    fn new(within: &Path) -> Option<Self> {
        let folder = within.join("shown");
        fs::DirBuilder::new().mode(0o700).create(&folder).ok()?;
        let path = folder.join("service");
        // However long the folder's name is.
        let open = fs::File::open(&folder).ok()?;
        let short = format!("/proc/self/fd/{}/service", open.as_raw_fd());
        let listener = UnixListener::bind(&short).ok()?;
        UnixStream::connect(&short).ok()?;
        Some(Self {
            folder,
            path,
            _listener: listener,
        })
    }
}

/// Whether a service can be spoken to. From its folder, since names of sockets have a limit.
fn is_served(service: &Path) -> bool {
    let folder = service.parent().unwrap_or(service);
    std::env::set_current_dir(folder).is_ok() && UnixStream::connect("service").is_ok()
}

/// A folder of the test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(within: &Path) -> Option<Self> {
        let path = within.join("sandbox-test");
        fs::DirBuilder::new().mode(0o700).create(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over holds nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}
