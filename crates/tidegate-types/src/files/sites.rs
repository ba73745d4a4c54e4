//! `sites.yaml`: the platform's statement about places.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::SiteName;
use crate::label::Clearance;
use crate::quantity::{BytePrice, ByteRate, ByteSize, DailyWindow, HourPrice};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sites {
    /// The organisation that all sites belong to or work for.
    pub organisation: String,
    /// Sites by name.
    pub sites: BTreeMap<SiteName, Site>,
}

/// Whose place it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SiteKind {
    /// The organisation's own; has a keeper.
    Private,
    /// A cloud's.
    Public,
    /// Where models are used: a ward, a branch, a device.
    Edge,
}

impl SiteKind {
    /// The kind as written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Public => "public",
            Self::Edge => "edge",
        }
    }
}

/// One site. The digest of its canonical JSON, as [`Site::identity`] gives it, is what permits name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Whose place it is.
    pub kind: SiteKind,
    /// The law it stands under, as ISO 3166 code or a name of your own.
    pub jurisdiction: String,
    /// The highest label it may hold.
    pub clearance: Clearance,
    /// Where objects are kept: `folder:` (embedded, below the state folder) or `folder:/path`.
    pub store: String,
    /// Where the key is that wraps all others; private sites only: `file:` (embedded), `pkcs11:…`,
    /// `vault:…`, `aws-kms:…`, `gcp-kms:…` or `key-vault:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custody: Option<String>,
    /// What runs jobs; absent where none can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<ComputeOffer>,
    /// What bytes cost that leave, by destination site; `"*"` for all others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub egress: BTreeMap<String, BytePrice>,
    /// Where jobs may use the network.
    #[serde(default)]
    pub network: NetworkRules,
    /// How fast, when and from where bytes are sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferRules>,
}

impl Site {
    /// What it is: all but how fast, when and from where bytes are sent to it, which makes it no other site.
    #[must_use]
    pub fn identity(&self) -> Self {
        Self {
            transfer: None,
            ..self.clone()
        }
    }
}

/// How fast, when and from where bytes are sent to a site.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRules {
    /// The most bytes that a keeper sends there in a second, and the most that it fetches; as many as the network
    /// carries otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteRate>,
    /// The hours of a day (UTC) in which something is sent there; always otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<DailyWindow>,
    /// Other sites, in order: what stands sealed in the store of one of them is copied from there, and not sent from home
    /// again. The machines of this site have to reach that store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copy_from: Vec<SiteName>,
}

/// What a site's compute offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputeOffer {
    /// What starts jobs: `process` (embedded), `ssh`, `ec2`, `openstack`, `vsphere`, `vertex` or `azureml`.
    pub driver: String,
    /// The machines of the driver `ssh`, as the system's `ssh` is told them: `NAME` or `USER@NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// A file for `ssh`, beside this one, in place of the user's own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_config: Option<String>,
    /// Where the driver `ssh` keeps everything on each of its machines: `.tidegate` in the home of the user there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// The machine that a driver of a cloud starts for each job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Processors of a job at the most.
    pub cpus: u32,
    /// Memory of a job at the most.
    pub memory: ByteSize,
    /// What a job has to compute with besides: `T4` for one, `T4:2` for two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<String>,
    /// At a private site: whether jobs on these machines prepare and judge, too, in place of the keeper's own process.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rows: bool,
    /// What an hour costs; absent means unpriced, never free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<HourPrice>,
    /// What an hour costs when the machine may be taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot_price: Option<HourPrice>,
}

/// A machine that a cloud starts for one job, and removes after it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Where: `eu-central-1`; at `vsphere` a datacenter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Whose it is there: the project at `vertex`, the workspace at `azureml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What it boots: `ami-…`, or a name, at `vsphere` a template; it needs cloud-init, `curl` and what the job's command
    /// needs. At `vertex` and `azureml` a container's, with the program in it.
    pub image: String,
    /// Its kind, such as `m7i.xlarge`; the smallest one that fits, where the cloud tells how large they are.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What it has to compute with besides, and how many: `NVIDIA_TESLA_T4:1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Where in the cloud's hierarchy of resources it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Networks: at `ec2` those that it may be in, `subnet-…`, tried in turn where there is no room, the cheapest first; at
    /// others those that it is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// What may reach it, and what it may reach: `sg-…`. Nobody needs to reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    /// The rights that the machine itself has: name or ARN of an instance profile, a service account, an identity. It
    /// needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The server that starts machines, in place of the cloud's own: `https://…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// A file of certificate authorities beside this one, whom that server may be vouched for by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<String>,
    /// At `vsphere`, what its disk is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<String>,
    /// At `vsphere`, the folder of machines that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// Where jobs may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRules {
    /// While the environment is prepared and no data is there.
    #[serde(default)]
    pub setup: NetworkRule,
    /// While the command runs.
    #[serde(default)]
    pub run: NetworkRule,
    /// Between the machines of one job, and nobody else: whether they reach one another, and may.
    #[serde(default, skip_serializing_if = "NetworkRule::is_deny")]
    pub nodes: NetworkRule,
}

/// Whether the network may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkRule {
    /// No.
    #[default]
    Deny,
    /// Yes.
    Allow,
}

impl NetworkRule {
    const fn is_deny(&self) -> bool {
        matches!(self, Self::Deny)
    }
}
