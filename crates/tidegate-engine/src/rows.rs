//! Work on rows at home that its machines do in the keeper's place: the keeper says so, and is asked again afterwards.

use std::collections::BTreeMap;

use tidegate_contracts::stage::ROWS_TASKS;
use tidegate_types::ids::TaskName;
use tidegate_types::keeper::{AttemptOutcome, ReplyBody, RequestBody};
use tidegate_types::message::Attempt;
use tidegate_types::quantity::Money;

use crate::attempt::Tried;
use crate::error::{EngineError, While};
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, scan};
use crate::train::worth_retrying;

/// Whether a task works on rows at home.
pub(crate) fn is_rows(task: &TaskName) -> bool {
    ROWS_TASKS.contains(&task.as_str())
}

impl Engine {
    /// Asks the keeper for something; where it says so, a machine does it first. Whether one did.
    pub(crate) async fn on_machines(
        &self,
        run: &RunRecord,
        word: &str,
        body: RequestBody,
    ) -> Result<(ReplyBody, bool), EngineError> {
        let doing = || format!("having a machine of site `{}` {word}", self.home);
        let (mut tries, mut crowded, mut why) = (0, 0, String::new());
        let mut worked = false;
        loop {
            // Also after an attempt that was lost: it may have been done all the same.
            let reply = self.keeper.ask(word, body.clone()).await?;
            if reply != ReplyBody::OnMachine {
                self.end_machine(run, &TaskName::new(word).while_(&doing())?).await?;
                return Ok((reply, worked));
            }
            if tries > self.pipeline.train.retries.saturating_add(u32::from(worked)) {
                return Err(EngineError::failed(doing(), why));
            }
            tries += 1;
            let tried = match self.on_machine(run, &TaskName::new(word).while_(&doing())?).await {
                // The keeper was started again before it had sealed what it had packed.
                Err(EngineError::Refused(refusal)) if refusal.rule == "rows-not-packed" => {
                    why = refusal.to_string();
                    continue;
                }
                tried => tried?,
            };
            crowded = if tried.crowded { crowded + 1 } else { 0 };
            why = match tried.outcome {
                AttemptOutcome::Worked { .. } => {
                    worked = true;
                    "it did so, and what it made is not there; the keeper's log says why".to_owned()
                }
                AttemptOutcome::Accepted { .. } => return Err(self.keeper.wrong_reply()),
                AttemptOutcome::Failed { stage, reason } => {
                    let told = format!("{stage}: {reason}");
                    if !worth_retrying(&stage) {
                        return Err(EngineError::failed(doing(), told));
                    }
                    told
                }
                AttemptOutcome::Refused { refusal } if refusal.rule == "ticket-expired" => refusal.to_string(),
                AttemptOutcome::Refused { refusal } => return Err(refusal.into()),
                AttemptOutcome::Fenced { why } => why,
            };
            if crowded > 0 {
                self.wait_for_room(run, crowded).await?;
            }
        }
    }

    fn last_job(&self, run: &RunRecord, task: &TaskName) -> Result<Option<JobRecord>, EngineError> {
        let jobs: Vec<JobRecord> = scan(&*self.journal, "jobs", "")?;
        let of_task = jobs
            .into_iter()
            .filter(|job| job.attempt.run == run.id && job.attempt.task == *task);
        Ok(of_task.max_by_key(|job| job.attempt.attempt))
    }

    /// Ends the machine of an attempt that ended while nobody was here.
    async fn end_machine(&self, run: &RunRecord, task: &TaskName) -> Result<(), EngineError> {
        match self.last_job(run, task)? {
            Some(job) if job.ended.is_none() && job.handle.is_some() => {
                let none = BTreeMap::new();
                let ended = self.attempt(run, &job.attempt, &self.home, &none, &|_| {}).await;
                ended.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// One attempt: the one that was begun before a restart, or the next.
    async fn on_machine(&self, run: &RunRecord, task: &TaskName) -> Result<Tried, EngineError> {
        self.may_go_on(run, Money::ZERO)?;
        let last = self.last_job(run, task)?;
        let number = last.map_or(1, |job| {
            job.attempt.attempt.saturating_add(u32::from(job.ended.is_some()))
        });
        let attempt = Attempt {
            run: run.id.clone(),
            task: task.clone(),
            attempt: number,
            rank: 0,
        };
        let tried = self
            .attempt(run, &attempt, &self.home, &BTreeMap::new(), &|_| {})
            .await?;
        match &tried.outcome {
            AttemptOutcome::Failed { stage, reason } => self.lost(task, number, &format!("{stage}: {reason}")),
            AttemptOutcome::Fenced { why } => self.lost(task, number, why),
            _ => {}
        }
        Ok(tried)
    }
}
