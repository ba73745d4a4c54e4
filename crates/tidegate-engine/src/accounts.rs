//! What a run costs: bytes that left, machines by the hour, and the budget over both.

use std::time::Duration;

use tidegate_plan::{PlannedTask, Step};
use tidegate_types::ids::{RunId, SiteName, TaskName};
use tidegate_types::quantity::{HourPrice, Money};
use tidegate_types::refusal::Refusal;

use crate::error::EngineError;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, scan};

/// A sum, and whether something in it has no price.
#[derive(Default)]
struct Sum {
    cost: Money,
    unpriced: bool,
}

impl Sum {
    fn add(&mut self, cost: Option<Money>) {
        self.unpriced |= cost.is_none();
        self.cost = self.cost.saturating_add(cost.unwrap_or_default());
    }
}

impl Engine {
    /// What an hour on a site costs; training may have asked for machines that can be taken away.
    fn price(&self, site: &SiteName, training: bool) -> Option<HourPrice> {
        let offer = self.sites.sites.get(site)?.compute.as_ref()?;
        if training && self.pipeline.train.resources.use_spot {
            offer.spot_price.or(offer.price)
        } else {
            offer.price
        }
    }

    /// What a task that takes so long on its site costs. Training is paid by attempt, and deploying is
    /// copying, which takes no machine.
    pub(crate) fn time_cost(&self, planned: &PlannedTask, elapsed: Duration) -> Option<Money> {
        if matches!(planned.kind, Step::Train | Step::Deploy) {
            return Some(Money::ZERO);
        }
        let seconds = u64::try_from(elapsed.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        Some(self.price(&planned.site, false)?.for_seconds(seconds))
    }

    /// What the attempts of a run have cost until now, lost ones included, of one task or of all;
    /// nothing where one of them has no price. A begun second is a whole one.
    pub(crate) fn jobs_cost(&self, run: &RunId, task: Option<&TaskName>) -> Result<Option<Money>, EngineError> {
        let jobs: Vec<JobRecord> = scan(&*self.journal, "jobs", &format!("{run}-"))?;
        let mut sum = Money::ZERO;
        for job in jobs {
            if task.is_some_and(|task| job.attempt.task != *task) {
                continue;
            }
            let ended = job.ended.as_ref().map_or_else(self.clock, |(ended, _)| *ended);
            let seconds = ended.saturating_sub(job.began).max(1);
            let Some(price) = self.price(&job.site, true) else {
                return Ok(None);
            };
            sum = sum.saturating_add(price.for_seconds(seconds));
        }
        Ok(Some(sum))
    }

    fn sum(&self, record: &RunRecord) -> Result<Sum, EngineError> {
        let mut sum = Sum::default();
        for entry in self.crossings(record)? {
            sum.add(entry.cost);
        }
        // Attempts are in their task's cost as soon as it has ended.
        let train = TaskName::new("train").ok();
        if !train.is_some_and(|train| record.tasks.contains_key(&train)) {
            sum.add(self.jobs_cost(&record.id, None)?);
        }
        for state in record.tasks.values() {
            sum.add(state.cost);
        }
        Ok(sum)
    }

    /// What a run has cost, in words: what has no price is not free.
    pub(crate) fn cost(&self, record: &RunRecord) -> Result<String, EngineError> {
        let sum = self.sum(record)?;
        Ok(if sum.unpriced {
            format!("{}, and what nobody has given a price", sum.cost)
        } else {
            sum.cost.to_string()
        })
    }

    /// Refuses to go on when a run has cost more than its budget. `running` comes on top of what is in
    /// the accounts.
    pub(crate) fn check_budget(&self, record: &RunRecord, running: Money) -> Result<(), EngineError> {
        let Some(limit) = self.pipeline.budget.cost else {
            return Ok(());
        };
        let spent = self.sum(record)?.cost.saturating_add(running);
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
