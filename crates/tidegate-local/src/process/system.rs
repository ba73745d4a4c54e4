//! Processes as the kernel tells them in `/proc`, and ending exactly the right ones.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long processes may take to end once they were killed.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Clock ticks after boot. Together with the pid it names a process until the next boot.
    start: u64,
    /// Ended, and only not yet waited for by its parent.
    dead: bool,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &String::from_utf8_lossy(&stat))
    }

    /// Reads `/proc/PID/stat` (proc(5)). The name in parentheses may hold anything, also parentheses.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse().ok();
        Some(Self {
            pid,
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            start: fields.get(19)?.parse().ok()?,
            dead: matches!(*fields.first()?, "Z" | "X" | "x"),
        })
    }

    fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if let Some(process) = name.to_str().and_then(|name| name.parse().ok()).and_then(Self::of) {
                all.push(process);
            }
        }
        Ok(all)
    }

    /// Kills this process and no other that may have got its number.
    fn kill(self) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        let is_same = || Self::of(self.pid).is_some_and(|now| now.start == self.start);
        let killed = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) if is_same() => pidfd_send_signal(process, Signal::KILL),
            // A kernel or sandbox without that call.
            Err(Errno::NOSYS | Errno::PERM) if is_same() => kill_process(pid, Signal::KILL),
            Ok(_) | Err(Errno::NOSYS | Errno::PERM | Errno::SRCH) => Ok(()),
            Err(error) => Err(error),
        };
        match killed {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The supervisor of a job: leader of the job's session and process group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    pid: i32,
    start: u64,
    boot: String,
}

impl Leader {
    /// Reads what the supervisor wrote: process id, start time and boot id.
    pub(super) fn parse(content: &[u8]) -> io::Result<Self> {
        let text = String::from_utf8_lossy(content);
        let mut words = text.split_ascii_whitespace();
        let mut parse = || {
            let leader = Self {
                pid: words.next()?.parse().ok().filter(|pid| *pid > 1)?,
                start: words.next()?.parse().ok()?,
                boot: words.next()?.to_owned(),
            };
            words.next().is_none().then_some(leader)
        };
        parse().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the job's `pid` file cannot be read"))
    }

    /// Ends the session, the group, and whatever descends from them.
    pub(super) fn end(&self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
            if boot.trim() != self.boot {
                return Ok(());
            }
            let living = self.living(&Process::all()?);
            if living.is_empty() {
                return Ok(());
            }
            for process in living {
                process.kill()?;
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not end"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The processes of the job that have not ended.
    fn living(&self, all: &[Process]) -> Vec<Process> {
        // Another process has the number: the session had ended, or the kernel would not have given it.
        if all
            .iter()
            .any(|process| process.pid == self.pid && process.start != self.start)
        {
            return Vec::new();
        }
        let own = |process: &Process| {
            (process.pid == self.pid || process.session == self.pid || process.group == self.pid)
                && process.start >= self.start
        };
        let mut members: Vec<Process> = all.iter().copied().filter(own).collect();
        let mut at = 0;
        while let Some(member) = members.get(at).copied() {
            for process in all {
                if process.parent == member.pid && process.start >= member.start && !members.contains(process) {
                    members.push(*process);
                }
            }
            at += 1;
        }
        members.retain(|process| !process.dead);
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, group: i32, session: i32, start: u64) -> Process {
        Process {
            pid,
            parent,
            group,
            session,
            start,
            dead: false,
        }
    }

    fn leader() -> Leader {
        Leader {
            pid: 100,
            start: 50,
            boot: "b".to_owned(),
        }
    }

    #[test]
    fn stat_is_read_whatever_the_process_calls_itself() {
        let rest = "S 1 7 8 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0";
        for name in ["sh", "a b", ") S 9 9 9 (", ""] {
            let found = Process::parse(5, &format!("5 ({name}) {rest}")).unwrap();
            assert_eq!(found, process(5, 1, 7, 8, 4242));
        }
        assert!(
            Process::parse(5, &format!("5 (sh) {}", rest.replacen('S', "Z", 1)))
                .unwrap()
                .dead
        );
        assert_eq!(Process::parse(5, "5 (sh) S 1"), None);
        assert_eq!(Process::parse(5, ""), None);
    }

    #[test]
    fn a_leader_is_read_only_whole() {
        let whole = b"100 50 b\n";
        assert_eq!(Leader::parse(whole).unwrap(), leader());
        for bad in [
            &b""[..],
            b"100 50",
            b"1 50 b",
            b"0 50 b",
            b"-5 50 b",
            b"100 50 b c",
            b"x 50 b",
        ] {
            assert!(Leader::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn session_group_and_descendants_are_the_jobs() {
        let all = [
            process(1, 0, 1, 1, 1),
            process(100, 1, 100, 100, 50),
            process(101, 100, 100, 100, 51),
            process(102, 101, 102, 102, 52), // began a session of its own
            process(103, 102, 102, 102, 53),
            process(104, 1, 100, 100, 54), // lost its parent
            process(200, 1, 200, 200, 60),
            process(201, 100, 201, 201, 49), // older than the job: cannot be its child
        ];
        let pids: Vec<i32> = leader().living(&all).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [100, 101, 104, 102, 103]);
    }

    #[test]
    fn a_number_that_was_given_to_another_process_ends_nothing() {
        let all = [process(100, 1, 100, 100, 70), process(101, 100, 100, 100, 71)];
        assert!(leader().living(&all).is_empty());
    }

    #[test]
    fn what_is_left_of_a_session_without_its_leader_is_found() {
        let mut all = [process(101, 1, 100, 100, 51), process(102, 1, 102, 100, 52)];
        assert_eq!(leader().living(&all).len(), 2);
        all[0].dead = true;
        assert_eq!(leader().living(&all), [all[1]]);
    }
}
