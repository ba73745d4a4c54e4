//! The drivers of sites, by what stands below `compute:` in the sites file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tidegate_cloud::{
    AzureMlDriver, AzureMlSettings, CloudStore, Ec2Driver, Ec2Settings, Ec2Verifier, OpenStackDriver,
    OpenStackSettings, ProgramShelf, VertexDriver, VertexSettings, VsphereDriver, VsphereSettings,
};
use tidegate_contracts::Compute;
use tidegate_contracts::identity::Verifier;
use tidegate_contracts::later::Later;
use tidegate_local::ProcessDriver;
use tidegate_ssh::{Hosts, SshDriver};
use tidegate_types::files::sites::{ComputeOffer, SiteKind};
use tidegate_types::files::{FileError, Sites, SourceText};
use tidegate_types::ids::SiteName;

use crate::failure::{Failure, While};
use crate::programs::{Program, Programs};
use crate::project::Project;
use crate::stores::{environment, fault};

/// A driver for every site that has compute, whose jobs are run by one of the `programs`. Jobs on a private site are driven
/// from the control plane's own folder, so that the private folder stays the keeper's alone.
pub(crate) fn open(project: &Project, programs: &Programs) -> Result<BTreeMap<SiteName, Arc<dyn Compute>>, Failure> {
    let mut drivers = BTreeMap::new();
    let home = project.home()?;
    for (name, site) in &project.sites.sites {
        let Some(offer) = &site.compute else { continue };
        let program = if *name == home {
            &programs.home
        } else {
            &programs.elsewhere
        };
        let driver: Arc<dyn Compute> = match offer.driver.as_str() {
            "ssh" => ssh(project, offer, program)?,
            "ec2" => Arc::new(ec2(project, offer, shelf(project, name, program)?)?),
            "openstack" => Arc::new(openstack(project, offer, shelf(project, name, program)?)?),
            "vsphere" => Arc::new(vsphere(project, offer, shelf(project, name, program)?)?),
            "vertex" => Arc::new(vertex(project, offer, &program.path)?),
            "azureml" => Arc::new(azureml(project, offer, &program.path)?),
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

/// Who knows the machines of a site, for every site whose machines can prove who they are.
pub(crate) fn verifiers(project: &Project) -> Result<BTreeMap<SiteName, Arc<dyn Verifier>>, Failure> {
    let mut verifiers: BTreeMap<SiteName, Arc<dyn Verifier>> = BTreeMap::new();
    for (name, site) in &project.sites.sites {
        let offer = site.compute.as_ref().filter(|offer| offer.driver == "ec2");
        let Some(machine) = offer.and_then(|offer| offer.machine.as_ref()) else {
            continue;
        };
        if machine.profile.is_some() {
            let settings = Ec2Settings::new(machine, &project.sites_folder).while_(OPENING)?;
            let verifier = Ec2Verifier::open(&settings).while_(OPENING)?;
            verifiers.insert(name.clone(), Arc::new(verifier));
        }
    }
    Ok(verifiers)
}

fn ssh(project: &Project, offer: &ComputeOffer, program: &Program) -> Result<Arc<dyn Compute>, Failure> {
    let config = offer.ssh_config.as_ref().map(|file| project.sites_folder.join(file));
    let hosts = Hosts::new(&offer.hosts, config, offer.folder.as_deref()).while_(OPENING)?;
    Ok(Arc::new(SshDriver::new(
        hosts,
        program.path.clone(),
        program.digest.clone(),
    )))
}

/// Where machines of a site find the program.
fn shelf(project: &Project, site: &SiteName, program: &Program) -> Result<ProgramShelf, Failure> {
    let address = project.store_address(site).parse().while_(OPENING)?;
    let rules = project.sites.sites.get(site).and_then(|site| site.transfer.as_ref());
    let bandwidth = rules.and_then(|rules| rules.bandwidth).map(|rate| rate.0.0);
    let store = CloudStore::open_paced(address, &environment(), bandwidth).while_(OPENING)?;
    Ok(ProgramShelf::new(store, program.path.clone(), program.digest.clone()))
}

fn ec2(project: &Project, offer: &ComputeOffer, shelf: ProgramShelf) -> Result<Ec2Driver, Failure> {
    let machine = offer.machine.clone().unwrap_or_default();
    let settings = Ec2Settings::new(&machine, &project.sites_folder).while_(OPENING)?;
    Ec2Driver::open(settings, shelf, &environment()).while_(OPENING)
}

fn openstack(project: &Project, offer: &ComputeOffer, shelf: ProgramShelf) -> Result<OpenStackDriver, Failure> {
    let settings = OpenStackSettings::new(offer, &project.sites_folder).while_(OPENING)?;
    OpenStackDriver::open(settings, shelf, &environment()).while_(OPENING)
}

fn vsphere(project: &Project, offer: &ComputeOffer, shelf: ProgramShelf) -> Result<VsphereDriver, Failure> {
    let settings = VsphereSettings::new(offer, &project.sites_folder).while_(OPENING)?;
    VsphereDriver::open(settings, shelf, &environment()).while_(OPENING)
}

fn vertex(project: &Project, offer: &ComputeOffer, program: &Path) -> Result<VertexDriver, Failure> {
    let machine = offer.machine.clone().unwrap_or_default();
    let settings = VertexSettings::new(&machine, &project.sites_folder).while_(OPENING)?;
    VertexDriver::open(settings, program.to_owned(), &environment()).while_(OPENING)
}

fn azureml(project: &Project, offer: &ComputeOffer, program: &Path) -> Result<AzureMlDriver, Failure> {
    let machine = offer.machine.clone().unwrap_or_default();
    let settings = AzureMlSettings::new(&machine, &project.sites_folder).while_(OPENING)?;
    AzureMlDriver::open(settings, program.to_owned(), &environment()).while_(OPENING)
}

/// What came of trying to start machines.
#[derive(Debug, Serialize)]
pub(crate) struct MachineTrial {
    pub(crate) site: String,
    /// What does not work, with the reason.
    pub(crate) fault: Option<String>,
    /// What would make it work, as text for the cloud's own tools.
    pub(crate) grant: Option<String>,
}

/// Tries at every cloud that starts machines whether it would start one, and starts none.
pub(crate) async fn try_all(project: &Project) -> Result<Vec<MachineTrial>, Failure> {
    let mut trials = Vec::new();
    for (name, site) in &project.sites.sites {
        let Some(offer) = &site.compute else { continue };
        let nobodys = Program {
            path: PathBuf::new(),
            digest: Later::from(Err("nobody needs it".to_owned())),
        };
        let shelf = || shelf(project, name, &nobodys);
        let (tried, grant) = match offer.driver.as_str() {
            "ec2" => {
                let driver = ec2(project, offer, shelf()?)?;
                let spot = project.pipeline.train.resources.use_spot;
                let profile = offer.machine.as_ref().is_some_and(|machine| machine.profile.is_some());
                let besides = if profile { Ec2Settings::profile_grant() } else { "" };
                (
                    driver.try_out(spot).await,
                    [Ec2Settings::needed_grant(), besides].concat(),
                )
            }
            "openstack" => {
                let driver = openstack(project, offer, shelf()?)?;
                (driver.try_out().await, OpenStackSettings::needed_grant().to_owned())
            }
            "vsphere" => {
                let driver = vsphere(project, offer, shelf()?)?;
                (driver.try_out().await, VsphereSettings::needed_grant().to_owned())
            }
            "vertex" => {
                let driver = vertex(project, offer, Path::new(""))?;
                (driver.try_out().await, VertexSettings::needed_grant().to_owned())
            }
            "azureml" => {
                let driver = azureml(project, offer, Path::new(""))?;
                (driver.try_out().await, AzureMlSettings::needed_grant().to_owned())
            }
            _ => continue,
        };
        let fault = tried.err().map(|error| error.to_string());
        trials.push(MachineTrial {
            site: name.to_string(),
            grant: fault.as_ref().map(|_| grant),
            fault,
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
        let wrong = match (&offer.machine, offer.driver.as_str()) {
            (Some(machine), "ec2") => Ec2Settings::new(machine, Path::new("")).err(),
            (Some(machine), "vertex") => VertexSettings::new(machine, Path::new("")).err(),
            (Some(machine), "azureml") => AzureMlSettings::new(machine, Path::new("")).err(),
            (Some(_), "openstack") => OpenStackSettings::new(offer, Path::new("")).err(),
            (Some(_), "vsphere") => VsphereSettings::new(offer, Path::new("")).err(),
            _ => None,
        };
        if let Some(error) = wrong {
            add(error.what(), error.to_string(), "see docs/clouds.md");
        }
    }
    faults
}
