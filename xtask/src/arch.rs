//! `cargo xtask arch`: the house stands as it was drawn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::refusals;

/// Which crates a crate may use, beyond those of others: every arrow that there may be.
const ARROWS: [(&str, &[&str]); 19] = [
    ("tidegate-types", &[]),
    ("tidegate-policy", &["types"]),
    ("tidegate-plan", &["types", "policy"]),
    ("tidegate-seal", &["types"]),
    ("tidegate-ledger", &["types", "seal"]),
    ("tidegate-contracts", &["types"]),
    ("tidegate-transfer", &["types", "seal", "contracts"]),
    ("tidegate-prepare", &["types", "contracts"]),
    ("tidegate-bundle", &["types", "seal"]),
    ("tidegate-learn", &["types", "bundle"]),
    ("tidegate-serve", &["types", "bundle", "contracts", "transfer"]),
    ("tidegate-worker", &["types", "seal", "contracts", "transfer"]),
    (
        "tidegate-keeper",
        &["types", "policy", "seal", "ledger", "contracts", "transfer"],
    ),
    // The engine names what it signs and asks by digest, and signs as the control plane: seal.
    (
        "tidegate-engine",
        &["types", "plan", "policy", "ledger", "seal", "contracts", "transfer"],
    ),
    // The key file wraps keys in the format of seal.
    ("tidegate-local", &["types", "contracts", "seal"]),
    ("tidegate-cloud", &["types", "contracts", "seal"]),
    // Jobs are given to hosts by digest: seal.
    ("tidegate-ssh", &["types", "contracts", "seal"]),
    // The worker and the trainer, wired to real stores and platforms.
    (
        "tidegate-machine",
        &["types", "contracts", "learn", "worker", "local", "cloud", "ssh"],
    ),
    ("tidegate-server", &["engine"]),
];

/// Crates that may use every other: the binary, and these chores.
const EVERYTHING: [&str; 2] = ["tidegate", "xtask"];

/// What must not be below a crate, at any distance, with the reason. A name that ends in `*` is a
/// prefix.
const FORBIDDEN: [(&[&str], &[&str], &str); 4] = [
    (
        &["tidegate-types", "tidegate-plan", "tidegate-seal", "tidegate-ledger"],
        &["tokio", "async-std", "smol"],
        "it is pure or synchronous, and an auditor's tool must be able to use it",
    ),
    (
        &["tidegate-worker"],
        &[
            "datafusion*",
            "sqlparser",
            "cedar-policy*",
            "rusqlite",
            "libsqlite3-sys",
            "tract*",
        ],
        "the worker stays small and static, and holds nothing that it does not need",
    ),
    (
        &["tidegate-machine"],
        &["datafusion*", "sqlparser", "cedar-policy*", "tract*"],
        "what every machine fetches stays small, and reads no rows",
    ),
    (
        &["tidegate-prepare"],
        &[
            "reqwest",
            "hyper*",
            "ureq",
            "curl",
            "isahc",
            "quinn",
            "aws-sdk*",
            "aws-config",
            "aws-sigv4",
            "tonic",
        ],
        "what reads private rows has no network client",
    ),
];

/// Lines that the crate of words may have.
const TYPES_LINES: usize = 5_000;
/// Lines that any file may have.
const FILE_LINES: usize = 600;

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// Who uses whom, by package id; what only tests use is left out.
#[derive(Debug)]
struct Graph {
    names: BTreeMap<String, String>,
    members: BTreeSet<String>,
    uses: BTreeMap<String, Vec<String>>,
}

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let graph = Graph::read(root)?;
    let mut faults = graph.arrows();
    for (crates, _, _) in FORBIDDEN {
        for name in crates {
            faults.extend(Graph::alone(root, name)?.forbidden());
        }
    }
    faults.extend(sizes(root)?);
    faults.extend(refusals::faults(root, &product(root)?)?);
    for fault in &faults {
        println!("{fault}");
    }
    ensure!(faults.is_empty(), "{} rule(s) of the house are broken", faults.len());
    println!("the house stands: {} crates", graph.members.len());
    Ok(())
}

impl Graph {
    fn read(root: &Path) -> anyhow::Result<Self> {
        // Of all platforms together it would first fetch what none but others use.
        let version = cargo(root, &["-vV"])?;
        let version = String::from_utf8(version).context("reading what `cargo -vV` said")?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("`cargo -vV` names no host")?;
        let metadata = [
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            host,
        ];
        let metadata = cargo(root, &metadata)?;
        let metadata = serde_json::from_slice(&metadata).context("reading what `cargo metadata` said")?;
        Ok(Self::of(metadata))
    }

    /// What is below one crate when it is built by itself: in the whole workspace a library has every part
    /// that anybody asks for.
    fn alone(root: &Path, name: &str) -> anyhow::Result<Self> {
        let tree = [
            "tree", "--locked", "--edges", "no-dev", "--prefix", "depth", "--format", " {p}",
        ];
        let tree = cargo(root, &[&tree[..], &["--package", name]].concat())?;
        let tree = String::from_utf8(tree).context("reading what `cargo tree` said")?;
        Self::of_tree(&tree).with_context(|| format!("reading what is below {name}"))
    }

    /// Reads lines of depth, name and version.
    fn of_tree(tree: &str) -> anyhow::Result<Self> {
        let mut graph = Self {
            names: BTreeMap::new(),
            members: BTreeSet::new(),
            uses: BTreeMap::new(),
        };
        let mut above: Vec<String> = Vec::new();
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let depth: usize = words
                .next()
                .unwrap_or_default()
                .parse()
                .context("a line without depth")?;
            let name = words.next().context("a line without a name")?;
            let id = format!("{name} {}", words.next().unwrap_or_default());
            graph.names.insert(id.clone(), name.to_owned());
            above.truncate(depth);
            match above.last() {
                Some(user) => graph.uses.entry(user.clone()).or_default().push(id.clone()),
                None => drop(graph.members.insert(id.clone())),
            }
            above.push(id);
        }
        Ok(graph)
    }

    fn of(metadata: Metadata) -> Self {
        let uses = metadata.resolve.nodes.into_iter().map(|node| {
            let shipped = |dependency: &Dependency| {
                let kinds = &dependency.dep_kinds;
                kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
            };
            let used = node.deps.into_iter().filter(shipped).map(|dependency| dependency.pkg);
            (node.id, used.collect())
        });
        Self {
            uses: uses.collect(),
            names: metadata
                .packages
                .into_iter()
                .map(|package| (package.id, package.name))
                .collect(),
            members: metadata.workspace_members,
        }
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }

    /// Arrows between crates of the house that nobody drew.
    fn arrows(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for id in &self.members {
            let name = self.name(id);
            if EVERYTHING.contains(&name) {
                continue;
            }
            let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == name) else {
                faults.push(format!(
                    "{name}: no arrow table names this crate; add it to `xtask/src/arch.rs`"
                ));
                continue;
            };
            for used in self
                .uses
                .get(id)
                .into_iter()
                .flatten()
                .filter(|used| self.members.contains(*used))
            {
                let used = self.name(used);
                if !used
                    .strip_prefix("tidegate-")
                    .is_some_and(|short| allowed.contains(&short))
                {
                    faults.push(format!("{name} -> {used}: this arrow is not allowed"));
                }
            }
        }
        faults
    }

    /// What is below a crate of the house and must not be.
    fn forbidden(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (crates, banned, why) in FORBIDDEN {
            for id in self.members.iter().filter(|id| crates.contains(&self.name(id))) {
                for path in self.paths_to(id, banned) {
                    faults.push(format!("{}: forbidden, for {why}", path.join(" -> ")));
                }
            }
        }
        faults
    }

    /// The shortest way from a crate to each of the banned ones below it.
    fn paths_to<'a>(&'a self, start: &'a str, banned: &[&str]) -> Vec<Vec<&'a str>> {
        let is_banned = |name: &str| {
            banned.iter().any(|ban| match ban.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *ban,
            })
        };
        let mut from: BTreeMap<&'a str, &'a str> = BTreeMap::new();
        let mut queue: VecDeque<&'a str> = [start].into();
        let mut found = Vec::new();
        while let Some(id) = queue.pop_front() {
            if is_banned(self.name(id)) {
                let mut path = vec![self.name(id)];
                let mut step = id;
                while let Some(before) = from.get(step) {
                    path.push(self.name(before));
                    step = before;
                }
                path.reverse();
                found.push(path);
                continue;
            }
            for next in self.uses.get(id).into_iter().flatten() {
                if next != start && !from.contains_key(next.as_str()) {
                    from.insert(next, id);
                    queue.push_back(next);
                }
            }
        }
        found
    }
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let what = arguments.first().copied().unwrap_or_default();
    let output = crate::cargo()
        .args(arguments)
        .current_dir(root)
        .output()
        .with_context(|| format!("starting `cargo {what}`"))?;
    if !output.status.success() {
        bail!(
            "`cargo {what}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

fn sizes(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut types = 0;
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let lines = text.lines().count();
        let shown = path.strip_prefix(root).unwrap_or(&path);
        if lines > FILE_LINES {
            let shown = shown.display();
            faults.push(format!("{shown}: {lines} lines; a file has at most {FILE_LINES}"));
        }
        if shown.starts_with("crates/tidegate-types/src") {
            types += lines;
        }
    }
    if types >= TYPES_LINES {
        faults.push(format!("tidegate-types: {types} lines; it stays below {TYPES_LINES}"));
    }
    Ok(faults)
}

/// The source of the product, without its tests.
fn product(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    rust_files(&root.join("crates"), &mut files)?;
    let is_test = |path: &Path| path.components().any(|part| part.as_os_str() == "tests");
    files.retain(|path| !is_test(path.strip_prefix(root).unwrap_or(path)));
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
    };
    files.iter().map(read).collect()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph of `user -> used`; members are those of Tidegate.
    fn graph(arrows: &[(&str, &str)]) -> Graph {
        let mut graph = Graph {
            names: BTreeMap::new(),
            members: BTreeSet::new(),
            uses: BTreeMap::new(),
        };
        for (user, used) in arrows {
            for name in [user, used] {
                graph.names.insert((*name).to_owned(), (*name).to_owned());
                if name.starts_with("tidegate") {
                    graph.members.insert((*name).to_owned());
                }
            }
            graph
                .uses
                .entry((*user).to_owned())
                .or_default()
                .push((*used).to_owned());
        }
        graph
    }

    #[test]
    fn arrows_that_were_not_drawn_are_found() {
        let good = [
            ("tidegate-plan", "tidegate-types"),
            ("tidegate", "tidegate-plan"),
            ("tidegate-types", "serde"),
        ];
        assert_eq!(graph(&good).arrows(), [""; 0]);
        for bad in [
            ("tidegate-types", "tidegate-seal"),
            ("tidegate-worker", "tidegate-policy"),
            ("tidegate-new", "serde"),
        ] {
            assert_eq!(graph(&[bad]).arrows().len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn what_is_forbidden_is_found_at_any_distance_and_named_with_its_way() {
        let deep = [
            ("tidegate-prepare", "a"),
            ("a", "b"),
            ("b", "a"),
            ("b", "hyper-util"),
            ("tidegate-prepare", "tokio"),
        ];
        let faults = graph(&deep).forbidden();
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("tidegate-prepare -> a -> b -> hyper-util"),
            "{}",
            faults[0]
        );
        let crypto = [("tidegate-prepare", "aws-lc-rs"), ("tidegate-seal", "aws-lc-rs")];
        assert_eq!(graph(&crypto).forbidden(), [""; 0]);
        assert_eq!(graph(&[("tidegate-seal", "x"), ("x", "tokio")]).forbidden().len(), 1);
    }

    #[test]
    fn a_tree_is_read_with_its_depths() {
        let tree = "0 tidegate-seal v0.1.0 (/house)\n1 age v1\n2 rand v1\n1 x v2\n2 tokio v1 (*)\n";
        let faults = Graph::of_tree(tree).unwrap().forbidden();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("tidegate-seal -> x -> tokio"), "{}", faults[0]);
    }

    #[test]
    fn what_only_tests_use_does_not_count() {
        let metadata = serde_json::json!({
            "packages": [{"id": "1", "name": "tidegate-types"}, {"id": "2", "name": "tidegate-seal"}],
            "workspace_members": ["1", "2"],
            "resolve": {"nodes": [
                {"id": "1", "deps": [{"pkg": "2", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "2", "deps": [{"pkg": "1", "dep_kinds": [{"kind": null}]}]},
            ]},
        });
        let graph = Graph::of(serde_json::from_value(metadata).unwrap());
        assert_eq!(graph.arrows(), [""; 0]);
    }
}
