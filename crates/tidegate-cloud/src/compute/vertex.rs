//! Containers on Google's Vertex AI: one `CustomJob` for each job (REST, version 1).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};

use super::container::Container;
use super::{Failure, alone, identified, owner_tag, told};
use crate::client::Settling;
use crate::credentials::Environment;
use crate::store::OpenError;

mod service;
mod settings;

pub use settings::VertexSettings;

use service::{Service, says_no_room};

const OBSERVE_EVERY: Duration = Duration::from_secs(3);
/// How long it may take until a job is listed of which nobody knows whether it was started.
const HEARD: Duration = Duration::from_secs(60);
/// How long a job may take until it has ended and is removed.
const ENDING: Duration = Duration::from_secs(300);
/// The longest that a job may run: a worker's credentials end before.
const LONGEST: &str = "46800s";
/// Jobs in one page of a listing, and the most pages.
const PAGE: usize = 100;
const PAGES: usize = 1000;

/// Labels of a job: whose it is, which one, and the digest of its request. Each is a letter and hexadecimal digits, so
/// that a filter takes it for a word.
const OWNER: &str = "tidegate_owner";
const JOB: &str = "tidegate_job";
const REQUEST: &str = "tidegate_request";
/// The most signs of a label.
const LABEL: usize = 63;
/// What is read of a job: its environment holds a ticket, which nobody needs again.
const FIELDS: &str = "name,displayName,labels,state,error,createTime";

/// A job, as the service describes it.
#[derive(Debug, Clone)]
struct Job {
    /// `projects/…/locations/…/customJobs/NUMBER`.
    name: String,
    id: String,
    state: String,
    created: String,
    labels: BTreeMap<String, String>,
    error: Value,
}

impl Job {
    fn of(job: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let labels = job["labels"].as_object().into_iter().flatten();
        Some(Self {
            name: text(&job["name"])?,
            id: text(&job["displayName"])?,
            state: text(&job["state"])?,
            created: text(&job["createTime"]).unwrap_or_default(),
            labels: labels
                .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
                .collect(),
            error: job["error"].clone(),
        })
    }

    fn number(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it has ended, so that it can be removed.
    fn has_ended(&self) -> bool {
        let ends = ["SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED"];
        let state = self.state.strip_prefix("JOB_STATE_").unwrap_or_default();
        ends.contains(&state)
    }

    fn state(&self) -> JobState {
        match self.state.strip_prefix("JOB_STATE_").unwrap_or_default() {
            "QUEUED" | "PENDING" => JobState::Pending,
            "SUCCEEDED" => JobState::Ended(Some(0)),
            "PARTIALLY_SUCCEEDED" => JobState::Ended(None),
            "FAILED" => failed_as(&self.error),
            "CANCELLED" => JobState::Lost(format!("job {} was cancelled", self.number())),
            "EXPIRED" => JobState::Lost(format!("job {} ran for longer than it may", self.number())),
            // What is being cancelled still runs; the service names more states than it has for such jobs.
            _ => JobState::Running,
        }
    }
}

/// What became of a job that failed: it ended by itself where its exit code is told, and is lost otherwise. Of the
/// service's words those are not shown that repeat what the job wrote.
fn failed_as(error: &Value) -> JobState {
    let words = error["message"].as_str().unwrap_or_default();
    let code = words
        .split_once("exited with a non-zero status of ")
        .and_then(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
    if code.is_some() {
        return JobState::Ended(code);
    }
    if words.to_ascii_lowercase().contains("preempt") {
        return JobState::Lost(format!("the cloud took its spot machine back: {}", told(words)));
    }
    // Of the codes of gRPC: what is exhausted, and what was aborted, is internal, or out of reach.
    match error["code"].as_i64() {
        _ if says_no_room(words) => JobState::Lost(format!("there was no room for it: {}", told(words))),
        Some(8 | 10 | 13 | 14) => JobState::Lost(told(words)),
        _ => JobState::Ended(None),
    }
}

/// Of several jobs for one request, the one that counts: one that goes on before one that has ended, then the first.
fn counting(jobs: &[Job]) -> Option<&Job> {
    jobs.iter().min_by_key(|one| (one.has_ended(), &one.created, &one.name))
}

/// A letter and the beginning of a digest.
fn label(text: &str) -> String {
    format!("d{text}").chars().take(LABEL).collect()
}

/// Compute on Vertex AI.
#[derive(Debug)]
pub struct VertexDriver {
    settings: VertexSettings,
    service: Service,
    /// The program here, which has the same name in an image.
    program: PathBuf,
}

impl VertexDriver {
    /// The driver of containers with `settings`, in whose image there is what `program` is here; `environment` has
    /// credentials for it, as for a store of Google's. Connects to nobody yet.
    ///
    /// # Errors
    /// When certificates or credentials cannot be read.
    pub fn open(settings: VertexSettings, program: PathBuf, environment: &Environment) -> Result<Self, OpenError> {
        Ok(Self {
            service: Service::open(&settings, environment)?,
            settings,
            program,
        })
    }

    /// Asks the cloud what can be asked without starting anything: whether the project has the service in that region,
    /// and whether the credentials may look at its jobs. Whether there is such a machine and room for it, the service
    /// tells only whoever starts one.
    ///
    /// # Errors
    /// What keeps it from that.
    pub async fn try_out(&self) -> Result<(), ComputeError> {
        let failed = |failure| self.failed("asking whether a job could be started", "check", failure);
        self.labelled(&label(&owner_tag("none")), Some("check"))
            .await
            .map_err(failed)?;
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, id: &str, failure: Failure) -> ComputeError {
        failure.into_error(&self.settings, what, id)
    }

    /// Jobs of an owner, or one of them with its twins.
    async fn labelled(&self, owner: &str, job: Option<&str>) -> Result<Vec<Job>, Failure> {
        let mut wanted = vec![(OWNER, owner)];
        wanted.extend(job.map(|job| (JOB, job)));
        let filter: Vec<String> = wanted
            .iter()
            .map(|(key, value)| format!("labels.{key}={value}"))
            .collect();
        let filter: String = url::form_urlencoded::byte_serialize(filter.join(" AND ").as_bytes()).collect();
        let parent = self.settings.parent();
        let (mut jobs, mut next) = (Vec::new(), String::new());
        for _ in 0..PAGES {
            let path = format!("{parent}/customJobs?filter={filter}&pageSize={PAGE}&readMask={FIELDS}{next}");
            let page = self.service.ask(Method::GET, &path, None, "").await?;
            let found = page["customJobs"].as_array().into_iter().flatten().filter_map(Job::of);
            // Also where a filter is not understood: nobody else's job is touched.
            let ours = |job: &Job| {
                wanted
                    .iter()
                    .all(|(key, value)| job.labels.get(*key).is_some_and(|is| is == value))
            };
            jobs.extend(found.filter(ours));
            match page["nextPageToken"].as_str() {
                Some(token) if !token.is_empty() => {
                    let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
                    next = format!("&pageToken={token}");
                }
                _ => return Ok(jobs),
            }
        }
        Err(Failure::passing("it lists more jobs than are looked at"))
    }

    async fn find(&self, name: &str) -> Result<Option<Job>, Failure> {
        match self
            .service
            .ask(Method::GET, &format!("{name}?fields={FIELDS}"), None, "")
            .await
        {
            Ok(found) => match Job::of(&found) {
                Some(job) => Ok(Some(job)),
                None => Err(Failure::passing("its answer describes no job")),
            },
            Err(failure) if failure.is(&["NOT_FOUND"]) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The job that a handle names. A handle of another driver names none.
    fn name_of(&self, handle: &Handle) -> Option<String> {
        let number = handle.platform.strip_prefix("vertex:")?;
        let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| format!("{}/customJobs/{number}", self.settings.parent()))
    }

    fn handle(request: &JobRequest, digest: &str, job: &Job) -> Result<Handle, ComputeError> {
        if job.labels.get(REQUEST).is_none_or(|is| is != digest) {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: "another request has the same id".to_owned(),
            });
        }
        Ok(Handle {
            id: request.id.clone(),
            platform: format!("vertex:{}", job.number()),
        })
    }

    async fn start(&self, request: &JobRequest, container: Container, labels: Value) -> Result<Job, Failure> {
        let mut machine = json!({"machineType": self.settings.kind});
        if let Some((kind, count)) = &self.settings.accelerator {
            machine["acceleratorType"] = kind.as_str().into();
            machine["acceleratorCount"] = (*count).into();
        }
        let environment = container.environment.into_iter();
        let environment: Vec<Value> = environment
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        let (command, arguments) = container.command.split_at(1);
        let mut spec = json!({
            "workerPoolSpecs": [{
                "machineSpec": machine,
                // A number of 64 bits is a text there.
                "replicaCount": "1",
                "containerSpec": {
                    "imageUri": self.settings.image,
                    "command": command,
                    "args": arguments,
                    "env": environment,
                },
            }],
            "scheduling": {
                "strategy": if request.spot { "SPOT" } else { "STANDARD" },
                "timeout": LONGEST,
                // A ticket is good for one hello: whatever is started again has none, and would be taken for a thief.
                "restartJobOnWorkerRestart": false,
                "disableRetries": true,
            },
        });
        if let Some(account) = &self.settings.account {
            spec["serviceAccount"] = account.as_str().into();
        }
        if let Some(network) = &self.settings.network {
            spec["network"] = network.as_str().into();
        }
        let job = json!({"displayName": request.id, "labels": labels, "jobSpec": spec});
        let path = format!("{}/customJobs", self.settings.parent());
        let started = self
            .service
            .ask(Method::POST, &path, Some(&job), &request.ticket)
            .await?;
        Job::of(&started).ok_or_else(|| Failure::unheard("its answer describes no job"))
    }

    async fn cancel(&self, name: &str) -> Result<(), Failure> {
        match self
            .service
            .ask(Method::POST, &format!("{name}:cancel"), Some(&json!({})), "")
            .await
        {
            Ok(_) => Ok(()),
            // It has just ended, or is gone.
            Err(failure) if failure.is(&["FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"]) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a job and removes it: what still runs cannot be removed.
    async fn end(&self, name: &str) -> Result<(), Failure> {
        let mut settling = Settling::within(ENDING);
        while let Some(job) = self.find(name).await? {
            if job.has_ended() {
                match self.service.ask(Method::DELETE, name, None, "").await {
                    Ok(_) => {}
                    // It is being removed, or not yet what it says.
                    Err(failure) if failure.is(&["FAILED_PRECONDITION", "ABORTED", "NOT_FOUND"]) => {}
                    Err(failure) => return Err(failure),
                }
            } else if job.state != "JOB_STATE_CANCELLING" {
                self.cancel(name).await?;
            }
            if !settling.goes_on().await {
                return Err(Failure::passing("a job that is being ended is still there"));
            }
        }
        Ok(())
    }

    /// Ends several, and waits for all together.
    async fn end_all(&self, jobs: &[Job]) -> Result<(), Failure> {
        let mut failure = None;
        for job in jobs.iter().filter(|job| !job.has_ended()) {
            // One that does not end keeps nobody from ending the others.
            failure = self.cancel(&job.name).await.err().or(failure);
        }
        for job in jobs {
            failure = self.end(&job.name).await.err().or(failure);
        }
        failure.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Compute for VertexDriver {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let failed = |failure| self.failed(format!("starting job `{}`", request.id), &request.id, failure);
        let digest = label(&identified(request)?);
        // Vertex has no token by which it knows a request again.
        let _alone = alone(&request.id).await;
        let (owner, job) = (label(&owner_tag(&request.owner)), label(&owner_tag(&request.id)));
        let there = self.labelled(&owner, Some(&job)).await.map_err(failed)?;
        if let Some(found) = counting(&there) {
            return Self::handle(request, &digest, found);
        }
        let container = Container::of(request, &self.program)?;
        let labels = json!({OWNER: owner, JOB: job, REQUEST: digest});
        let started = match self.start(request, container, labels).await {
            Ok(started) => Some(started),
            // It may have been done: whoever asked again would have two.
            Err(failure @ Failure::Unheard(_)) => {
                let mut settling = Settling::within(HEARD);
                while self.labelled(&owner, Some(&job)).await.map_err(failed)?.is_empty() {
                    if !settling.goes_on().await {
                        return Err(failed(failure));
                    }
                }
                None
            }
            Err(failure) => return Err(failed(failure)),
        };
        tracing::info!(job = started.as_ref().map(Job::number), "started a container");
        // Another process may have started one at the same time. Whoever asks next finds what is listed and nothing else.
        let mut settling = Settling::within(HEARD);
        let mut there = self.labelled(&owner, Some(&job)).await.map_err(failed)?;
        while let Some(started) = &started
            && !there.iter().any(|one| one.name == started.name)
        {
            if settling.goes_on().await {
                there = self.labelled(&owner, Some(&job)).await.map_err(failed)?;
            } else {
                there.push(started.clone());
            }
        }
        let counts = counting(&there).ok_or_else(|| failed(Failure::passing("it does not list what it started")))?;
        if let Some(started) = started.filter(|started| counts.name != started.name) {
            self.end(&started.name).await.map_err(failed)?;
        }
        Self::handle(request, &digest, counts)
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        let Some(name) = self.name_of(handle) else {
            return Ok(JobState::Gone);
        };
        let failed = |failure| self.failed(format!("observing job `{}`", handle.id), &handle.id, failure);
        let job = self.find(&name).await.map_err(failed)?;
        Ok(job.map_or(JobState::Gone, |job| job.state()))
    }

    fn observe_every(&self) -> Duration {
        OBSERVE_EVERY
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        let Some(name) = self.name_of(handle) else {
            return Ok(());
        };
        let failed = |failure| self.failed(format!("ending job `{}`", handle.id), &handle.id, failure);
        let Some(job) = self.find(&name).await.map_err(failed)? else {
            return Ok(());
        };
        let mut all = vec![job.clone()];
        if let (Some(owner), Some(id)) = (job.labels.get(OWNER), job.labels.get(JOB)) {
            // Twins of it are nobody's.
            let twins = self.labelled(owner, Some(id)).await.map_err(failed)?;
            all.extend(twins.into_iter().filter(|twin| twin.name != job.name));
        }
        self.end_all(&all).await.map_err(failed)
    }

    async fn sweep(&self, of: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        let failed = |failure| self.failed("ending jobs", "", failure);
        let mut jobs: BTreeMap<String, Vec<Job>> = BTreeMap::new();
        for job in self.labelled(&label(&owner_tag(of)), None).await.map_err(failed)? {
            jobs.entry(job.id.clone()).or_default().push(job);
        }
        let (mut swept, mut ending) = (BTreeSet::new(), Vec::new());
        for (id, all) in jobs {
            let kept = keep.contains(&id);
            // Twins of a job that is kept are nobody's.
            let stays = counting(&all).filter(|_| kept).map(|one| one.name.clone());
            ending.extend(all.into_iter().filter(|one| Some(&one.name) != stays.as_ref()));
            if !kept {
                swept.insert(id);
            }
        }
        self.end_all(&ending).await.map_err(failed)?;
        Ok(swept.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_job_is_read_from_the_services_own_words() {
        let state = |code: i64, words: &str| failed_as(&json!({"code": code, "message": words}));
        let ended = "The replica workerpool0-0 exited with a non-zero status of 3. Termination reason: Error. \nTraceback: \
                     preempted";
        assert_eq!(state(3, ended), JobState::Ended(Some(3)));
        for (code, words, told) in [
            (14, "Spot VM was preempted.", "took its spot machine back"),
            (
                8,
                "Resources are insufficient in region: europe-west4.",
                "no room for it",
            ),
            (13, "Internal error occurred.", "Internal error"),
        ] {
            match state(code, words) {
                JobState::Lost(why) => assert!(why.contains(told), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(state(3, "what it wrote"), JobState::Ended(None));
    }

    #[test]
    fn labels_are_no_longer_than_they_may_be() {
        let label = label(&"0".repeat(64));
        assert!(label.len() == LABEL && label.starts_with('d'));
    }
}
