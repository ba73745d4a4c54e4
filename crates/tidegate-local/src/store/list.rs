//! Listing a tree of files in the order of whole names, without reading more of it than is asked for.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use tidegate_contracts::{ObjectInfo, ObjectName};

/// The most objects of one page.
const PAGE: usize = 1000;

/// The page of objects whose names begin with `prefix` and are greater than `after`.
pub(super) fn list(root: &OwnedFd, prefix: &str, after: Option<&ObjectName>) -> io::Result<Vec<ObjectInfo>> {
    let mut walk = Walk {
        prefix,
        after: after.map_or("", ObjectName::as_str),
        page: Vec::new(),
    };
    walk.folder(root, "")?;
    Ok(walk.page)
}

struct Walk<'a> {
    prefix: &'a str,
    after: &'a str,
    page: Vec<ObjectInfo>,
}

impl Walk<'_> {
    /// Whether a folder, whose objects' names all begin with `within`, can hold any that is asked for.
    fn may_hold(&self, within: &str) -> bool {
        let fits = within.starts_with(self.prefix) || self.prefix.starts_with(within);
        fits && (within > self.after || self.after.starts_with(within))
    }

    fn folder(&mut self, folder: &OwnedFd, within: &str) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            // Names that no object can have belong to somebody else.
            if let Ok(name) = entry.file_name().to_str()
                && ObjectName::new(name).is_ok()
            {
                let is_folder = match entry.file_type() {
                    FileType::Directory => true,
                    FileType::RegularFile => false,
                    FileType::Unknown => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                            FileType::Directory => true,
                            FileType::RegularFile => false,
                            _ => continue,
                        },
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(error.into()),
                    },
                    _ => continue,
                };
                // With the slash a folder sorts as the names in it do.
                entries.push(if is_folder {
                    format!("{within}{name}/")
                } else {
                    format!("{within}{name}")
                });
            }
        }
        entries.sort_unstable();
        for path in entries {
            if self.page.len() >= PAGE {
                break;
            }
            let name = path.get(within.len()..).unwrap_or_default();
            if path.ends_with('/') {
                if self.may_hold(&path) {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    match openat(folder, name.trim_end_matches('/'), flags, Mode::empty()) {
                        Ok(inner) => self.folder(&inner, &path)?,
                        Err(Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            } else if path.starts_with(self.prefix) && path.as_str() > self.after {
                self.file(folder, name, path.clone())?;
            }
        }
        Ok(())
    }

    fn file(&mut self, folder: &OwnedFd, name: &str, path: String) -> io::Result<()> {
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Deleted meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        if let Ok(name) = ObjectName::new(path) {
            self.page.push(ObjectInfo {
                name,
                bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            });
        }
        Ok(())
    }
}
