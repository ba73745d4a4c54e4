//! A root of the command's own, that holds what it may see and nothing else.
//!
//! Landlock closes files, and no kernel of today lets it close the sockets that services of the machine listen on by a path.
//! Where these paths lead nowhere, a command's processes may have local sockets among themselves. It is a small memory file
//! system that shows the same files and folders as the policy opens, each under its own name, and takes the place of the
//! machine's root.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::process::pivot_root;

use super::room::{self, AROUND, ROOM};
use super::{DEVICES, Policy, shared, system_paths};

/// Names of the process's own streams, which programs write to.
const STREAMS: [&str; 4] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];
/// Networked commands learn from it where names are looked up; a service listens in it.
const RESOLVER: &str = "/run/systemd/resolve";
/// More links than that lead nowhere.
const MOST_LINKS: u32 = 40;

/// The paths at which services of this machine listen now. Asked before a network of one's own, which has none.
pub(super) fn services() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths = table.lines().filter_map(|line| line.split_ascii_whitespace().nth(7));
    paths.filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
}

/// Makes it, inside the mount namespace that this process has just moved into, and moves there. `shared` says whether there
/// is memory that processes share by name.
///
/// # Errors
/// Why there is none; nothing has changed then.
pub(super) fn make(policy: &Policy, shared: bool, services: &[PathBuf]) -> Result<(), String> {
    let system = system_paths().into_iter().filter(|path| path != Path::new(RESOLVER));
    let mut shown: Vec<PathBuf> = system.chain(policy.read.iter().cloned()).collect();
    for path in &shown {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(service) = services.iter().find(|service| service.starts_with(&real)) {
            return Err(format!("a service of this machine listens at {}", service.display()));
        }
    }
    shown.extend(policy.write.iter().chain(&policy.devices).cloned());
    shown.extend(DEVICES.iter().chain(&STREAMS).map(PathBuf::from));
    shown.extend(shared.then(|| PathBuf::from(shared::FOLDER)));
    let around = room::free(policy.room.iter().chain(&shown))?;
    // What is above comes first: it shows what is below.
    shown.sort_by_key(|path| path.components().count());
    let here = std::env::current_dir().map_err(|error| format!("finding this folder: {error}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let about = Some("mode=755,size=4m,nr_inodes=16384");
    mount(Some("tidegate"), &around, Some("tmpfs"), flags, about).map_err(|error| format!("{AROUND}: {error}"))?;
    let moved = fill(&around, policy, &shown).and_then(|()| {
        let none: Option<&str> = None;
        mount(
            none,
            &around,
            none,
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags,
            none,
        )
        .map_err(|error| format!("closing the root of its own: {error}"))?;
        let failed = |error: std::io::Error| format!("moving into a root of its own: {error}");
        std::env::set_current_dir(&around).map_err(failed)?;
        // The old root lies above the new one, and goes.
        pivot_root(".", ".").map_err(|error| failed(error.into()))
    });
    if let Err(why) = moved {
        let _ = std::env::set_current_dir(&here);
        let _ = umount2(&around, MntFlags::MNT_DETACH);
        return Err(why);
    }
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| format!("leaving the machine's root: {error}"))?;
    let folder = match &policy.room {
        Some(folder) => room::inside(folder, &here),
        None => here,
    };
    std::env::set_current_dir(folder).map_err(|error| format!("going back to the folder: {error}"))
}

fn fill(around: &Path, policy: &Policy, shown: &[PathBuf]) -> Result<(), String> {
    let mut root = Root {
        at: around.to_owned(),
        bound: BTreeSet::new(),
    };
    for path in shown {
        root.show(path, 0)?;
    }
    match &policy.room {
        Some(folder) => root.bind(folder, Path::new(ROOM)),
        None => Ok(()),
    }
}

struct Root {
    /// Where it is being made.
    at: PathBuf,
    /// What is shown with all that is below.
    bound: BTreeSet<PathBuf>,
}

impl Root {
    /// Shows what stands at a path, and the links that lead there. What is not there is not needed.
    fn show(&mut self, path: &Path, links: u32) -> Result<(), String> {
        let mut walked = PathBuf::from("/");
        let mut parts = path.components();
        // The root itself.
        parts.next();
        while let Some(part) = parts.next() {
            walked.push(part);
            if self.bound.contains(&walked) {
                return Ok(());
            }
            let Ok(about) = fs::symlink_metadata(&walked) else {
                return Ok(());
            };
            if about.is_symlink() && links < MOST_LINKS {
                let target = fs::read_link(&walked).map_err(|error| format!("{}: {error}", walked.display()))?;
                let there = self.there(&walked)?;
                if fs::symlink_metadata(&there).is_err() {
                    symlink(&target, &there).map_err(|error| format!("{}: {error}", walked.display()))?;
                }
                walked.pop();
                let real = walked.join(target).join(parts.as_path());
                return self.show(&without_dots(&real), links + 1);
            }
        }
        self.bind(&walked, &walked)
    }

    /// A path in the new root, whose folder is there.
    fn there(&self, path: &Path) -> Result<PathBuf, String> {
        let there = self.at.join(path.strip_prefix("/").unwrap_or(path));
        let folder = there.parent().unwrap_or(&self.at);
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(there)
    }

    fn bind(&mut self, from: &Path, to: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", to.display());
        let there = self.there(to)?;
        if fs::metadata(from).map_err(failed)?.is_dir() {
            fs::create_dir_all(&there).map_err(failed)?;
        } else {
            fs::File::create(&there).map_err(failed)?;
        }
        let none: Option<&str> = None;
        mount(Some(from), &there, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(|error| failed(error.into()))?;
        self.bound.insert(to.to_owned());
        Ok(())
    }
}

/// A path without `.` and `..`. Before them stand no links, since each is followed for itself.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_they_did() {
        for (path, plain) in [
            ("/usr/bin/../lib/x", "/usr/lib/x"),
            ("/etc/./passwd", "/etc/passwd"),
            ("/../../etc", "/etc"),
            ("/", "/"),
        ] {
            assert_eq!(without_dots(Path::new(path)), Path::new(plain), "{path}");
        }
    }
}
