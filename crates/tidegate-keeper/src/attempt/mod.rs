//! One worker, from its ticket to its output.
//!
//! ```text
//!   Waiting ──hello──▶ CodeGranted ──setup done──▶ DataGranted ──output──▶ OutputReceived ──finished──▶ accepted
//!      │                    └──setup done──▶ SetUp ──others too──┘  └──finished, of other machines──▶ worked
//!      └───────────────── refused, failed, fenced ──────────────┘
//! ```
//!
//! Where several machines work at one job, each has an attempt of its own rank: data is granted once all are set up, and
//! the output and the checkpoints of rank 0 are the only ones.
//!
//! Each arrow is one journal transaction that holds the new phase and the letter that goes with it;
//! the letter is delivered afterwards, and again after a crash. Fencing is a transaction on the same
//! entry, so an output is accepted before the fence or not at all.
//!
//! Before each arrow and each lease the mailbox is searched for a second hello by the same ticket, which
//! burns the attempt: whoever of the two was first, nobody can tell which of them was meant.

mod checkpoint;
mod drive;
mod grant;
mod nodes;
mod output;
mod setup;

pub(crate) use setup::SETUPS;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::journal::Batch;
use tidegate_contracts::store::{Pace, Patience};
use tidegate_seal::envelope::open;
use tidegate_seal::random::random_bytes;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::Pipeline;
use tidegate_types::files::rules::read_accelerators;
use tidegate_types::files::sites::NetworkRule;
use tidegate_types::ids::{PermitId, SiteName, TaskName};
use tidegate_types::keeper::{AttemptOutcome, PipelineText, ReplyBody};
use tidegate_types::label::Label;
use tidegate_types::message::{Attempt, Job, Ticket};
use tidegate_types::refusal::Refusal;
use zeroize::Zeroizing;

use crate::admission::unproven;
use crate::away::{is_away, rows_stay_home};
use crate::error::{KeeperError, While, refuse};
use crate::permits::{OUTPUT_BYTES, Wanted};
use crate::records::{AttemptRecord, Phase, Position, attempt_key, milliseconds, value};
use crate::service::Keeper;
use crate::underway::Watch;

/// What unfinished work that crossed is called among the inputs.
const CHECKPOINT: &str = "checkpoint";
/// How long a ticket is good for a hello, in seconds.
const TICKET_SECONDS: u64 = 1800;
/// How long a lease lasts, and how often it is renewed.
const LEASE_SECONDS: u64 = 30;
const LEASE_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after the first failure of following an attempt; longer after more.
const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Keeper {
    pub(crate) async fn start_attempt(
        self: &Arc<Self>,
        attempt: &Attempt,
        text: &PipelineText,
        site: &SiteName,
        worker: Digest,
        permits: &BTreeMap<String, PermitId>,
    ) -> Result<ReplyBody, KeeperError> {
        // One after the other: what crosses for the first machine of several has crossed for the others. Other tasks wait
        // for nothing of it.
        let turn = self.turn(attempt)?;
        let starting = turn.lock().await;
        let record = match self.records.attempt(attempt)? {
            Some(record) => record,
            None => self.new_attempt(attempt, text, site, worker, permits).await?,
        };
        drop(starting);
        let secret = self.ticket_secret(&record).await?;
        self.watch(attempt.clone());
        Ok(ReplyBody::Ticket {
            ticket: Ticket {
                attempt: attempt.clone(),
                site: record.site.clone(),
                // Whoever starts the worker knows how that site sees its store, and gives it access.
                store: self.site_definition(&record.site)?.store.clone(),
                credentials: BTreeMap::new(),
                organisation: self.sites.organisation.clone(),
                secret: hex::encode(*secret),
                worker: record.worker,
                owner: self.site.clone(),
                owner_key: self.keys.signing.public().to_base64(),
                expires: record.expires,
            },
            recipient: self.keys.identity.recipient(),
        })
    }

    /// What whoever begins an attempt of this task holds meanwhile.
    fn turn(&self, attempt: &Attempt) -> Result<Arc<tokio::sync::Mutex<()>>, KeeperError> {
        let mut turns = self
            .starting
            .lock()
            .map_err(|_| KeeperError::failed("starting an attempt", "a part of it failed before"))?;
        // Nobody holds these any more, or waits for them.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Ok(Arc::clone(turns.entry(fence_key(attempt)).or_default()))
    }

    async fn ticket_secret(&self, record: &AttemptRecord) -> Result<Zeroizing<[u8; 32]>, KeeperError> {
        let opening = "opening a ticket's secret";
        let wrapped = hex::decode(&record.secret).while_(opening)?;
        let secret = self.custody.unwrap_key(&wrapped, &attempt_key(&record.attempt)).await;
        Ok(Zeroizing::new(secret.while_(opening)?))
    }

    async fn new_attempt(
        &self,
        attempt: &Attempt,
        text: &PipelineText,
        site: &SiteName,
        worker: Digest,
        permits: &BTreeMap<String, PermitId>,
    ) -> Result<AttemptRecord, KeeperError> {
        let starting = "starting an attempt";
        let (pipeline, digest) = self.pipeline(text)?;
        let prepared = self.given_record(&attempt.run, &attempt.task, digest)?;
        let fence = self.may_begin(attempt)?;
        let job = self.job(&pipeline, site, &attempt.task)?;
        self.may_be_joined(attempt, &job, site)?;
        let mut inputs = BTreeMap::new();
        let mut label = Label::public();
        let mut ends = u64::MAX;
        // What was brought home for it; where it did not cross, the attempt begins anew.
        let carried = self.carried(&attempt.run, &attempt.task)?;
        let carried = carried.filter(|_| *site == self.site || permits.contains_key(CHECKPOINT));
        let carried = carried.map(|artifact| (CHECKPOINT.to_owned(), artifact));
        for (name, artifact) in prepared
            .inputs
            .iter()
            .chain(carried.iter().map(|(name, artifact)| (name, artifact)))
        {
            let permit = match permits.get(name) {
                Some(permit) => self.permit_record(permit)?,
                None if *site == self.site => {
                    let wanted = Wanted {
                        run: &attempt.run,
                        task: &attempt.task,
                        artifact,
                        to: site,
                        worker: Some(worker),
                    };
                    let record = self.home_permit(&wanted, &pipeline, digest).await?;
                    if self.records.crossing(&record.id)?.is_none() {
                        self.is_packed(attempt, &prepared)?;
                        let watch = Watch::new(self.artifact_record(artifact)?.manifest.total_bytes(), self.unasked);
                        self.cross(&record, &watch).await?;
                    }
                    record
                }
                None => {
                    return Err(refuse(
                        "permit-missing",
                        format!("giving `{name}` to a worker on site `{site}`"),
                        "there is no permit for it",
                        "ask for a permit first",
                    )
                    .into());
                }
            };
            let fits = permit.run == attempt.run
                && permit.task == attempt.task
                && permit.artifact == *artifact
                && permit.to == *site
                && permit.worker == Some(worker)
                && attempt.attempt <= permit.attempts
                && permit.expires > (self.clock)();
            if !fits || self.records.crossing(&permit.id)?.is_none() {
                return Err(refuse(
                    "permit-other-artifact",
                    format!("giving `{name}` to a worker on site `{site}`"),
                    "its permit is for another run, task, artifact, site or program, or for fewer attempts, has expired, or nothing was sent under it",
                    "ask for a permit for exactly this, and send under it",
                )
                .into());
            }
            label = label.join(&self.artifact_record(artifact)?.manifest.label);
            ends = ends.min(permit.expires);
            inputs.insert(name.clone(), permit.id);
        }
        if is_away(&attempt.task) {
            // All of it is sealed: nothing stays in the clear.
            self.forget_packed(&prepared.home)?;
        }
        let secret: [u8; 32] = random_bytes().while_(starting)?;
        let wrapped = self
            .custody
            .wrap(&secret, &attempt_key(attempt))
            .await
            .while_(starting)?;
        let record = AttemptRecord {
            attempt: attempt.clone(),
            site: site.clone(),
            worker,
            secret: hex::encode(wrapped),
            expires: (self.clock)() + TICKET_SECONDS,
            ends,
            inputs,
            job,
            label,
            phase: Phase::Waiting,
            hello: None,
            machine: None,
            node: None,
            read: Position::default(),
            written: Position::default(),
            pending: None,
            output: None,
            output_bytes: 0,
            checkpoint: None,
            checkpoint_bytes: 0,
            log_bytes: 0,
            metric_bytes: 0,
            ticketed: milliseconds(),
            phases: BTreeMap::new(),
            outcome: None,
        };
        let leaf = self.attempt_event(
            EventType::AttemptStarted,
            attempt,
            &[("site", site.as_str())],
            &[("worker", worker)],
        )?;
        let key = attempt_key(attempt);
        let fence_key = fence_key(attempt);
        let begun = Batch::default()
            .create("attempts", &key, value(&record)?)
            .expect("fences", &fence_key, fence)
            .leaf(&format!("attempt/{key}"), leaf);
        if !self.records.commit_if(&begun)? {
            return Err(not_begun(attempt, "it was fenced meanwhile").into());
        }
        Ok(record)
    }

    /// Of one task at most one output counts: an attempt begins only when every earlier one has
    /// ended without an output or was fenced.
    /// Gives what the fence was when it was looked at.
    fn may_begin(&self, attempt: &Attempt) -> Result<Option<Vec<u8>>, KeeperError> {
        let fenced: Option<u32> = self.records.get("fences", &fence_key(attempt))?;
        let fence = fenced.unwrap_or(0);
        let earlier = self.records.attempts_of(attempt)?;
        // Other machines of the same attempt work beside it.
        let open = earlier
            .iter()
            .any(|record| record.outcome.is_none() && record.attempt.attempt != attempt.attempt);
        let accepted = earlier
            .iter()
            .any(|record| matches!(record.outcome, Some(AttemptOutcome::Accepted { .. })));
        let why = if attempt.attempt <= fence {
            "it was fenced before"
        } else if open {
            "an earlier attempt has not ended"
        } else if accepted {
            "the output of an earlier attempt was accepted"
        } else {
            return fenced.map(|fence| value(&fence)).transpose();
        };
        Err(not_begun(attempt, why).into())
    }

    /// Several machines work at a job only where its pipeline asks for them and its site joins them.
    fn may_be_joined(&self, attempt: &Attempt, job: &Job, site: &SiteName) -> Result<(), KeeperError> {
        let allowed = self.site_definition(site)?.network.nodes == NetworkRule::Allow;
        let (why, fix) = if attempt.rank > job.others {
            (
                "the pipeline asks for fewer machines",
                "start as many as `num_nodes` says",
            )
        } else if job.others > 0 && !allowed {
            (
                "the site does not let the machines of a job reach one another",
                "write `network: {nodes: allow}` of a site whose machines do, or leave `num_nodes` out",
            )
        } else {
            return Ok(());
        };
        let what = format!(
            "starting machine {} of `{}` on site `{site}`",
            attempt.rank, attempt.task
        );
        Err(refuse("nodes-not-allowed", what, why, fix).into())
    }

    /// What the worker will run, from the pipeline and the site alone.
    fn job(&self, pipeline: &Pipeline, site: &SiteName, task: &TaskName) -> Result<Job, KeeperError> {
        let definition = self.site_definition(site)?;
        if is_away(task) {
            if *site != self.site {
                return Err(rows_stay_home(task, site, &self.site).into());
            }
            return Ok(self.away_job(pipeline, definition.compute.as_ref()));
        }
        let run = match (&pipeline.train.trainer, &pipeline.train.run) {
            (Some(_), _) => "\"$TIDEGATE_TRAINER\" trainer".to_owned(),
            (None, Some(run)) => run.clone(),
            (None, None) => return Err(KeeperError::failed("making the job", "the pipeline trains nothing")),
        };
        let asked = pipeline.train.resources.accelerators.as_deref();
        let accelerators = asked.map(read_accelerators).transpose().while_("making the job")?;
        Ok(Job {
            setup: pipeline.train.setup.clone().unwrap_or_default(),
            run,
            environment: pipeline.train.envs.clone(),
            target: pipeline.prepare.target.clone(),
            setup_network: definition.network.setup == NetworkRule::Allow,
            run_network: definition.network.run == NetworkRule::Allow,
            memory_bytes: definition.compute.as_ref().map_or(0, |compute| compute.memory.0),
            seconds: pipeline.deadline.map_or(0, |deadline| deadline.0),
            output_bytes: OUTPUT_BYTES / 4,
            accelerators: accelerators.map_or(0, |(_, count)| count),
            others: pipeline.train.num_nodes.saturating_sub(1),
        })
    }

    /// Notes what opens the store for an attempt's worker from now on; the worker hears of it once it has said hello.
    pub(crate) fn renew_access(&self, attempt: &Attempt, sealed: &str) -> Result<ReplyBody, KeeperError> {
        let noting = "noting credentials of a store";
        // Nothing is kept for an attempt that nobody knows.
        self.attempt_record(attempt)?;
        let sealed = STANDARD.decode(sealed).while_(noting)?;
        let opened = open(&self.keys.identity, &sealed).while_(noting)?;
        let mut access = self
            .access
            .lock()
            .map_err(|_| KeeperError::failed(noting, "a part of it failed before"))?;
        access.insert(attempt.clone(), opened);
        drop(access);
        // Looked at afterwards: whoever ends it takes them away later, or has ended it already.
        if self.attempt_record(attempt)?.outcome.is_some() {
            self.forget_access(attempt, None);
        }
        Ok(ReplyBody::Noted)
    }

    /// Notes on which machine an attempt's worker was started: nothing is given to one that is elsewhere.
    pub(crate) fn note_machine(&self, attempt: &Attempt, machine: &str) -> Result<ReplyBody, KeeperError> {
        loop {
            let record = self.attempt_record(attempt)?;
            if !self.verifiers.contains_key(&record.site) {
                // What nobody here can ask about is not known.
                return Ok(ReplyBody::Noted);
            }
            match &record.machine {
                Some(known) if known == machine => return Ok(ReplyBody::Noted),
                Some(_) => {
                    let why = "its worker was started on another machine before";
                    return Err(unproven(attempt, why).into());
                }
                None => {}
            }
            let mut new = record.clone();
            new.machine = Some(machine.to_owned());
            if self.records.advance(&record, &new)? {
                return Ok(ReplyBody::Noted);
            }
        }
    }

    /// What was noted for an attempt and not given yet.
    fn noted_access(&self, attempt: &Attempt) -> Option<Zeroizing<Vec<u8>>> {
        self.access.lock().ok()?.get(attempt).cloned()
    }

    /// What was `given`, or whatever there is, need not be given again.
    fn forget_access(&self, attempt: &Attempt, given: Option<&[u8]>) {
        if let Ok(mut access) = self.access.lock()
            && given.is_none_or(|given| access.get(attempt).is_some_and(|noted| noted.as_slice() == given))
        {
            access.remove(attempt);
        }
    }

    /// How the attempt ended, once it has.
    pub(crate) async fn await_attempt(self: &Arc<Self>, attempt: &Attempt) -> Result<ReplyBody, KeeperError> {
        self.watch(attempt.clone());
        let patience = Patience::begin(Pace::NEAR);
        loop {
            // Before the look, so that an end right after it is heard of.
            let ended = self.ended.notified();
            let record = self.attempt_record(attempt)?;
            if let Some(outcome) = record.outcome {
                return Ok(ReplyBody::AttemptEnded { outcome });
            }
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep(patience.pause()) => {}
            }
        }
    }

    fn attempt_record(&self, attempt: &Attempt) -> Result<AttemptRecord, KeeperError> {
        self.records
            .attempt(attempt)?
            .ok_or_else(|| KeeperError::failed("following an attempt", "this keeper made no ticket for it"))
    }

    pub(crate) fn fence(&self, attempt: &Attempt, why: &str) -> Result<ReplyBody, KeeperError> {
        loop {
            let Some(record) = self.records.attempt(attempt)? else {
                let (key, number) = (fence_key(attempt), attempt.attempt);
                let before: Option<u32> = self.records.get("fences", &key)?;
                let old = before.map(|before| value(&before)).transpose()?;
                let batch = Batch::default().replace("fences", &key, old, value(&before.unwrap_or(0).max(number))?);
                if !self.records.commit_if(&batch)? {
                    continue;
                }
                return Ok(ReplyBody::AttemptEnded {
                    outcome: AttemptOutcome::Fenced { why: why.to_owned() },
                });
            };
            if let Some(outcome) = record.outcome {
                return Ok(ReplyBody::AttemptEnded { outcome });
            }
            let outcome = AttemptOutcome::Fenced { why: why.to_owned() };
            let mut new = record.clone();
            new.outcome = Some(outcome.clone());
            // A grant that was not delivered yet never is.
            new.pending = None;
            let leaf = self.attempt_event(EventType::Fenced, attempt, &[("why", why)], &[])?;
            let key = attempt_key(attempt);
            let before: u32 = self.records.get("fences", &fence_key(attempt))?.unwrap_or(0);
            let batch = Batch::default()
                .replace("attempts", &key, Some(value(&record)?), value(&new)?)
                .set("fences", &fence_key(attempt), value(&before.max(attempt.attempt))?)
                .leaf(&format!("fence/{key}"), leaf);
            if self.records.commit_if(&batch)? {
                self.forget_received(&new)?;
                return Ok(ReplyBody::AttemptEnded { outcome });
            }
        }
    }

    /// Follows an attempt in the background until it has ended; once, however often it is asked.
    pub(crate) fn watch(self: &Arc<Self>, attempt: Attempt) {
        let Ok(mut watched) = self.watched.lock() else { return };
        watched.entry(attempt.clone()).or_insert_with(|| {
            let keeper = Arc::clone(self);
            tokio::spawn(async move { keeper.follow(&attempt).await }).abort_handle()
        });
    }

    async fn follow(&self, attempt: &Attempt) {
        let mut failures = 0_u32;
        loop {
            match self.drive(attempt).await {
                Ok(()) => break,
                Err(KeeperError::Refused(refusal)) => {
                    tracing::warn!(run = %attempt.run, task = %attempt.task, attempt = attempt.attempt, rule = %refusal.rule, "attempt refused");
                    self.record_refusal(&attempt.run, &refusal.rule);
                    let reason = refusal.to_string();
                    let outcome = AttemptOutcome::Refused { refusal };
                    // What makes one machine of an attempt unbelievable makes the attempt so.
                    let ended = self.end_badly(attempt, outcome, &reason).await;
                    if ended.is_ok() && self.end_others(attempt).await.is_ok() {
                        break;
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(run = %attempt.run, task = %attempt.task, attempt = attempt.attempt, %error, "attempt interrupted");
                    let reason = error.to_string();
                    let outcome = AttemptOutcome::Failed {
                        stage: "keeper".to_owned(),
                        reason: reason.clone(),
                    };
                    if failures > 20 && self.end_badly(attempt, outcome, &reason).await.is_ok() {
                        break;
                    }
                }
            }
            tokio::time::sleep(RETRY_AFTER * failures.clamp(1, 20)).await;
        }
        if let Ok(mut watched) = self.watched.lock() {
            watched.remove(attempt);
        }
        self.forget_access(attempt, None);
        self.ended.notify_waiters();
    }
}

/// A keeper that has stopped follows nobody: the next one on the same site does.
pub(crate) struct FollowedBy<'a>(pub(crate) &'a Keeper);

impl Drop for FollowedBy<'_> {
    fn drop(&mut self) {
        if let Ok(mut watched) = self.0.watched.lock() {
            for follower in std::mem::take(&mut *watched).into_values() {
                follower.abort();
            }
        }
    }
}

fn not_begun(attempt: &Attempt, why: &str) -> Refusal {
    refuse(
        "fenced",
        format!("starting attempt {} of `{}`", attempt.attempt, attempt.task),
        why,
        "fence the earlier attempt, and start a later one",
    )
}

pub(crate) fn fence_key(attempt: &Attempt) -> String {
    format!("{}.{}", attempt.run, attempt.task)
}
