//! What comes home: logs, and the one output.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::store::ObjectName;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::key::DataKey;
use tidegate_seal::{envelope, packing};
use tidegate_transfer::{Description, Expected, TransferError, receive};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::digest::Digest;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;
use zeroize::Zeroizing;

use crate::admission::{Admitted, Worker};
use crate::error::{KeeperError, While, refuse};
use crate::home::{no_evidence, task};
use crate::permits::{LOG_BYTES, sealed_bytes};
use crate::records::{AttemptRecord, OutputRecord, attempt_key};
use crate::service::Keeper;

/// The kind of log that holds what a command measured.
pub(super) const METRICS: &str = "metrics";

impl Keeper {
    /// Opens a piece of a log and writes it behind the first `length` bytes of the attempt's file on this
    /// site; gives the new length. Whatever stands there already is a piece of which a keeper that was
    /// killed wrote some and recorded nothing.
    pub(super) fn keep_log(
        &self,
        record: &AttemptRecord,
        kind: &str,
        length: u64,
        sealed: &str,
    ) -> Result<u64, KeeperError> {
        use std::io::{Seek, SeekFrom, Write};

        let keeping = "keeping a worker's log";
        let mut plain = self.opened(keeping, sealed)?;
        // Each message holds one measured object, and the file one on each line.
        if kind == METRICS && !plain.ends_with(b"\n") {
            plain.push(b'\n');
        }
        let longer = length.saturating_add(plain.len() as u64);
        // The permit's slot is one for all attempts and all their machines.
        let all = self.records.attempts_of(&record.attempt)?.into_iter();
        let others = all.filter(|one| one.attempt != record.attempt);
        let others = others.map(|one| {
            if kind == METRICS {
                one.metric_bytes
            } else {
                one.log_bytes
            }
        });
        if others.fold(longer, u64::saturating_add) > LOG_BYTES {
            return Ok(length);
        }
        let folder = self.folder.join("logs").join(record.attempt.run.as_str());
        std::fs::create_dir_all(&folder).while_(keeping)?;
        let Attempt {
            task, attempt, rank, ..
        } = &record.attempt;
        let name = match rank {
            0 => format!("{task}-{attempt}.{kind}"),
            rank => format!("{task}-{attempt}-rank-{rank}.{kind}"),
        };
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(name))
            .while_(keeping)?;
        // Shorter only when somebody else has cut or removed it.
        let end = file.metadata().while_(keeping)?.len().min(length);
        file.set_len(end).while_(keeping)?;
        file.seek(SeekFrom::Start(end)).while_(keeping)?;
        file.write_all(&plain).while_(keeping)?;
        Ok(longer)
    }

    /// Opens what a worker sealed to this site. What cannot be opened now never can.
    pub(super) fn opened(&self, what: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
        let plain = STANDARD
            .decode(sealed)
            .ok()
            .and_then(|bytes| envelope::open(&self.keys.identity, &bytes).ok());
        plain.ok_or_else(|| {
            refuse(
                "message-malformed",
                what,
                "it is not sealed to this site's recipient",
                "start another attempt",
            )
            .into()
        })
    }

    pub(super) async fn receive_output(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        packing_list: &str,
        packing_list_digest: &Digest,
        grant: &str,
    ) -> Result<(PathBuf, u64), KeeperError> {
        let receiving = "receiving a worker's output";
        let permit = record
            .inputs
            .get(record.subject())
            .ok_or_else(|| KeeperError::failed(receiving, "the attempt has no permit for it"))?;
        let permit = self.permit_record(permit)?;
        let raw = self.opened(receiving, grant)?;
        let (Ok(raw), Ok(packing_list)) = (<[u8; 32]>::try_from(raw.as_slice()), ObjectName::new(packing_list)) else {
            return Err(refuse(
                "message-malformed",
                receiving,
                "its data key has not 32 bytes, or its packing list has no name of an object",
                "start another attempt",
            )
            .into());
        };
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest,
            sender: worker.signing_key(),
            organisation: &self.sites.organisation,
            artifact: None,
            permit: &permit.id,
            permit_digest: &payload_digest(&permit.envelope).while_(receiving)?,
            to: &self.site,
            key_commitment: None,
            byte_limit: sealed_bytes(record.job.output_bytes),
            plaintext_limit: record.job.output_bytes,
            ceiling: Some(&record.label),
        };
        let models = PathBuf::from("models");
        std::fs::create_dir_all(self.folder.join(&models)).while_(receiving)?;
        let folder = models.join(attempt_key(&record.attempt));
        let received = receive(
            &expected,
            self.store(&record.site)?,
            &DataKey::from_bytes(raw),
            &self.folder.join(&folder),
        )
        .await
        .map_err(|error| refused_output(receiving, error))?;
        let output = OutputRecord {
            packing_list: packing_list.to_string(),
            objects: received.list.shards.into_iter().chain([received.list.index]).collect(),
        };
        self.records.put("outputs", &attempt_key(&record.attempt), &output)?;
        Ok((folder, received.bytes))
    }

    /// Accepts the received output as the task's only one.
    pub(super) fn accept(
        &self,
        record: &AttemptRecord,
        new: &mut AttemptRecord,
        seconds: u64,
    ) -> Result<(), KeeperError> {
        let accepting = "accepting a worker's output";
        let folder = record
            .output
            .clone()
            .ok_or_else(|| KeeperError::failed(accepting, "there is none"))?;
        let prepared = self
            .records
            .prepared(&record.attempt.run)?
            .ok_or_else(|| KeeperError::failed(accepting, "the run was not prepared"))?;
        let description = Description {
            kind: ArtifactKind::Model,
            name: format!("{}/model", record.attempt.task),
            organisation: self.sites.organisation.clone(),
            owner: self.site.clone(),
            label: record.label.clone(),
            lowered_from: None,
            columns: Vec::new(),
            lineage: prepared.inputs.values().copied().collect(),
            task: task(record.attempt.task.as_str())?,
            step_key: canonical_digest(&(&prepared.inputs, &record.job, &record.worker)).while_(accepting)?,
        };
        let model = self.describe(&self.folder.join(&folder), description, no_evidence(), "model")?;
        let artifact = packing::manifest_digest(&model.manifest).while_(accepting)?;
        self.records.put_artifact(&artifact, &model)?;
        new.reach("accepted");
        new.outcome = Some(AttemptOutcome::Accepted {
            model: model.summary(artifact),
            seconds,
            bytes: record.output_bytes,
            phases: new.phases.clone(),
        });
        Ok(())
    }
}

/// What store and disk do may pass; an output that is not what its worker signed never will.
pub(super) fn refused_output(receiving: &str, error: TransferError) -> KeeperError {
    match error {
        TransferError::Store { .. } | TransferError::Local { .. } => KeeperError::failed(receiving, error),
        TransferError::Refused(refusal) => refusal.into(),
        other => refuse(
            "output-tampered",
            receiving,
            other.to_string(),
            "start another attempt, and look for who else writes into the site's store",
        )
        .into(),
    }
}
