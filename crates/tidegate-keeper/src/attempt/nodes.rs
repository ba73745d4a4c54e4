//! Several machines that work at one job: granted together, burned together.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_transfer::mailbox::is_contested;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::{Attempt, KeeperMessage, Node};

use super::drive::burned;
use crate::admission::{Admitted, Worker, second_hello};
use crate::error::{KeeperError, refuse};
use crate::records::{AttemptRecord, Phase};
use crate::service::Keeper;

impl Keeper {
    /// Ends the other machines of an attempt of which one was refused.
    pub(super) async fn end_others(&self, attempt: &Attempt) -> Result<(), KeeperError> {
        for one in self.records.attempts_of(attempt)? {
            if one.attempt.attempt == attempt.attempt && one.attempt != *attempt && one.outcome.is_none() {
                self.fence(&one.attempt, "another-machine")?;
            }
        }
        Ok(())
    }

    /// Refuses to go on where another machine of the attempt was refused, or its ticket is in two hands.
    pub(super) async fn others_uncontested(&self, record: &AttemptRecord) -> Result<(), KeeperError> {
        if record.job.others == 0 {
            return Ok(());
        }
        for one in self.records.attempts_of(&record.attempt)? {
            if one.attempt.attempt != record.attempt.attempt || one.attempt == record.attempt {
                continue;
            }
            let refused = matches!(one.outcome, Some(AttemptOutcome::Refused { .. }));
            let contested = match &one.hello {
                Some(hello) => {
                    let secret = self.ticket_secret(&one).await?;
                    let contested = is_contested(&one.attempt, self.store(&one.site)?, &secret, hello).await;
                    contested.map_err(|error| burned(&error))?
                }
                None => false,
            };
            if contested {
                return Err(second_hello(&one.attempt).into());
            }
            if refused {
                return Err(refuse(
                    "fenced",
                    format!(
                        "going on with attempt {} of `{}`",
                        one.attempt.attempt, one.attempt.task
                    ),
                    format!("its machine of rank {} was refused", one.attempt.rank),
                    "start another attempt",
                )
                .into());
            }
        }
        Ok(())
    }

    /// All machines that work at an attempt's job, by rank, once each of them is set up.
    fn nodes(&self, record: &AttemptRecord) -> Result<Option<Vec<Node>>, KeeperError> {
        let mut nodes = BTreeMap::new();
        for one in self.records.attempts_of(&record.attempt)? {
            if one.attempt.attempt == record.attempt.attempt
                && one.site == record.site
                // One whose command was quick has ended well already.
                && matches!(one.outcome, None | Some(AttemptOutcome::Worked { .. }))
                && let Some(node) = one.node
            {
                nodes.insert(one.attempt.rank, node);
            }
        }
        let wanted = usize::try_from(record.job.others).map_or(usize::MAX, |others| others.saturating_add(1));
        Ok((nodes.len() == wanted).then(|| nodes.into_values().collect()))
    }

    /// Where a machine says that the others reach it, if that can be: what it says is passed on to them.
    pub(super) fn believable(&self, record: &AttemptRecord, node: Option<Node>) -> Result<Node, KeeperError> {
        let rank = record.attempt.rank;
        let wrong = |why: &str| {
            refuse(
                "message-malformed",
                "joining the machines of a job",
                format!("that of rank {rank} {why}"),
                "start another attempt",
            )
        };
        let node = node.ok_or_else(|| wrong("does not say where the others reach it"))?;
        let key = STANDARD.decode(&node.key).is_ok_and(|key| key.len() == 32);
        let (address, port) = (node.endpoint.ip(), node.endpoint.port());
        if !key || address.is_unspecified() || address.is_multicast() || port < 1024 {
            return Err(wrong("says that it is where nobody can be").into());
        }
        let others = self.records.attempts_of(&record.attempt)?.into_iter();
        let mut others = others.filter(|one| one.attempt.attempt == record.attempt.attempt && one.attempt.rank != rank);
        let same = |other: &Node| other.key == node.key || other.endpoint == node.endpoint;
        if others.any(|one| one.node.as_ref().is_some_and(same)) {
            return Err(wrong("says that it is where another one is").into());
        }
        Ok(node)
    }

    /// What follows for a machine that is set up, once the job's other machines are.
    pub(super) async fn joined(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        secret: &[u8; 32],
    ) -> Result<Option<(AttemptRecord, Option<KeeperMessage>)>, KeeperError> {
        let Some(nodes) = self.nodes(record)? else {
            return Ok(None);
        };
        self.uncontested(record, worker, secret).await?;
        self.others_uncontested(record).await?;
        let mut new = record.clone();
        new.phase = Phase::DataGranted;
        new.reach("data");
        let grant = self.data_grant(record, worker, nodes).await?;
        Ok(Some((new, Some(grant))))
    }
}
