//! `cargo xtask machine`: the program for machines, linked statically.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde::Deserialize;

const PROGRAM: &str = "tidegate-machine";

/// What cargo says of what it built.
#[derive(Deserialize)]
struct Told {
    executable: Option<PathBuf>,
}

/// Builds it and puts it at `out`, or into the folder `static` beside what else is built.
pub(crate) fn run(root: &Path, out: Option<&Path>) -> anyhow::Result<()> {
    let build = ["rustc", "--release", "--package", PROGRAM, "--bin", PROGRAM];
    // The libraries are those of the usual build: what is static is the last step.
    let link = ["-C", "target-feature=+crt-static", "-C", "strip=symbols"];
    let built = crate::cargo()
        .current_dir(root)
        .args(build)
        .args(["--message-format", "json-render-diagnostics", "--"])
        .args(link)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(built.status.success(), "cargo did not build {PROGRAM}");
    let messages = std::str::from_utf8(&built.stdout).context("reading what cargo says")?;
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Told>(line).ok()?.executable)
        .next_back()
        .context("cargo does not say where it put the program")?;
    let usual = program.ancestors().nth(2).unwrap_or(root).join("static").join(PROGRAM);
    let out = out.unwrap_or(&usual);
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    // Whole or not at all: it may be running.
    let part = out.with_extension("part");
    std::fs::copy(&program, &part)
        .and_then(|_| std::fs::rename(&part, out))
        .with_context(|| format!("writing {}", out.display()))?;
    // Beside `tidegate` it would be used: there, only what somebody put there shall lie.
    if program.canonicalize().ok() != out.canonicalize().ok() {
        std::fs::remove_file(&program).with_context(|| format!("removing {}", program.display()))?;
    }
    println!("{}", out.display());
    Ok(())
}
