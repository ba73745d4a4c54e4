//! Finding in a vCenter what the sites file names, as its own tools do: by its name, or by the end of its path.

use std::collections::BTreeMap;

use super::service::{Object, Service};
use super::settings::VsphereSettings;
use super::xml::{Element, Reference, element};
use crate::compute::{Failure, told};

/// From folder to folder.
pub(super) const FOLDERS: (&str, &str) = ("Folder", "childEntity");
/// From a datacenter to all that is in it.
const INSIDE: [(&str, &str); 7] = [
    FOLDERS,
    ("Datacenter", "vmFolder"),
    ("Datacenter", "hostFolder"),
    ("Datacenter", "datastoreFolder"),
    ("Datacenter", "networkFolder"),
    ("ComputeResource", "resourcePool"),
    ("ResourcePool", "resourcePool"),
];

/// Whether a cluster chooses hosts by itself.
const DRS: &str = "configurationEx.drsConfig.enabled";
/// What is asked of a host.
const HOST: [&str; 5] = [
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "summary.hardware.memorySize",
    "summary.quickStats.overallMemoryUsage",
    "datastore",
];

/// A datacenter, and the folder that all of its machines are in.
#[derive(Debug, Clone)]
pub(super) struct Datacenter {
    datacenter: Reference,
    pub(super) machines: Reference,
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) template: Reference,
    pub(super) is_template: bool,
    pub(super) pool: Reference,
    pub(super) folder: Reference,
    pub(super) datastore: Option<Reference>,
    /// Where the pool's cluster chooses none.
    pub(super) host: Option<Reference>,
    pub(super) networks: Vec<Reference>,
    /// How the cards of the template are changed, as it is written in a request.
    pub(super) cards: String,
}

struct Inventory {
    /// Names and parents.
    all: BTreeMap<Reference, (String, Option<Reference>)>,
}

impl Inventory {
    fn of(objects: Vec<Object>) -> Self {
        let all = objects.into_iter().map(|one| {
            let parent = one.get("parent").and_then(Element::reference);
            let name = one.text("name").to_owned();
            (one.reference, (name, parent))
        });
        Self { all: all.collect() }
    }

    /// The names of something and of all that it is in, from the outermost on.
    fn path(&self, of: &Reference) -> String {
        let (mut path, mut at) = (String::new(), Some(of));
        while let Some((name, parent)) = at.and_then(|one| self.all.get(one)) {
            path = format!("/{name}{path}");
            at = parent.as_ref();
            // No inventory is as deep.
            if path.len() > 10_000 {
                break;
            }
        }
        path
    }

    /// The only one of these kinds that is called so; the root of a cluster's pools is called as the cluster, too.
    fn named(&self, kinds: &[&str], things: &str, name: &str) -> Result<Reference, Failure> {
        let end = format!("/{name}");
        let fits = |one: &Reference| {
            let path = self.path(one);
            let short = path.strip_suffix("/Resources").filter(|_| one.kind == "ResourcePool");
            path.ends_with(&end) || short.is_some_and(|path| path.ends_with(&end))
        };
        let mut fitting = self
            .all
            .keys()
            .filter(|one| kinds.contains(&one.kind.as_str()) && fits(one));
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one.clone()),
            (Some(one), Some(other)) => Err(unknown(&format!(
                "more than one of its {things} is named `{}`: write more of its path, as in `{}` or `{}`",
                told(name),
                told(&self.path(one)),
                told(&self.path(other))
            ))),
            (None, _) => Err(unknown(&format!("none of its {things} is named `{}`", told(name)))),
        }
    }
}

fn unknown(why: &str) -> Failure {
    Failure::Refused {
        code: "NotFound".to_owned(),
        why: why.to_owned(),
    }
}

/// Finds the datacenter.
pub(super) async fn datacenter(service: &Service, settings: &VsphereSettings) -> Result<Datacenter, Failure> {
    let root = service.root().await?;
    let all = service
        .below(&root, "ManagedEntity", &["name", "parent"], &[FOLDERS])
        .await?;
    let datacenter = Inventory::of(all).named(&["Datacenter"], "datacenters", &settings.datacenter)?;
    let found = service.of(&datacenter, &["vmFolder"]).await?;
    let machines = found.get("vmFolder").and_then(Element::reference);
    Ok(Datacenter {
        machines: machines.ok_or_else(|| Failure::passing("its answer describes no datacenter"))?,
        datacenter,
    })
}

/// Finds all that a machine is made of.
pub(super) async fn parts(service: &Service, settings: &VsphereSettings, place: &Datacenter) -> Result<Parts, Failure> {
    let all = service
        .below(&place.datacenter, "ManagedEntity", &["name", "parent"], &INSIDE)
        .await?;
    let inventory = Inventory::of(all);
    let template = inventory.named(&["VirtualMachine"], "templates", &settings.template)?;
    let described = service
        .of(
            &template,
            &[
                "config.template",
                "config.hardware.device",
                "parent",
                "runtime.powerState",
                "datastore",
            ],
        )
        .await?;
    let is_template = described.text("config.template") == "true";
    if !is_template && described.text("runtime.powerState") != "poweredOff" {
        return Err(unknown(&format!(
            "`{}` is no template, and is not off",
            told(&settings.template)
        )));
    }
    let folder = match &settings.folder {
        Some(name) => inventory.named(&["Folder"], "folders", name)?,
        None => described
            .get("parent")
            .and_then(Element::reference)
            .ok_or_else(|| unknown("its template is in no folder: name one by `folder:`"))?,
    };
    let pools = ["ResourcePool", "VirtualApp"];
    let pool = if let Some(name) = &settings.pool {
        inventory.named(&pools, "resource pools", name)?
    } else {
        let mut all = inventory.all.keys().filter(|one| pools.contains(&one.kind.as_str()));
        match (all.next(), all.next()) {
            (Some(one), None) => one.clone(),
            (None, _) => return Err(unknown("it has no resource pool")),
            (Some(one), Some(other)) => {
                let (one, other) = (inventory.path(one), inventory.path(other));
                return Err(unknown(&format!(
                    "it has more than one resource pool: name one by `pool:`, such as `{}` or `{}`",
                    told(&one),
                    told(&other)
                )));
            }
        }
    };
    let datastore = settings.datastore.as_ref();
    let datastore = datastore.map(|name| inventory.named(&["Datastore"], "datastores", name));
    let datastore = datastore.transpose()?;
    let kinds = ["Network", "DistributedVirtualPortgroup"];
    let networks: Result<Vec<_>, _> = settings
        .networks
        .iter()
        .map(|name| inventory.named(&kinds, "networks", name))
        .collect();
    let networks = networks?;
    let devices = described.get("config.hardware.device");
    let devices = devices.iter().flat_map(|all| &all.children);
    let cards: Vec<_> = devices.filter(|device| is_card(&device.kind)).collect();
    if cards.len() < networks.len() {
        return Err(unknown(&format!(
            "its template has {} network cards, and {} networks are named",
            cards.len(),
            networks.len()
        )));
    }
    let mut changes = String::new();
    for (card, network) in cards.iter().zip(&networks) {
        let backing = backing(service, network, &inventory).await?;
        changes.push_str(&replugged(card, &backing));
    }
    let stores = match &datastore {
        Some(store) => vec![store.clone()],
        None => references(&described, "datastore"),
    };
    Ok(Parts {
        template,
        is_template,
        host: host(service, &pool, &stores).await?,
        pool,
        folder,
        datastore,
        networks,
        cards: changes,
    })
}

/// Those that a property names.
fn references(object: &Object, property: &str) -> Vec<Reference> {
    let all = object.get(property).into_iter().flat_map(|all| &all.children);
    all.filter_map(Element::reference).collect()
}

/// The host of a cluster without DRS that has the most memory left, of those that reach all of these datastores; none where
/// the vCenter chooses it.
async fn host(service: &Service, pool: &Reference, stores: &[Reference]) -> Result<Option<Reference>, Failure> {
    let owner = service.of(pool, &["owner"]).await?;
    let owner = owner.get("owner").and_then(Element::reference);
    let Some(cluster) = owner.filter(|owner| owner.kind == "ClusterComputeResource") else {
        return Ok(None);
    };
    let cluster = service.of(&cluster, &[DRS, "host"]).await?;
    if cluster.text(DRS) != "false" {
        return Ok(None);
    }
    let hosts = service.each(&references(&cluster, "host"), &HOST).await?;
    let works = |host: &&Object| {
        let reached = references(host, "datastore");
        host.text("runtime.connectionState") == "connected"
            && host.text("runtime.inMaintenanceMode") != "true"
            && stores.iter().all(|store| reached.contains(store))
    };
    let left = |host: &&Object| {
        let number = |property: &str| host.text(property).parse::<u64>().unwrap_or_default();
        let used = number("summary.quickStats.overallMemoryUsage").saturating_mul(1 << 20);
        number("summary.hardware.memorySize").saturating_sub(used)
    };
    match hosts.iter().filter(works).max_by_key(left) {
        Some(host) => Ok(Some(host.reference.clone())),
        None => Err(Failure::Capacity(
            "no host of the cluster works and reaches the datastore".to_owned(),
        )),
    }
}

fn is_card(kind: &str) -> bool {
    let families = [
        "VirtualVmxnet",
        "VirtualE1000",
        "VirtualPCNet32",
        "VirtualSriovEthernetCard",
    ];
    families.iter().any(|family| kind.starts_with(family)) && kind.chars().all(|one| one.is_ascii_alphanumeric())
}

/// A card of the template that is plugged into something else, as it is written in a request; all else stays as it is.
fn replugged(card: &Element, backing: &str) -> String {
    let info = card.child("deviceInfo");
    let info = ["label", "summary"].map(|name| element(name, info.map_or("", |info| info.said(name))));
    let place = ["controllerKey", "unitNumber"].iter();
    let place = place.filter_map(|name| Some(element(name, card.child(name)?.text())));
    format!(
        "<deviceChange xsi:type=\"VirtualDeviceConfigSpec\"><operation>edit</operation><device xsi:type=\"{}\">{}\
         <deviceInfo xsi:type=\"Description\">{}</deviceInfo>{backing}{}</device></deviceChange>",
        card.kind,
        element("key", card.said("key")),
        info.concat(),
        place.collect::<String>()
    )
}

/// What a card is plugged into.
async fn backing(service: &Service, network: &Reference, inventory: &Inventory) -> Result<String, Failure> {
    if network.kind != "DistributedVirtualPortgroup" {
        let name = inventory.all.get(network).map_or("", |(name, _)| name.as_str());
        return Ok(format!(
            "<backing xsi:type=\"VirtualEthernetCardNetworkBackingInfo\">{}{}</backing>",
            element("deviceName", name),
            network.as_element("network")
        ));
    }
    let group = service.of(network, &["key", "config.distributedVirtualSwitch"]).await?;
    let switch = group
        .get("config.distributedVirtualSwitch")
        .and_then(Element::reference);
    let switch = switch.ok_or_else(|| Failure::passing("its answer describes no network"))?;
    let switch = service.of(&switch, &["uuid"]).await?;
    Ok(format!(
        "<backing xsi:type=\"VirtualEthernetCardDistributedVirtualPortBackingInfo\"><port>{}{}</port></backing>",
        element("switchUuid", switch.text("uuid")),
        element("portgroupKey", group.text("key"))
    ))
}
