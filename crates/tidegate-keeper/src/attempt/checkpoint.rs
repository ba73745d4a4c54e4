//! Unfinished work of attempts: it stays sealed in the store of the site where it was made, and only the next attempt's
//! worker is given its key.

use tidegate_contracts::journal::Batch;
use tidegate_contracts::store::ObjectName;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_transfer::{Expected, packing_list, remove};
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::GrantedCheckpoint;

use super::output::refused_output;
use crate::admission::{Admitted, Worker, release_key};
use crate::error::{KeeperError, While, refuse};
use crate::needless::objects;
use crate::permits::{CHECKPOINT_BYTES, sealed_bytes};
use crate::records::{AttemptRecord, CheckpointRecord, attempt_key};
use crate::service::Keeper;

/// What a worker says of its unfinished work.
pub(super) struct Told<'a> {
    pub(super) packing_list: &'a str,
    pub(super) packing_list_digest: &'a Digest,
    pub(super) grant: &'a str,
    /// The number of its message.
    pub(super) number: u64,
}

impl Keeper {
    /// Verifies that what a worker tells stands in the store: its packing list, whose digest names everything else.
    pub(super) async fn take_checkpoint(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        told: &Told<'_>,
    ) -> Result<CheckpointRecord, KeeperError> {
        let taking = "taking note of a worker's checkpoint";
        let permit = record
            .inputs
            .get("train")
            .ok_or_else(|| KeeperError::failed(taking, "the attempt has no permit for it"))?;
        let permit = self.permit_record(permit)?;
        let raw = self.opened(taking, told.grant)?;
        let (Ok(raw), Ok(list)) = (<[u8; 32]>::try_from(raw.as_slice()), ObjectName::new(told.packing_list)) else {
            return Err(refuse(
                "message-malformed",
                taking,
                "its data key has not 32 bytes, or its packing list has no name of an object",
                "start another attempt",
            )
            .into());
        };
        let attempts = self.records.attempts_of(&record.attempt)?;
        let sent = attempts
            .iter()
            .fold(0_u64, |sum, one| sum.saturating_add(one.checkpoint_bytes));
        let expected = Expected {
            packing_list: &list,
            packing_list_digest: told.packing_list_digest,
            sender: worker.signing_key(),
            organisation: &self.sites.organisation,
            artifact: None,
            permit: &permit.id,
            permit_digest: &payload_digest(&permit.envelope).while_(taking)?,
            to: &self.site,
            key_commitment: None,
            byte_limit: sealed_bytes(record.job.output_bytes).min(CHECKPOINT_BYTES.saturating_sub(sent)),
            plaintext_limit: record.job.output_bytes,
            ceiling: Some(&record.label),
        };
        let verified = packing_list(&expected, self.store(&record.site)?, &DataKey::from_bytes(raw)).await;
        let (list, bytes) = verified.map_err(|error| refused_output(taking, error))?;
        let sealed = list.shards.iter().chain([&list.index]);
        let bytes = sealed.fold(bytes, |sum, object| sum.saturating_add(object.bytes));
        let leaf = self.event(
            EventType::Checkpointed,
            &record.attempt.run,
            &[("task", record.attempt.task.as_str()), ("permit", permit.id.as_str())],
            &[("packing_list", *told.packing_list_digest)],
        )?;
        let key = format!("checkpoint/{}/{}", attempt_key(&record.attempt), told.number);
        self.records.commit(&Batch::default().leaf(&key, leaf))?;
        Ok(CheckpointRecord {
            packing_list: told.packing_list.to_owned(),
            packing_list_digest: *told.packing_list_digest,
            objects: list.shards.into_iter().chain([list.index]).collect(),
            bytes,
            permit: permit.id,
            signing_key: worker.signing_key().to_base64(),
            sealed_key: told.grant.to_owned(),
        })
    }

    /// The newest unfinished work of an attempt's task: its own, or else that of the last attempt before it that had any,
    /// with that attempt's record.
    fn newest_checkpoint(&self, of: &AttemptRecord) -> Result<Option<(AttemptRecord, CheckpointRecord)>, KeeperError> {
        if let Some(checkpoint) = &of.checkpoint {
            return Ok(Some((of.clone(), checkpoint.clone())));
        }
        let earlier = self.records.attempts_of(&of.attempt)?.into_iter().filter(|one| {
            one.attempt.rank == of.attempt.rank && one.attempt.attempt < of.attempt.attempt && one.checkpoint.is_some()
        });
        let newest = earlier.max_by_key(|one| one.attempt.attempt);
        Ok(newest.and_then(|mut one| one.checkpoint.take().map(|checkpoint| (one, checkpoint))))
    }

    /// What an attempt's worker may go on with: the newest unfinished work, where it stands in this very site's store and
    /// under the very permit whose inputs the worker is given.
    pub(super) fn granted_checkpoint(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
    ) -> Result<Option<GrantedCheckpoint>, KeeperError> {
        let Some((from, checkpoint)) = self.newest_checkpoint(record)? else {
            return Ok(None);
        };
        if from.site != record.site || record.inputs.get("train") != Some(&checkpoint.permit) {
            return Ok(None);
        }
        let granting = "granting a checkpoint";
        let raw = self.opened(granting, &checkpoint.sealed_key)?;
        let raw: [u8; 32] = raw
            .as_slice()
            .try_into()
            .map_err(|_| KeeperError::failed(granting, "its key has not 32 bytes"))?;
        Ok(Some(GrantedCheckpoint {
            attempt: from.attempt.attempt,
            packing_list: checkpoint.packing_list,
            packing_list_digest: checkpoint.packing_list_digest,
            signing_key: checkpoint.signing_key,
            sealed_key: release_key(worker, &DataKey::from_bytes(raw))?,
        }))
    }

    /// Removes unfinished work that nobody goes on with, once `new` stands in the journal in place of `old`. What cannot be
    /// removed now is found by a sweep.
    pub(super) async fn forget_checkpoint(&self, old: &AttemptRecord, new: &AttemptRecord) -> Result<(), KeeperError> {
        let accepted = matches!(new.outcome, Some(AttemptOutcome::Accepted { .. }));
        if new.checkpoint == old.checkpoint && !accepted {
            return Ok(());
        }
        if let Some((from, checkpoint)) = self.newest_checkpoint(old)? {
            let site = from.site;
            let names = objects(&checkpoint.packing_list, &checkpoint.objects)?;
            if let Err(error) = remove(self.store(&site)?, &names).await {
                tracing::warn!(run = %new.attempt.run, %site, %error, "a checkpoint that nobody needs was not removed");
            }
        }
        Ok(())
    }
}
