//! The drivers of sites, by what stands below `compute:` in the sites file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tidegate_cloud::{CloudStore, Ec2Driver, Ec2Settings, ProgramShelf};
use tidegate_contracts::Compute;
use tidegate_contracts::later::Later;
use tidegate_local::ProcessDriver;
use tidegate_ssh::{Hosts, SshDriver};
use tidegate_types::Digest;
use tidegate_types::files::sites::{ComputeOffer, SiteKind};
use tidegate_types::files::{FileError, Sites, SourceText};
use tidegate_types::ids::SiteName;

use crate::failure::{Failure, While};
use crate::project::Project;
use crate::stores::{environment, fault};

/// A driver for every site that has compute, whose jobs are run by `program`. Jobs on a private site are driven from the
/// control plane's own folder, so that the private folder stays the keeper's alone.
pub(crate) fn open(
    project: &Project,
    program: &Path,
    digest: &Later<Result<Digest, String>>,
) -> Result<BTreeMap<SiteName, Arc<dyn Compute>>, Failure> {
    let mut drivers = BTreeMap::new();
    for (name, site) in &project.sites.sites {
        let Some(offer) = &site.compute else { continue };
        let driver: Arc<dyn Compute> = match offer.driver.as_str() {
            "ssh" => ssh(project, offer, program, digest)?,
            "ec2" => ec2(project, name, offer, program, digest)?,
            _ => {
                let folder = if site.kind == SiteKind::Private {
                    project.layout.control().join("compute").join(name.as_str())
                } else {
                    project.layout.site(name).join("compute")
                };
                Arc::new(ProcessDriver::open(folder).while_(OPENING)?)
            }
        };
        drivers.insert(name.clone(), driver);
    }
    Ok(drivers)
}

const OPENING: &str = "opening a driver";

fn ssh(
    project: &Project,
    offer: &ComputeOffer,
    program: &Path,
    digest: &Later<Result<Digest, String>>,
) -> Result<Arc<dyn Compute>, Failure> {
    let config = offer.ssh_config.as_ref().map(|file| project.sites_folder.join(file));
    let hosts = Hosts::new(&offer.hosts, config, offer.folder.as_deref()).while_(OPENING)?;
    Ok(Arc::new(SshDriver::new(hosts, program.to_owned(), digest.clone())))
}

fn ec2(
    project: &Project,
    site: &SiteName,
    offer: &ComputeOffer,
    program: &Path,
    digest: &Later<Result<Digest, String>>,
) -> Result<Arc<Ec2Driver>, Failure> {
    let machine = offer.machine.clone().unwrap_or_default();
    let settings = Ec2Settings::new(&machine, &project.sites_folder).while_(OPENING)?;
    let address = project.store_address(site).parse().while_(OPENING)?;
    let environment = environment();
    let store = CloudStore::open(address, &environment).while_(OPENING)?;
    let shelf = ProgramShelf::new(store, program.to_owned(), digest.clone());
    Ok(Arc::new(
        Ec2Driver::open(settings, shelf, &environment).while_(OPENING)?,
    ))
}

/// What came of trying to start machines.
#[derive(Debug, Serialize)]
pub(crate) struct MachineTrial {
    pub(crate) site: String,
    /// What does not work, with the reason.
    pub(crate) fault: Option<String>,
    /// What would make it work, as text for the cloud's own tools.
    pub(crate) grant: Option<&'static str>,
}

/// Tries at every cloud that starts machines whether it would start one, and starts none.
pub(crate) async fn try_all(project: &Project) -> Result<Vec<MachineTrial>, Failure> {
    let mut trials = Vec::new();
    for (name, site) in &project.sites.sites {
        let Some(offer) = site.compute.as_ref().filter(|offer| offer.driver == "ec2") else {
            continue;
        };
        let nobody = Later::from(Err("nobody needs it".to_owned()));
        let driver = ec2(project, name, offer, Path::new(""), &nobody)?;
        let fault = driver.try_out(project.pipeline.train.resources.use_spot).await.err();
        trials.push(MachineTrial {
            site: name.to_string(),
            grant: fault.as_ref().map(|_| Ec2Settings::needed_grant()),
            fault: fault.map(|error| error.to_string()),
        });
    }
    Ok(trials)
}

/// What is wrong with what sites say of their machines, at its place.
pub(crate) fn faults(sites: &Sites, source: &SourceText<'_>) -> Vec<FileError> {
    let mut faults = Vec::new();
    for (name, site) in &sites.sites {
        let Some(offer) = &site.compute else { continue };
        let mut add = |text: &str, why: String, help: &str| {
            let message = format!("the compute of site `{name}`: {why}");
            faults.push(fault(source, text, message, help));
        };
        let any = ["any".to_owned()];
        for host in offer.hosts.iter().filter(|_| offer.driver == "ssh") {
            if let Err(error) = Hosts::new(std::slice::from_ref(host), None, None) {
                add(host, error.to_string(), "write for example `hosts: [gpu-1, ml@gpu-2]`");
            }
        }
        for folder in offer.folder.iter().filter(|_| offer.driver == "ssh") {
            if let Err(error) = Hosts::new(&any, None, Some(folder)) {
                add(folder, error.to_string(), "write for example `folder: /srv/tidegate`");
            }
        }
        for machine in offer.machine.iter().filter(|_| offer.driver == "ec2") {
            if let Err(error) = Ec2Settings::new(machine, Path::new("")) {
                add(error.what(), error.to_string(), "see docs/clouds.md");
            }
        }
    }
    faults
}
