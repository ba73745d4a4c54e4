//! The shape of a task file, as SkyPilot documents it ("SkyPilot YAML").

use std::collections::BTreeMap;

use serde::Deserialize;

/// The file. Keys that only say how a platform is used are read and left aside; others are refused as unknown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Task {
    #[serde(default, rename = "name")]
    pub(super) _name: Option<String>,
    #[serde(default)]
    pub(super) workdir: Option<String>,
    #[serde(default)]
    pub(super) num_nodes: Option<u32>,
    #[serde(default)]
    pub(super) resources: Asked,
    #[serde(default)]
    pub(super) envs: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) file_mounts: BTreeMap<String, Mount>,
    #[serde(default)]
    pub(super) setup: Option<String>,
    #[serde(default)]
    pub(super) run: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    pub(super) infra: Option<String>,
    #[serde(default)]
    pub(super) cloud: Option<String>,
    #[serde(default)]
    pub(super) region: Option<String>,
    #[serde(default)]
    pub(super) accelerators: Option<Kinds>,
    #[serde(default)]
    pub(super) cpus: Option<String>,
    #[serde(default)]
    pub(super) memory: Option<String>,
    #[serde(default)]
    pub(super) use_spot: bool,
    #[serde(default)]
    pub(super) any_of: Vec<Place>,
    // What the site's own file decides.
    #[serde(default, rename = "disk_size")]
    pub(super) _disk_size: Option<String>,
    #[serde(default, rename = "disk_tier")]
    pub(super) _disk_tier: Option<String>,
    #[serde(default, rename = "network_tier")]
    pub(super) _network_tier: Option<String>,
    #[serde(default, rename = "labels")]
    pub(super) _labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    #[serde(default)]
    pub(super) infra: Option<String>,
    #[serde(default)]
    pub(super) cloud: Option<String>,
    #[serde(default)]
    pub(super) region: Option<String>,
}

/// Accelerators: one kind as a text, or kinds with their numbers, any of which would do.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Kinds {
    Text(String),
    Numbers(BTreeMap<String, u32>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Mount {
    Path(String),
    Bucket(Bucket),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bucket {
    #[serde(default)]
    pub(super) source: Option<String>,
    #[serde(default, rename = "name")]
    pub(super) _name: Option<String>,
    #[serde(default, rename = "store")]
    pub(super) _store: Option<String>,
    #[serde(default, rename = "mode")]
    pub(super) _mode: Option<String>,
    #[serde(default, rename = "persistent")]
    pub(super) _persistent: Option<bool>,
}
