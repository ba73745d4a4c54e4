//! Training: inputs cross, an attempt runs, its output comes home; a lost attempt is fenced before
//! the next begins, there or at another site.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_types::digest::Digest;
use tidegate_types::files::sites::Site;
use tidegate_types::ids::{PermitId, SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, AttemptOutcome, CarriedCheckpoint, ReplyBody, RequestBody};
use tidegate_types::message::Attempt;
use tidegate_types::quantity::Money;

use crate::crossings::Wanted;
use crate::error::EngineError;
use crate::jobs::job_id;
use crate::progress::Progress;
use crate::run::Engine;
use crate::state::{JobRecord, RunRecord, TrainedStep, get};

/// After so many attempts that were lost at one site the next one has its turn.
const LOST_IN_A_ROW: u32 = 2;
/// How long nothing is asked of a site that had no room, the first time.
const CROWDED: Duration = Duration::from_secs(15);

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
                self.worker_digest(site)?,
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
            let tried = self.together(run, &attempt, site, &permits).await?;
            // What an attempt gave does not hang on what its account says: the end of the run asks once more.
            if let Err(error) = self.settle_copies(run, Some(site)).await {
                tracing::warn!(run = %run.id, %site, %error, "what was copied there could not be told");
            }
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
                AttemptOutcome::Worked { .. } => return Err(self.keeper.wrong_reply()),
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

    pub(crate) fn lost(&self, task: &TaskName, attempt: u32, reason: &str) {
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
            worker: Some(self.worker_digest(site)?),
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
        let worker = self.worker_digest(site)?;
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
    pub(crate) async fn wait_for_room(&self, run: &RunRecord, rounds: u32) -> Result<(), EngineError> {
        let pause = CROWDED * 2_u32.pow(rounds.saturating_sub(1).min(5));
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until {
            self.may_go_on(run, Money::ZERO)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
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

/// A command that failed by itself will fail again; a machine or a mailbox that failed may not.
pub(crate) fn worth_retrying(stage: &str) -> bool {
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
