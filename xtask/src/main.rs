//! The repository's own chores: `cargo xtask COMMAND`.

mod arch;
mod compare;
mod data;
mod e2e;
mod machine;
#[path = "../../crates/tidegate-cloud/tests/it/peers.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the tests' own: some of it serves them alone, and it fails as tests do"
)]
mod peers;
mod refusals;
mod schemas;
mod transfer;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Parser, Subcommand};

/// Cargo, as whoever started this chore would start it. What Cargo tells the programs that it runs of themselves would make
/// build scripts that look at it (ring's among them) run again, and everything above them be built again, here and after.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ];
    for (name, _) in std::env::vars_os() {
        let name_of = name.to_string_lossy();
        if told.iter().any(|prefix| name_of.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Chores of the Tidegate repository.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Checks who depends on whom, how large crates and files are, and that every refusal is documented
    Arch,
    /// Writes the JSON Schemas of the three files into `schemas/`
    Schemas {
        /// Only say whether they are what they should be
        #[arg(long)]
        check: bool,
    },
    /// Writes the example's data, `examples/hospital/admissions.csv`
    Data {
        /// The SUPPORT2 data set as CSV
        source: PathBuf,
        /// Only say whether the file is what it should be
        #[arg(long)]
        check: bool,
    },
    /// Measures ours against a peer on the same work
    Compare(compare::Compare),
    /// Builds the program for machines, linked statically, and prints where it is
    Machine {
        /// Where to put it; `static/tidegate-machine` beside what else is built otherwise
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs the hospital pipeline with training on machines that clouds start
    E2e(e2e::EndToEnd),
    /// One side of `compare transfer`
    #[command(hide = true)]
    Carry {
        way: transfer::Way,
        store: String,
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().chore {
        Chore::Arch => arch::run(root()),
        Chore::Schemas { check } => schemas::run(root(), check),
        Chore::Data { source, check } => data::run(root(), &source, check),
        Chore::Compare(compare) => compare.run(),
        Chore::Machine { out } => machine::run(root(), out.as_deref()),
        Chore::E2e(kinds) => kinds.run(root()),
        Chore::Carry { way, store, folder } => transfer::carry(way, &store, &folder),
    }
}

/// The repository's folder.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
