//! A place with the same name on every machine, at which a command sees its folders.
//!
//! What a program leaves often holds the paths of the place where it was made: environments of Python, configured sources.
//! Behind a name that is always the same, it works elsewhere too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Policy, system_paths};

/// Its name.
pub const ROOM: &str = "/mnt/tidegate";
/// A folder that most machines have and few use.
pub(super) const AROUND: &str = "/mnt";

/// Where that is, if none of some paths is below it.
pub(super) fn free<'a>(needed: impl Iterator<Item = &'a PathBuf>) -> Result<PathBuf, String> {
    let around = Path::new(AROUND)
        .canonicalize()
        .map_err(|error| format!("{AROUND}: {error}"))?;
    // Behind links, too. What is not there is not needed.
    let mut needed = needed.filter_map(|path| path.canonicalize().ok());
    if needed.any(|path| path.starts_with(&around)) {
        return Err(format!("the command needs something below {AROUND}"));
    }
    Ok(around)
}

/// Shows `folder` there, inside the mount namespace that this process has just moved into.
pub(super) fn make(folder: &Path, policy: &Policy) -> Result<(), String> {
    let failed = |error: nix::Error| format!("{ROOM}: {error}");
    let named = [&policy.read, &policy.write, &policy.devices].into_iter().flatten();
    let needed: Vec<PathBuf> = system_paths().into_iter().chain([folder.to_owned()]).collect();
    free(named.chain(&needed))?;
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("tidegate"),
        AROUND,
        Some("tmpfs"),
        flags,
        Some("mode=755,size=64k"),
    )
    .map_err(failed)?;
    let shown = std::fs::create_dir(ROOM)
        .map_err(|error| format!("{ROOM}: {error}"))
        .and_then(|()| mount(Some(folder), ROOM, none, MsFlags::MS_BIND, none).map_err(failed))
        .and_then(|()| {
            let here = std::env::current_dir().and_then(|here| std::env::set_current_dir(inside(folder, &here)));
            here.map_err(|error| format!("{ROOM}: {error}"))
        });
    if shown.is_err() {
        // Nothing is hidden for nothing.
        let _ = umount2(AROUND, MntFlags::MNT_DETACH);
    }
    shown
}

/// Where a path below `folder` is there; any other stays what it is.
pub(super) fn inside(folder: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(folder) {
        Ok(below) if below.as_os_str().is_empty() => ROOM.into(),
        Ok(below) => Path::new(ROOM).join(below),
        Err(_) => path.to_owned(),
    }
}

/// Variables whose values are paths below `folder` name them as they are there.
pub(crate) fn renamed(folder: &Path, environment: &mut BTreeMap<String, String>) {
    for value in environment.values_mut() {
        if let Some(path) = inside(folder, Path::new(value.as_str())).to_str()
            && value.starts_with('/')
        {
            path.clone_into(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_folder_get_the_name_and_no_others() {
        let folder = Path::new("/var/tmp/job/run-1");
        let named = [
            ("HOME", "/var/tmp/job/run-1/home", "/mnt/tidegate/home"),
            ("ROOT", "/var/tmp/job/run-1", "/mnt/tidegate"),
            ("BESIDE", "/var/tmp/job/run-12/home", "/var/tmp/job/run-12/home"),
            (
                "PATH",
                "/usr/bin:/var/tmp/job/run-1/bin",
                "/usr/bin:/var/tmp/job/run-1/bin",
            ),
            ("WORD", "run-1", "run-1"),
            ("URL", "s3://bucket//key/", "s3://bucket//key/"),
        ];
        let mut environment: BTreeMap<String, String> =
            named.map(|(name, value, _)| (name.to_owned(), value.to_owned())).into();
        renamed(folder, &mut environment);
        for (name, _, value) in named {
            assert_eq!(environment[name], value, "{name}");
        }
    }
}
