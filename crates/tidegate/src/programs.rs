//! The programs that workers are.

use std::path::{Path, PathBuf};

use tidegate_contracts::later::Later;
use tidegate_local::program_digest;
use tidegate_machine::{BUILD, PROGRAM};
use tidegate_types::Digest;

use crate::failure::{Failure, While};

/// A program, and SHA-256 of its file or why it cannot be used.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) digest: Later<Result<Digest, String>>,
}

/// What runs jobs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// At the site of the data, where they may prepare and judge: this program.
    pub(crate) home: Program,
    /// At all other sites: the small program where it lies beside this one, else this one.
    pub(crate) elsewhere: Program,
}

impl Programs {
    /// Finds them, and begins to read them; what they were is remembered in `folder`.
    pub(crate) fn of(folder: &Path) -> Result<Self, Failure> {
        let own = std::env::current_exe().while_("finding this program")?;
        let small = own.with_file_name(PROGRAM);
        let home = Program::begin(own, folder.join("tidegate.json"), false);
        let elsewhere = if lies_there(&small) {
            Program::begin(small, folder.join("tidegate-machine.json"), true)
        } else {
            home.clone()
        };
        Ok(Self { home, elsewhere })
    }
}

/// Whether anything has this name, of whatever kind: what is broken shall be told and not passed over.
fn lies_there(file: &Path) -> bool {
    std::fs::symlink_metadata(file).is_ok()
}

impl Program {
    fn begin(path: PathBuf, memory: PathBuf, other: bool) -> Self {
        let file = path.clone();
        let digest = Later::begin(move || {
            let named = file.display();
            if other {
                let remedy = format!("put the {PROGRAM} that was built with `tidegate` there, or remove it");
                same_build(&file).map_err(|why| format!("using {named}: {why}; {remedy}"))?;
            }
            program_digest(&file, Some(&memory)).map_err(|error| format!("reading {named}: {error}"))
        });
        Self { path, digest }
    }
}

/// Two builds might not understand each other. The file is searched and not started: it may be made for other machines.
fn same_build(program: &Path) -> Result<(), String> {
    let bytes = std::fs::read(program).map_err(|error| error.to_string())?;
    match memchr::memmem::find(&bytes, BUILD.as_bytes()) {
        Some(_) => Ok(()),
        None => Err(format!("it is not that of this `tidegate`, {BUILD}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(bytes: &[u8]) -> Result<Digest, String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(PROGRAM);
        std::fs::write(&program, bytes).unwrap();
        let program = Program::begin(program, folder.path().join("memory.json"), true);
        program.digest.get().clone()
    }

    #[test]
    fn a_program_of_another_build_is_refused_with_what_to_do() {
        let version = env!("CARGO_PKG_VERSION");
        let this = format!("\u{7f}ELF {BUILD} and more");
        assert_eq!(
            beside(this.as_bytes()),
            Ok(tidegate_seal::digest::sha256(this.as_bytes()))
        );
        for other in ["", "\u{7f}ELF", &format!("{version} build 0123456789abcdef")] {
            let told = beside(other.as_bytes()).unwrap_err();
            assert!(told.contains(BUILD) && told.contains("or remove it"), "{told}");
        }
    }

    #[test]
    fn what_bears_its_name_and_cannot_be_read_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join(PROGRAM);
        assert!(!lies_there(&link));
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(lies_there(&link));
        let program = Program::begin(link, folder.path().join("memory.json"), true);
        let told = program.digest.get().clone().unwrap_err();
        assert!(told.contains("No such file") && told.contains("or remove it"), "{told}");
    }
}
