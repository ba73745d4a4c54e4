//! The thread that ends a command when it takes more than allowed, or when it has ended and left
//! something behind.
//!
//! Everything that a command starts stays in its process group (leaving it only seems to work, see
//! the filter), so the group is counted and ended as a whole. The kernel's own counters per user
//! cannot do that: they do not bind the root user, and on a busy machine they count others.

use std::collections::BTreeSet;
use std::fs;
use std::process::Child;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::shared::Shared;
use super::{Ended, Policy};

/// How often the group is looked at.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// The longest that a command whose processes share memory is not looked at closely.
const LOOK_CLOSELY: Duration = Duration::from_millis(50);
/// How long a list of the group's processes is believed, with those added that were started since.
const LIST_FOR: Duration = Duration::from_secs(1);
/// So many numbers given to new tasks since the last look make the list old at once.
const MANY_NEW: i32 = 256;
/// How long the sandbox may take to close itself.
const START_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of the group is waited for.
const END_WITHIN: Duration = Duration::from_secs(5);

/// The policy's limits of the whole group; zero for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) memory_bytes: u64,
    pub(super) processes: u64,
}

impl Limits {
    pub(super) const fn of(policy: &Policy) -> Self {
        Self {
            time: Duration::from_secs(policy.seconds),
            memory_bytes: policy.memory_bytes,
            processes: policy.processes,
        }
    }
}

/// A command that has taken over.
#[derive(Debug)]
pub(super) struct Begun {
    /// When: its time counts from there, so that a machine that is slow to start programs does not take it from the command.
    pub(super) at: Instant,
    /// The memory that its processes share by name.
    pub(super) shared: Option<Shared>,
}

/// Watches a child that leads its own process group until it has ended, and everything in the group
/// with it.
///
/// `begins` is set when the sandbox is closed and the command takes over.
pub(super) fn until_ended(child: &mut Child, limits: &Limits, begins: &OnceLock<Begun>, stop: &AtomicBool) -> Ended {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Ended::Lost;
    };
    let why = watch(group, limits, begins, stop);
    // The leader is not reaped yet, so its number still names this group and no other.
    end_group(group);
    // Inside another sandbox it leads no group.
    let _ = child.kill();
    let status = child.wait();
    why.unwrap_or_else(|| status.map_or(Ended::Lost, told))
}

fn told(status: std::process::ExitStatus) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, Some(libc::SIGXFSZ)) => Ended::OverFileSize,
        (None, Some(signal)) => Ended::Signalled(signal),
        (None, None) => Ended::Lost,
    }
}

/// `None` when the leader ended by itself.
fn watch(group: Pid, limits: &Limits, begins: &OnceLock<Begun>, stop: &AtomicBool) -> Option<Ended> {
    let started = Instant::now();
    let mut members = Members::new(group);
    let mut look_closely = started;
    loop {
        match rustix::process::waitid(
            WaitId::Pid(group),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        ) {
            Ok(None) => {}
            Ok(Some(_)) => return None,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Some(Ended::Lost),
        }
        if stop.load(Ordering::Acquire) {
            return Some(Ended::Stopped);
        }
        if is_over(begins, limits, started) {
            return Some(Ended::OverTime);
        }
        let use_now = members.measure();
        if limits.processes > 0 && use_now.tasks > limits.processes {
            return Some(Ended::OverProcesses);
        }
        if limits.memory_bytes > 0 {
            let shared = begins.get().and_then(|begun| begun.shared.as_ref());
            let kept = shared.map_or(0, Shared::bytes);
            let now = Instant::now();
            if use_now.memory_bytes.saturating_add(kept) > limits.memory_bytes && now >= look_closely {
                let due = || stop.load(Ordering::Acquire) || is_over(begins, limits, started);
                let taken = members.shared_once(shared.filter(|_| kept > 0), limits.memory_bytes, &due);
                if taken > limits.memory_bytes {
                    return Some(Ended::OverMemory);
                }
                // It takes long where many share much, which is no reason to look all the time.
                look_closely = Instant::now() + (now.elapsed() * 10).min(LOOK_CLOSELY);
            }
        }
        std::thread::sleep(TICK);
    }
}

/// Whether the command has had its time.
fn is_over(begins: &OnceLock<Begun>, limits: &Limits, started: Instant) -> bool {
    let over = match begins.get() {
        Some(begun) => begun.at.elapsed() >= limits.time,
        None => started.elapsed() >= limits.time.saturating_add(START_WITHIN),
    };
    !limits.time.is_zero() && over
}

/// Kills the group until nothing of it runs.
fn end_group(group: Pid) {
    let begun = Instant::now();
    loop {
        // A process that is just being forked is in the group too, or its parent dies before the fork.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let alive = list(group)
            .iter()
            .any(|pid| state(*pid).is_some_and(|state| state != b'Z' && state != b'X'));
        if !alive || begun.elapsed() > END_WITHIN {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Default)]
struct Use {
    tasks: u64,
    memory_bytes: u64,
}

/// The group's processes, as listed lately.
struct Members {
    group: Pid,
    pids: BTreeSet<i32>,
    listed: Option<Instant>,
    /// The newest task's number at the last look and at the one before: a task that was just being
    /// made then may be visible only now.
    newest: [i32; 2],
}

impl Members {
    const fn new(group: Pid) -> Self {
        Self {
            group,
            pids: BTreeSet::new(),
            listed: None,
            newest: [0; 2],
        }
    }

    /// Brings the list up to date: new processes are looked for among the numbers given since, which is
    /// cheap, and among all when that is not certain.
    fn update(&mut self) {
        let [last, before] = self.newest;
        let newest = newest_task();
        let known = self.listed.is_some_and(|when| when.elapsed() < LIST_FOR);
        match newest {
            Some(newest) if known && (before..before.saturating_add(MANY_NEW)).contains(&newest) => {
                let new = (before..=newest).filter(|pid| is_of(*pid, self.group) && !is_thread(*pid));
                self.pids.extend(new);
            }
            _ => {
                self.pids = list(self.group);
                self.listed = Some(Instant::now());
            }
        }
        self.newest = [newest.unwrap_or_default(), last];
    }

    fn measure(&mut self) -> Use {
        self.update();
        let mut sum = Use::default();
        for pid in &self.pids {
            // One that has gone uses nothing.
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            sum.tasks += field(&status, "Threads:");
            let kibibytes = ["RssAnon:", "RssShmem:", "VmSwap:"]
                .into_iter()
                .map(|name| field(&status, name))
                .sum::<u64>();
            sum.memory_bytes = sum.memory_bytes.saturating_add(kibibytes.saturating_mul(1024));
        }
        sum
    }

    /// The same memory, with what several processes share counted once. Dearer, so only asked for when
    /// the other sum is too high.
    ///
    /// A command can make this take long: it ends early once the sum is above `limit`, or when something else is `due`.
    fn shared_once(&self, shared: Option<&Shared>, limit: u64, due: &dyn Fn() -> bool) -> u64 {
        let one = |pid: &i32| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let all = ["Pss_Anon:", "Pss_Shmem:", "SwapPss:"]
                .into_iter()
                .map(|name| field(&rollup, name))
                .sum::<u64>();
            // What has a name is counted whole below, mapped or not.
            let named = match shared.filter(|_| field(&rollup, "Pss_Shmem:") > 0) {
                Some(shared) => mapped_of(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, shared),
                None => 0,
            };
            Some(all.saturating_sub(named))
        };
        let alone = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let mapped = if shared.is_none() {
                field(&status, "RssShmem:")
            } else {
                0
            };
            field(&status, "RssAnon:") + mapped
        };
        let mut sum = shared.map_or(0, Shared::bytes);
        for pid in &self.pids {
            if sum > limit || due() {
                break;
            }
            let kibibytes = one(pid).unwrap_or_else(|| alone(pid));
            sum = sum.saturating_add(kibibytes.saturating_mul(1024));
        }
        sum
    }
}

/// A process's share of what it has mapped of `shared`, in kibibytes.
fn mapped_of(maps: &str, shared: &Shared) -> u64 {
    let (mut sum, mut share, mut counts) = (0_u64, 0_u64, false);
    for line in maps.lines() {
        if let Some(mapped) = shared.is_mapped_by(line) {
            counts = mapped;
        } else if counts && line.starts_with("Pss:") {
            share = field(line, "Pss:");
        } else if counts && line.starts_with("Anonymous:") {
            // Copies of its own that a process wrote to are not in the folder.
            sum = sum.saturating_add(share.saturating_sub(field(line, "Anonymous:")));
        }
    }
    sum
}

/// The number behind a name in `/proc`'s tables; zero when it is not there.
fn field(table: &str, name: &str) -> u64 {
    let line = table.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The number that was last given to a task on this machine: one short read.
fn newest_task() -> Option<i32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(4)?.parse().ok()
}

/// Threads have numbers too, which a listing of `/proc` leaves out.
fn is_thread(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "Tgid:") != u64::try_from(pid).unwrap_or_default()
}

fn is_of(pid: i32, group: Pid) -> bool {
    stat(pid).is_some_and(|(_, of)| of == group.as_raw_nonzero().get())
}

/// State and process group of one process. The name in between may hold anything but ends with the
/// last parenthesis.
fn stat(pid: i32) -> Option<(u8, i32)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(text.get(end + 1..)?).ok()?.split_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

fn state(pid: i32) -> Option<u8> {
    stat(pid).map(|(state, _)| state)
}

fn list(group: Pid) -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_of(*pid, group))
        .collect()
}
