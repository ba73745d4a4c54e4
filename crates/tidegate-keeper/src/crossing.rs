//! Sending what a permit allows.

use std::path::Path;
use std::sync::Arc;

use tidegate_seal::key::DataKey;
use tidegate_transfer::{Crossing, KnownShards, PermitCheck, Permitted, TransferError, send, send_copied};
use tidegate_types::ids::{ArtifactId, PermitId};
use tidegate_types::keeper::ReplyBody;

use crate::error::{KeeperError, While, refuse};
use crate::records::{CrossingRecord, PermitRecord};
use crate::service::Keeper;
use crate::underway::Watch;

/// Shards that are sealed and sent at the same time.
const SHARDS_IN_FLIGHT: usize = 2;

/// Removes what was noted while something was sent under a permit. Keys of shards are in it, and nobody needs it
/// once the crossing is recorded.
pub(crate) fn forget_notes(site: &Path, permit: &PermitId) -> Result<(), KeeperError> {
    let forgetting = "removing what was noted of a crossing";
    let transfers = site.join("transfers");
    match std::fs::remove_dir_all(transfers.join(permit.as_str())) {
        Ok(()) => std::fs::File::open(transfers)
            .and_then(|folder| folder.sync_all())
            .while_(forgetting),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KeeperError::failed(forgetting, error)),
    }
}

/// The refusal of everything that would need keys that were destroyed.
pub(crate) fn shredded(artifact: &ArtifactId) -> KeeperError {
    refuse(
        "artifact-shredded",
        format!("using the keys of artifact {}", artifact.short()),
        "they were destroyed on purpose",
        "prepare a new version of it, which is another artifact",
    )
    .into()
}

impl Keeper {
    /// The permit with this id, or a refusal.
    pub(crate) fn permit_record(&self, permit: &PermitId) -> Result<PermitRecord, KeeperError> {
        self.records.permit(permit)?.ok_or_else(|| {
            KeeperError::Refused(refuse(
                "permit-missing",
                format!("using permit `{permit}`"),
                "this keeper did not sign it",
                "ask for a permit first",
            ))
        })
    }

    /// The data key of a permit's crossing.
    pub(crate) async fn data_key(&self, record: &PermitRecord) -> Result<DataKey, KeeperError> {
        let opening = "opening a data key";
        if record.wrapped_key.is_empty() {
            return Err(match self.records.tombstone(&record.artifact)? {
                Some(_) => shredded(&record.artifact),
                None => KeeperError::failed(opening, "it was lost with the wrapping key, and no backup had it"),
            });
        }
        let wrapped = hex::decode(&record.wrapped_key).while_(opening)?;
        let key = self
            .custody
            .unwrap_key(&wrapped, record.id.as_str())
            .await
            .while_(opening)?;
        Ok(DataKey::from_bytes(key))
    }

    /// Sends what a permit allows, or goes on with it for a moment.
    pub(crate) async fn send(self: &Arc<Self>, permit: &PermitId) -> Result<ReplyBody, KeeperError> {
        let record = self.permit_record(permit)?;
        let crossing = match self.records.crossing(permit)? {
            Some(crossing) => {
                forget_notes(&self.folder, permit)?;
                crossing
            }
            None => match self.crossing_or_progress(&record).await? {
                Ok(crossing) => crossing,
                Err(progress) => return Ok(progress),
            },
        };
        Ok(ReplyBody::Sent {
            bytes: crossing.bytes,
            copied: self.copied(&crossing, &record.to).await?,
        })
    }

    /// Seals and sends one artifact under its permit, and records what was sent.
    pub(crate) async fn cross(&self, record: &PermitRecord, watch: &Watch) -> Result<CrossingRecord, KeeperError> {
        let artifact = self.artifact_record(&record.artifact)?;
        let (from, to) = (self.reference(&self.site)?, self.reference(&record.to)?);
        let public = self.keys.signing.public();
        let check = PermitCheck {
            owner: &public,
            organisation: &self.sites.organisation,
            from: &from,
            to: &to,
            run: &record.run,
            now: (self.clock)(),
            revocation_epoch: 0,
        };
        let permitted = Permitted::verify(&check, &record.envelope, artifact.manifest)?;
        let key = self.data_key(record).await?;
        let source = self.folder.join(&artifact.folder);
        let state = self.folder.join("transfers").join(record.id.as_str());
        let crossing = Crossing {
            source: &source,
            store: self.store(&record.to)?,
            signer: &self.keys.signing,
            data_key: &key,
            digest_key: &self.keys.digest,
            // The rows of a prepared table stand in a keyed order: two versions share hardly a shard.
            known: KnownShards::NONE,
            state: &state,
            shards_in_flight: SHARDS_IN_FLIGHT,
            progress: &|stored| self.note_progress(&record.id, watch, stored),
            gate: &|| self.gate(&record.id, &record.to, watch),
        };
        let copyable = self.copyable(&permitted).await?;
        let sent = match &copyable {
            Some((from, shards)) => send_copied(&permitted, &crossing, from, shards).await,
            None => send(&permitted, &crossing).await,
        };
        let sent = sent.map_err(|error| match error {
            TransferError::Refused(refusal) => refusal.into(),
            error => KeeperError::failed(
                format!("sending artifact {} to site `{}`", record.artifact.short(), record.to),
                error,
            ),
        })?;
        let copied_from = permitted.permit().copied_from.clone().filter(|_| sent.copied);
        let crossing = CrossingRecord {
            packing_list: sent.packing_list.to_string(),
            packing_list_digest: sent.packing_list_digest,
            objects: sent.objects,
            bytes: sent.bytes,
            copied_from: copied_from.map(|from| from.site),
            at: (self.clock)(),
        };
        self.records.put("crossings", record.id.as_str(), &crossing)?;
        forget_notes(&self.folder, &record.id)?;
        tracing::info!(permit = %record.id, site = %record.to, bytes = crossing.bytes, "sent");
        Ok(crossing)
    }
}
