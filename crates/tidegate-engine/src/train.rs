//! Training: inputs cross, an attempt runs, its output comes home; a lost attempt is fenced before
//! the next begins.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_contracts::compute::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_contracts::journal::Batch;
use tidegate_types::event::EventType;
use tidegate_types::files::sites::Site;
use tidegate_types::ids::{PermitId, SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, AttemptOutcome, ReplyBody, RequestBody};
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::quantity::Money;

use crate::crossings::Wanted;
use crate::error::{EngineError, While};
use crate::jobs::{ensured, explained, job_id};
use crate::ledger::Fact;
use crate::progress::Progress;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, TrainedStep, get, put, value};

/// How long a job may be seen gone without the keeper having heard its last word.
const GONE_FOR: Duration = Duration::from_secs(5);
/// The same for a job that ended by itself: its last word is in the mailbox, and a keeper that is slow
/// or was started again will read it.
const ENDED_FOR: Duration = Duration::from_secs(60);
/// How long nothing is asked of a site that had no room, the first time.
const CROWDED: Duration = Duration::from_secs(15);

/// The longest that a worker's credentials for its store are asked for: the most that clouds give.
const LONGEST_SESSION: u64 = 12 * 3600;

impl Engine {
    pub(crate) async fn train(
        &self,
        run: &RunRecord,
        task: &TaskName,
        site: &SiteName,
        inputs: &BTreeMap<String, ArtifactSummary>,
    ) -> Result<(TrainedStep, bool), EngineError> {
        let artifacts: BTreeMap<&String, _> = inputs.iter().map(|(name, input)| (name, &input.artifact)).collect();
        let definition = self.sites.sites.get(site).map(Site::identity);
        let key = self.key(&(
            "train",
            artifacts,
            &self.pipeline.train,
            site,
            definition,
            self.worker_digest()?,
        ))?;
        if let Some(step) = self.step(&key)? {
            return Ok((step, true));
        }
        let permits = if *site == self.home {
            BTreeMap::new()
        } else {
            let worker = self.worker_digest()?;
            let wanted: Vec<Wanted<'_>> = inputs
                .iter()
                .map(|(name, input)| Wanted {
                    task,
                    name,
                    artifact: &input.artifact,
                    bytes: input.bytes,
                    to: site,
                    worker: Some(worker),
                })
                .collect();
            let permits = self.cross(run, &wanted).await?;
            inputs.keys().cloned().zip(permits).collect()
        };
        let mut last = String::new();
        for number in 1..=self.pipeline.train.retries.saturating_add(1) {
            let attempt = Attempt {
                run: run.id.clone(),
                task: task.clone(),
                attempt: number,
                rank: 0,
            };
            self.may_go_on(run, Money::ZERO)?;
            let tried = self.attempt(run, &attempt, site, &permits).await?;
            let crowded = tried.crowded && number <= self.pipeline.train.retries;
            match tried.outcome {
                AttemptOutcome::Accepted {
                    model, seconds, bytes, ..
                } => {
                    (self.progress)(&Progress::AttemptDone {
                        task: task.clone(),
                        attempt: number,
                        phases: self.phases_of(&attempt)?,
                    });
                    if let (Some(permit), true) = (permits.get("train"), *site != self.home) {
                        self.account(run, "model", &model.artifact, site, &self.home, bytes, permit)?;
                    }
                    let step = TrainedStep { model, seconds };
                    self.keep(&key, &step, &[])?;
                    return Ok((step, false));
                }
                AttemptOutcome::Failed { stage, reason } => {
                    last = format!("{stage}: {reason}");
                    (self.progress)(&Progress::AttemptLost {
                        task: task.clone(),
                        attempt: number,
                        reason: last.clone(),
                    });
                    if !worth_retrying(&stage) {
                        break;
                    }
                }
                // A machine that came too late, or not at all, says nothing about the next one.
                AttemptOutcome::Refused { refusal } if refusal.rule == "ticket-expired" => {
                    last = refusal.to_string();
                    (self.progress)(&Progress::AttemptLost {
                        task: task.clone(),
                        attempt: number,
                        reason: last.clone(),
                    });
                }
                AttemptOutcome::Refused { refusal } => return Err(refusal.into()),
                AttemptOutcome::Fenced { why } => {
                    last.clone_from(&why);
                    (self.progress)(&Progress::AttemptLost {
                        task: task.clone(),
                        attempt: number,
                        reason: why,
                    });
                }
            }
            if crowded {
                self.wait_for_room(run, number).await?;
            }
        }
        Err(EngineError::failed(
            format!("training on site `{site}`"),
            format!(
                "{last}. `tidegate logs {} --pipeline {}` shows what the command wrote",
                run.id, self.text.file
            ),
        ))
    }

    /// Gives a site time until there may be room again; longer after more attempts.
    async fn wait_for_room(&self, run: &RunRecord, attempts: u32) -> Result<(), EngineError> {
        let pause = CROWDED * 2_u32.pow(attempts.saturating_sub(1).min(5));
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until {
            self.may_go_on(run, Money::ZERO)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// One attempt, from its ticket to how it ended.
    async fn attempt(
        &self,
        run: &RunRecord,
        attempt: &Attempt,
        site: &SiteName,
        permits: &BTreeMap<String, PermitId>,
    ) -> Result<Tried, EngineError> {
        let job = job_id(attempt);
        let mut there = None;
        match get::<JobRecord>(&*self.journal, "jobs", &job)? {
            Some(JobRecord {
                ended: Some((_, outcome)),
                ..
            }) => return Ok(Tried::of(outcome)),
            Some(record) => there = record.handle,
            // Before anything is asked for: whoever finds this entry open has something to fence.
            None => put(
                &*self.journal,
                "jobs",
                &job,
                &JobRecord {
                    attempt: attempt.clone(),
                    site: site.clone(),
                    began: (self.clock)(),
                    ended: None,
                    left: false,
                    handle: None,
                    phases: BTreeMap::new(),
                    price: self.price(site, true),
                },
            )?,
        }
        let (begun, mut phases) = (tokio::time::Instant::now(), BTreeMap::new());
        let compute = self
            .compute
            .get(site)
            .ok_or_else(|| EngineError::failed("starting an attempt", format!("site `{site}` has no driver here")))?;
        let started = RequestBody::StartAttempt {
            attempt: attempt.clone(),
            pipeline: self.text.clone(),
            site: site.clone(),
            worker: self.worker_digest()?,
            permits: permits.clone(),
        };
        let ReplyBody::Ticket { ticket } = self.keeper.ask("start-an-attempt", started).await? else {
            return Err(self.keeper.wrong_reply());
        };
        let fact = Fact::new(EventType::AttemptStarted, run.id.as_str())
            .name("task", attempt.task.as_str())
            .name("site", site.as_str())
            .number("attempt", u64::from(attempt.attempt));
        self.ledger.record(&[fact])?;
        (self.progress)(&Progress::AttemptStarted {
            task: attempt.task.clone(),
            attempt: attempt.attempt,
            site: site.clone(),
        });
        let handle = match there {
            Some(handle) => handle,
            None => {
                let request = self.job_request(&job, attempt, site, ticket).await?;
                match ensured(&**compute, &request).await {
                    Ok(handle) => self.started(&job, handle)?,
                    // Also a request that is wrong: the job of an attempt that ended just before this process was
                    // killed is removed and never runs again, and the keeper knows how it ended.
                    Err(error) => {
                        let outcome = self.fence(attempt, "not-started").await?;
                        tracing::warn!(run = %run.id, %site, %error, "worker not started");
                        let outcome = explained(outcome, Some(&error.to_string()));
                        // Whatever the last try met: an earlier one may have started something.
                        return Ok(Tried {
                            outcome: self.ended(attempt, outcome, true, phases)?,
                            crowded: matches!(error, ComputeError::Capacity { .. }),
                        });
                    }
                }
            }
        };
        phases.insert("asked".to_owned(), milliseconds_since(begun));
        let seen = self.follow(attempt, &**compute, &handle).await?;
        let (outcome, running) = seen;
        phases.extend(running.map(|moment| {
            (
                "running".to_owned(),
                u64::try_from((moment - begun).as_millis()).unwrap_or(u64::MAX),
            )
        }));
        let deleted = compute.delete(&handle).await;
        if let Err(error) = &deleted {
            tracing::warn!(run = %run.id, %site, %error, "a job was not removed; the next run tries again");
        }
        Ok(Tried::of(self.ended(attempt, outcome, deleted.is_err(), phases)?))
    }

    /// Notes what was started.
    fn started(&self, job: &str, handle: Handle) -> Result<Handle, EngineError> {
        if let Some(mut record) = get::<JobRecord>(&*self.journal, "jobs", job)? {
            record.handle = Some(handle.clone());
            put(&*self.journal, "jobs", job, &record)?;
        }
        Ok(handle)
    }

    async fn job_request(
        &self,
        job: &str,
        attempt: &Attempt,
        site: &SiteName,
        mut ticket: Ticket,
    ) -> Result<JobRequest, EngineError> {
        let making = "making a job";
        let seconds = self.pipeline.deadline.map_or(LONGEST_SESSION, |deadline| deadline.0);
        let mailbox = attempt.mailbox();
        let access = self
            .stores
            .access(site.as_str(), &mailbox, seconds.min(LONGEST_SESSION));
        let access = access.await.while_(making)?;
        (ticket.store, ticket.credentials) = (access.address, access.credentials);
        Ok(JobRequest {
            id: job.to_owned(),
            attempt: attempt.clone(),
            command: self.worker.command.clone(),
            ticket: serde_json::to_string(&ticket).while_(making)?,
            environment: BTreeMap::new(),
            owner: self.owner.clone(),
            spot: self.pipeline.train.resources.use_spot,
        })
    }

    /// Waits for the keeper's word about an attempt, and watches the machine meanwhile; also when it was first seen to
    /// run.
    async fn follow(
        &self,
        attempt: &Attempt,
        compute: &dyn Compute,
        handle: &Handle,
    ) -> Result<(AttemptOutcome, Option<tokio::time::Instant>), EngineError> {
        let asked = self.keeper.ask(
            "await-an-attempt",
            RequestBody::AwaitAttempt {
                attempt: attempt.clone(),
            },
        );
        tokio::pin!(asked);
        let (mut ended, mut gone) = (None, None);
        let (mut reason, mut running, mut blind) = (None, None, false);
        let mut pause = compute.observe_every().min(Duration::from_secs(1));
        loop {
            tokio::select! {
                reply = &mut asked => {
                    let ReplyBody::AttemptEnded { outcome } = reply? else {
                        return Err(self.keeper.wrong_reply());
                    };
                    return Ok((outcome, running));
                }
                () = tokio::time::sleep(pause) => {}
            }
            // The first look comes early, so that it is known how long a machine took.
            pause = compute.observe_every();
            let state = compute.observe(handle).await;
            let now = tokio::time::Instant::now();
            if matches!(state, Ok(JobState::Running)) {
                running = running.or(Some(now));
            }
            (ended, gone) = match state {
                Ok(JobState::Ended(code)) => {
                    reason = code.map(|code| format!("its job ended with exit code {code}"));
                    (ended.or(Some(now)), None)
                }
                Ok(JobState::Lost(why)) => {
                    reason = Some(why);
                    (None, gone.or(Some(now)))
                }
                Ok(JobState::Gone) => (None, gone.or(Some(now))),
                Ok(JobState::Pending | JobState::Running) => {
                    blind = false;
                    (None, None)
                }
                // What was seen last holds, and its time goes on.
                Err(error) => {
                    if !std::mem::replace(&mut blind, true) {
                        tracing::warn!(run = %attempt.run, %error, "a job cannot be seen; the keeper hears its worker");
                    }
                    (ended, gone)
                }
            };
            let since = |moment: Option<tokio::time::Instant>| moment.map_or(Duration::ZERO, |moment| now - moment);
            if since(ended) >= ENDED_FOR || since(gone) >= GONE_FOR {
                let outcome = self.fence(attempt, "lost").await?;
                return Ok((explained(outcome, reason.as_deref()), running));
            }
        }
    }

    pub(crate) async fn fence(&self, attempt: &Attempt, why: &str) -> Result<AttemptOutcome, EngineError> {
        let body = RequestBody::Fence {
            attempt: attempt.clone(),
            why: why.to_owned(),
        };
        match self.keeper.ask("fence", body).await? {
            ReplyBody::AttemptEnded { outcome } => Ok(outcome),
            _ => Err(self.keeper.wrong_reply()),
        }
    }

    /// Records how an attempt ended, and whether something of it may be left; also after a restart it ended that way.
    pub(crate) fn ended(
        &self,
        attempt: &Attempt,
        outcome: AttemptOutcome,
        left: bool,
        phases: BTreeMap<String, u64>,
    ) -> Result<AttemptOutcome, EngineError> {
        let (word, model) = match &outcome {
            AttemptOutcome::Accepted { model, .. } => ("accepted", Some(model.artifact)),
            AttemptOutcome::Failed { .. } => ("failed", None),
            AttemptOutcome::Refused { .. } => ("refused", None),
            AttemptOutcome::Fenced { .. } => ("fenced", None),
        };
        let mut fact = Fact::new(EventType::AttemptEnded, attempt.run.as_str())
            .name("task", attempt.task.as_str())
            .name("outcome", word)
            .number("attempt", u64::from(attempt.attempt));
        if let Some(model) = model {
            fact = fact.digest("model", model);
        }
        let job = job_id(attempt);
        let mut batch = Batch::default();
        if let Some(mut record) = get::<JobRecord>(&*self.journal, "jobs", &job)? {
            record.ended = Some(((self.clock)(), outcome.clone()));
            record.left = left;
            record.phases = phases;
            batch = batch.set("jobs", &job, value(&record)?);
        }
        let (batch, _) = self.ledger.add(batch, &fact)?;
        self.journal.commit(&batch).while_("recording how an attempt ended")?;
        Ok(outcome)
    }
}

/// What came of an attempt.
struct Tried {
    outcome: AttemptOutcome,
    /// Whether the site had no room for it.
    crowded: bool,
}

impl Tried {
    const fn of(outcome: AttemptOutcome) -> Self {
        Self {
            outcome,
            crowded: false,
        }
    }
}

fn milliseconds_since(moment: tokio::time::Instant) -> u64 {
    u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A command that failed by itself will fail again; a machine or a mailbox that failed may not.
fn worth_retrying(stage: &str) -> bool {
    !matches!(
        stage,
        "command" | "setup" | "memory" | "time" | "output" | "sandbox" | "admission"
    )
}
