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

use clap::{Parser, Subcommand};

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
