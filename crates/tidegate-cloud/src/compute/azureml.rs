//! Containers of Azure Machine Learning: one command job for each job (API version 2025-12-01).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tokio::sync::Mutex;

use super::boot::quoted;
use super::container::Container;
use super::{Failure, alone, identified, owner_tag};
use crate::client::Settling;
use crate::credentials::Environment;
use crate::store::OpenError;

mod service;
mod settings;

pub use settings::AzureMlSettings;

use service::Service;
use settings::Image;

const OBSERVE_EVERY: Duration = Duration::from_secs(3);
/// How long it may take until a job is known of which nobody knows whether it was started.
const HEARD: Duration = Duration::from_secs(20);
/// How long a job may take until it has ended and is removed.
const ENDING: Duration = Duration::from_secs(300);
/// The longest that a job may run: a worker's credentials end before.
const LONGEST: &str = "PT13H";

/// Properties of a job: which one it is, and the digest of its request. Unlike tags they stay what they were first.
const JOB: &str = "tidegate-job";
const REQUEST: &str = "tidegate-request";

/// A job, as the service describes it.
#[derive(Debug, Clone)]
struct Job {
    name: String,
    id: String,
    request: String,
    status: String,
    /// When it was made: tells it from another one that has its name after it.
    created: String,
    /// Its tags, by which those of an owner are found.
    tags: BTreeSet<String>,
}

impl Job {
    fn of(job: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let properties = &job["properties"];
        let tags = properties["tags"].as_object().into_iter().flatten();
        Some(Self {
            name: text(&job["name"])?,
            id: text(&properties["properties"][JOB]).unwrap_or_default(),
            request: text(&properties["properties"][REQUEST]).unwrap_or_default(),
            status: text(&properties["status"])?,
            created: text(&job["systemData"]["createdAt"]).unwrap_or_default(),
            tags: tags.map(|(key, _)| key.clone()).collect(),
        })
    }

    fn has_ended(&self) -> bool {
        ["Completed", "Failed", "Canceled"].contains(&self.status.as_str())
    }

    fn platform(&self) -> String {
        format!("azureml:{}@{}", self.name, self.created)
    }
}

/// What all jobs of an owner are tagged with: tags are looked for by their names alone.
fn owner(owner: &str) -> String {
    format!("tidegate-owner-{}", owner_tag(owner))
}

/// The name of a job, the same for the same request: the service knows it again by that.
fn name(request: &JobRequest) -> String {
    format!("tidegate-{}", owner_tag(&format!("{}\n{}", request.owner, request.id)))
}

/// Compute in Azure Machine Learning.
#[derive(Debug)]
pub struct AzureMlDriver {
    settings: AzureMlSettings,
    service: Service,
    /// The program here, which has the same name in an image.
    program: PathBuf,
    /// Jobs that this process has seen running, and whether their machines were taken away since.
    ran: Mutex<BTreeMap<String, bool>>,
}

impl AzureMlDriver {
    /// The driver of containers with `settings`, in whose image there is what `program` is here; `environment` has
    /// credentials for it, as for a key in Azure Key Vault. Connects to nobody yet.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn open(settings: AzureMlSettings, program: PathBuf, environment: &Environment) -> Result<Self, OpenError> {
        Ok(Self {
            service: Service::open(&settings, environment)?,
            settings,
            program,
            ran: Mutex::default(),
        })
    }

    /// Asks the cloud whether there is what a job needs, and starts none: the workspace, its cluster or a kind of machine
    /// in its region, the environment, and whether its jobs may be looked at.
    ///
    /// # Errors
    /// What keeps it from that.
    pub async fn try_out(&self) -> Result<(), ComputeError> {
        let failed = |failure| self.failed("asking whether a job could be started", "check", failure);
        let workspace = self.get("").await.map_err(failed)?;
        if let Some(pool) = &self.settings.pool {
            self.get(&format!("/computes/{pool}")).await.map_err(failed)?;
        } else if let Some(kind) = &self.settings.kind {
            let (subscription, _) = self
                .settings
                .workspace
                .split_once("/resourceGroups/")
                .unwrap_or_default();
            let location = workspace["location"].as_str().unwrap_or_default();
            let path =
                format!("{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}/vmSizes");
            let sizes = self.service.ask(Method::GET, &path, None, "").await.map_err(failed)?;
            let mut sizes = sizes["value"].as_array().into_iter().flatten();
            // Machines are named in capitals or not.
            if !sizes.any(|size| {
                size["name"]
                    .as_str()
                    .is_some_and(|name| name.eq_ignore_ascii_case(kind))
            }) {
                return Err(failed(Failure::Refused {
                    code: "NotFound".to_owned(),
                    why: format!("{location} has no machines of the kind `{kind}`"),
                }));
            }
        }
        if let Image::Environment(id) = &self.settings.image
            && id.starts_with('/')
        {
            self.service.ask(Method::GET, id, None, "").await.map_err(failed)?;
        }
        self.owned(&owner("none")).await.map_err(failed)?;
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, id: &str, failure: Failure) -> ComputeError {
        failure.into_error(&self.settings, what, id)
    }

    /// What stands below the workspace.
    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let path = format!("{}{path}", self.settings.workspace);
        self.service.ask(Method::GET, &path, None, "").await
    }

    async fn owned(&self, owner: &str) -> Result<Vec<Job>, Failure> {
        let path = format!("{}/jobs?jobType=Command&tag={owner}", self.settings.workspace);
        let found = self.service.list(&path).await?;
        let found = found.iter().filter_map(Job::of);
        // Also where a filter is not understood: nobody else's job is touched.
        Ok(found.filter(|job| job.tags.contains(owner)).collect())
    }

    async fn find(&self, name: &str) -> Result<Option<Job>, Failure> {
        match self.get(&format!("/jobs/{name}")).await {
            Ok(found) => match Job::of(&found) {
                Some(job) => Ok(Some(job)),
                None => Err(Failure::passing("its answer describes no job")),
            },
            Err(failure) if failure.is(&["NotFound"]) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The environment of a job: one is registered for an image, under a name that is the same for the same image.
    async fn environment(&self) -> Result<String, Failure> {
        let image = match &self.settings.image {
            Image::Environment(id) => return Ok(id.clone()),
            Image::Registry(image) => image,
        };
        let path = format!(
            "{}/environments/tidegate-{}/versions/1",
            self.settings.workspace,
            owner_tag(image)
        );
        match self.service.ask(Method::GET, &path, None, "").await {
            Ok(_) => return Ok(path),
            Err(failure) if failure.is(&["NotFound"]) => {}
            Err(failure) => return Err(failure),
        }
        let body = json!({"properties": {"image": image, "osType": "Linux"}});
        match self.service.ask(Method::PUT, &path, Some(&body), "").await {
            Ok(_) => Ok(path),
            // Somebody else has just registered it.
            Err(failure) if failure.is(&["Conflict"]) => Ok(path),
            Err(failure) => Err(failure),
        }
    }

    async fn start(&self, request: &JobRequest, digest: &str, container: Container) -> Result<Job, Failure> {
        let environment = self.environment().await?;
        let command: Vec<String> = container.command.iter().map(|word| quoted(word)).collect();
        let mut resources = json!({"instanceCount": 1});
        if let Some(kind) = &self.settings.kind {
            resources["instanceType"] = kind.as_str().into();
        }
        let mut properties = json!({
            "jobType": "Command",
            "displayName": request.id,
            "command": command.join(" "),
            "environmentId": environment,
            "environmentVariables": container.environment,
            "identity": self.settings.identity,
            "limits": {"jobLimitsType": "Command", "timeout": LONGEST},
            "resources": resources,
            "tags": {owner(&request.owner): ""},
            "properties": {JOB: request.id, REQUEST: digest},
        });
        match &self.settings.pool {
            Some(pool) => properties["computeId"] = format!("{}/computes/{pool}", self.settings.workspace).into(),
            // A cluster says itself whether its machines may be taken away.
            None => {
                let tier = if request.spot { "Spot" } else { "Standard" };
                properties["queueSettings"] = json!({"jobTier": tier});
            }
        }
        let path = format!("{}/jobs/{}", self.settings.workspace, name(request));
        let body = json!({"properties": properties});
        let started = self
            .service
            .ask(Method::PUT, &path, Some(&body), &request.ticket)
            .await?;
        let job = Job::of(&started).ok_or_else(|| Failure::unheard("its answer describes no job"))?;
        // Later looks are compared with a look, and not with this answer.
        Ok(self.find(&job.name).await?.unwrap_or(job))
    }

    fn handle(request: &JobRequest, digest: &str, job: &Job) -> Result<Handle, ComputeError> {
        if job.request != digest {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "another request has the same id".to_owned(),
            });
        }
        Ok(Handle {
            id: request.id.clone(),
            platform: job.platform(),
        })
    }

    /// The job that a handle names, if it is still that one. A handle of another driver names none.
    async fn job_of(&self, handle: &Handle) -> Result<Option<Job>, Failure> {
        let named = handle
            .platform
            .strip_prefix("azureml:")
            .and_then(|rest| rest.split_once('@'));
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        match named {
            Some((name, _)) if plain(name) => {
                let found = self.find(name).await?;
                Ok(found.filter(|job| job.platform() == handle.platform))
            }
            _ => Ok(None),
        }
    }

    async fn cancel(&self, name: &str) -> Result<(), Failure> {
        let path = format!("{}/jobs/{name}/cancel", self.settings.workspace);
        match self.service.ask(Method::POST, &path, None, "").await {
            Ok(_) => Ok(()),
            // It has just ended, or is gone.
            Err(failure) if failure.is(&["BadRequest", "UserError", "Conflict", "NotFound"]) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a job and removes it: what still runs cannot be removed.
    async fn end(&self, job: &Job) -> Result<(), Failure> {
        let mut settling = Settling::within(ENDING);
        let path = format!("{}/jobs/{}", self.settings.workspace, job.name);
        // What has its name after it is another one.
        while let Some(now) = self.find(&job.name).await?.filter(|now| now.created == job.created) {
            if now.has_ended() {
                match self.service.ask(Method::DELETE, &path, None, "").await {
                    Ok(_) => {}
                    // It is being removed, or not yet what it says.
                    Err(failure) if failure.is(&["Conflict", "NotFound"]) => {}
                    Err(failure) => return Err(failure),
                }
            } else if now.status != "CancelRequested" {
                self.cancel(&job.name).await?;
            }
            if !settling.goes_on().await {
                return Err(Failure::passing("a job that is being ended is still there"));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Compute for AzureMlDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let failed = |failure| self.failed(format!("starting job `{}`", request.id), &request.id, failure);
        let digest = identified(request)?;
        let container = Container::of(request, &self.program)?;
        // The service would put something in place of these.
        if container.command.iter().any(|word| word.contains("${{")) {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "its command holds `${{`".to_owned(),
            });
        }
        let _alone = alone(&request.id).await;
        let name = name(request);
        if let Some(job) = self.find(&name).await.map_err(failed)? {
            return Self::handle(request, &digest, &job);
        }
        match self.start(request, &digest, container).await {
            Ok(job) => {
                tracing::info!(job = job.name, "started a container");
                Self::handle(request, &digest, &job)
            }
            // It may have been done, or another process was faster.
            Err(failure) if matches!(failure, Failure::Unheard(_)) || failure.is(&["Conflict"]) => {
                let mut settling = Settling::within(HEARD);
                loop {
                    if let Some(job) = self.find(&name).await.map_err(failed)? {
                        return Self::handle(request, &digest, &job);
                    }
                    if !settling.goes_on().await {
                        return Err(failed(failure));
                    }
                }
            }
            Err(failure) => Err(failed(failure)),
        }
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let failed = |failure| self.failed(format!("observing job `{}`", handle.id), &handle.id, failure);
        let Some(job) = self.job_of(handle).await.map_err(failed)? else {
            return Ok(JobState::Gone);
        };
        let waits = ["NotStarted", "Queued", "Provisioning", "Preparing", "Starting"].contains(&job.status.as_str());
        // The service starts it again after its machine was taken away. A ticket is good for one hello: whatever is started
        // again has none, and would be taken for a thief.
        let taken = {
            let mut ran = self.ran.lock().await;
            if job.status == "Running" {
                ran.entry(handle.platform.clone()).or_default();
            }
            let taken = ran.get_mut(&handle.platform);
            taken.is_some_and(|taken| {
                *taken |= waits;
                *taken
            })
        };
        if taken {
            if !job.has_ended() && job.status != "CancelRequested" {
                self.cancel(&job.name).await.map_err(failed)?;
            }
            return Ok(JobState::Lost(format!(
                "the cloud took the machine of {} away",
                job.name
            )));
        }
        Ok(match job.status.as_str() {
            _ if waits => JobState::Pending,
            "Completed" => JobState::Ended(Some(0)),
            // With which exit code is told nowhere.
            "Failed" => JobState::Ended(None),
            "Canceled" => JobState::Lost(format!("job {} was cancelled", job.name)),
            // What is being cancelled still runs; a machine that does not answer may come back, and the keeper hears the
            // worker by another way.
            _ => JobState::Running,
        })
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let failed = |failure| self.failed(format!("ending job `{}`", handle.id), &handle.id, failure);
        if let Some(job) = self.job_of(handle).await.map_err(failed)? {
            self.end(&job).await.map_err(failed)?;
        }
        self.ran.lock().await.remove(&handle.platform);
        Ok(())
    }

    async fn sweep(&self, of: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let failed = |failure| self.failed("ending jobs", "", failure);
        let jobs = self.owned(&owner(of)).await.map_err(failed)?;
        let ending: Vec<&Job> = jobs.iter().filter(|job| !keep.contains(&job.id)).collect();
        let mut failure = None;
        for job in ending.iter().filter(|job| !job.has_ended()) {
            // One that does not end keeps nobody from ending the others.
            failure = self.cancel(&job.name).await.err().or(failure);
        }
        for job in &ending {
            failure = self.end(job).await.err().or(failure);
        }
        match failure {
            None => Ok(ending.into_iter().map(|job| job.id.clone()).collect()),
            Some(error) => Err(failed(error)),
        }
    }
}
