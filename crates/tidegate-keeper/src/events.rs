//! This site's own log: what it did and refused, for the organisation's ledger.

use std::collections::BTreeMap;

use tidegate_contracts::journal::Batch;
use tidegate_seal::digest::canonical_digest;
use tidegate_types::digest::Digest;
use tidegate_types::event::{Event, EventData, EventType};
use tidegate_types::ids::RunId;
use tidegate_types::keeper::ReplyBody;
use tidegate_types::message::Attempt;
use tidegate_types::to_canonical_json;

use crate::error::{KeeperError, While};
use crate::service::Keeper;

/// Entries of the site's own log in one answer.
const LEAVES_AT_ONCE: u64 = 500;

/// Which attempt, and which of its machines where it is not the first.
pub(crate) fn numbers(attempt: &Attempt) -> BTreeMap<String, u64> {
    let rank = (attempt.rank > 0).then(|| ("rank".to_owned(), u64::from(attempt.rank)));
    let attempt = ("attempt".to_owned(), u64::from(attempt.attempt));
    rank.into_iter().chain([attempt]).collect()
}

impl Keeper {
    /// Entries of this site's own log, for the organisation's ledger.
    pub(crate) fn leaves(&self, from: u64) -> Result<ReplyBody, KeeperError> {
        let reading = "reading the site's own log";
        let journal = &self.records.journal;
        let size = journal.log_size().while_(reading)?;
        let to = size.min(from.saturating_add(LEAVES_AT_ONCE));
        let leaves = if from < to {
            journal.log_leaves(from, to).while_(reading)?
        } else {
            Vec::new()
        };
        let texts = leaves.into_iter().map(|leaf| String::from_utf8(leaf).while_(reading));
        Ok(ReplyBody::Leaves {
            leaves: texts.collect::<Result<_, _>>()?,
        })
    }

    /// One leaf of this site's own log, as canonical JSON.
    pub(crate) fn event(
        &self,
        event_type: EventType,
        run: &RunId,
        names: &[(&str, &str)],
        digests: &[(&str, Digest)],
    ) -> Result<Vec<u8>, KeeperError> {
        self.numbered_event(event_type, run, names, digests, BTreeMap::new())
    }

    /// The same about one attempt, and one of its machines: what happens to each is an event of its own.
    pub(crate) fn attempt_event(
        &self,
        event_type: EventType,
        attempt: &Attempt,
        names: &[(&str, &str)],
        digests: &[(&str, Digest)],
    ) -> Result<Vec<u8>, KeeperError> {
        let task = [("task", attempt.task.as_str())];
        let names: Vec<_> = task.iter().chain(names).copied().collect();
        self.numbered_event(event_type, &attempt.run, &names, digests, numbers(attempt))
    }

    fn numbered_event(
        &self,
        event_type: EventType,
        run: &RunId,
        names: &[(&str, &str)],
        digests: &[(&str, Digest)],
        numbers: BTreeMap<String, u64>,
    ) -> Result<Vec<u8>, KeeperError> {
        let data = EventData {
            digests: digests
                .iter()
                .map(|(key, digest)| ((*key).to_owned(), *digest))
                .collect(),
            names: names
                .iter()
                .map(|(key, name)| ((*key).to_owned(), (*name).to_owned()))
                .collect(),
            numbers,
        };
        let id = canonical_digest(&(event_type, run, &data))
            .while_("recording an event")?
            .to_hex();
        let event = Event::new(
            event_type,
            id,
            format!("/{}", self.site),
            run.as_str(),
            (self.clock)(),
            data,
        );
        to_canonical_json(&event).while_("recording an event")
    }

    /// Refusals are recorded, but a failure to do so does not turn a refusal into something else.
    pub(crate) fn record_refusal(&self, run: &RunId, rule: &str) {
        let recorded = self
            .event(EventType::Refused, run, &[("rule", rule)], &[])
            .and_then(|leaf| {
                let id = format!("refused/{run}/{rule}");
                self.records.commit(&Batch::default().leaf(&id, leaf))
            });
        if let Err(error) = recorded {
            tracing::error!(%run, rule, %error, "refusal not recorded");
        }
    }
}
