//! Grants: data keys for an admitted worker, after policy was asked once more.

use tidegate_contracts::journal::Batch;
use tidegate_seal::dsse::payload_digest;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::message::{Grant, GrantedArtifact, KeeperMessage, Node};

use super::LEASE_SECONDS;
use crate::admission::{Admitted, Worker, release_key};
use crate::error::{KeeperError, While, refuse};
use crate::permits::{Release, Wanted};
use crate::records::{AttemptRecord, attempt_key};
use crate::service::Keeper;

impl Keeper {
    pub(super) async fn data_grant(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        nodes: Vec<Node>,
    ) -> Result<KeeperMessage, KeeperError> {
        let names: Vec<&str> = record
            .inputs
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "code")
            .collect();
        let checkpoint = self.granted_checkpoint(record, worker)?;
        let before = checkpoint.as_ref().map(|it| ("checkpoint", it.packing_list_digest));
        let grant = self.grant(record, worker, &names, record.subject(), before).await?;
        Ok(KeeperMessage::DataGrant(Grant {
            nodes,
            checkpoint,
            ..grant
        }))
    }

    /// Asks policy once more, and seals the keys of `names` to the worker. `before` is what of an earlier worker is granted with
    /// them, for the record.
    pub(super) async fn grant(
        &self,
        record: &AttemptRecord,
        worker: &Admitted<Worker>,
        names: &[&str],
        standing: &str,
        before: Option<(&'static str, Digest)>,
    ) -> Result<Grant, KeeperError> {
        let granting = "granting keys";
        let missing = || KeeperError::failed(granting, "an input has no permit");
        let prepared = self
            .given(&record.attempt.run, &record.attempt.task)?
            .ok_or_else(|| KeeperError::failed(granting, "the run was not prepared"))?;
        let mut artifacts = Vec::new();
        let mut permits = Vec::new();
        for name in names {
            let permit = self.permit_record(record.inputs.get(*name).ok_or_else(missing)?)?;
            if permit.expires <= (self.clock)() {
                return Err(refuse(
                    "permit-expired",
                    granting,
                    "the permit has expired",
                    "ask for a new permit",
                )
                .into());
            }
            let wanted = Wanted {
                run: &permit.run,
                task: &permit.task,
                artifact: &permit.artifact,
                to: &permit.to,
                worker: Some(record.worker),
            };
            let pipeline = self.prepared_pipeline(&permit.run)?;
            self.allowed(&wanted, &pipeline, prepared.pipeline, Release::Key(&permit))?;
            let crossing = self.records.crossing(&permit.id)?.ok_or_else(missing)?;
            let lent = self.lent(&crossing, &permit, worker).await?;
            let key = self.data_key(&permit).await?;
            permits.push((format!("permit_{name}"), permit.id.to_string()));
            artifacts.push(GrantedArtifact {
                input: (*name).to_owned(),
                artifact: permit.artifact,
                packing_list: crossing.packing_list,
                packing_list_digest: crossing.packing_list_digest,
                key_commitment: key.commitment(),
                sealed_key: release_key(worker, &key)?,
                lent,
                permit_envelope: permit.envelope,
            });
        }
        let permit = self.permit_record(record.inputs.get(standing).ok_or_else(missing)?)?;
        let now = (self.clock)();
        let mut told = vec![("permit", permit.id.as_str())];
        told.extend(permits.iter().map(|(name, permit)| (name.as_str(), permit.as_str())));
        // Proven before its hello was accepted.
        let machine = record.machine.as_deref();
        told.extend(machine.map(|machine| ("machine", machine)));
        let mut digests = vec![("hello", *worker.hello())];
        digests.extend(before);
        let leaf = self.attempt_event(EventType::Granted, &record.attempt, &told, &digests)?;
        let key = format!("grant/{}/{standing}", attempt_key(&record.attempt));
        self.records.commit(&Batch::default().leaf(&key, leaf))?;
        Ok(Grant {
            hello: *worker.hello(),
            permit: permit.id,
            permit_digest: payload_digest(&permit.envelope).while_(granting)?,
            artifacts,
            checkpoint: None,
            setup: None,
            nodes: Vec::new(),
            output_recipient: self.keys.identity.recipient(),
            job: record.job.clone(),
            permit_envelope: permit.envelope,
            expires: permit.expires,
            lease: now + LEASE_SECONDS,
        })
    }
}
