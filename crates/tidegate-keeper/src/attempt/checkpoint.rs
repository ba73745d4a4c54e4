//! Unfinished work of attempts: it stays sealed in the store of the site where it was made, and only the next attempt's
//! worker is given its key. Where that one is at another site, it is brought home and crosses from there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tidegate_contracts::journal::Batch;
use tidegate_contracts::store::ObjectName;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::packing;
use tidegate_seal::sign::VerifyingKey;
use tidegate_transfer::{Description, Expected, TransferError, packing_list, receive, remove};
use tidegate_types::artifact::{ArtifactKind, SHARD_PLAINTEXT_BYTES};
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::ids::{ArtifactId, RunId, SiteName, TaskName};
use tidegate_types::keeper::{AttemptOutcome, CarriedCheckpoint, ReplyBody};
use tidegate_types::label::Label;
use tidegate_types::message::{Attempt, GrantedCheckpoint};

use super::fence_key;
use super::output::refused_output;
use super::setup::SETUPS;
use crate::admission::{Admitted, Worker, release_key};
use crate::error::{KeeperError, While, refuse};
use crate::home::no_evidence;
use crate::needless::objects;
use crate::permits::{CHECKPOINT_BYTES, sealed_bytes};
use crate::records::{AttemptRecord, CheckpointRecord, CrossingRecord, OutputRecord, SetupRecord, attempt_key};
use crate::service::Keeper;

/// Shards beyond those that an artifact's bytes need.
const MORE_SHARDS: u64 = 2;
/// How long an attempt waits for the removal of what nobody needs.
const REMOVING: Duration = Duration::from_secs(5);
/// What was brought home last, by run and task.
const CARRIED: &str = "carried";

/// What a worker says of its unfinished work.
pub(super) struct Told<'a> {
    pub(super) packing_list: &'a str,
    pub(super) packing_list_digest: &'a Digest,
    /// The number of its message.
    pub(super) number: u64,
}

impl Keeper {
    /// Verifies that what a worker tells stands in the store: its packing list, whose digest names everything else. Nothing
    /// where the slot carries no more: that is no reason to end the work.
    pub(super) async fn take_checkpoint(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        told: &Told<'_>,
        grant: &str,
    ) -> Result<Option<CheckpointRecord>, KeeperError> {
        let taking = "taking note of a worker's checkpoint";
        let key = <[u8; 32]>::try_from(self.opened(taking, grant)?.as_slice());
        let key = DataKey::from_bytes(key.map_err(|_| malformed(taking))?);
        let attempts = self.records.attempts_of(&record.attempt)?;
        let sent = attempts
            .iter()
            .fold(0_u64, |sum, one| sum.saturating_add(one.checkpoint_bytes));
        let limit = (sealed_bytes(record.job.output_bytes), record.job.output_bytes);
        let mut stands = self
            .stands(taking, record, worker, (told, &key), ("train", &record.label), limit)
            .await?;
        grant.clone_into(&mut stands.sealed_key);
        // What the one before it named already was sent once.
        let before: BTreeSet<&Digest> = record
            .checkpoint
            .iter()
            .flat_map(|it| it.objects.iter().map(|object| &object.digest))
            .collect();
        let new = stands.objects.iter().filter(|object| !before.contains(&object.digest));
        stands.bytes = new.fold(stands.bytes, |sum, object| sum.saturating_add(object.bytes));
        if sent.saturating_add(stands.bytes) > CHECKPOINT_BYTES {
            tracing::warn!(run = %record.attempt.run, "no more checkpoints are kept: the permit's slot carries no more");
            return Ok(None);
        }
        let leaf = self.attempt_event(
            EventType::Checkpointed,
            &record.attempt,
            &[("permit", stands.permit.as_str())],
            &[("packing_list", *told.packing_list_digest)],
        )?;
        let key = format!("checkpoint/{}/{}", attempt_key(&record.attempt), told.number);
        self.records.commit(&Batch::default().leaf(&key, leaf))?;
        Ok(Some(stands))
    }

    /// Verifies that what a worker tells stands in its site's store, under the permit of an input, with that label at the
    /// most and no more bytes (sealed, and in the clear) than `limit`.
    pub(super) async fn stands(
        &self,
        taking: &'static str,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        (told, key): (&Told<'_>, &DataKey),
        (input, ceiling): (&str, &Label),
        limit: (u64, u64),
    ) -> Result<CheckpointRecord, KeeperError> {
        let permit = record
            .inputs
            .get(input)
            .ok_or_else(|| KeeperError::failed(taking, "the attempt has no permit for it"))?;
        let permit = self.permit_record(permit)?;
        let list = ObjectName::new(told.packing_list).map_err(|_| malformed(taking))?;
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
            byte_limit: limit.0,
            plaintext_limit: limit.1,
            ceiling: Some(ceiling),
        };
        let verified = packing_list(&expected, self.store(&record.site)?, key).await;
        let (list, bytes) = verified.map_err(|error| refused_output(taking, error))?;
        // It is kept in the journal.
        let most = limit.1 / SHARD_PLAINTEXT_BYTES + MORE_SHARDS;
        if list.shards.len() as u64 > most {
            return Err(refuse(
                "output-tampered",
                taking,
                "it names more shards than its bytes need",
                "start another attempt",
            )
            .into());
        }
        Ok(CheckpointRecord {
            packing_list: told.packing_list.to_owned(),
            packing_list_digest: *told.packing_list_digest,
            objects: list.shards.into_iter().chain([list.index]).collect(),
            bytes,
            permit: permit.id,
            signing_key: worker.signing_key().to_base64(),
            sealed_key: String::new(),
        })
    }

    /// The newest unfinished work of an attempt's task: its own, or else that of the last attempt before it that had any,
    /// with that attempt's record.
    fn newest_checkpoint(&self, of: &AttemptRecord) -> Result<Option<(AttemptRecord, CheckpointRecord)>, KeeperError> {
        if let Some(checkpoint) = &of.checkpoint {
            return Ok(Some((of.clone(), checkpoint.clone())));
        }
        // Of several machines only the first one's is kept, and all go on with it.
        let earlier = self.records.attempts_of(&of.attempt)?.into_iter();
        let earlier = earlier.filter(|one| one.attempt.attempt < of.attempt.attempt && one.checkpoint.is_some());
        let newest = earlier.max_by_key(|one| one.attempt.attempt);
        Ok(newest.and_then(|mut one| one.checkpoint.take().map(|checkpoint| (one, checkpoint))))
    }

    /// Brings home what the attempts before this one had done, if this one is at another site; it then crosses to that site as
    /// anything else does. What cannot be used is left where it is, and the next attempt begins anew.
    pub(crate) async fn fetch_checkpoint(&self, attempt: &Attempt, site: &SiteName) -> Result<ReplyBody, KeeperError> {
        let fetching = "bringing a checkpoint home";
        let nothing = ReplyBody::Checkpoint { checkpoint: None };
        let key = fence_key(attempt);
        let earlier = self.records.attempts_of(attempt)?.into_iter();
        let newest = earlier
            .filter(|one| one.attempt.attempt < attempt.attempt)
            .filter(|one| one.outcome.is_some() && one.checkpoint.is_some())
            .max_by_key(|one| one.attempt.attempt);
        let Some((from, checkpoint)) =
            newest.and_then(|one| one.checkpoint.clone().map(|checkpoint| (one, checkpoint)))
        else {
            return Ok(nothing);
        };
        if from.site == *site {
            self.records.put(CARRIED, &key, &None::<ArtifactId>)?;
            return Ok(nothing);
        }
        let permit = self.permit_record(&checkpoint.permit)?;
        let list = ObjectName::new(checkpoint.packing_list.clone()).while_(fetching)?;
        let raw = self.checkpoint_key(fetching, &checkpoint)?;
        let sender = VerifyingKey::from_base64(&checkpoint.signing_key).while_(fetching)?;
        let expected = Expected {
            packing_list: &list,
            packing_list_digest: &checkpoint.packing_list_digest,
            sender: &sender,
            organisation: &self.sites.organisation,
            artifact: None,
            permit: &permit.id,
            permit_digest: &payload_digest(&permit.envelope).while_(fetching)?,
            to: &self.site,
            key_commitment: None,
            byte_limit: sealed_bytes(from.job.output_bytes),
            plaintext_limit: from.job.output_bytes,
            ceiling: Some(&from.label),
        };
        let folder = PathBuf::from("checkpoints");
        std::fs::create_dir_all(self.folder.join(&folder)).while_(fetching)?;
        let name: String = checkpoint.packing_list_digest.to_hex().chars().take(16).collect();
        let folder = self
            .folder
            .join(folder)
            .join(format!("{}-{name}", attempt_key(&from.attempt)));
        let received = match receive(&expected, self.store(&from.site)?, &raw, &folder).await {
            Ok(received) => received,
            Err(error) if error.is_transient() || matches!(error, TransferError::Local { .. }) => {
                return Err(KeeperError::failed(fetching, error));
            }
            Err(error) => {
                tracing::warn!(run = %attempt.run, site = %from.site, %error, "a checkpoint cannot be used");
                return Ok(nothing);
            }
        };
        let prepared = self.prepared_inputs(&attempt.run)?;
        let description = Description {
            kind: ArtifactKind::Checkpoint,
            name: format!("{}/checkpoint", attempt.task),
            organisation: self.sites.organisation.clone(),
            owner: self.site.clone(),
            label: from.label.clone(),
            lowered_from: None,
            columns: Vec::new(),
            lineage: prepared.values().copied().collect(),
            task: attempt.task.clone(),
            step_key: canonical_digest(&(&prepared, checkpoint.packing_list_digest)).while_(fetching)?,
        };
        let record = self.describe(&folder, description, no_evidence(), "checkpoint")?;
        let artifact = packing::manifest_digest(&record.manifest).while_(fetching)?;
        self.records.put_artifact(&artifact, &record)?;
        self.records.put(CARRIED, &key, &Some(artifact))?;
        Ok(ReplyBody::Checkpoint {
            checkpoint: Some(CarriedCheckpoint {
                artifact: record.summary(artifact),
                attempt: from.attempt.attempt,
                from: from.site,
                permit: permit.id,
                bytes: received.bytes,
            }),
        })
    }

    /// What was brought home last for the attempts of a task to go on with.
    pub(crate) fn carried(&self, run: &RunId, task: &TaskName) -> Result<Option<ArtifactId>, KeeperError> {
        Ok(self
            .records
            .get::<Option<ArtifactId>>(CARRIED, &format!("{run}.{task}"))?
            .flatten())
    }

    fn prepared_inputs(&self, run: &RunId) -> Result<BTreeMap<String, ArtifactId>, KeeperError> {
        let prepared = self.records.prepared(run)?;
        let prepared = prepared.ok_or_else(|| KeeperError::failed("finding a run's inputs", "it was not prepared"))?;
        Ok(prepared.inputs)
    }

    fn checkpoint_key(&self, what: &str, checkpoint: &CheckpointRecord) -> Result<DataKey, KeeperError> {
        let raw = self.opened(what, &checkpoint.sealed_key)?;
        let raw: [u8; 32] = raw
            .as_slice()
            .try_into()
            .map_err(|_| KeeperError::failed(what, "its key has not 32 bytes"))?;
        Ok(DataKey::from_bytes(raw))
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
        let key = self.checkpoint_key(granting, &checkpoint)?;
        Ok(Some(GrantedCheckpoint {
            attempt: from.attempt.attempt,
            packing_list: checkpoint.packing_list,
            packing_list_digest: checkpoint.packing_list_digest,
            signing_key: checkpoint.signing_key,
            sealed_key: release_key(worker, &key)?,
        }))
    }

    /// Removes unfinished work that nobody goes on with, once `new` stands in the journal in place of `old`. What cannot be
    /// removed now is found by a sweep.
    pub(super) async fn forget_checkpoint(&self, old: &AttemptRecord, new: &AttemptRecord) -> Result<(), KeeperError> {
        let accepted = matches!(new.outcome, Some(AttemptOutcome::Accepted { .. }));
        if new.checkpoint == old.checkpoint && !accepted {
            return Ok(());
        }
        if accepted {
            self.forget_carried(&fence_key(&new.attempt));
        }
        let mut needless: Vec<_> = self.newest_checkpoint(old)?.into_iter().collect();
        if old.job.others > 0 && !accepted {
            // The other machines may be fetching what an earlier attempt left.
            needless.retain(|(from, _)| from.attempt == old.attempt);
        } else if old.job.others > 0 {
            let all = self.records.attempts_of(&old.attempt)?.into_iter();
            let all = all.filter_map(|one| one.checkpoint.clone().map(|checkpoint| (one, checkpoint)));
            needless = all.collect();
        }
        for (from, checkpoint) in needless {
            self.remove_needless(&from.site, &checkpoint).await?;
        }
        Ok(())
    }

    /// Removes what nobody needs from a site's store. What cannot be removed now is found by a sweep.
    pub(super) async fn remove_needless(
        &self,
        site: &SiteName,
        needless: &CheckpointRecord,
    ) -> Result<(), KeeperError> {
        let mut names = objects(&needless.packing_list, &needless.objects)?;
        // A worker may have named what is not its own: whatever this site knows for something else stays.
        let known = self.known_elsewhere(needless)?;
        names.retain(|name| !known.contains(name));
        let removing = tokio::time::timeout(REMOVING, remove(self.store(site)?, &names)).await;
        let failure = match removing {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it takes too long".to_owned(),
        };
        tracing::warn!(%site, failure, "what nobody needs was not removed");
        Ok(())
    }

    /// The objects of crossings, outputs and other checkpoints that this site knows of.
    fn known_elsewhere(&self, checkpoint: &CheckpointRecord) -> Result<BTreeSet<ObjectName>, KeeperError> {
        let mut known = BTreeSet::new();
        for crossing in self.records.all::<CrossingRecord>("crossings")? {
            known.extend(objects(&crossing.packing_list, &crossing.objects)?);
        }
        for output in self.records.all::<OutputRecord>("outputs")? {
            known.extend(objects(&output.packing_list, &output.objects)?);
        }
        let others = self.records.all::<AttemptRecord>("attempts")?.into_iter();
        let others = others.filter_map(|attempt| attempt.checkpoint);
        let setups = self.records.all::<Option<SetupRecord>>(SETUPS)?.into_iter().flatten();
        let others = others.chain(setups.map(|setup| setup.sealed));
        for other in others.filter(|other| other.packing_list_digest != checkpoint.packing_list_digest) {
            known.extend(objects(&other.packing_list, &other.objects)?);
        }
        Ok(known)
    }

    /// Removes what was brought home for a task that has a model now.
    fn forget_carried(&self, task: &str) {
        let entries = std::fs::read_dir(self.folder.join("checkpoints"))
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&format!("{task}.")))
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(%error, "a checkpoint that nobody needs was not removed");
            }
        }
    }
}

pub(super) fn malformed(taking: &str) -> KeeperError {
    refuse(
        "message-malformed",
        taking,
        "its data key has not 32 bytes, or its packing list has no name of an object",
        "start another attempt",
    )
    .into()
}
