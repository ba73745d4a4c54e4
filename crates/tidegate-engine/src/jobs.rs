//! What was started on sites, after it was started: found again, ended, accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use tidegate_contracts::compute::{Compute, ComputeError, Handle, JobRequest};
use tidegate_seal::random::random_bytes;
use tidegate_types::ids::{RunId, SiteName};
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;

use crate::error::EngineError;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, RunStatus, get, put, scan};
use crate::summary::{self, SummaryPhase};

/// How often a start is tried that failed in a way that may pass, and the first of the pauses between, which double.
const STARTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// For as long a place may not tell of what was started there, how often it is looked at until then, and when.
const YOUNG_SECONDS: u64 = 60;
const LOOKS: u32 = 5;
const BETWEEN: Duration = Duration::from_secs(2);

impl Engine {
    /// What of an attempt that gave a model took how long, by what was seen here and what the keeper saw.
    pub(crate) fn phases_of(&self, attempt: &Attempt) -> Result<Vec<SummaryPhase>, EngineError> {
        let record = get::<JobRecord>(&*self.journal, "jobs", &job_id(attempt))?;
        let Some(JobRecord {
            ended: Some((_, AttemptOutcome::Accepted { phases: seen, .. })),
            mut phases,
            ..
        }) = record
        else {
            return Ok(Vec::new());
        };
        phases.extend(seen);
        Ok(summary::phases(&phases))
    }

    /// Ends every job that this control plane has started at a site, whatever is known of it here, and looks again; gives
    /// the jobs that it ended. A run that goes on with one of them later finds it lost.
    ///
    /// # Errors
    /// When the site has no driver here, cannot be reached, or still has a job afterwards.
    pub async fn end_all(&self, site: &SiteName) -> Result<Vec<String>, EngineError> {
        let ending = || format!("ending what runs at site `{site}`");
        let compute = self.compute.get(site);
        let compute = compute.ok_or_else(|| EngineError::failed(ending(), "it has no driver here"))?;
        let sweep = async || {
            let swept = compute.sweep(&self.owner, &[]).await;
            swept.map_err(|error| EngineError::failed(ending(), error.to_string()))
        };
        let jobs: Vec<JobRecord> = scan(&*self.journal, "jobs", "")?;
        let here = || jobs.iter().filter(|job| job.site == *site);
        let mut ended: BTreeSet<String> = sweep().await?.into_iter().collect();
        // Some places tell of what was just started a moment later.
        let now = (self.clock)();
        let young = here().filter(|job| job.ended.is_none() && now.saturating_sub(job.began) < YOUNG_SECONDS);
        let young: Vec<String> = young.map(|job| job_id(&job.attempt)).collect();
        for _ in 0..LOOKS {
            if young.iter().all(|job| ended.contains(job)) {
                break;
            }
            tokio::time::sleep(BETWEEN).await;
            ended.extend(sweep().await?);
        }
        let left = sweep().await?;
        if !left.is_empty() {
            return Err(EngineError::failed(
                ending(),
                format!("jobs are there again: {}", left.join(", ")),
            ));
        }
        for mut job in here().filter(|job| job.left).cloned() {
            job.left = false;
            put(&*self.journal, "jobs", &job_id(&job.attempt), &job)?;
        }
        Ok(ended.into_iter().collect())
    }

    /// Fences every open attempt of runs that have ended, of `ending` too, and ends what runs for them.
    pub(crate) async fn abandon(&self, ending: Option<&RunId>, why: &str) -> Result<(), EngineError> {
        let runs: Vec<RunRecord> = scan(&*self.journal, "runs", "")?;
        let goes_on = |run: &RunId| {
            Some(run) != ending
                && runs
                    .iter()
                    .any(|record| record.id == *run && record.status == RunStatus::Running)
        };
        let jobs: Vec<JobRecord> = scan(&*self.journal, "jobs", "")?;
        let (open, ended): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.ended.is_none());
        let left: Vec<JobRecord> = ended.into_iter().filter(|job| job.left).collect();
        let (keep, lost): (Vec<_>, Vec<_>) = open.into_iter().partition(|job| goes_on(&job.attempt.run));
        let keep: Vec<String> = keep.iter().map(|job| job_id(&job.attempt)).collect();
        // What runs is ended first: that needs nobody else. Swept and not deleted, for a job may run whose
        // handle was never seen.
        let sites: BTreeSet<&SiteName> = lost.iter().chain(&left).map(|job| &job.site).collect();
        // A machine that is out of reach keeps nobody from being fenced.
        let mut unswept = BTreeSet::new();
        for site in sites {
            let Some(compute) = self.compute.get(site) else {
                tracing::warn!(%site, "what may still run there is ended by nobody: the site has no driver any more");
                unswept.insert(site);
                continue;
            };
            if let Err(error) = compute.sweep(&self.owner, &keep).await {
                tracing::warn!(%site, %error, "what runs for runs that have ended is ended by the next run");
                unswept.insert(site);
            }
        }
        for mut job in left.iter().filter(|job| !unswept.contains(&job.site)).cloned() {
            job.left = false;
            put(&*self.journal, "jobs", &job_id(&job.attempt), &job)?;
        }
        // All at once: there may be many, and little time.
        let fencing = lost
            .iter()
            .map(|job| async move { (job, self.fence(&job.attempt, why).await) });
        for (job, outcome) in join_all(fencing).await {
            let outcome = outcome?;
            // What was asked for a moment ago may not be listed yet.
            let left = unswept.contains(&job.site) || job.handle.is_none();
            self.ended(&job.attempt, outcome, left, BTreeMap::new())?;
        }
        Ok(())
    }
}

/// How an attempt ended, with what the driver said of it where it was fenced: the keeper knows a word alone.
pub(crate) fn explained(outcome: AttemptOutcome, reason: Option<&str>) -> AttemptOutcome {
    match (outcome, reason) {
        (AttemptOutcome::Fenced { why }, Some(reason)) => AttemptOutcome::Fenced {
            why: format!("{why}: {reason}"),
        },
        (outcome, _) => outcome,
    }
}

/// Starts a job, also where the way to its machine breaks at first: whether it was started then is not known.
pub(crate) async fn ensured(compute: &dyn Compute, request: &JobRequest) -> Result<Handle, ComputeError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..STARTS {
        match compute.ensure(request).await {
            Err(ComputeError::Transient { .. }) => {
                // Without randomness the pause is merely not spread.
                let random = random_bytes::<1>().map_or(255, |[byte]| byte);
                tokio::time::sleep(pause.mul_f64(0.5 + f64::from(random) / 510.0)).await;
            }
            ensured => return ensured,
        }
        pause *= 2;
    }
    compute.ensure(request).await
}

/// What the driver calls an attempt.
pub(crate) fn job_id(attempt: &Attempt) -> String {
    format!("{}-{}-{}-{}", attempt.run, attempt.task, attempt.attempt, attempt.rank)
}
