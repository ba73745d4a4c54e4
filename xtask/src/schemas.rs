//! `cargo xtask schemas`: JSON Schemas of the three files.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use tidegate_types::files::schema::schemas;
use tidegate_types::to_canonical_json;

pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    let folder = root.join("schemas");
    let mut stale = Vec::new();
    for (name, schema) in schemas() {
        let path = folder.join(name);
        // By way of the canonical form, so that the order of keys is the same whatever is built along.
        let ordered: serde_json::Value = serde_json::from_slice(&to_canonical_json(&schema)?)?;
        let text = format!("{}\n", serde_json::to_string_pretty(&ordered)?);
        if fs::read_to_string(&path).is_ok_and(|written| written == text) {
            continue;
        }
        if check {
            stale.push(name);
        } else {
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("wrote schemas/{name}");
        }
    }
    if !stale.is_empty() {
        bail!("stale: {}; run `cargo xtask schemas`", stale.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_schemas_are_those_of_the_code() {
        super::run(crate::root(), true).unwrap();
    }
}
