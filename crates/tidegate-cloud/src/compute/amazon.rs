//! Machines of Amazon's EC2: one instance for each job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::IgnoredAny;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_seal::digest::{canonical_digest, sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::shelf::ProgramShelf;
use super::{Failure, boot, owner_tag};
use crate::client::Settling;
use crate::credentials::Environment;
use crate::store::OpenError;

mod identity;
mod metadata;
mod notices;
mod service;
mod settings;

pub use identity::{Ec2Prover, Ec2Verifier};
pub use notices::{SpotNotice, SpotNotices};
pub use settings::Ec2Settings;

use service::{Instance, Reservation, Service, SpotPrices, Subnets};

/// The most bytes of user-data, before they are written in base64.
const USER_DATA_BYTES: usize = 16 << 10;
/// How long the service may take until it lists what it has started.
const TELLING: Duration = Duration::from_secs(60);
/// The same where nobody knows whether it has started anything.
const HEARD: Duration = Duration::from_secs(20);
/// As long a machine that was just started may be unknown to parts of the service.
const YOUNG: Duration = Duration::from_secs(300);
const OBSERVE_EVERY: Duration = Duration::from_secs(3);

/// Tags of a machine: whose it is (a digest: filters take some signs for patterns), its job, and the request's digest.
const OWNER: &str = "tidegate:owner";
const JOB: &str = "tidegate:job";
const REQUEST: &str = "tidegate:request";

/// What the service calls a machine that it does not know.
const UNKNOWN: [&str; 2] = ["InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"];
/// What it says where rights are missing.
const DENIED: [&str; 1] = ["UnauthorizedOperation"];
/// The same token was there before with another request, or its machine has ended.
const TOLD_BEFORE: [&str; 2] = ["IdempotentParameterMismatch", "IdempotentInstanceTerminated"];

/// Compute on machines of EC2.
pub struct Ec2Driver {
    settings: Ec2Settings,
    service: Service,
    shelf: ProgramShelf,
    /// Machines that this process has started or found, and when.
    started: Mutex<BTreeMap<String, Instant>>,
}

impl fmt::Debug for Ec2Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ec2Driver").field(&self.settings.to_string()).finish()
    }
}

fn pair(name: impl Into<String>, value: impl Into<String>) -> (String, String) {
    (name.into(), value.into())
}

/// What a machine, and what it is stored on, are known by.
fn tagged(names: &[(&str, String)]) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (kind, resource) in ["instance", "volume"].into_iter().enumerate() {
        let specification = format!("TagSpecification.{}", kind + 1);
        pairs.push(pair(format!("{specification}.ResourceType"), resource));
        for (number, (key, value)) in names.iter().enumerate() {
            let tag = format!("{specification}.Tag.{}", number + 1);
            pairs.push(pair(format!("{tag}.Key"), *key));
            pairs.push(pair(format!("{tag}.Value"), value));
        }
    }
    pairs
}

fn owned(owner_tag: &str) -> Vec<(String, String)> {
    vec![
        pair("Filter.1.Name", format!("tag:{OWNER}")),
        pair("Filter.1.Value.1", owner_tag),
    ]
}

/// Of several machines for one job, the one that counts: one that lives before one that has ended, then the first.
fn counting(mut machines: Vec<Instance>) -> Option<Instance> {
    machines.sort_by_key(|one| (!one.lives(), one.launch_time.clone(), one.instance_id.clone()));
    machines.into_iter().next()
}

impl Ec2Driver {
    /// The driver of machines with `settings`, whose jobs are run by the program on `shelf`; `environment` has
    /// credentials for it, as for a store of S3. Connects to nobody yet.
    ///
    /// # Errors
    /// When certificates cannot be read, or the environment's settings contradict each other.
    pub fn open(settings: Ec2Settings, shelf: ProgramShelf, environment: &Environment) -> Result<Self, OpenError> {
        Ok(Self {
            service: Service::open(&settings, environment)?,
            settings,
            shelf,
            started: Mutex::default(),
        })
    }

    /// Asks the cloud whether it would start a machine, which it does not do.
    ///
    /// # Errors
    /// What keeps it from that.
    pub async fn try_out(&self, spot: bool) -> Result<(), ComputeError> {
        let failed = |failure| self.failed("asking whether a machine could be started", "check", failure);
        self.of_job("none", "check").await.map_err(failed)?;
        // Whether there are such machines: what follows asks for rights alone.
        for (action, name, value) in [
            ("DescribeImages", "ImageId.1", &self.settings.image),
            ("DescribeInstanceTypes", "InstanceType.1", &self.settings.kind),
        ] {
            let asking = [pair(name, value)];
            self.service.ask::<IgnoredAny>(action, &asking).await.map_err(failed)?;
        }
        if let Some(profile) = &self.settings.profile {
            self.service.role_of(profile).await.map_err(failed)?;
        }
        for network in self.networks(spot).await {
            let mut asking = self.described(network.as_deref(), spot);
            asking.extend(tagged(&[
                ("Name", "tidegate check".to_owned()),
                (OWNER, owner_tag("none")),
            ]));
            asking.push(pair("DryRun", "true"));
            match self.service.ask::<IgnoredAny>("RunInstances", &asking).await {
                Ok(_) => return Err(failed(Failure::passing("it did what it was not asked for"))),
                Err(failure) if failure.is(&["DryRunOperation"]) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, id: &str, failure: Failure) -> ComputeError {
        failure.into_error(&self.settings, what, id)
    }

    /// Machines of one job, those too that have ended not long ago.
    async fn of_job(&self, owner_tag: &str, id: &str) -> Result<Vec<Instance>, Failure> {
        let mut pairs = owned(owner_tag);
        pairs.extend([
            pair("Filter.2.Name", format!("tag:{JOB}")),
            pair("Filter.2.Value.1", id),
        ]);
        let mut machines = self.service.instances(&pairs).await?;
        // Filters take some signs for patterns.
        machines.retain(|one| one.tag(JOB) == Some(id));
        Ok(machines)
    }

    /// The handle of the machine that counts, if it was started for this request.
    async fn handle(&self, request: &JobRequest, digest: &str, machine: &Instance) -> Result<Handle, ComputeError> {
        if machine.tag(REQUEST) != Some(digest) {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "another request has the same id".to_owned(),
            });
        }
        // From now on parts of the service that do not know of it yet are not believed.
        let mut started = self.started.lock().await;
        started.entry(machine.instance_id.clone()).or_insert_with(Instant::now);
        Ok(Handle {
            id: request.id.clone(),
            platform: format!("ec2:{}", machine.instance_id),
        })
    }

    /// The machine that a handle names. A handle of another driver names none.
    fn machine_of(handle: &Handle) -> Option<&str> {
        handle.platform.strip_prefix("ec2:")
    }

    /// One machine, which nobody can log in to and which is gone once it is shut down.
    fn described(&self, network: Option<&str>, spot: bool) -> Vec<(String, String)> {
        let mut pairs = vec![
            pair("ImageId", &self.settings.image),
            pair("InstanceType", &self.settings.kind),
            pair("MinCount", "1"),
            pair("MaxCount", "1"),
            pair("InstanceInitiatedShutdownBehavior", "terminate"),
            // Started again after a fault, it would have nothing to do.
            pair("MaintenanceOptions.AutoRecovery", "disabled"),
            pair("MetadataOptions.HttpEndpoint", "enabled"),
            pair("MetadataOptions.HttpTokens", "required"),
            pair("MetadataOptions.HttpPutResponseHopLimit", "1"),
        ];
        pairs.extend(network.map(|network| pair("SubnetId", network)));
        for (number, group) in self.settings.security_groups.iter().enumerate() {
            pairs.push(pair(format!("SecurityGroupId.{}", number + 1), group));
        }
        if let Some(profile) = &self.settings.profile {
            let kind = if profile.starts_with("arn:") { "Arn" } else { "Name" };
            pairs.push(pair(format!("IamInstanceProfile.{kind}"), profile));
        }
        if spot {
            let options = "InstanceMarketOptions.SpotOptions";
            pairs.extend([
                pair("InstanceMarketOptions.MarketType", "spot"),
                pair(format!("{options}.SpotInstanceType"), "one-time"),
                pair(format!("{options}.InstanceInterruptionBehavior"), "terminate"),
            ]);
        }
        pairs
    }

    /// The machine of a job, which is known by its tags, and asked for twice is started once.
    fn asking(
        &self,
        request: &JobRequest,
        digest: &str,
        user_data: &str,
        network: Option<&str>,
    ) -> Vec<(String, String)> {
        let token = format!("{}\n{}\n{}", request.owner, request.id, network.unwrap_or_default());
        let mut pairs = self.described(network, request.spot);
        pairs.push(pair("ClientToken", sha256(token.as_bytes()).to_hex()));
        pairs.push(pair("UserData", user_data));
        let names = [
            ("Name", format!("tidegate {}", request.id)),
            (OWNER, owner_tag(&request.owner)),
            (JOB, request.id.clone()),
            (REQUEST, digest.to_owned()),
        ];
        pairs.extend(tagged(&names));
        pairs
    }

    /// The networks to try, in order: as the sites file has them, or, where prices differ, the cheapest first.
    async fn networks(&self, spot: bool) -> Vec<Option<String>> {
        let mut networks = self.settings.networks.clone();
        if networks.is_empty() {
            return vec![None];
        }
        if spot && networks.len() > 1 {
            match self.prices(&networks).await {
                // Stable: what costs the same, or nobody knows of, stays in its order.
                Ok(prices) => networks.sort_by(|a, b| {
                    let price = |network| prices.get(network).copied().unwrap_or(f64::INFINITY);
                    price(a).total_cmp(&price(b))
                }),
                Err(failure) => tracing::warn!(?failure, "prices are not known; networks are tried in their order"),
            }
        }
        networks.into_iter().map(Some).collect()
    }

    /// What a machine that may be taken away costs now, by network.
    async fn prices(&self, networks: &[String]) -> Result<BTreeMap<String, f64>, Failure> {
        let named: Vec<_> = networks
            .iter()
            .enumerate()
            .map(|(number, network)| pair(format!("SubnetId.{}", number + 1), network))
            .collect();
        let subnets: Subnets = self.service.ask("DescribeSubnets", &named).await?;
        let now = jiff::Timestamp::now();
        let history = [
            pair("InstanceType.1", &self.settings.kind),
            pair("ProductDescription.1", "Linux/UNIX"),
            // From now on: the price of each zone that holds.
            pair("StartTime", now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ];
        let prices: SpotPrices = self.service.ask("DescribeSpotPriceHistory", &history).await?;
        let mut zones = BTreeMap::new();
        for price in prices.spot_price_history_set.item {
            if let Ok(cost) = price.spot_price.parse::<f64>() {
                zones.entry(price.availability_zone).or_insert(cost);
            }
        }
        let subnets = subnets.subnet_set.item.into_iter();
        Ok(subnets
            .filter_map(|subnet| Some((subnet.subnet_id, *zones.get(&subnet.availability_zone)?)))
            .collect())
    }

    /// Waits until the service lists a machine for a job, that it has started or may have.
    async fn listed(&self, request: &JobRequest, time: Duration) -> Result<Option<Instance>, Failure> {
        let mut settling = Settling::within(time);
        loop {
            if let Some(machine) = counting(self.of_job(&owner_tag(&request.owner), &request.id).await?) {
                return Ok(Some(machine));
            }
            if !settling.goes_on().await {
                return Ok(None);
            }
        }
    }

    /// Whether parts of the service may not know of a machine yet.
    async fn is_young(&self, machine: &str) -> bool {
        let started = self.started.lock().await.get(machine).copied();
        started.is_some_and(|started| started.elapsed() < YOUNG)
    }

    async fn end(&self, machine: &str) -> Result<(), Failure> {
        let pairs = [pair("InstanceId.1", machine)];
        let mut settling = Settling::within(TELLING);
        loop {
            let failure = match self.service.ask::<IgnoredAny>("TerminateInstances", &pairs).await {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            // Rights that go by tags do not reach what is not known, so that it is denied too.
            let unknown = failure.is(&UNKNOWN) || (failure.is(&DENIED) && self.find(machine).await?.is_none());
            if !unknown {
                return Err(failure);
            }
            // Believed of an old one alone: nobody would end a young one later.
            if !self.is_young(machine).await {
                return Ok(());
            }
            if !settling.goes_on().await {
                return Err(failure);
            }
        }
    }

    async fn find(&self, machine: &str) -> Result<Option<Instance>, Failure> {
        match self.service.instances(&[pair("InstanceId.1", machine)]).await {
            Ok(found) => Ok(found.into_iter().find(|one| one.instance_id == machine)),
            Err(failure) if failure.is(&UNKNOWN) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// What became of a machine that does not run any more.
    async fn outcome(&self, machine: &Instance) -> JobState {
        let id = &machine.instance_id;
        match machine.reason() {
            "Client.UserInitiatedShutdown" => JobState::Gone,
            "Client.InstanceInitiatedShutdown" => {
                let console = self.service.console(id).await;
                JobState::Ended(console.ok().and_then(|text| boot::exit_code(&text)))
            }
            "Server.SpotInstanceTermination" | "Server.SpotInstanceShutdown" => {
                JobState::Lost(format!("the cloud took the spot machine {id} back"))
            }
            "Server.InsufficientInstanceCapacity" => {
                JobState::Lost(format!("the cloud had no room to start machine {id}"))
            }
            // It does not say why yet.
            "" if machine.instance_state.name == "shutting-down" => JobState::Ended(None),
            "" => JobState::Lost(format!("machine {id} has ended, and the cloud does not say why")),
            reason => JobState::Lost(format!("machine {id} has ended: {reason}")),
        }
    }
}

#[async_trait]
impl Compute for Ec2Driver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let invalid = |why: &str| ComputeError::Invalid {
            id: request.id.clone(),
            why: why.to_owned(),
        };
        if request.command.is_empty() {
            return Err(invalid("it has no command"));
        }
        let what = || format!("starting job `{}`", request.id);
        let failed = |failure| self.failed(what(), &request.id, failure);
        if let Some(profile) = &self.settings.profile {
            // Without it the machine would not be believed, whatever it costs.
            self.service.role_of(profile).await.map_err(failed)?;
        }
        let digest = canonical_digest(&request.identity()).map_err(|error| invalid(&error.to_string()))?;
        let digest = digest.to_hex();
        if let Some(machine) = counting(
            self.of_job(&owner_tag(&request.owner), &request.id)
                .await
                .map_err(failed)?,
        ) {
            return self.handle(request, &digest, &machine).await;
        }
        let kept = match self.settings.profile {
            Some(_) => boot::Kept::Needed,
            None if request.spot => boot::Kept::Asked,
            None => boot::Kept::Metadata,
        };
        let user_data = boot::user_data(request, kept, &self.shelf, USER_DATA_BYTES).await?;
        let mut full = None;
        for network in self.networks(request.spot).await {
            let asking = self.asking(request, &digest, &user_data, network.as_deref());
            match self.service.ask::<Reservation>("RunInstances", &asking).await {
                Ok(reservation) => {
                    let machine = counting(reservation.instances_set.item);
                    let machine =
                        machine.ok_or_else(|| failed(Failure::Passing(std::io::ErrorKind::InvalidData.into())))?;
                    tracing::info!(
                        machine = machine.instance_id,
                        network,
                        spot = request.spot,
                        "started a machine"
                    );
                    return self.handle(request, &digest, &machine).await;
                }
                Err(Failure::Capacity(why)) => {
                    tracing::warn!(network, why, "no room");
                    full = Some(Failure::Capacity(why));
                }
                // It may have been done: whoever asked in another network then would have two.
                Err(failure @ Failure::Unheard(_)) => {
                    return match self.listed(request, HEARD).await.map_err(failed)? {
                        Some(machine) => self.handle(request, &digest, &machine).await,
                        None => Err(failed(failure)),
                    };
                }
                // Somebody else, or this one before it was killed, was heard before.
                Err(failure) if failure.is(&TOLD_BEFORE) => {
                    return match self.listed(request, TELLING).await.map_err(failed)? {
                        Some(machine) => self.handle(request, &digest, &machine).await,
                        None => Err(failed(failure)),
                    };
                }
                Err(failure) => return Err(failed(failure)),
            }
        }
        Err(failed(
            full.unwrap_or(Failure::Capacity("there is no network".to_owned())),
        ))
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let Some(id) = Self::machine_of(handle) else {
            return Ok(JobState::Gone);
        };
        let failed = |failure| self.failed(format!("observing job `{}`", handle.id), &handle.id, failure);
        let Some(machine) = self.find(id).await.map_err(failed)? else {
            let young = self.is_young(id).await;
            return Ok(if young { JobState::Pending } else { JobState::Gone });
        };
        match machine.instance_state.name.as_str() {
            "pending" => Ok(JobState::Pending),
            "running" => Ok(JobState::Running),
            _ => Ok(self.outcome(&machine).await),
        }
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn machine(&self, handle: &Handle) -> Result<Option<String>, ComputeError> {
        let (Some(profile), Some(id)) = (&self.settings.profile, Self::machine_of(handle)) else {
            return Ok(None);
        };
        let what = || format!("asking who the machine of job `{}` is", handle.id);
        let failed = |failure| self.failed(what(), &handle.id, failure);
        let account = self.service.account_of(id).await.map_err(|failure| match failure {
            // Parts of the service hear of a machine later than others; who watches it sees whether it has gone.
            failure if failure.is(&UNKNOWN) => failed(Failure::passing("it does not know the machine yet")),
            failure => failed(failure),
        });
        let account = account?;
        let role = self.service.role_of(profile).await.map_err(failed)?;
        Ok(Some(identity::named(&account, &role, id)))
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let Some(id) = Self::machine_of(handle) else {
            return Ok(());
        };
        let failed = |failure| self.failed(format!("ending job `{}`", handle.id), &handle.id, failure);
        self.end(id).await.map_err(failed)?;
        // Twins of it are nobody's. One that is not known of any more has none that are.
        let known = self.find(id).await.map_err(failed)?;
        let Some((owner, job)) = known.as_ref().and_then(|one| Some((one.tag(OWNER)?, one.tag(JOB)?))) else {
            return Ok(());
        };
        for twin in self
            .of_job(owner, job)
            .await
            .map_err(failed)?
            .iter()
            .filter(|one| one.lives())
        {
            self.end(&twin.instance_id).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let failed = |failure| self.failed("ending jobs", "", failure);
        let mut pairs = owned(&owner_tag(owner));
        pairs.push(pair("Filter.2.Name", "instance-state-name"));
        for (number, state) in ["pending", "running", "stopping", "stopped"].iter().enumerate() {
            pairs.push(pair(format!("Filter.2.Value.{}", number + 1), *state));
        }
        let mut jobs: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for machine in self.service.instances(&pairs).await.map_err(failed)? {
            let job = machine.tag(JOB).unwrap_or_default().to_owned();
            jobs.entry(job).or_default().push(machine);
        }
        let (mut swept, mut failure) = (BTreeSet::new(), None);
        for (job, machines) in jobs {
            let kept = keep.contains(&job);
            // Twins of a job that is kept are nobody's.
            let stays = counting(machines.clone()).filter(|_| kept).map(|one| one.instance_id);
            for machine in machines.iter().filter(|one| Some(&one.instance_id) != stays.as_ref()) {
                match self.end(&machine.instance_id).await {
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
