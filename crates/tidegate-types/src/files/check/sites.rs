//! `sites.yaml` by itself.

use super::Findings;
use super::catalog::is_word;
use crate::files::Sites;
use crate::files::rules::read_accelerators;
use crate::files::sites::{NetworkRule, Site, SiteKind};
use crate::files::source::suggest;

/// Kinds of stores that this version can use, as the part of `store` up to its colon.
const STORES: [&str; 4] = ["folder:", "s3:", "gs:", "az:"];
/// Kinds of custody that this version can use.
const CUSTODIES: [&str; 6] = ["file:", "pkcs11:", "vault:", "aws-kms:", "gcp-kms:", "key-vault:"];
/// Drivers that this version has.
const DRIVERS: [&str; 7] = ["process", "ssh", "ec2", "openstack", "vsphere", "vertex", "azureml"];
/// Those that start a machine for each job.
const CLOUDS: [&str; 5] = ["ec2", "openstack", "vsphere", "vertex", "azureml"];

/// Those whose jobs are containers without rights of the system.
const CONTAINERS: [&str; 2] = ["vertex", "azureml"];

/// The least bandwidth to a site, in bytes per second: messages between keeper and worker pass too.
const LEAST_BANDWIDTH: u64 = 64 << 10;

pub(super) fn check(sites: &Sites, findings: &mut Findings<'_>) {
    let organisation = sites.organisation.trim();
    if organisation.is_empty() || organisation.len() > 200 || organisation.chars().any(char::is_control) {
        let help = "write a short name, such as `organisation: st-mary`";
        findings.value(&["organisation"], "the organisation needs a name", help);
    }
    if sites.sites.is_empty() {
        findings.key(
            &["sites"],
            "no site is described",
            "at least one private site is needed: the data's home",
        );
    }
    for (name, site) in &sites.sites {
        check_site(name.as_str(), site, sites, findings);
    }
}

fn check_site(name: &str, site: &Site, sites: &Sites, findings: &mut Findings<'_>) {
    let at = |key| ["sites", name, key];
    if site.jurisdiction.trim().is_empty() {
        let help = "write the ISO 3166 code of the country whose law holds there, such as `US`";
        findings.value(&at("jurisdiction"), "the site needs a jurisdiction", help);
    }
    for tag in site.clearance.tags.iter().filter(|tag| !is_word(tag)) {
        let path = ["sites", name, "clearance", "tags"];
        findings.value(
            &path,
            format!("`{tag}` is not a tag"),
            "use lower-case letters, digits and `-`",
        );
    }
    check_scheme("store", &site.store, &STORES, &at("store"), findings);
    match (site.kind, &site.custody) {
        (SiteKind::Private, None) => {
            let help = "write where the site's keys are kept, such as `custody: \"file:\"`";
            findings.key(
                &at("custody"),
                format!("private site `{name}` has no custody for its keys"),
                help,
            );
        }
        (SiteKind::Private, Some(custody)) => {
            check_scheme("custody", custody, &CUSTODIES, &at("custody"), findings);
        }
        (_, Some(_)) => {
            let message = format!(
                "site `{name}` is {}, and only private sites hold keys",
                site.kind.as_str()
            );
            findings.key(&at("custody"), message, "remove `custody`");
        }
        (_, None) => {}
    }
    if let Some(compute) = &site.compute {
        let at = |key| ["sites", name, "compute", key];
        if !DRIVERS.contains(&compute.driver.as_str()) {
            let help = suggest(&compute.driver, "known drivers", DRIVERS);
            findings.value(&at("driver"), format!("driver `{}` is not known", compute.driver), help);
        }
        let of_ssh = [
            ("hosts", !compute.hosts.is_empty()),
            ("ssh_config", compute.ssh_config.is_some()),
            ("folder", compute.folder.is_some()),
        ];
        let driver = compute.driver.as_str();
        for (key, _) in of_ssh.iter().filter(|(_, written)| *written && driver != "ssh") {
            findings.key(&at(key), format!("`{key}` is of the driver `ssh` alone"), "remove it");
        }
        let needed = match (driver, &compute.machine) {
            ("ssh", _) if compute.hosts.is_empty() => Some(("hosts", "write for example `hosts: [gpu-1, ml@gpu-2]`")),
            (driver, None) if CLOUDS.contains(&driver) => {
                let help = "write for example `machine: {region: eu-central-1, image: ami-…, type: m7i.xlarge}`";
                Some(("machine", help))
            }
            ("ec2" | "vertex", Some(machine)) if machine.kind.is_none() => {
                Some(("machine.type", "write for example `type: m7i.xlarge`"))
            }
            ("ec2" | "openstack" | "vertex", Some(machine)) if machine.region.is_empty() => {
                Some(("machine.region", "write for example `region: eu-central-1`"))
            }
            ("vertex", Some(machine)) if machine.project.is_none() => {
                Some(("machine.project", "write for example `project: st-mary-ml`"))
            }
            ("azureml", Some(machine)) if machine.project.is_none() => {
                let help = "write its workspace: `project: \"/subscriptions/…/workspaces/NAME\"`";
                Some(("machine.project", help))
            }
            (driver, Some(_)) if !CLOUDS.contains(&driver) => {
                let message = format!(
                    "`machine` is of the drivers {} alone",
                    CLOUDS.map(|one| format!("`{one}`")).join(", ")
                );
                findings.key(&at("machine"), message, "remove it");
                None
            }
            _ => None,
        };
        if let Some((key, help)) = needed {
            findings.value(&at("driver"), format!("the driver `{driver}` needs `{key}`"), help);
        }
        let elsewhere = DRIVERS.contains(&compute.driver.as_str()) && compute.driver != "process";
        if elsewhere && site.store.starts_with("folder:") {
            let help = "use a store of a cloud, such as `s3://bucket/prefix?role=…`";
            let message = format!(
                "the machines of the driver `{}` do not reach a folder of this one",
                compute.driver
            );
            findings.value(&["sites", name, "store"], message, help);
        }
        if site.network.nodes == NetworkRule::Allow && CONTAINERS.contains(&driver) {
            let message = format!("containers of `{driver}` may not make networks, so that they cannot train together");
            findings.value(&["sites", name, "network", "nodes"], message, "remove it");
        }
        if compute.rows && site.kind != SiteKind::Private {
            findings.key(&at("rows"), "only private sites have rows to work on", "remove it");
        }
        if compute.cpus == 0 {
            findings.value(&at("cpus"), "a job needs at least one processor", "");
        }
        if let Some(Err(error)) = compute.accelerators.as_deref().map(read_accelerators) {
            findings.value(&at("accelerators"), error.to_string(), "");
        }
        let added = compute
            .machine
            .as_ref()
            .is_some_and(|machine| machine.accelerator.is_some());
        if compute.driver == "vertex" && compute.accelerators.is_some() != added {
            let help =
                "write `accelerators:` for whoever asks, and `machine: {accelerator: …}` for what Google calls it";
            findings.value(
                &at("driver"),
                "what is offered and what is added to the machine go together",
                help,
            );
        }
        if compute.memory.0 < 64 << 20 {
            findings.value(&at("memory"), "a job needs at least 64 MiB of memory", "");
        }
    }
    for from in site.transfer.iter().flat_map(|rules| &rules.copy_from) {
        let cloud = |site: &Site| !site.store.starts_with("folder:");
        let public = |from: &Site| from.kind == SiteKind::Public && cloud(from) && cloud(site);
        if from.as_str() == name || !sites.sites.get(from).is_some_and(public) {
            let message = format!("nothing is copied from `{from}` to `{name}`");
            let help = "name another public site of this file; both need stores in clouds";
            findings.value(&["sites", name, "transfer", "copy_from"], message, help);
        }
    }
    if let Some(bandwidth) = site.transfer.as_ref().and_then(|rules| rules.bandwidth) {
        let path = ["sites", name, "transfer", "bandwidth"];
        if site.store.starts_with("folder:") {
            let help = "remove it, or use a store of a cloud";
            findings.key(
                &path,
                "a folder is no store in a network: what it is given is not held back",
                help,
            );
        } else if bandwidth.0.0 < LEAST_BANDWIDTH {
            findings.value(&path, "messages need more than that", "allow at least 64 KiB/s");
        }
    }
    for destination in site.egress.keys() {
        if destination != "*" && !sites.sites.keys().any(|site| site.as_str() == destination) {
            let help = suggest(destination, "known sites", sites.sites.keys().map(|site| site.as_str()));
            let path = ["sites", name, "egress", destination];
            findings.key(&path, format!("site `{destination}` is not in this file"), help);
        }
    }
}

fn check_scheme(what: &str, text: &str, known: &[&'static str], path: &[&str], findings: &mut Findings<'_>) {
    if !known.iter().any(|scheme| text.starts_with(scheme)) {
        let help = format!("known here: {}", known.join(", "));
        findings.value(path, format!("{what} `{text}` is of no known kind"), help);
    } else if text.contains('\0') {
        findings.value(path, "a path cannot hold a NUL character", "");
    }
}
