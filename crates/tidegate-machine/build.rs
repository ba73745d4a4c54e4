//! Names the build by what it is made from, and compiles how a static program looks names up.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rustc-env=TIDEGATE_BUILD={:016x}", build()?);
    println!("cargo::rerun-if-changed=src/names.c");
    // Only the GNU library loads modules for names.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|library| library == "gnu") {
        cc::Build::new()
            .file("src/names.c")
            .warnings_into_errors(true)
            .link_lib_modifier("+whole-archive")
            .compile("tidegate_names");
    }
    Ok(())
}

/// A number for the sources of this crate and of those in the workspace that it is made from. It tells builds apart that
/// bear the same version, and protects from nobody.
fn build() -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut sources = vec![PathBuf::from("../../Cargo.lock")];
    for name in parts()? {
        sources.push(Path::new("..").join(&name).join("Cargo.toml"));
        sources.push(Path::new("..").join(&name).join("src"));
    }
    for source in sources {
        println!("cargo::rerun-if-changed={}", source.display());
        add(&source, &mut hasher)?;
    }
    Ok(hasher.finish())
}

/// The crates of the workspace that this one is made from, itself among them.
fn parts() -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open = vec!["tidegate-machine".to_owned()];
    while let Some(name) = open.pop() {
        let manifest = fs::read_to_string(Path::new("..").join(&name).join("Cargo.toml"))?;
        let names = manifest.lines().filter(|line| line.starts_with("tidegate-"));
        let names = names.filter_map(|line| line.split(['.', ' ', '=']).next());
        if found.insert(name) {
            open.extend(names.map(str::to_owned));
        }
    }
    Ok(found)
}

fn add(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    path.hash(hasher);
    if path.is_dir() {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let paths: BTreeSet<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        return paths.iter().try_for_each(|path| add(path, hasher));
    }
    fs::read(path)?.hash(hasher);
    Ok(())
}
