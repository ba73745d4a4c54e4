//! Memory that a command's processes share by name: a `/dev/shm` of its own.
//!
//! Libraries that work with several processes keep locks, queues and arrays there (POSIX semaphores and shared memory). The
//! machine's own would be a way to other processes and would outlive the command; this one is an empty memory file system in a
//! mount namespace of the command's own, which goes with its last process. Its pages count as the command's memory.

use std::os::fd::OwnedFd;

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags, fstat, fstatvfs, major, minor, open};

/// Where it is.
pub(super) const FOLDER: &str = "/dev/shm";
/// The most names in it: each takes memory of the kernel that no limit counts.
const NAMES: u64 = 16_384;

/// Puts an empty memory file system in its place, inside the mount namespace that this process has just moved into. `limit`
/// is what the command's memory is limited to, in bytes; 0 for no limit.
pub(super) fn make(limit: u64) -> Result<OwnedFd, String> {
    let mut about = format!("mode=1777,nr_inodes={NAMES}");
    if limit > 0 {
        // The watching thread ends the command at the limit and can tell why; this is for what is faster.
        about.push_str(&format!(",size={}", limit.saturating_mul(2)));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tidegate"), FOLDER, Some("tmpfs"), flags, Some(about.as_str()))
        .map_err(|error| format!("{FOLDER}: {error}"))?;
    open(
        FOLDER,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| format!("{FOLDER}: {error}"))
}

/// The worker's view of a command's shared memory.
#[derive(Debug)]
pub(super) struct Shared {
    folder: OwnedFd,
    /// As the kernel writes it into tables of mappings.
    device: String,
}

impl Shared {
    pub(super) fn new(folder: OwnedFd) -> std::io::Result<Self> {
        let device = fstat(&folder)?.st_dev;
        let device = format!("{:02x}:{:02x}", major(device), minor(device));
        Ok(Self { folder, device })
    }

    /// What is in it, in bytes, whether a process has it mapped or not. What cannot be measured is taken for too much.
    pub(super) fn bytes(&self) -> u64 {
        fstatvfs(&self.folder).map_or(u64::MAX, |about| {
            about
                .f_blocks
                .saturating_sub(about.f_bfree)
                .saturating_mul(about.f_frsize)
        })
    }

    /// Whether a line of `/proc/PID/smaps` begins a mapping of it, where the line begins a mapping.
    pub(super) fn is_mapped_by(&self, line: &str) -> Option<bool> {
        let mut words = line.split_ascii_whitespace();
        let range = words.next()?;
        // Lines about a mapping begin with a name and a colon.
        if range.ends_with(':') || !range.contains('-') {
            return None;
        }
        Some(words.nth(2) == Some(self.device.as_str()))
    }
}
