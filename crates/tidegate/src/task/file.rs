//! The shape of a task file, as SkyPilot documents it ("SkyPilot YAML").

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

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
#[derive(Debug)]
pub(super) enum Kinds {
    Text(String),
    Numbers(BTreeMap<String, u32>),
}

/// What is put somewhere: a path, or a bucket.
#[derive(Debug)]
pub(super) enum Mount {
    Path(String),
    Bucket(Bucket),
}

/// Reads what is either a text or a mapping, so that what is wrong inside the mapping is told as it is.
struct TextOr<T, M>(&'static str, fn(String) -> T, fn(M) -> T);

impl<'de, T, M: Deserialize<'de>> Visitor<'de> for TextOr<T, M> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok((self.1)(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        M::deserialize(MapAccessDeserializer::new(map)).map(self.2)
    }
}

impl<'de> Deserialize<'de> for Kinds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kinds = TextOr("accelerators such as `T4:2` or `{T4: 2}`", Self::Text, Self::Numbers);
        deserializer.deserialize_any(kinds)
    }
}

impl<'de> Deserialize<'de> for Mount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOr("a path or a bucket", Self::Path, Self::Bucket))
    }
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
