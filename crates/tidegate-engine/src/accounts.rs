//! What a run costs: bytes that left, machines by the hour, and the budget over both.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tidegate_contracts::journal::Journal;
use tidegate_plan::{PlannedTask, Step};
use tidegate_types::ids::{AttemptNumber, RunId, SiteName, TaskName};
use tidegate_types::quantity::{HourPrice, Money};
use tidegate_types::refusal::Refusal;

use crate::crossings::crossings;
use crate::error::EngineError;
use crate::rows::is_rows;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, RunStatus, scan};

/// What a run has cost until now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Spending {
    /// The sum of what has a price.
    pub cost: Money,
    /// Whether something has no price, and so is not in that.
    pub unpriced: bool,
    /// What runs for it now.
    pub jobs: Vec<MachineTime>,
}

/// What one machine did for an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineTime {
    /// Its task.
    pub task: TaskName,
    /// Which try it is, from 1.
    pub attempt: AttemptNumber,
    /// Which of its machines, from 0.
    pub rank: u32,
    /// Where it runs.
    pub site: SiteName,
    /// For how long, in seconds, until it ended or until now.
    pub seconds: u64,
    /// What it has cost, where its site has a price.
    pub cost: Option<Money>,
}

/// What is said in place of `cost` where something has no price: it is not free.
impl fmt::Display for Spending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cost)?;
        if self.unpriced {
            f.write_str(", and what nobody has given a price")?;
        }
        Ok(())
    }
}

impl Spending {
    fn add(&mut self, cost: Option<Money>) {
        self.unpriced |= cost.is_none();
        self.cost = self.cost.saturating_add(cost.unwrap_or_default());
    }
}

/// What a run has cost at `now` (Unix time), by a control plane's journal.
///
/// # Errors
/// When the journal cannot be read.
pub fn spending(journal: &dyn Journal, record: &RunRecord, now: u64) -> Result<Spending, EngineError> {
    let mut spending = Spending::default();
    for entry in crossings(journal, record)? {
        spending.add(entry.cost);
    }
    // Attempts are in their task's cost as soon as it has ended.
    let jobs = jobs_of(journal, &record.id)?.into_iter();
    for job in jobs.filter(|job| !record.tasks.contains_key(&job.attempt.task)) {
        spending.add(cost_of(&job, now));
    }
    for state in record.tasks.values() {
        spending.add(state.cost);
    }
    if record.status == RunStatus::Running {
        let jobs = jobs_of(journal, &record.id)?.into_iter();
        let open = jobs.filter(|job| job.ended.is_none());
        spending.jobs = open.map(|job| MachineTime::of(job, now)).collect();
    }
    Ok(spending)
}

/// What each machine did for a run, lost ones too, at `now` (Unix time), by a control plane's journal.
///
/// # Errors
/// When the journal cannot be read.
pub fn machine_times(journal: &dyn Journal, run: &RunId, now: u64) -> Result<Vec<MachineTime>, EngineError> {
    let mut jobs = jobs_of(journal, run)?;
    jobs.sort_by(|one, other| one.attempt.cmp(&other.attempt));
    Ok(jobs.into_iter().map(|job| MachineTime::of(job, now)).collect())
}

impl MachineTime {
    fn of(job: JobRecord, now: u64) -> Self {
        let ended = job.ended.as_ref().map_or(now, |(ended, _)| *ended);
        Self {
            cost: cost_of(&job, now),
            seconds: ended.saturating_sub(job.began),
            task: job.attempt.task,
            attempt: job.attempt.attempt,
            rank: job.attempt.rank,
            site: job.site,
        }
    }
}

fn jobs_of(journal: &dyn Journal, run: &RunId) -> Result<Vec<JobRecord>, EngineError> {
    scan(journal, "jobs", &format!("{run}-"))
}

/// A begun second is a whole one.
fn cost_of(job: &JobRecord, now: u64) -> Option<Money> {
    let ended = job.ended.as_ref().map_or(now, |(ended, _)| *ended);
    Some(job.price?.for_seconds(ended.saturating_sub(job.began).max(1)))
}

fn jobs_cost(
    journal: &dyn Journal,
    run: &RunId,
    task: Option<&TaskName>,
    now: u64,
) -> Result<Option<Money>, EngineError> {
    let mut sum = Money::ZERO;
    for job in jobs_of(journal, run)? {
        if task.is_some_and(|task| job.attempt.task != *task) {
            continue;
        }
        let Some(cost) = cost_of(&job, now) else {
            return Ok(None);
        };
        sum = sum.saturating_add(cost);
    }
    Ok(Some(sum))
}

impl Engine {
    /// What an hour on a site costs; training may have asked for machines that can be taken away.
    pub(crate) fn price(&self, site: &SiteName, training: bool) -> Option<HourPrice> {
        let offer = self.sites.sites.get(site)?.compute.as_ref()?;
        if training && self.pipeline.train.resources.use_spot {
            offer.spot_price.or(offer.price)
        } else {
            offer.price
        }
    }

    /// Whether what a task costs is what its attempts cost.
    pub(crate) fn is_paid_by_attempt(&self, planned: &PlannedTask) -> bool {
        let offer = self
            .sites
            .sites
            .get(&planned.site)
            .and_then(|site| site.compute.as_ref());
        planned.kind == Step::Train || (is_rows(&planned.task) && offer.is_some_and(|offer| offer.rows))
    }

    /// What a task that takes so long on its site costs. Training is paid by attempt, and deploying is
    /// copying, which takes no machine.
    pub(crate) fn time_cost(&self, planned: &PlannedTask, elapsed: Duration) -> Option<Money> {
        if self.is_paid_by_attempt(planned) || planned.kind == Step::Deploy {
            return Some(Money::ZERO);
        }
        let seconds = u64::try_from(elapsed.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        Some(self.price(&planned.site, false)?.for_seconds(seconds))
    }

    /// What the attempts of a run have cost until now, lost ones included, of one task or of all;
    /// nothing where one of them has no price.
    pub(crate) fn jobs_cost(&self, run: &RunId, task: Option<&TaskName>) -> Result<Option<Money>, EngineError> {
        jobs_cost(&*self.journal, run, task, (self.clock)())
    }

    fn spending(&self, record: &RunRecord) -> Result<Spending, EngineError> {
        spending(&*self.journal, record, (self.clock)())
    }

    /// What a run has cost, in words.
    pub(crate) fn cost(&self, record: &RunRecord) -> Result<String, EngineError> {
        Ok(self.spending(record)?.to_string())
    }

    /// Refuses to go on when a run has cost more than its budget. `running` comes on top of what is in
    /// the accounts.
    pub(crate) fn check_budget(&self, record: &RunRecord, running: Money) -> Result<(), EngineError> {
        let Some(limit) = self.pipeline.budget.cost else {
            return Ok(());
        };
        let spent = self.spending(record)?.cost.saturating_add(running);
        if spent <= limit {
            return Ok(());
        }
        Err(Refusal {
            rule: "budget".to_owned(),
            what: format!("going on with run `{}`", record.id),
            why: format!("it has cost {spent}, and the budget is {limit}"),
            fix: "raise `budget: {cost: …}` and run the pipeline again: finished steps are used".to_owned(),
        }
        .into())
    }
}
