//! `cargo xtask data`: real medicine, invented identities.
//!
//! SUPPORT2 has no direct identifiers. This generator puts invented ones before its columns, so that the
//! example shows what happens to them, and lets a tenth of the subjects be admitted twice, so that
//! dividing by subject matters. Every original field is kept as it is, spaces included.

mod identities;
mod random;
mod words;

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use tidegate_seal::digest::sha256;

pub(crate) use identities::ADDED;

/// SHA-256 of the only source that the committed file may come from.
const SOURCE_DIGEST: &str = "4f7dfcfb0d702401adfd0fa47702ed18fdd4dfe37acd0bcf1055acb7df007a1b";
/// Where the file is kept.
const TARGET: &str = "examples/hospital/admissions.csv";

pub(crate) fn run(root: &Path, source: &Path, check: bool) -> anyhow::Result<()> {
    let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    let digest = sha256(&bytes).to_hex();
    ensure!(
        digest == SOURCE_DIGEST,
        "{} is not the expected SUPPORT2 file: its SHA-256 is {digest}, not {SOURCE_DIGEST}",
        source.display()
    );
    let text = generate(std::str::from_utf8(&bytes).context("the source is not UTF-8")?)?;
    let target = root.join(TARGET);
    if check {
        if fs::read_to_string(&target).is_ok_and(|written| written == text) {
            return Ok(());
        }
        bail!("{TARGET} is not what the generator writes; run `cargo xtask data SOURCE`");
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&target, text).with_context(|| format!("writing {}", target.display()))?;
    println!("wrote {TARGET}");
    Ok(())
}

/// The example's table for the source's: the invented columns, then the original ones.
///
/// # Errors
/// When the source lacks a column that identities must fit, or is no table.
pub(crate) fn generate(source: &str) -> anyhow::Result<String> {
    let mut reader = csv::ReaderBuilder::new().from_reader(source.as_bytes());
    let header = reader.headers().context("reading the source's header")?.clone();
    let records: Vec<csv::StringRecord> = reader
        .records()
        .collect::<Result<_, _>>()
        .context("reading the source's rows")?;
    let identities = identities::invent(&header, &records)?;
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(ADDED.into_iter().chain(header.iter()))?;
    for (identity, record) in identities.iter().zip(&records) {
        writer.write_record(identity.iter().map(String::as_str).chain(record.iter()))?;
    }
    String::from_utf8(writer.into_inner()?).context("the result is not UTF-8")
}

#[cfg(test)]
mod tests;
