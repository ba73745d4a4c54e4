//! Crossings: intent in the ledger, permit, sealed bytes, account.

use std::collections::BTreeSet;

use tidegate_contracts::journal::{Batch, Journal};
use tidegate_types::digest::Digest;
use tidegate_types::event::{Event, EventType};
use tidegate_types::ids::{ArtifactId, PermitId, SiteName, TaskName};
use tidegate_types::keeper::{LedgerProof, ReplyBody, RequestBody};
use tidegate_types::quantity::Money;

use crate::error::{EngineError, While};
use crate::ledger::Fact;
use crate::progress::Progress;
use crate::run::Engine;
use crate::state::{CopyEntry, CrossingEntry, RunRecord, get, put, scan, value};

/// What shall cross, in the words of the plan.
pub(crate) struct Wanted<'a> {
    pub(crate) task: &'a TaskName,
    /// What a person calls it.
    pub(crate) name: &'a str,
    pub(crate) artifact: &'a ArtifactId,
    /// Plaintext bytes, for the budget.
    pub(crate) bytes: u64,
    pub(crate) to: &'a SiteName,
    pub(crate) worker: Option<Digest>,
}

/// A line of the egress account that is about to be written.
struct Line<'a> {
    name: &'a str,
    artifact: &'a ArtifactId,
    from: &'a SiteName,
    to: &'a SiteName,
    bytes: u64,
    permit: &'a PermitId,
}

impl Engine {
    /// Makes everything of `wanted` cross, each under its own permit; gives the permits in order.
    pub(crate) async fn cross(&self, run: &RunRecord, wanted: &[Wanted<'_>]) -> Result<Vec<PermitId>, EngineError> {
        self.reserve_egress(run, wanted)?;
        let facts: Vec<Fact> = wanted
            .iter()
            .map(|wanted| {
                Fact::new(EventType::PermitRequested, run.id.as_str())
                    .name("task", wanted.task.as_str())
                    .name("to", wanted.to.as_str())
                    .digest("artifact", *wanted.artifact)
            })
            .collect();
        let ids = self.ledger.record(&facts)?;
        let mut permits = Vec::new();
        for (wanted, id) in wanted.iter().zip(&ids) {
            let permit = self.permit(run, wanted, id).await?;
            (self.progress)(&Progress::Permitted {
                artifact: wanted.name.to_owned(),
                to: wanted.to.clone(),
                permit: permit.clone(),
                bytes: wanted.bytes,
            });
            permits.push(permit);
        }
        // Whoever reads the folder finds why something moves before it moves.
        self.ledger.render()?;
        for (wanted, permit) in wanted.iter().zip(&permits) {
            self.send(run, wanted, permit).await?;
        }
        Ok(permits)
    }

    async fn permit(&self, run: &RunRecord, wanted: &Wanted<'_>, intent: &str) -> Result<PermitId, EngineError> {
        let body = |intent: LedgerProof| RequestBody::SignPermit {
            run: run.id.clone(),
            task: wanted.task.clone(),
            pipeline: self.text.clone(),
            artifact: *wanted.artifact,
            to: wanted.to.clone(),
            worker: wanted.worker,
            intent,
        };
        let reply = self
            .keeper
            .ask("sign-a-permit", body(self.ledger.prove(intent)?))
            .await?;
        let ReplyBody::Permit { permit, checkpoint, .. } = reply else {
            return Err(self.keeper.wrong_reply());
        };
        self.seen(&checkpoint)?;
        let fact = Fact::new(EventType::PermitSigned, run.id.as_str())
            .name("permit", permit.as_str())
            .name("to", wanted.to.as_str())
            .digest("artifact", *wanted.artifact);
        self.ledger.record(&[fact])?;
        Ok(permit)
    }

    /// Remembers how far the keeper has seen and cosigned the ledger.
    pub(crate) fn seen(&self, checkpoint: &str) -> Result<(), EngineError> {
        if checkpoint.is_empty() {
            return Ok(());
        }
        let signed = tidegate_ledger::SignedCheckpoint::parse(checkpoint).while_("reading the keeper's checkpoint")?;
        self.ledger.cosigned(signed, &self.home)
    }

    /// Takes what the keeper has recorded itself into the ledger: permits, grants, fences, refusals, the end of
    /// keys. Gives the id of the last entry, where there was one.
    pub(crate) async fn collect(&self) -> Result<Option<String>, EngineError> {
        let collecting = "taking the keeper's entries into the ledger";
        let mut last = None;
        loop {
            let from: u64 = get(&*self.journal, "keeper-leaves", self.home.as_str())?.unwrap_or(0);
            let reply = self.keeper.ask("leaves", RequestBody::Leaves { from }).await?;
            let ReplyBody::Leaves { leaves } = reply else {
                return Err(self.keeper.wrong_reply());
            };
            if leaves.is_empty() {
                return Ok(last);
            }
            let next = from + leaves.len() as u64;
            let mut batch = Batch::default().set("keeper-leaves", self.home.as_str(), value(&next)?);
            for leaf in leaves {
                let event: Event = serde_json::from_str(&leaf).while_(collecting)?;
                let id = format!("{}/{}", self.home, event.id);
                batch = batch.leaf(&id, leaf.into_bytes());
                last = Some(id);
            }
            self.journal.commit(&batch).while_(collecting)?;
        }
    }

    /// Has the newest checkpoint signed by the keeper, which holds it against what it saw before.
    pub(crate) async fn cosign(&self, entry: &str) -> Result<(), EngineError> {
        // A keeper that looked at the ledger and then refused has seen more than its answer said.
        let (_, checkpoint) = self.keeper.identify().await?;
        self.seen(&checkpoint)?;
        let proof = self.ledger.prove(entry)?;
        let reply = self.keeper.ask("cosign", RequestBody::Cosign { proof }).await?;
        let ReplyBody::Cosigned { checkpoint } = reply else {
            return Err(self.keeper.wrong_reply());
        };
        self.seen(&checkpoint)?;
        self.ledger.render()?;
        Ok(())
    }

    async fn send(&self, run: &RunRecord, wanted: &Wanted<'_>, permit: &PermitId) -> Result<(), EngineError> {
        let key = format!("{}/{permit}", run.id);
        if get::<CrossingEntry>(&*self.journal, "crossings", &key)?.is_some() {
            return Ok(());
        }
        let (bytes, copied) = loop {
            let body = RequestBody::Send { permit: permit.clone() };
            match self.keeper.ask("send", body).await? {
                ReplyBody::Sent { bytes, copied } => break (bytes, copied),
                ReplyBody::Sending { stored, bytes, held } => (self.progress)(&Progress::Sending {
                    artifact: wanted.name.to_owned(),
                    to: wanted.to.clone(),
                    permit: permit.clone(),
                    stored,
                    bytes,
                    held,
                }),
                _ => return Err(self.keeper.wrong_reply()),
            }
        };
        if let Some(copied) = copied {
            // Noted before the line that says that nothing more is to be asked.
            let copy = CopyEntry {
                artifact: wanted.name.to_owned(),
                id: *wanted.artifact,
                from: copied.from,
                to: wanted.to.clone(),
                permit: permit.clone(),
                // What stood there before was copied for somebody else.
                bytes: copied.bytes,
            };
            put(&*self.journal, "copies", &key, &copy)?;
        }
        self.account(run, wanted.name, wanted.artifact, &self.home, wanted.to, bytes, permit)
    }

    /// Takes what workers have copied between sites by now into the egress account: those at one site, or all.
    pub(crate) async fn settle_copies(&self, run: &RunRecord, site: Option<&SiteName>) -> Result<(), EngineError> {
        let entries: Vec<CopyEntry> = scan(&*self.journal, "copies", &format!("{}/", run.id))?;
        let mut failed = None;
        for copy in entries
            .into_iter()
            .filter(|copy| site.is_none_or(|site| copy.to == *site))
        {
            let permit = copy.permit.clone();
            let copied = match self.keeper.ask("send", RequestBody::Send { permit }).await {
                Ok(ReplyBody::Sent { copied, .. }) => copied,
                Ok(_) => return Err(self.keeper.wrong_reply()),
                // The others are told all the same.
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            let bytes = copied.map_or(0, |copied| copied.bytes).max(copy.bytes);
            if bytes == copy.bytes {
                continue;
            }
            let line = Line {
                name: &copy.artifact,
                artifact: &copy.id,
                from: &copy.from,
                to: &copy.to,
                bytes: bytes - copy.bytes,
                permit: &copy.permit,
            };
            let key = format!("{}/{}", run.id, copy.permit);
            let settled = Batch::default().set("copies", &key, value(&CopyEntry { bytes, ..copy.clone() })?);
            // Of what came in several attempts each part has a line.
            self.write_line(run, settled, &format!("{key}-copied-{bytes}"), &line)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Writes one line of the egress account and its leaf in one transaction.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn account(
        &self,
        run: &RunRecord,
        name: &str,
        artifact: &ArtifactId,
        from: &SiteName,
        to: &SiteName,
        bytes: u64,
        permit: &PermitId,
    ) -> Result<(), EngineError> {
        let key = if *from == self.home {
            format!("{}/{permit}", run.id)
        } else {
            format!("{}/{permit}-{name}", run.id)
        };
        let line = Line {
            name,
            artifact,
            from,
            to,
            bytes,
            permit,
        };
        self.write_line(run, Batch::default(), &key, &line)
    }

    fn write_line(&self, run: &RunRecord, batch: Batch, key: &str, line: &Line<'_>) -> Result<(), EngineError> {
        let entry = CrossingEntry {
            artifact: line.name.to_owned(),
            from: line.from.clone(),
            to: line.to.clone(),
            bytes: line.bytes,
            permit: line.permit.clone(),
            cost: self.egress_cost(line.from, line.to, line.bytes),
            place: self.crossings(run)?.len() as u64,
        };
        let fact = Fact::new(EventType::Crossed, run.id.as_str())
            .name("permit", line.permit.as_str())
            .name("from", line.from.as_str())
            .name("to", line.to.as_str())
            .digest("artifact", *line.artifact)
            .number("bytes", line.bytes);
        let batch = batch.set("crossings", key, value(&entry)?);
        let (batch, _) = self.ledger.add(batch, &fact)?;
        self.journal.commit(&batch).while_("writing the egress account")?;
        (self.progress)(&Progress::Crossed {
            artifact: entry.artifact,
            from: entry.from,
            to: entry.to,
            bytes: entry.bytes,
        });
        Ok(())
    }

    fn egress_cost(&self, from: &SiteName, to: &SiteName, bytes: u64) -> Option<Money> {
        let site = self.sites.sites.get(from)?;
        let price = site.egress.get(to.as_str()).or_else(|| site.egress.get("*"))?;
        Some(price.for_bytes(bytes))
    }

    /// Refuses what would break the egress budget, before a byte moves.
    fn reserve_egress(&self, run: &RunRecord, wanted: &[Wanted<'_>]) -> Result<(), EngineError> {
        let Some(limit) = self.pipeline.budget.egress else {
            return Ok(());
        };
        let sent: u64 = self
            .crossings(run)?
            .iter()
            .filter(|entry| entry.from == self.home)
            .map(|entry| entry.bytes)
            .sum();
        let crossed = self.crossed(run)?;
        let next: u64 = wanted
            .iter()
            .filter(|wanted| !crossed.contains(&(wanted.name.to_owned(), wanted.to.clone())))
            .map(|wanted| wanted.bytes)
            .sum();
        if sent.saturating_add(next) <= limit.0 {
            return Ok(());
        }
        Err(tidegate_types::Refusal {
            rule: "egress-budget".to_owned(),
            what: format!("sending {next} bytes more from site `{}`", self.home),
            why: format!("{sent} bytes were sent in this run, and the pipeline allows {limit}"),
            fix: "raise `budget: egress:`, or prepare fewer rows or columns".to_owned(),
        }
        .into())
    }

    /// What stands at its destination already, from before this process was started again.
    fn crossed(&self, run: &RunRecord) -> Result<BTreeSet<(String, SiteName)>, EngineError> {
        let entries = self.crossings(run)?.into_iter();
        Ok(entries.map(|entry| (entry.artifact, entry.to)).collect())
    }

    /// Every crossing of a run, in order.
    pub(crate) fn crossings(&self, run: &RunRecord) -> Result<Vec<CrossingEntry>, EngineError> {
        crossings(&*self.journal, run)
    }
}

/// The egress account of a run, in the order of its crossings.
pub(crate) fn crossings(journal: &dyn Journal, run: &RunRecord) -> Result<Vec<CrossingEntry>, EngineError> {
    let mut entries: Vec<CrossingEntry> = scan(journal, "crossings", &format!("{}/", run.id))?;
    entries.sort_by_key(|entry| entry.place);
    Ok(entries)
}
