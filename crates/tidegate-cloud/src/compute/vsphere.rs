//! Machines of VMware vSphere: one virtual machine for each job, cloned from a template by a vCenter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_seal::digest::{canonical_digest, sha256};
use tokio::sync::{Mutex, OnceCell};

use super::shelf::ProgramShelf;
use super::{Failure, boot, owner_tag};
use crate::client::Settling;
use crate::credentials::Environment;
use crate::store::OpenError;

mod inventory;
mod machine;
mod service;
mod settings;
mod xml;

pub use settings::VsphereSettings;

use inventory::{Datacenter, FOLDERS, Parts};
use machine::{EXIT, JOB, Machine, NAME, OWNER, PROPERTIES, REQUEST, Stage, counting, name_of};
use service::Service;
use xml::{Reference, element, option};

/// The most bytes of user-data: in base64, a guest's tools read values of somewhat less than 64 KiB.
const USER_DATA_BYTES: usize = 60_000 / 4 * 3;
const OBSERVE_EVERY: Duration = Duration::from_secs(3);
/// How long a template may take to be copied: a ticket is good for half an hour.
const CLONING: Duration = Duration::from_secs(20 * 60);
/// How long a machine may take to be changed, or to be switched on or off.
const SWITCHING: Duration = Duration::from_secs(5 * 60);
/// How long it may take until a machine is listed of which nobody knows whether it was asked for.
const HEARD: Duration = Duration::from_secs(60);

/// What happens when a machine is switched on.
const SWITCHED_ON: [&str; 2] = ["VmPoweredOnEvent", "DrsVmPoweredOnEvent"];
/// What it says of what is not there any more.
const GONE: [&str; 1] = ["ManagedObjectNotFound"];
/// Whoever asks for the same job in this process waits: vCenter has no token by which it knows a request again.
static ENSURING: [Mutex<()>; 64] = [const { Mutex::const_new(()) }; 64];

/// Compute on machines of vSphere.
#[derive(Debug)]
pub struct VsphereDriver {
    settings: VsphereSettings,
    service: Service,
    shelf: ProgramShelf,
    datacenter: OnceCell<Datacenter>,
}

impl VsphereDriver {
    /// The driver of machines with `settings`, whose jobs are run by the program on `shelf`; `environment` has
    /// credentials for it, as VMware's own tools find them. Connects to nobody yet, and needs none until then.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn open(settings: VsphereSettings, shelf: ProgramShelf, environment: &Environment) -> Result<Self, OpenError> {
        Ok(Self {
            service: Service::open(&settings, environment)?,
            settings,
            shelf,
            datacenter: OnceCell::new(),
        })
    }

    /// Asks the vCenter whether there is what a machine needs, and whether one may be made of it; starts none.
    ///
    /// # Errors
    /// What keeps it from that.
    pub async fn try_out(&self) -> Result<(), ComputeError> {
        let failed = |failure| self.failed("asking whether a machine could be started", "check", failure);
        let parts = self.parts().await.map_err(failed)?;
        let cloning = if parts.is_template {
            "VirtualMachine.Provisioning.DeployTemplate"
        } else {
            "VirtualMachine.Provisioning.Clone"
        };
        let mut needed = vec![
            (&parts.template, vec![cloning]),
            (&parts.pool, vec!["Resource.AssignVMToPool"]),
            (
                &parts.folder,
                vec![
                    "VirtualMachine.Inventory.CreateFromExisting",
                    "VirtualMachine.Inventory.Delete",
                    "VirtualMachine.Config.AdvancedConfig",
                    "VirtualMachine.Config.Annotation",
                    "VirtualMachine.Config.CPUCount",
                    "VirtualMachine.Config.Memory",
                    "VirtualMachine.Interact.PowerOn",
                    "VirtualMachine.Interact.PowerOff",
                ],
            ),
        ];
        needed.extend(parts.datastore.iter().map(|one| (one, vec!["Datastore.AllocateSpace"])));
        if !parts.networks.is_empty() {
            needed.push((&parts.folder, vec!["VirtualMachine.Config.EditDevice"]));
        }
        needed.extend(parts.networks.iter().map(|one| (one, vec!["Network.Assign"])));
        for (object, privileges) in needed {
            let missing = self.service.missing(object, &privileges).await.map_err(failed)?;
            if !missing.is_empty() {
                return Err(failed(Failure::Refused {
                    code: "NoPermission".to_owned(),
                    why: format!("its credentials lack the privileges {}", missing.join(", ")),
                }));
            }
        }
        self.of_job(&owner_tag("none"), "check").await.map_err(failed)?;
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, id: &str, failure: Failure) -> ComputeError {
        failure.into_error(&self.settings, what, id)
    }

    async fn datacenter(&self) -> Result<&Datacenter, Failure> {
        let finding = async || inventory::datacenter(&self.service, &self.settings).await;
        self.datacenter.get_or_try_init(finding).await
    }

    /// Found anew for each machine: a template may be made again under its name.
    async fn parts(&self) -> Result<Parts, Failure> {
        inventory::parts(&self.service, &self.settings, self.datacenter().await?).await
    }

    /// What is called so, whoever it belongs to, and whether it is there wholly.
    async fn called(&self, is: impl Fn(&str) -> bool + Send) -> Result<Vec<Reference>, Failure> {
        let folder = &self.datacenter().await?.machines;
        let all = self
            .service
            .below(folder, "VirtualMachine", &["name"], &[FOLDERS])
            .await?;
        let called = all.into_iter().filter(|one| is(one.text("name")));
        Ok(called.map(|one| one.reference).collect())
    }

    /// Those that are ours of what is called so.
    async fn machines(&self, is: impl Fn(&str) -> bool + Send) -> Result<Vec<Machine>, Failure> {
        let called = self.called(is).await?;
        let described = self.service.each(&called, &PROPERTIES).await?;
        Ok(described.iter().filter_map(Machine::of).collect())
    }

    async fn of_job(&self, owner: &str, job: &str) -> Result<Vec<Machine>, Failure> {
        let name = name_of(owner, job);
        let mut all = self.machines(|one| one == name).await?;
        all.retain(|one| one.owner == owner && one.job == job);
        for machine in &mut all {
            self.settle(machine).await?;
        }
        Ok(all)
    }

    /// Finds out whether a machine that is off was ever on: what has run does not run again.
    async fn settle(&self, machine: &mut Machine) -> Result<(), Failure> {
        if !machine.off || machine.exit.is_some() {
            return Ok(());
        }
        match self.service.has_happened(&machine.reference, &SWITCHED_ON).await {
            Ok(true) => {}
            Ok(false) => machine.stage = Stage::New,
            // It was removed meanwhile.
            Err(failure) if failure.is(&GONE) => {}
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// The machine that a handle names: that of its job, and no other one that was given its name meanwhile.
    async fn find(&self, handle: &Handle) -> Result<Option<Machine>, Failure> {
        let Some(id) = handle.platform.strip_prefix("vsphere:") else {
            return Ok(None);
        };
        let reference = Reference::new("VirtualMachine", id);
        let found = self.service.each(&[reference], &PROPERTIES).await?;
        Ok(found.iter().find_map(Machine::of).filter(|one| one.job == handle.id))
    }

    fn handle(request: &JobRequest, digest: &str, machine: &Machine) -> Result<Handle, ComputeError> {
        if machine.request != digest {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "another request has the same id".to_owned(),
            });
        }
        Ok(Handle {
            id: request.id.clone(),
            platform: format!("vsphere:{}", machine.id()),
        })
    }

    /// Makes a job's machine of the template, which is not on then.
    async fn make(&self, owner: &str, job: &str, digest: &str) -> Result<(), Failure> {
        let parts = self.parts().await?;
        let name = name_of(owner, job);
        let datastore = parts.datastore.as_ref().map(|one| one.as_element("datastore"));
        let host = parts.host.as_ref().map(|one| one.as_element("host"));
        // It says whose it is from its first moment, and nothing that its template may have said.
        let said = option(OWNER, owner) + &option(JOB, job) + &option(REQUEST, digest) + &option(EXIT, "");
        let asked = format!(
            "{}{}<spec><location>{}{}{}</location><template>false</template><config>{}{}{said}</config>\
             <powerOn>false</powerOn></spec>",
            parts.folder.as_element("folder"),
            element("name", &name),
            datastore.unwrap_or_default(),
            parts.pool.as_element("pool"),
            host.unwrap_or_default(),
            element("annotation", format!("Tidegate: job {job}")),
            parts.cards,
        );
        match self
            .service
            .done("CloneVM_Task", &parts.template, &asked, CLONING)
            .await
        {
            Ok(_) => Ok(()),
            // Somebody else, or this one before it was killed, was heard before.
            Err(failure) if failure.is(&["DuplicateName"]) => Ok(()),
            // It may have been done: whoever asked again could have two.
            Err(failure @ Failure::Unheard(_)) => {
                let mut settling = Settling::within(HEARD);
                while self.called(|one| one == name).await?.is_empty() {
                    if !settling.goes_on().await {
                        return Err(failure);
                    }
                }
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The machine of a job that was asked for, once it is there wholly.
    async fn made(&self, owner: &str, job: &str) -> Result<Machine, Failure> {
        let mut settling = Settling::within(CLONING);
        loop {
            if let Some(machine) = counting(&self.of_job(owner, job).await?) {
                return Ok(machine.clone());
            }
            let name = name_of(owner, job);
            if self.called(|one| one == name).await?.is_empty() {
                return Err(Failure::passing("it does not list what it made"));
            }
            if !settling.goes_on().await {
                return Err(Failure::passing("its machine is not there wholly yet"));
            }
        }
    }

    /// Tells a machine that was never on what to do, and switches it on.
    async fn start(&self, machine: &Machine, user_data: &str) -> Result<(), Failure> {
        let about = json!({"instance-id": machine.id(), "local-hostname": "tidegate"});
        let asked = format!(
            "<spec>{}{}{}{}{}{}{}{}</spec>",
            // Whoever else starts it has changed it first, and this is refused.
            element("changeVersion", &machine.version),
            element("numCPUs", self.settings.cpus),
            element("numCoresPerSocket", 1),
            element("memoryMB", self.settings.mebibytes),
            option("guestinfo.userdata", user_data),
            option("guestinfo.userdata.encoding", "gzip+base64"),
            option("guestinfo.metadata", &STANDARD.encode(about.to_string())),
            option("guestinfo.metadata.encoding", "base64"),
        );
        let machine = &machine.reference;
        let mut done = self.service.done("ReconfigVM_Task", machine, &asked, SWITCHING).await;
        if done.is_ok() {
            done = self.service.done("PowerOnVM_Task", machine, "", SWITCHING).await;
        }
        match done {
            // Somebody else has changed it since it was looked at.
            Err(failure) if failure.is(&["InvalidPowerState"]) => Err(Failure::passing("that machine is on already")),
            Err(failure) if failure.is(&GONE) => Err(Failure::passing("that machine was removed")),
            done => done.map(drop),
        }
    }

    async fn end(&self, machine: &Machine) -> Result<(), Failure> {
        let machine = &machine.reference;
        match self.service.done("PowerOffVM_Task", machine, "", SWITCHING).await {
            Err(failure) if failure.is(&GONE) => return Ok(()),
            // It is off.
            Err(failure) if failure.is(&["InvalidPowerState"]) => {}
            switched => _ = switched?,
        }
        match self.service.done("Destroy_Task", machine, "", SWITCHING).await {
            Err(failure) if failure.is(&GONE) => Ok(()),
            // It was switched on meanwhile.
            Err(failure) if failure.is(&["InvalidPowerState"]) => Err(Failure::passing("that machine is on again")),
            destroyed => destroyed.map(drop),
        }
    }
}

#[async_trait]
impl Compute for VsphereDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let invalid = |why: &str| ComputeError::Invalid {
            id: request.id.clone(),
            why: why.to_owned(),
        };
        if request.command.is_empty() {
            return Err(invalid("it has no command"));
        }
        let failed = |failure| self.failed(format!("starting job `{}`", request.id), &request.id, failure);
        let digest = canonical_digest(&request.identity()).map_err(|error| invalid(&error.to_string()))?;
        let digest = digest.to_hex();
        let place = usize::from(sha256(request.id.as_bytes()).as_bytes()[0]) % ENSURING.len();
        let _alone = ENSURING[place].lock().await;
        let (owner, job) = (owner_tag(&request.owner), request.id.as_str());
        let there = self.of_job(&owner, job).await.map_err(failed)?;
        if let Some(machine) = counting(&there).filter(|one| one.stage != Stage::New) {
            return Self::handle(request, &digest, machine);
        }
        let user_data = boot::user_data(request, boot::Kept::GuestInfo, &self.shelf, USER_DATA_BYTES).await?;
        if there.is_empty() {
            self.make(&owner, job, &digest).await.map_err(failed)?;
        }
        let machine = self.made(&owner, job).await.map_err(failed)?;
        let handle = Self::handle(request, &digest, &machine)?;
        // Where it is not new, somebody else was faster.
        if machine.stage == Stage::New {
            self.start(&machine, &user_data).await.map_err(failed)?;
            tracing::info!(machine = machine.id(), "started a machine");
        }
        // Another process may have made one in another folder at the same time: one of them may be granted a key.
        let all = self.of_job(&owner, job).await.map_err(failed)?;
        match counting(&all).filter(|counts| counts.id() != machine.id()) {
            Some(counts) => {
                self.end(&machine).await.map_err(failed)?;
                Self::handle(request, &digest, counts)
            }
            None => Ok(handle),
        }
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let failed = |failure| self.failed(format!("observing job `{}`", handle.id), &handle.id, failure);
        let Some(mut machine) = self.find(handle).await.map_err(failed)? else {
            return Ok(JobState::Gone);
        };
        self.settle(&mut machine).await.map_err(failed)?;
        Ok(match machine.stage {
            Stage::New => JobState::Pending,
            // One that tells its exit code is done, and switches itself off.
            Stage::Ended => JobState::Ended(machine.exit),
            // Also where it is suspended or its host does not answer, which may pass: the keeper hears the worker by
            // another way.
            Stage::On => JobState::Running,
        })
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let failed = |failure| self.failed(format!("ending job `{}`", handle.id), &handle.id, failure);
        let Some(machine) = self.find(handle).await.map_err(failed)? else {
            return Ok(());
        };
        self.end(&machine).await.map_err(failed)?;
        // Twins of it are nobody's.
        let twins = self.of_job(&machine.owner, &machine.job).await.map_err(failed)?;
        for twin in &twins {
            self.end(twin).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn sweep(&self, of: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let failed = |failure| self.failed("ending jobs", "", failure);
        let owner = owner_tag(of);
        let mut jobs: BTreeMap<String, Vec<Machine>> = BTreeMap::new();
        let all = self.machines(|name| name.starts_with(NAME)).await.map_err(failed)?;
        for mut machine in all.into_iter().filter(|one| one.owner == owner) {
            self.settle(&mut machine).await.map_err(failed)?;
            jobs.entry(machine.job.clone()).or_default().push(machine);
        }
        let (mut swept, mut failure) = (BTreeSet::new(), None);
        for (job, machines) in jobs {
            let kept = keep.contains(&job);
            // Twins of a job that is kept are nobody's.
            let stays = counting(&machines).filter(|_| kept).map(Machine::id);
            for machine in machines.iter().filter(|one| Some(one.id()) != stays) {
                match self.end(machine).await {
                    Ok(()) if !kept => _ = swept.insert(job.clone()),
                    Ok(()) => {}
                    // One that does not end keeps nobody from ending the others.
                    Err(error) => failure = Some(error),
                }
            }
        }
        match failure {
            None => Ok(swept.into_iter().collect()),
            Some(error) => Err(failed(error)),
        }
    }
}
