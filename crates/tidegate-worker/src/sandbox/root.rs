//! A root of the command's own, that holds what it may see and nothing else.
//!
//! Landlock closes files, and before its ninth version it cannot close the sockets that services of the machine listen on by a
//! path. Here a command finds none of them, so that its processes may have local sockets among themselves. It is a small memory
//! file system that shows the same files and folders as the policy opens, each under its own name, and takes the place of the
//! machine's root. Folders of the machine that may only be read are shown through an overlay without an upper layer: files
//! are read through it, and a socket has no listener behind it, whenever and however it was bound.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::process::pivot_root;

use super::room::{self, AROUND, ROOM};
use super::{DEVICES, Policy, shared, system_paths};

/// Names of the process's own streams, which programs write to.
const STREAMS: [&str; 4] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];
/// Networked commands learn from it where names are looked up; nobody needs it without.
const RESOLVER: &str = "/run/systemd/resolve";
/// The kernel's own files, among which no service listens and which change as they are read.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// The lower layer of each overlay, which needs two.
const NOTHING: &str = ".nothing";
/// More links than that lead nowhere.
const MOST_LINKS: u32 = 40;
const NONE: Option<&str> = None;

/// Makes it, inside the mount namespace that this process has just moved into, and moves there. `shared` says whether there
/// is memory that processes share by name. False where the machine does not allow it; nothing has changed then.
///
/// # Errors
/// When the way there could not be gone to its end: the command must not be started.
pub(super) fn make(policy: &Policy, shared: bool) -> Result<bool, String> {
    let Ok(here) = std::env::current_dir() else {
        return Ok(false);
    };
    let folder = match &policy.room {
        Some(folder) => room::inside(folder, &here),
        None => here.clone(),
    };
    let Ok(around) = mounted(policy, shared, &folder) else {
        return Ok(false);
    };
    let entered = std::env::set_current_dir(&around).and_then(|()| Ok(pivot_root(".", ".")?));
    if entered.is_err() {
        std::env::set_current_dir(&here).map_err(|error| format!("going back to the folder: {error}"))?;
        umount2(&around, MntFlags::MNT_DETACH).map_err(|error| format!("removing a root: {error}"))?;
        return Ok(false);
    }
    // The old root lies above the new one, and goes.
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| format!("leaving the machine's root: {error}"))?;
    std::env::set_current_dir(folder).map_err(|error| format!("going back to the folder: {error}"))?;
    Ok(true)
}

/// Makes it without going there.
fn mounted(policy: &Policy, shared: bool, folder: &Path) -> Result<PathBuf, String> {
    let system = system_paths().into_iter().filter(|path| path != Path::new(RESOLVER));
    let read = system.chain(policy.read.iter().cloned());
    let write = policy.write.iter().chain(&policy.devices).cloned();
    let always = DEVICES.iter().chain(&STREAMS).map(PathBuf::from);
    let memory = shared.then(|| PathBuf::from(shared::FOLDER));
    let mut shown: Vec<(PathBuf, bool)> = read.map(|path| (path, true)).collect();
    shown.extend(write.chain(always).chain(memory).map(|path| (path, false)));
    let around = room::free(policy.room.iter().chain(shown.iter().map(|(path, _)| path)))?;
    // What is above comes first: it shows what is below.
    shown.sort_by_key(|(path, _)| path.components().count());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let about = Some("mode=755,size=4m,nr_inodes=16384");
    mount(Some("tidegate"), &around, Some("tmpfs"), flags, about).map_err(|error| format!("{AROUND}: {error}"))?;
    let mut root = Root {
        at: around.clone(),
        room: policy.room.clone(),
        bound: BTreeSet::new(),
    };
    let filled = root.fill(&shown, folder).and_then(|()| {
        // The mount alone: what is shown below has file systems of its own.
        let closed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
        mount(NONE, &around, NONE, closed, NONE).map_err(|error| format!("closing a root: {error}"))
    });
    match filled {
        Ok(()) => Ok(around),
        Err(why) => {
            let _ = umount2(&around, MntFlags::MNT_DETACH);
            Err(why)
        }
    }
}

struct Root {
    /// Where it is being made.
    at: PathBuf,
    /// The folder that is shown as the room: all below is the command's own, and changes while it runs.
    room: Option<PathBuf>,
    /// What is shown with all that is below.
    bound: BTreeSet<PathBuf>,
}

impl Root {
    fn fill(&mut self, shown: &[(PathBuf, bool)], folder: &Path) -> Result<(), String> {
        fs::create_dir(self.at.join(NOTHING)).map_err(|error| format!("{AROUND}: {error}"))?;
        for (path, read_only) in shown {
            self.show(path, *read_only)?;
        }
        if let Some(room) = self.room.clone() {
            self.bind(&room, Path::new(ROOM))?;
        }
        // Where the command is to begin.
        let there = self.at.join(folder.strip_prefix("/").unwrap_or(folder));
        match fs::metadata(&there) {
            Ok(about) if about.is_dir() => Ok(()),
            _ => Err("the command's folder is not shown".to_owned()),
        }
    }

    fn is_shown(&self, path: &Path) -> bool {
        path.ancestors().any(|above| self.bound.contains(above))
    }

    /// Shows what stands at a path, and the links that lead there. What is not there is not needed.
    fn show(&mut self, path: &Path, read_only: bool) -> Result<(), String> {
        let mut walked = PathBuf::from("/");
        let mut left: VecDeque<OsString> = parts(path).collect();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                walked.pop();
                continue;
            }
            walked.push(part);
            let Ok(about) = fs::symlink_metadata(&walked) else {
                return Ok(());
            };
            if about.is_symlink() {
                links += 1;
                let Ok(target) = fs::read_link(&walked) else {
                    return Ok(());
                };
                if links > MOST_LINKS {
                    return Ok(());
                }
                if !self.is_shown(&walked) {
                    let there = self.there(&walked)?;
                    if fs::symlink_metadata(&there).is_err() {
                        symlink(&target, &there).map_err(|error| format!("{}: {error}", walked.display()))?;
                    }
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(part);
                }
                if target.is_absolute() {
                    walked = PathBuf::from("/");
                } else {
                    walked.pop();
                }
            }
        }
        if self.is_shown(&walked) {
            return Ok(());
        }
        let own = self.room.as_ref().is_some_and(|room| walked.starts_with(room));
        let kernel = KERNEL.iter().any(|kernel| walked.starts_with(kernel));
        let Ok(about) = fs::metadata(&walked) else {
            return Ok(());
        };
        match read_only && !own && !kernel {
            true if about.is_dir() => self.overlay(&walked),
            // A socket by itself.
            true if !about.is_file() => Ok(()),
            _ => self.bind(&walked, &walked),
        }
    }

    /// A path in the new root, whose folder is there.
    fn there(&self, path: &Path) -> Result<PathBuf, String> {
        let there = self.at.join(path.strip_prefix("/").unwrap_or(path));
        if there == self.at {
            return Err("the whole machine is not shown".to_owned());
        }
        let folder = there.parent().unwrap_or(&self.at);
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(there)
    }

    /// Shows a folder that is only read, and the file systems that are mounted below it.
    fn overlay(&mut self, path: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut folders = vec![path.to_owned()];
        folders.extend(
            mounts()?
                .into_iter()
                .filter(|below| below != path && below.starts_with(path)),
        );
        for folder in folders {
            if !fs::metadata(&folder).map_err(failed)?.is_dir() {
                return Err(format!("something is mounted over the file {}", folder.display()));
            }
            let there = self.at.join(folder.strip_prefix("/").unwrap_or(&folder));
            if folder == path {
                fs::create_dir_all(self.there(path)?).map_err(failed)?;
            }
            // In one option, in which these have a meaning.
            let name = folder.to_str().filter(|name| !name.contains([':', ',', '\\', '\n']));
            let name = name.ok_or_else(|| "a folder has a name that cannot be shown".to_owned())?;
            let layers = format!("lowerdir={name}:{}/{NOTHING}", self.at.display());
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tidegate"), &there, Some("overlay"), flags, Some(layers.as_str()))
                .map_err(|error| failed(error.into()))?;
        }
        self.bound.insert(path.to_owned());
        Ok(())
    }

    fn bind(&mut self, from: &Path, to: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", to.display());
        let there = self.there(to)?;
        if fs::metadata(from).map_err(failed)?.is_dir() {
            fs::create_dir_all(&there).map_err(failed)?;
        } else {
            fs::File::create(&there).map_err(failed)?;
        }
        mount(Some(from), &there, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .map_err(|error| failed(error.into()))?;
        self.bound.insert(to.to_owned());
        Ok(())
    }
}

/// The names in a path, and `..`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Where something is mounted, above before below. (Names with blanks are written otherwise there, and found by nobody: an
/// overlay shows what is below such a mount, which is nothing that was meant to be hidden.)
fn mounts() -> Result<Vec<PathBuf>, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("reading the mounts: {error}"))?;
    let paths = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut paths: Vec<PathBuf> = paths.map(PathBuf::from).collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}
