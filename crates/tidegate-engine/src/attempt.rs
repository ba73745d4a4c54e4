//! One attempt: its ticket, its machine, what its worker needs meanwhile, and how it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::compute::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_contracts::journal::Batch;
use tidegate_contracts::store::{Pace, Patience, StoreAccess, StoreError};
use tidegate_seal::envelope::seal_to;
use tidegate_types::event::EventType;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::{AttemptOutcome, ReplyBody, RequestBody};
use tidegate_types::message::{Attempt, Ticket};
use tidegate_types::to_canonical_json;
use zeroize::Zeroizing;

use crate::error::{EngineError, While};
use crate::jobs::{ensured, explained, job_id};
use crate::ledger::Fact;
use crate::progress::Progress;
use crate::rows::is_rows;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, get, put, value};

/// How long a job may be seen gone without the keeper having heard its last word.
const GONE_FOR: Duration = Duration::from_secs(5);
/// The same for a job that ended by itself: its last word is in the mailbox, and a keeper that is slow
/// or was started again will read it.
const ENDED_FOR: Duration = Duration::from_secs(60);
/// The same where it ended well: what it made is there, and may take long to fetch.
const ENDED_WELL_FOR: Duration = Duration::from_secs(6 * 3600);
/// For how many seconds a worker's credentials of its store are asked: as long as every cloud gives them, also to those
/// who have borrowed their own role.
const SESSION: u64 = 3600;
/// Credentials that end sooner are renewed as if they ended then.
const SHORTEST: Duration = Duration::from_secs(3);
/// Where nobody knows whether a worker has good ones, the next ones come after a third of this.
const UNSURE: Duration = Duration::from_secs(90);

/// What a worker was given to open its store.
struct Access {
    /// The keeper's, for what it is to pass on.
    recipient: String,
    given: tokio::time::Instant,
    /// None where it does not end.
    lasts: Option<Duration>,
}

impl Engine {
    /// One attempt, from its ticket to how it ended. `told` hears how, once, as soon as that is known: removing a machine takes
    /// time.
    pub(crate) async fn attempt(
        &self,
        run: &RunRecord,
        attempt: &Attempt,
        site: &SiteName,
        permits: &BTreeMap<String, PermitId>,
        told: &(dyn Fn(&AttemptOutcome) + Sync),
    ) -> Result<Tried, EngineError> {
        let job = job_id(attempt);
        let (mut there, mut known) = (None, false);
        match get::<JobRecord>(&*self.journal, "jobs", &job)? {
            Some(JobRecord {
                ended: Some((_, outcome)),
                crowded,
                ..
            }) => {
                told(&outcome);
                return Ok(Tried { outcome, crowded });
            }
            Some(record) => (there, known) = (record.handle, true),
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
                    price: self.price(site, !is_rows(&attempt.task)),
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
            worker: self.worker_digest(site)?,
            permits: permits.clone(),
        };
        let ReplyBody::Ticket { ticket, recipient } = self.keeper.ask("start-an-attempt", started).await? else {
            return Err(self.keeper.wrong_reply());
        };
        let fact = Fact::new(EventType::AttemptStarted, run.id.as_str())
            .name("task", attempt.task.as_str())
            .name("site", site.as_str());
        self.ledger.record(&[numbered(fact, attempt)])?;
        if attempt.rank == 0 {
            (self.progress)(&Progress::AttemptStarted {
                task: attempt.task.clone(),
                attempt: attempt.attempt,
                site: site.clone(),
                machines: if is_rows(&attempt.task) {
                    1
                } else {
                    self.pipeline.train.num_nodes
                },
            });
        }
        let mut access = Access {
            recipient,
            given: tokio::time::Instant::now(),
            // What a job was given before a restart may end soon, also where it was asked for and not heard of.
            lasts: Some(Duration::ZERO),
        };
        let handle = match there {
            Some(handle) => handle,
            None => {
                let (request, lasts) = self.job_request(&job, attempt, site, ticket).await?;
                if !known {
                    access.lasts = lasts;
                }
                // It is never closed.
                let turn = self.starting.acquire().await;
                let asked = ensured(&**compute, &request).await;
                drop(turn);
                match asked {
                    Ok(handle) => self.started(&job, handle)?,
                    // Also a request that is wrong: the job of an attempt that ended just before this process was
                    // killed is removed and never runs again, and the keeper knows how it ended.
                    Err(error) => {
                        let outcome = self.fence(attempt, "not-started").await?;
                        tracing::warn!(run = %run.id, %site, %error, "worker not started");
                        let outcome = explained(outcome, Some(&error.to_string()));
                        told(&outcome);
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
        let (outcome, running) = tokio::select! {
            followed = self.follow(attempt, &**compute, &handle) => followed?,
            () = self.keep_access(attempt, site, access) => unreachable!("it goes on for as long as it is asked to"),
            why = self.tell_machine(attempt, site, &**compute, &handle) => {
                let outcome = self.fence(attempt, "lost").await?;
                (explained(outcome, Some(&why)), None)
            }
        };
        phases.extend(running.map(|moment| {
            (
                "running".to_owned(),
                u64::try_from((moment - begun).as_millis()).unwrap_or(u64::MAX),
            )
        }));
        told(&outcome);
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

    /// What is asked of the driver, and how long the worker's credentials in it last.
    async fn job_request(
        &self,
        job: &str,
        attempt: &Attempt,
        site: &SiteName,
        mut ticket: Ticket,
    ) -> Result<(JobRequest, Option<Duration>), EngineError> {
        let making = "making a job";
        let access = self.access(attempt, site).await.while_(making)?;
        (ticket.store, ticket.credentials) = (access.address, access.credentials);
        let request = JobRequest {
            id: job.to_owned(),
            attempt: attempt.clone(),
            command: self.worker(site).command.clone(),
            ticket: serde_json::to_string(&ticket).while_(making)?,
            environment: BTreeMap::new(),
            owner: self.owner.clone(),
            spot: self.pipeline.train.resources.use_spot && !is_rows(&attempt.task),
        };
        Ok((request, access.lasts))
    }

    /// What opens the store to an attempt's worker.
    async fn access(&self, attempt: &Attempt, site: &SiteName) -> Result<StoreAccess, StoreError> {
        self.stores.access(site.as_str(), &attempt.mailbox(), SESSION).await
    }

    /// Gives an attempt's worker new credentials of its store long before the last ones end: one that was not given to it
    /// is followed by another in time. Never returns.
    async fn keep_access(&self, attempt: &Attempt, site: &SiteName, mut access: Access) {
        let mut unsure = access.lasts == Some(Duration::ZERO);
        loop {
            match access.lasts {
                // Whatever the service says, no longer than was asked for.
                Some(lasts) => {
                    let lasts = lasts.min(Duration::from_secs(SESSION));
                    tokio::time::sleep_until(access.given + lasts / 3).await;
                }
                None => std::future::pending().await,
            }
            access.given = tokio::time::Instant::now();
            access.lasts = match self.renew_access(attempt, site, &access.recipient).await {
                // The first ones after a restart have nothing that they could follow in time.
                Ok(Some(lasts)) if std::mem::take(&mut unsure) => Some(lasts.clamp(SHORTEST, UNSURE)),
                Ok(lasts) => lasts.map(|lasts| lasts.max(SHORTEST)),
                Err(error) => {
                    tracing::warn!(run = %attempt.run, %site, %error, "a worker's credentials were not renewed; tried again");
                    Some(UNSURE)
                }
            };
        }
    }

    /// Tells the keeper which machine the attempt's worker is on, where that can be proved. Returns when it never can be
    /// told, with the reason.
    async fn tell_machine(&self, attempt: &Attempt, site: &SiteName, compute: &dyn Compute, handle: &Handle) -> String {
        let patience = Patience::begin(Pace::FAR);
        loop {
            let why = match compute.machine(handle).await {
                Ok(None) => break,
                Ok(Some(machine)) => {
                    let attempt = attempt.clone();
                    let told = RequestBody::Machine { attempt, machine };
                    match self.keeper.ask("tell-the-machine", told).await {
                        Ok(ReplyBody::Noted) => break,
                        Ok(_) => self.keeper.wrong_reply().to_string(),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error @ ComputeError::Invalid { .. }) => return error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(run = %attempt.run, %site, why, "the keeper does not know the worker's machine yet; tried again");
            tokio::time::sleep(patience.pause()).await;
        }
        std::future::pending().await
    }

    async fn renew_access(
        &self,
        attempt: &Attempt,
        site: &SiteName,
        recipient: &str,
    ) -> Result<Option<Duration>, EngineError> {
        let renewing = "renewing a worker's credentials";
        let access = self.access(attempt, site).await.while_(renewing)?;
        if access.lasts.is_some() {
            let text = Zeroizing::new(to_canonical_json(&access.credentials).while_(renewing)?);
            // The mailbox to the keeper may be anywhere.
            let sealed = seal_to(recipient, &text).while_(renewing)?;
            let body = RequestBody::RenewAccess {
                attempt: attempt.clone(),
                sealed: STANDARD.encode(sealed),
            };
            match self.keeper.ask("renew-access", body).await? {
                ReplyBody::Noted => {}
                _ => return Err(self.keeper.wrong_reply()),
            }
        }
        Ok(access.lasts)
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
        let mut patience = ENDED_FOR;
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
                // Whatever becomes of the machine now.
                _ if patience == ENDED_WELL_FOR => (ended, None),
                Ok(JobState::Ended(code)) => {
                    if code == Some(0) {
                        patience = ENDED_WELL_FOR;
                    }
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
            if since(ended) >= patience || since(gone) >= GONE_FOR {
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
            AttemptOutcome::Worked { .. } => ("worked", None),
            AttemptOutcome::Failed { .. } => ("failed", None),
            AttemptOutcome::Refused { .. } => ("refused", None),
            AttemptOutcome::Fenced { .. } => ("fenced", None),
        };
        let fact = Fact::new(EventType::AttemptEnded, attempt.run.as_str())
            .name("task", attempt.task.as_str())
            .name("outcome", word);
        let mut fact = numbered(fact, attempt);
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
pub(crate) struct Tried {
    pub(crate) outcome: AttemptOutcome,
    /// Whether the site had no room for it.
    pub(crate) crowded: bool,
}

impl Tried {
    pub(crate) const fn of(outcome: AttemptOutcome) -> Self {
        Self {
            outcome,
            crowded: false,
        }
    }
}

/// A fact about one attempt, and about which of its machines where it is not the first.
fn numbered(fact: Fact, attempt: &Attempt) -> Fact {
    let fact = fact.number("attempt", u64::from(attempt.attempt));
    match attempt.rank {
        0 => fact,
        rank => fact.number("rank", u64::from(rank)),
    }
}

fn milliseconds_since(moment: tokio::time::Instant) -> u64 {
    u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX)
}
