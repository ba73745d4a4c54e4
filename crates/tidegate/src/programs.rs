//! The programs that workers are.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate_contracts::later::Later;
use tidegate_local::program_digest;
use tidegate_machine::PROGRAM;
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
        let elsewhere = if small.is_file() {
            Program::begin(small, folder.join("tidegate-machine.json"), true)
        } else {
            home.clone()
        };
        Ok(Self { home, elsewhere })
    }
}

impl Program {
    fn begin(path: PathBuf, memory: PathBuf, other: bool) -> Self {
        let file = path.clone();
        let digest = Later::begin(move || {
            if other {
                same_version(&file)?;
            }
            program_digest(&file, Some(&memory)).map_err(|error| format!("reading {}: {error}", file.display()))
        });
        Self { path, digest }
    }
}

/// Two versions would not understand each other.
fn same_version(program: &Path) -> Result<(), String> {
    let named = program.display();
    let told = Command::new(program).arg("--version").output();
    let told = told.map_err(|error| format!("asking {named} for its version: {error}"))?;
    let expected = concat!("tidegate-machine ", env!("CARGO_PKG_VERSION"));
    match std::str::from_utf8(&told.stdout).map(str::trim) {
        Ok(version) if version == expected => Ok(()),
        _ => Err(format!(
            "{named} is not `{expected}`; put that one beside `tidegate`, or remove it"
        )),
    }
}
