//! One attempt on several machines: all of them work, or none counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;

use crate::attempt::Tried;
use crate::error::EngineError;
use crate::run::Engine;
use crate::state::RunRecord;

/// How long the other machines may go on once the first one's output was accepted.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// Why a machine is fenced whose work nobody needs any more, or that can do nothing by itself.
const DONE: &str = "the output of the attempt was accepted";
const ALONE: &str = "another machine of the attempt was lost";

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
            return self.attempt(run, attempt, site, permits).await;
        }
        let nodes: Vec<Attempt> = (0..count)
            .map(|rank| Attempt {
                rank,
                ..attempt.clone()
            })
            .collect();
        let mut working: FuturesUnordered<_> = nodes
            .iter()
            .map(|node| async move { (node, self.attempt(run, node, site, permits).await) })
            .collect();
        let mut left: BTreeSet<u32> = nodes.iter().map(|node| node.rank).collect();
        let mut fenced = None;
        let mut until = None;
        let mut first = None;
        let (mut worst, mut crowded) = (None, false);
        loop {
            let next = async {
                match until {
                    Some(until) => tokio::time::timeout_at(until, working.next()).await.ok(),
                    None => Some(working.next().await),
                }
            };
            let why = match next.await {
                Some(None) => break,
                Some(Some((node, tried))) => {
                    left.remove(&node.rank);
                    let tried = match (tried, fenced) {
                        (Ok(tried), _) => tried,
                        // It was fenced before its keeper had heard of it.
                        (Err(error), Some(why)) => {
                            tracing::debug!(run = %run.id, rank = node.rank, %error, "a machine was not begun with");
                            let why = AttemptOutcome::Fenced { why: String::from(why) };
                            Tried::of(self.ended(node, why, true, BTreeMap::new())?)
                        }
                        (Err(error), None) => return Err(error),
                    };
                    crowded |= tried.crowded;
                    match tried.outcome {
                        AttemptOutcome::Worked { .. } => continue,
                        AttemptOutcome::Accepted { .. } => {
                            first = Some(tried.outcome);
                            until = Some(tokio::time::Instant::now() + AFTERWARDS);
                            continue;
                        }
                        outcome => {
                            worst = Some(match worst {
                                Some(before) if weight(&before) >= weight(&outcome) => before,
                                _ => outcome,
                            });
                            ALONE
                        }
                    }
                }
                // They had their time.
                None => DONE,
            };
            until = None;
            if fenced.replace(why).is_none() {
                for node in nodes.iter().filter(|node| left.contains(&node.rank)) {
                    self.fence(node, why).await?;
                }
            }
        }
        let outcome = first.or(worst).unwrap_or_else(|| AttemptOutcome::Fenced {
            why: "no machine gave an output".to_owned(),
        });
        Ok(Tried { outcome, crowded })
    }
}

/// Of several machines that were lost, the one that says most about why.
const fn weight(outcome: &AttemptOutcome) -> u8 {
    match outcome {
        AttemptOutcome::Refused { .. } => 3,
        AttemptOutcome::Failed { .. } => 2,
        _ => 1,
    }
}
