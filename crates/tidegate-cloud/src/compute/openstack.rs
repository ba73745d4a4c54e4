//! Machines of OpenStack: one server of Nova for each job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_seal::digest::sha256;
use tokio::sync::OnceCell;

use super::shelf::ProgramShelf;
use super::{Failure, alone, boot, identified, owner_tag, told};
use crate::client::Settling;
use crate::credentials::Environment;
use crate::store::OpenError;

mod service;
mod settings;

pub use settings::OpenStackSettings;

use service::{Kind, Service};

/// The most bytes of user-data: 65,535 signs of base64.
const USER_DATA_BYTES: usize = 65_535 / 4 * 3;
const OBSERVE_EVERY: Duration = Duration::from_secs(3);
/// How long it may take until a machine is listed of which nobody knows whether it was started.
const HEARD: Duration = Duration::from_secs(60);
/// How long the removal of a machine may take.
const REMOVING: Duration = Duration::from_secs(60);
/// Lines of a console in which the exit code is looked for.
const CONSOLE_LINES: u32 = 200;
/// Servers in one page of a listing, and the most pages.
const PAGE: usize = 500;
const PAGES: usize = 1000;

/// What a machine says of itself: its job, and the digest of its request.
const JOB: &str = "tidegate-job";
const REQUEST: &str = "tidegate-request";

/// A machine, as Nova describes it.
#[derive(Debug, Clone)]
struct Machine {
    id: String,
    status: String,
    created: String,
    job: Option<String>,
    request: Option<String>,
    tags: Vec<String>,
    /// It is being removed.
    deleting: bool,
    /// What failed, in Nova's words.
    fault: String,
}

impl Machine {
    fn of(server: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let tags = server["tags"].as_array().into_iter().flatten();
        let status = text(&server["status"])?;
        Some(Self {
            id: text(&server["id"])?,
            created: text(&server["created"]).unwrap_or_default(),
            job: text(&server["metadata"][JOB]),
            request: text(&server["metadata"][REQUEST]),
            tags: tags.filter_map(text).collect(),
            deleting: server["OS-EXT-STS:task_state"] == "deleting" || status.ends_with("DELETED"),
            fault: server["fault"]["message"].as_str().map(told).unwrap_or_default(),
            status,
        })
    }

    /// Whether it may still work.
    fn lives(&self) -> bool {
        !self.deleting && !matches!(self.status.as_str(), "SHUTOFF" | "ERROR")
    }
}

/// Of several machines for one job, the one that counts: one that lives before one that has ended, then the first.
fn counting(machines: &[Machine]) -> Option<&Machine> {
    machines.iter().min_by_key(|one| (!one.lives(), &one.created, &one.id))
}

/// What is asked for in OpenStack's own names.
#[derive(Debug)]
struct Resolved {
    image: String,
    flavor: String,
    networks: Value,
}

/// Compute on machines of OpenStack.
#[derive(Debug)]
pub struct OpenStackDriver {
    settings: OpenStackSettings,
    service: Service,
    shelf: ProgramShelf,
    resolved: OnceCell<Resolved>,
}

/// By which machines of one job are found; a tag has at most 60 signs.
fn job_tag(id: &str) -> String {
    let digest: String = sha256(id.as_bytes()).to_hex().chars().take(32).collect();
    format!("tidegate-job-{digest}")
}

fn owner(owner: &str) -> String {
    format!("tidegate-owner-{}", owner_tag(owner))
}

impl OpenStackDriver {
    /// The driver of machines with `settings`, whose jobs are run by the program on `shelf`; `environment` has
    /// credentials for it, as OpenStack's own tools find them. Connects to nobody yet, and needs none until then.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn open(
        settings: OpenStackSettings,
        shelf: ProgramShelf,
        environment: &Environment,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            service: Service::open(&settings, environment)?,
            settings,
            shelf,
            resolved: OnceCell::new(),
        })
    }

    /// Asks the cloud whether there is what a machine needs, and room for one; starts none.
    ///
    /// # Errors
    /// What keeps it from that.
    pub async fn try_out(&self) -> Result<(), ComputeError> {
        let failed = |failure| self.failed("asking whether a machine could be started", "check", failure);
        self.of_job(&owner("none"), &job_tag("check")).await.map_err(failed)?;
        self.resolve().await.map_err(failed)?;
        let limits = self.ask(Method::GET, "/limits", None).await.map_err(failed)?;
        let limits = &limits["limits"]["absolute"];
        for (most, used, what) in [
            ("maxTotalInstances", "totalInstancesUsed", "machines"),
            ("maxTotalCores", "totalCoresUsed", "processors"),
            ("maxTotalRAMSize", "totalRAMUsed", "MiB of memory"),
        ] {
            // Below zero there is no limit.
            if let (Some(most), Some(used)) = (limits[most].as_u64(), limits[used].as_u64())
                && used >= most
            {
                return Err(failed(Failure::Capacity(format!(
                    "all {most} {what} of the project's quota are used"
                ))));
            }
        }
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, id: &str, failure: Failure) -> ComputeError {
        failure.into_error(&self.settings, what, id)
    }

    /// A request to Nova.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.service.ask(Kind::Compute, method, path, body).await
    }

    /// Machines that have all of these tags, separated by commas.
    async fn tagged(&self, tags: &str) -> Result<Vec<Machine>, Failure> {
        let mut all: Vec<Machine> = Vec::new();
        for _ in 0..PAGES {
            let after = all.last().map_or(String::new(), |last| format!("&marker={}", last.id));
            let path = format!("/servers/detail?tags={tags}&limit={PAGE}{after}");
            let page = self.ask(Method::GET, &path, None).await?;
            let servers = page["servers"]
                .as_array()
                .ok_or_else(|| Failure::passing("its answer lists nothing"))?;
            all.extend(servers.iter().filter_map(Machine::of));
            let links = page["servers_links"].as_array().into_iter().flatten();
            if servers.is_empty() || !links.into_iter().any(|link| link["rel"] == "next") {
                return Ok(all);
            }
        }
        Err(Failure::passing("it lists more machines than are looked at"))
    }

    async fn of_job(&self, owner: &str, job_tag: &str) -> Result<Vec<Machine>, Failure> {
        self.tagged(&format!("{owner},{job_tag}")).await
    }

    async fn find(&self, id: &str) -> Result<Option<Machine>, Failure> {
        match self.ask(Method::GET, &format!("/servers/{id}"), None).await {
            Ok(found) => match Machine::of(&found["server"]) {
                Some(machine) => Ok(Some(machine)),
                None => Err(Failure::passing("its answer describes no machine")),
            },
            Err(failure) if failure.is(&["NotFound"]) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The identifier of one of a service's `things`, by its name or its identifier.
    async fn named(&self, kind: Kind, things: &str, path: &str, name: &str) -> Result<String, Failure> {
        let written = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let found = self
            .service
            .ask(kind, Method::GET, &format!("{path}?name={written}"), None)
            .await?;
        let all = found[things].as_array().into_iter().flatten();
        let mut fitting = all
            .filter(|one| one["name"] == name)
            .filter_map(|one| one["id"].as_str());
        let refused = |why: &str| Failure::Refused {
            code: "NotFound".to_owned(),
            why: format!("{why} of its {things} is named `{}`", told(name)),
        };
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => return Ok(id.to_owned()),
            (Some(_), Some(_)) => return Err(refused("more than one")),
            (None, _) => {}
        }
        match self
            .service
            .ask(kind, Method::GET, &format!("{path}/{written}"), None)
            .await
        {
            // Some services wrap it in its own name.
            Ok(one)
                if one["id"] == name
                    || one
                        .as_object()
                        .is_some_and(|one| one.values().any(|one| one["id"] == name)) =>
            {
                Ok(name.to_owned())
            }
            Err(failure) if !failure.is(&["NotFound", "BadRequest"]) => Err(failure),
            _ => Err(refused("none")),
        }
    }

    /// The flavor that was named, or the smallest one that fits.
    async fn flavor(&self) -> Result<String, Failure> {
        if let Some(name) = &self.settings.flavor {
            return self.named(Kind::Compute, "flavors", "/flavors", name).await;
        }
        let found = self.ask(Method::GET, "/flavors/detail", None).await?;
        let (cpus, mebibytes) = (self.settings.cpus, self.settings.mebibytes);
        let fitting = found["flavors"].as_array().into_iter().flatten().filter_map(|flavor| {
            let size = (flavor["vcpus"].as_u64()?, flavor["ram"].as_u64()?);
            // Those without a disk are for machines that boot from volumes.
            let fits = size.0 >= cpus && size.1 >= mebibytes && flavor["disk"].as_u64().is_some_and(|disk| disk > 0);
            fits.then(|| Some((size, flavor["id"].as_str()?.to_owned()))).flatten()
        });
        fitting.min().map(|(_, id)| id).ok_or_else(|| Failure::Refused {
            code: "NotFound".to_owned(),
            why: format!("none of its flavors has {cpus} processors and {mebibytes} MiB of memory"),
        })
    }

    async fn resolve(&self) -> Result<&Resolved, Failure> {
        let resolving = async || {
            let image = self
                .named(Kind::Image, "images", "/v2/images", &self.settings.image)
                .await?;
            let mut networks = Vec::new();
            for network in &self.settings.networks {
                let id = self.named(Kind::Network, "networks", "/v2.0/networks", network).await?;
                networks.push(json!({ "uuid": id }));
            }
            Ok(Resolved {
                image,
                flavor: self.flavor().await?,
                networks: if networks.is_empty() {
                    "auto".into()
                } else {
                    networks.into()
                },
            })
        };
        self.resolved.get_or_try_init(resolving).await
    }

    fn handle(request: &JobRequest, digest: &str, machine: &Machine) -> Result<Handle, ComputeError> {
        if machine.request.as_deref() != Some(digest) {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "another request has the same id".to_owned(),
            });
        }
        Ok(Handle {
            id: request.id.clone(),
            platform: format!("openstack:{}", machine.id),
        })
    }

    /// The machine that a handle names. A handle of another driver names none.
    fn machine_of(handle: &Handle) -> Option<&str> {
        let id = handle.platform.strip_prefix("openstack:")?;
        id.bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
            .then_some(id)
    }

    /// Starts a machine; gives its identifier.
    async fn start(&self, request: &JobRequest, digest: &str, user_data: String) -> Result<String, Failure> {
        let resolved = self.resolve().await?;
        let mut server = json!({
            "name": format!("tidegate-{}", request.id),
            "imageRef": resolved.image,
            "flavorRef": resolved.flavor,
            "networks": resolved.networks,
            "user_data": user_data,
            "metadata": {JOB: request.id, REQUEST: digest},
            "tags": [owner(&request.owner), job_tag(&request.id)],
        });
        if !self.settings.security_groups.is_empty() {
            let groups = self.settings.security_groups.iter().map(|name| json!({ "name": name }));
            server["security_groups"] = groups.collect();
        }
        let started = self
            .ask(Method::POST, "/servers", Some(&json!({ "server": server })))
            .await?;
        let id = started["server"]["id"].as_str();
        id.map(str::to_owned)
            .ok_or_else(|| Failure::passing("its answer names no machine"))
    }

    async fn end(&self, machine: &str) -> Result<(), Failure> {
        match self.ask(Method::DELETE, &format!("/servers/{machine}"), None).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is(&["NotFound"]) => Ok(()),
            // It is being started, or removed.
            Err(failure) if failure.is(&["Conflict"]) => Err(Failure::passing("it is busy with that machine")),
            Err(failure) => Err(failure),
        }
    }

    /// The exit code that a job told on the console of its machine.
    async fn exit_code(&self, machine: &str) -> Option<i32> {
        let body = json!({"os-getConsoleOutput": {"length": CONSOLE_LINES}});
        let path = format!("/servers/{machine}/action");
        let console = self.ask(Method::POST, &path, Some(&body)).await.ok()?;
        boot::exit_code(console["output"].as_str()?)
    }
}

#[async_trait]
impl Compute for OpenStackDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let failed = |failure| self.failed(format!("starting job `{}`", request.id), &request.id, failure);
        let digest = identified(request)?;
        // Nova has no token by which it knows a request again.
        let _alone = alone(&request.id).await;
        let (owner, job) = (owner(&request.owner), job_tag(&request.id));
        let there = self.of_job(&owner, &job).await.map_err(failed)?;
        if let Some(machine) = counting(&there).filter(|one| !one.deleting) {
            return Self::handle(request, &digest, machine);
        }
        let user_data = boot::user_data(request, boot::Kept::Metadata, &self.shelf, USER_DATA_BYTES).await?;
        let started = match self.start(request, &digest, user_data).await {
            Ok(started) => Some(started),
            // It may have been done: whoever asked again would have two.
            Err(failure @ Failure::Unheard(_)) => {
                let mut settling = Settling::within(HEARD);
                while self.of_job(&owner, &job).await.map_err(failed)?.is_empty() {
                    if !settling.goes_on().await {
                        return Err(failed(failure));
                    }
                }
                None
            }
            Err(failure) => return Err(failed(failure)),
        };
        tracing::info!(machine = started, "started a machine");
        // Another process may have started one at the same time.
        let mut there = self.of_job(&owner, &job).await.map_err(failed)?;
        if let Some(started) = &started
            && !there.iter().any(|one| one.id == *started)
        {
            there.extend(self.find(started).await.map_err(failed)?);
        }
        let counts = counting(&there).ok_or_else(|| failed(Failure::passing("it does not list what it started")))?;
        if let Some(started) = started.filter(|started| counts.id != *started) {
            self.end(&started).await.map_err(failed)?;
        }
        Self::handle(request, &digest, counts)
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let Some(id) = Self::machine_of(handle) else {
            return Ok(JobState::Gone);
        };
        let failed = |failure| self.failed(format!("observing job `{}`", handle.id), &handle.id, failure);
        let Some(machine) = self.find(id).await.map_err(failed)?.filter(|one| !one.deleting) else {
            return Ok(JobState::Gone);
        };
        Ok(match machine.status.as_str() {
            "BUILD" => JobState::Pending,
            "SHUTOFF" => JobState::Ended(self.exit_code(id).await),
            "ERROR" => JobState::Lost(format!("machine {id} failed: {}", machine.fault)),
            // Whatever is done to it meanwhile, it is there; a host that does not answer may come back, and the keeper
            // hears the worker by another way.
            _ => JobState::Running,
        })
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let Some(id) = Self::machine_of(handle) else {
            return Ok(());
        };
        let failed = |failure| self.failed(format!("ending job `{}`", handle.id), &handle.id, failure);
        let Some(machine) = self.find(id).await.map_err(failed)? else {
            return Ok(());
        };
        let mut all = vec![machine.clone()];
        let tag = |beginning: &str| machine.tags.iter().find(|tag| tag.starts_with(beginning));
        if let (Some(owner), Some(job)) = (tag("tidegate-owner-"), tag("tidegate-job-")) {
            // Twins of it are nobody's.
            all.extend(self.of_job(owner, job).await.map_err(failed)?);
        }
        let all: BTreeSet<String> = all.into_iter().map(|one| one.id).collect();
        for id in &all {
            self.end(id).await.map_err(failed)?;
        }
        // What is accepted is not done yet, and may fail; until then it is in the quota.
        let mut settling = Settling::within(REMOVING);
        for id in &all {
            while self
                .find(id)
                .await
                .map_err(failed)?
                .is_some_and(|one| !one.status.ends_with("DELETED"))
            {
                if !settling.goes_on().await {
                    return Err(failed(Failure::passing(
                        "a machine that is being removed is still there",
                    )));
                }
            }
        }
        Ok(())
    }

    async fn sweep(&self, of: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let failed = |failure| self.failed("ending jobs", "", failure);
        let mut jobs: BTreeMap<String, Vec<Machine>> = BTreeMap::new();
        for machine in self.tagged(&owner(of)).await.map_err(failed)? {
            let job = machine.job.clone().unwrap_or_default();
            jobs.entry(job).or_default().push(machine);
        }
        let (mut swept, mut failure) = (BTreeSet::new(), None);
        for (job, machines) in jobs {
            let kept = keep.contains(&job);
            // Twins of a job that is kept are nobody's.
            let stays = counting(&machines).filter(|_| kept).map(|one| &one.id);
            for machine in machines.iter().filter(|one| Some(&one.id) != stays) {
                match self.end(&machine.id).await {
                    // What is being removed is asked for again, in case that failed, and was named before.
                    Ok(()) if !kept && !machine.deleting => _ = swept.insert(job.clone()),
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
