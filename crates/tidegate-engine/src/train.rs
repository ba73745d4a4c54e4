//! Training: inputs cross, an attempt runs, its output comes home; a lost attempt is fenced before
//! the next begins.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_contracts::compute::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_contracts::journal::Batch;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::sites::Site;
use tidegate_types::ids::{PermitId, SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, AttemptOutcome, CarriedCheckpoint, ReplyBody, RequestBody};
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
/// After so many attempts that were lost at one site the next one has its turn.
const LOST_IN_A_ROW: u32 = 2;
/// How long nothing is asked of a site that had no room, the first time.
const CROWDED: Duration = Duration::from_secs(15);

/// The longest that a worker's credentials for its store are asked for: the most that clouds give.
const LONGEST_SESSION: u64 = 12 * 3600;

impl Engine {
    /// Trains at the first of some sites, or at the next ones where that has no room or loses its attempts.
    pub(crate) async fn train(
        &self,
        run: &RunRecord,
        task: &TaskName,
        sites: &[&SiteName],
        inputs: &BTreeMap<String, ArtifactSummary>,
    ) -> Result<(TrainedStep, bool), EngineError> {
        let artifacts: BTreeMap<&String, _> = inputs.iter().map(|(name, input)| (name, &input.artifact)).collect();
        let mut places = Vec::new();
        for site in sites {
            let definition = self.sites.sites.get(*site).map(Site::identity);
            let key = self.key(&(
                "train",
                &artifacts,
                &self.pipeline.train,
                site,
                definition,
                self.worker_digest()?,
            ))?;
            if let Some(step) = self.step(&key)? {
                return Ok((step, true));
            }
            let permits = None;
            places.push(Place { site, key, permits });
        }
        let mut turn = Turn::default();
        let mut last = String::new();
        let mut number = 0;
        while number <= self.pipeline.train.retries {
            number += 1;
            let attempt = Attempt {
                run: run.id.clone(),
                task: task.clone(),
                attempt: number,
                rank: 0,
            };
            self.may_go_on(run, Money::ZERO)?;
            // After a restart it is where it was begun.
            let begun = get::<JobRecord>(&*self.journal, "jobs", &job_id(&attempt))?;
            if let Some(begun) = &begun {
                let there = places.iter().position(|place| *place.site == begun.site);
                turn.at = there.unwrap_or(turn.at);
            }
            let count = places.len();
            let Some(place) = places.get_mut(turn.at) else {
                return Err(EngineError::failed("placing the training", "no site is left"));
            };
            let (site, key) = (place.site, place.key);
            // What was begun at a site is ended there, and nowhere else.
            let open = begun.as_ref().is_some_and(|job| job.ended.is_none());
            // One that was lost before needs nothing any more.
            let lost = begun.and_then(|job| job.ended);
            let lost = lost.is_some_and(|(_, outcome)| !matches!(outcome, AttemptOutcome::Accepted { .. }));
            // What crosses for a site crosses when it is needed there.
            if place.permits.is_none() && !lost {
                match self.permits_for(run, task, site, inputs).await {
                    Ok(permits) => place.permits = Some(permits),
                    // Where nothing can be brought to a site, another one may do.
                    Err(error) if count > 1 && !open => {
                        tracing::warn!(run = %run.id, %site, %error, "the training does not go to that site");
                        last = error.to_string();
                        places.remove(turn.at);
                        turn.at %= count - 1;
                        number -= 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let mut permits = place.permits.clone().unwrap_or_default();
            if number > 1 && sites.len() > 1 && !lost {
                match self.carry_checkpoint(run, &attempt, site).await {
                    Ok(carried) => permits.extend(carried),
                    // Beginning anew is worse than going on, and better than nothing.
                    Err(error) => {
                        tracing::warn!(run = %run.id, %site, %error, "the training begins anew at that site");
                    }
                }
            }
            let tried = self.attempt(run, &attempt, site, &permits).await?;
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
                    self.lost(task, number, &last);
                    if !worth_retrying(&stage) {
                        break;
                    }
                }
                // A machine that came too late, or not at all, says nothing about the next one.
                AttemptOutcome::Refused { refusal } if refusal.rule == "ticket-expired" => {
                    last = refusal.to_string();
                    self.lost(task, number, &last);
                }
                AttemptOutcome::Refused { refusal } => return Err(refusal.into()),
                AttemptOutcome::Fenced { why } => {
                    last = why;
                    self.lost(task, number, &last);
                }
            }
            // Time that was given before a restart has passed.
            if turn.next(tried.crowded, count) && !lost && number <= self.pipeline.train.retries {
                self.wait_for_room(run, turn.rounds).await?;
            }
        }
        let tried: Vec<String> = sites.iter().map(|site| format!("`{site}`")).collect();
        Err(EngineError::failed(
            format!("training on site {}", tried.join(" or ")),
            format!(
                "{last}. `tidegate logs {} --pipeline {}` shows what the command wrote",
                run.id, self.text.file
            ),
        ))
    }

    fn lost(&self, task: &TaskName, attempt: u32, reason: &str) {
        (self.progress)(&Progress::AttemptLost {
            task: task.clone(),
            attempt,
            reason: reason.to_owned(),
        });
    }

    /// Brings what attempts at other sites had done to a site, by way of home, under a permit of its own; none is needed at
    /// home.
    async fn carry_checkpoint(
        &self,
        run: &RunRecord,
        attempt: &Attempt,
        site: &SiteName,
    ) -> Result<Option<(String, PermitId)>, EngineError> {
        let body = RequestBody::FetchCheckpoint {
            attempt: attempt.clone(),
            site: site.clone(),
        };
        let ReplyBody::Checkpoint { checkpoint } = self.keeper.ask("fetch-a-checkpoint", body).await? else {
            return Err(self.keeper.wrong_reply());
        };
        let Some(CarriedCheckpoint {
            artifact,
            attempt: made_by,
            from,
            permit,
            bytes,
        }) = checkpoint
        else {
            return Ok(None);
        };
        let name = format!("checkpoint-{made_by}");
        if from != self.home {
            self.account(run, &name, &artifact.artifact, &from, &self.home, bytes, &permit)?;
        }
        if *site == self.home {
            return Ok(None);
        }
        let wanted = Wanted {
            task: &attempt.task,
            name: &name,
            artifact: &artifact.artifact,
            bytes: artifact.bytes,
            to: site,
            worker: Some(self.worker_digest()?),
        };
        let permits = self.cross(run, &[wanted]).await?;
        Ok(permits
            .into_iter()
            .next()
            .map(|permit| ("checkpoint".to_owned(), permit)))
    }

    /// Brings the inputs to a site, under permits of their own; none are needed at home.
    async fn permits_for(
        &self,
        run: &RunRecord,
        task: &TaskName,
        site: &SiteName,
        inputs: &BTreeMap<String, ArtifactSummary>,
    ) -> Result<BTreeMap<String, PermitId>, EngineError> {
        if *site == self.home {
            return Ok(BTreeMap::new());
        }
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
        Ok(inputs.keys().cloned().zip(permits).collect())
    }

    /// Gives the sites time until there may be room again; longer each time.
    async fn wait_for_room(&self, run: &RunRecord, rounds: u32) -> Result<(), EngineError> {
        let pause = CROWDED * 2_u32.pow(rounds.saturating_sub(1).min(5));
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
                crowded,
                ..
            }) => return Ok(Tried { outcome, crowded }),
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
                    crowded: false,
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
                        let crowded = matches!(error, ComputeError::Capacity { .. });
                        let outcome = self.ended(attempt, outcome, true, phases)?;
                        if let Some(record) = get::<JobRecord>(&*self.journal, "jobs", &job)? {
                            put(&*self.journal, "jobs", &job, &JobRecord { crowded, ..record })?;
                        }
                        return Ok(Tried { outcome, crowded });
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

/// A site that may train.
struct Place<'a> {
    site: &'a SiteName,
    /// By which a training there is known again.
    key: Digest,
    /// Under which its inputs crossed, once they did.
    permits: Option<BTreeMap<String, PermitId>>,
}

/// Whose turn it is among the sites that may train.
#[derive(Default)]
struct Turn {
    at: usize,
    /// Attempts that were lost in a row where it is.
    lost: u32,
    /// How often in a row every site had no room.
    rounds: u32,
    crowded: usize,
}

impl Turn {
    /// After an attempt was lost, or its site had no room: the next site's turn, where that may help. True when none of them
    /// has room now.
    fn next(&mut self, crowded: bool, sites: usize) -> bool {
        self.lost += 1;
        self.crowded = if crowded { self.crowded + 1 } else { 0 };
        if crowded || self.lost >= LOST_IN_A_ROW {
            (self.at, self.lost) = ((self.at + 1) % sites.max(1), 0);
        }
        let full = crowded && self.crowded.is_multiple_of(sites.max(1));
        self.rounds = match (full, crowded) {
            (true, _) => self.rounds + 1,
            (false, true) => self.rounds,
            (false, false) => 0,
        };
        full
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_without_room_gives_way_at_once_and_one_that_loses_attempts_after_two() {
        let mut turn = Turn::default();
        assert!(!turn.next(false, 2) && turn.at == 0, "one lost machine says little");
        assert!(!turn.next(false, 2) && turn.at == 1);
        assert!(!turn.next(true, 2) && turn.at == 0);
        assert!(turn.next(true, 2) && turn.at == 1, "nobody has room");
        assert_eq!(turn.rounds, 1);
        let mut alone = Turn::default();
        for round in 1..4 {
            assert!(alone.next(true, 1));
            assert_eq!((alone.at, alone.rounds), (0, round));
        }
    }
}
