//! Part of `cargo xtask arch`: every rule that a refusal can name is in `docs/refusals.md`, and every rule
//! there is in the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

const DOCUMENT: &str = "docs/refusals.md";
const GUARDRAILS: &str = "crates/tidegate-policy/src/cedar/guardrails.cedar";
/// What permits cannot refuse.
const PERMISSION: &str = "what-no-rule-forbids";
/// What stands before a rule in the source; blanks may follow.
const BEFORE: [&str; 3] = ["rule: ", "refuse(", "@id("];

/// What is missing, on either side.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn faults(root: &Path, sources: &[String]) -> anyhow::Result<Vec<String>> {
    let read = |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("reading {name}"));
    let mut texts = sources.to_vec();
    texts.push(read(GUARDRAILS)?);
    Ok(differences(&read(DOCUMENT)?, &texts))
}

fn differences(document: &str, sources: &[String]) -> Vec<String> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let written: BTreeSet<&str> = rows.filter_map(|row| Some(row.split_once('`')?.0)).collect();
    let named: BTreeSet<&str> = sources.iter().flat_map(|text| rules(text)).collect();
    let missing = named.difference(&written).filter(|rule| **rule != PERMISSION);
    let missing = missing.map(|rule| format!("{DOCUMENT}: rule `{rule}` has no row"));
    let occurs = |rule: &str| sources.iter().any(|text| text.contains(&format!("\"{rule}\"")));
    // Some are put together from parts, so that only their ends stand in the source.
    let put_together = |rule: &str| {
        let parts = rule.split_once('-').map(|(_, rest)| format!("-{rest}\""));
        parts.is_some_and(|end| sources.iter().any(|text| text.contains(&end)))
    };
    let gone = written
        .iter()
        .filter(|rule| !occurs(rule) && !put_together(rule))
        .map(|rule| format!("{DOCUMENT}: rule `{rule}` is nowhere in the source"));
    missing.chain(gone).collect()
}

/// The rules that a source names in one piece.
fn rules(text: &str) -> impl Iterator<Item = &str> {
    let after = BEFORE.into_iter().flat_map(move |before| text.split(before).skip(1));
    after.filter_map(|rest| {
        let (rule, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        let kebab = rule.contains('-') && rule.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        kebab.then_some(rule)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_held_against_each_other() {
        let source = "Refusal { rule: \"one-two\".to_owned() }; refuse(\n    \"three-four\", what); let k = format!(\"{x}-below\");";
        let sources = [source.to_owned(), "@id(\"what-no-rule-forbids\")".to_owned()];
        let found = |document: &str| differences(document, &sources);
        assert_eq!(
            found("| `one-two` | a |\n| `three-four` | b |\n| `k-below` | c |\n"),
            [""; 0]
        );
        assert_eq!(
            found("| `one-two` | a |\n| `five-six` | b |\n"),
            [
                "docs/refusals.md: rule `three-four` has no row",
                "docs/refusals.md: rule `five-six` is nowhere in the source"
            ]
        );
    }
}
