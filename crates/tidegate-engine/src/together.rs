//! One attempt on several machines: all of them work, or none counts.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::attempt::Tried;
use crate::error::EngineError;
use crate::progress::Progress;
use crate::run::Engine;
use crate::state::RunRecord;
use crate::train::worth_retrying;

/// How long the other machines may go on once the first one's output was accepted.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// How long it is waited after a command has failed whether another machine was lost, which would be why.
const LOOKING: Duration = Duration::from_secs(15);
/// Why a machine is fenced whose work nobody needs any more, or that can do nothing by itself.
const DONE: &str = "the output of the attempt was accepted";
const ALONE: &str = "another machine of the attempt was lost, or its command failed";

/// What came of the machines until now.
#[derive(Default)]
struct Together {
    /// The first one's, once its output was accepted.
    accepted: Option<AttemptOutcome>,
    /// What says most about why the attempt was lost.
    worst: Option<(Weight, AttemptOutcome)>,
    /// Of a command that had failed before that.
    failed: Option<AttemptOutcome>,
    crowded: bool,
}

/// How much an outcome says about an attempt, and so about whether another one may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// It was ended because of others.
    Fenced,
    /// Its command ended by itself.
    Failed,
    /// It was lost, which is also why commands of others fail.
    Lost,
    /// A rule said no: nothing of the attempt counts.
    Refused,
}

impl Together {
    /// Takes note of an outcome; `fenced` says that it was fenced here.
    fn add(&mut self, outcome: AttemptOutcome, fenced: bool) -> Weight {
        let weight = match &outcome {
            AttemptOutcome::Worked { .. } | AttemptOutcome::Accepted { .. } => return Weight::Fenced,
            AttemptOutcome::Refused { refusal } if refusal.rule == "ticket-expired" => Weight::Lost,
            AttemptOutcome::Refused { .. } => Weight::Refused,
            AttemptOutcome::Failed { stage, .. } if !worth_retrying(stage) => Weight::Failed,
            AttemptOutcome::Failed { .. } => Weight::Lost,
            AttemptOutcome::Fenced { .. } if fenced => Weight::Fenced,
            AttemptOutcome::Fenced { .. } => Weight::Lost,
        };
        // Afterwards it may have failed because the first one was done.
        if weight == Weight::Failed && self.accepted.is_none() && self.failed.is_none() {
            self.failed = Some(outcome.clone());
        }
        if self.worst.as_ref().is_none_or(|(worst, _)| *worst < weight) {
            self.worst = Some((weight, outcome));
        }
        weight
    }

    fn end(self) -> Tried {
        let worst = match (self.accepted, self.worst) {
            (Some(_), Some((Weight::Refused, refused))) => Some(refused),
            (Some(accepted), _) => self.failed.or(Some(accepted)),
            (None, worst) => worst.map(|(_, outcome)| outcome),
        };
        let outcome = worst.unwrap_or_else(|| AttemptOutcome::Fenced {
            why: "no machine gave an output".to_owned(),
        });
        Tried {
            outcome,
            crowded: self.crowded,
        }
    }
}

impl Engine {
    /// One attempt on as many machines as the pipeline asks for. The first one's output is the attempt's; as soon as one of
    /// them is lost, the others are fenced.
    pub(crate) async fn together(
        &self,
        run: &RunRecord,
        attempt: &Attempt,
        site: &SiteName,
        permits: &BTreeMap<String, PermitId>,
    ) -> Result<Tried, EngineError> {
        let count = self.pipeline.train.num_nodes;
        if count <= 1 {
            return self.attempt(run, attempt, site, permits, &|_| {}).await;
        }
        let nodes: Vec<Attempt> = (0..count)
            .map(|rank| Attempt {
                rank,
                ..attempt.clone()
            })
            .collect();
        let (tell, mut heard) = mpsc::unbounded_channel();
        let tell = &tell;
        let mut working: FuturesUnordered<_> = nodes
            .iter()
            .map(|node| async move {
                let told = |outcome: &AttemptOutcome| {
                    // Whoever hears it is here for as long as this is.
                    let _ = tell.send((node, outcome.clone()));
                };
                (node, self.attempt(run, node, site, permits, &told).await)
            })
            .collect();
        let mut left: Vec<&Attempt> = nodes.iter().collect();
        let mut together = Together::default();
        // What the fence gave of each machine that was left then.
        let mut fenced: Option<BTreeMap<u32, AttemptOutcome>> = None;
        let mut until: Option<(Instant, &str)> = None;
        loop {
            let time = async {
                match until {
                    Some((until, _)) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let why = tokio::select! {
                biased;
                // Its other end is kept here.
                Some((node, outcome)) = heard.recv() => {
                    left.retain(|one| *one != node);
                    let ours = fenced.as_ref().is_some_and(|fenced| fenced.contains_key(&node.rank));
                    match outcome {
                        AttemptOutcome::Worked { .. } => None,
                        AttemptOutcome::Accepted { .. } => {
                            until = Some((Instant::now() + AFTERWARDS, DONE));
                            together.accepted = Some(outcome);
                            None
                        }
                        outcome => match together.add(self.told(node, outcome, ours), ours) {
                            Weight::Fenced => None,
                            Weight::Failed => {
                                until = until.or(Some((Instant::now() + LOOKING, ALONE)));
                                None
                            }
                            Weight::Lost | Weight::Refused => Some(ALONE),
                        },
                    }
                }
                next = working.next() => match next {
                    None => return Ok(together.end()),
                    Some((_, Ok(tried))) => {
                        together.crowded |= tried.crowded;
                        None
                    }
                    Some((node, Err(error))) => {
                        left.retain(|one| *one != node);
                        let before = fenced.as_ref().and_then(|fenced| fenced.get(&node.rank));
                        let outcome = self.not_followed(node, error, before, &together)?;
                        if let AttemptOutcome::Accepted { .. } = outcome {
                            together.accepted = Some(outcome);
                        } else {
                            together.add(outcome, before.is_some());
                        }
                        Some(ALONE).filter(|_| together.accepted.is_none())
                    }
                },
                // They had their time.
                () = time => until.take().map(|(_, why)| why),
            };
            if let Some(why) = why.filter(|_| fenced.is_none()) {
                until = None;
                let fencing = left
                    .iter()
                    .map(|node| async move { (node.rank, self.fence(node, why).await) });
                let mut outcomes = BTreeMap::new();
                for (rank, outcome) in join_all(fencing).await {
                    match outcome {
                        Ok(outcome) => drop(outcomes.insert(rank, outcome)),
                        // What counts is there; the end of the run fences what is open then.
                        Err(error) if together.accepted.is_some() => {
                            tracing::warn!(run = %run.id, rank, %error, "a machine that nobody needs was not fenced");
                            return Ok(together.end());
                        }
                        Err(error) => return Err(error),
                    }
                }
                fenced = Some(outcomes);
            }
        }
    }

    /// Tells of a machine that ended without having done its work; gives the outcome that names it.
    fn told(&self, node: &Attempt, outcome: AttemptOutcome, ours: bool) -> AttemptOutcome {
        let rank = node.rank;
        let (outcome, reason) = match outcome {
            AttemptOutcome::Failed { stage, reason } => {
                let reason = format!("on the machine of rank {rank}, {reason}");
                let told = format!("{stage}: {reason}");
                (AttemptOutcome::Failed { stage, reason }, told)
            }
            AttemptOutcome::Fenced { why } if !ours => {
                let why = format!("the machine of rank {rank}: {why}");
                (AttemptOutcome::Fenced { why: why.clone() }, why)
            }
            AttemptOutcome::Refused { refusal } => {
                let why = refusal.to_string();
                (AttemptOutcome::Refused { refusal }, why)
            }
            // It was ended for what was told of another one.
            outcome => return outcome,
        };
        (self.progress)(&Progress::MachineLost {
            task: node.task.clone(),
            attempt: node.attempt,
            rank,
            reason,
        });
        outcome
    }

    /// How a machine ended that could not be followed to its end, where the attempt is over anyway.
    fn not_followed(
        &self,
        node: &Attempt,
        error: EngineError,
        before: Option<&AttemptOutcome>,
        together: &Together,
    ) -> Result<AttemptOutcome, EngineError> {
        let fenced_first = matches!(&error, EngineError::Refused(refusal) if refusal.rule == "fenced");
        let outcome = match before {
            Some(outcome) => outcome.clone(),
            // The keeper ended the attempt of all, or another machine's was fenced before this one had begun.
            None if fenced_first || together.accepted.is_some() => AttemptOutcome::Fenced { why: ALONE.to_owned() },
            None => return Err(error),
        };
        tracing::warn!(run = %node.run, rank = node.rank, %error, "a machine of an attempt that is over was not followed");
        self.ended(node, outcome, true, BTreeMap::new())
    }
}
