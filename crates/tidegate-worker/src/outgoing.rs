//! What leaves an attempt for home, sealed under a standing slot of its permit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_seal::digest::canonical_digest;
use tidegate_seal::envelope::seal_to;
use tidegate_seal::key::DataKey;
use tidegate_seal::random::random_bytes;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::{Crossing, Description, Gate, KnownShards, PermitCheck, Permitted, describe, send};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::message::{Grant, Ticket};
use tidegate_types::permit::Permit;
use tidegate_types::{ArtifactId, Digest, FileEntry, Label};
use zeroize::Zeroizing;

use crate::error::{Failure, Stage};
use crate::mail::{Mail, now};

/// Shards that are sealed at once: each takes 64 MiB of memory.
const SHARDS_IN_FLIGHT: usize = 2;

/// Who sends, under which permit, and to whom.
pub(crate) struct Outgoing {
    ticket: Ticket,
    owner: VerifyingKey,
    store: Arc<dyn Store>,
    signer: SigningKey,
    grant: Grant,
    permit: Permit,
    /// A command's outputs carry the join of its inputs' labels.
    label: Label,
    lineage: BTreeSet<ArtifactId>,
    step_key: Digest,
}

/// What is sent.
pub(crate) struct Parcel {
    pub(crate) slot: &'static str,
    pub(crate) kind: ArtifactKind,
    pub(crate) folder: PathBuf,
    /// Where the sending notes what it has sent: out of the command's reach.
    pub(crate) state: PathBuf,
    /// The most bytes of all files together.
    pub(crate) limit: u64,
    /// What of an earlier parcel needs not be sent again.
    pub(crate) before: Before,
    /// The key to seal it with; a new one without it.
    pub(crate) data_key: Option<DataKey>,
}

/// What was sent before, and stands in the store: known by digests under a key of this worker alone.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    digest_key: Zeroizing<[u8; 32]>,
    files: Vec<FileEntry>,
    shards: KnownShards,
}

impl Before {
    /// Nothing was.
    pub(crate) fn nothing() -> Result<Self, Failure> {
        let key = random_bytes::<32>().map_err(|error| Failure::new(Stage::Output, error.to_string()))?;
        Ok(Self {
            digest_key: Zeroizing::new(key),
            files: Vec::new(),
            shards: KnownShards::default(),
        })
    }

    /// Puts files that are what they were first, in the order in which they were laid into shards: what is in those shards
    /// is then the same again.
    fn arrange(&self, files: Vec<FileEntry>) -> Vec<FileEntry> {
        let (mut same, changed): (Vec<_>, Vec<_>) = {
            let before: BTreeMap<&str, (usize, &FileEntry)> = self
                .files
                .iter()
                .enumerate()
                .map(|(place, file)| (file.path.as_str(), (place, file)))
                .collect();
            let place = |file: &FileEntry| {
                before
                    .get(file.path.as_str())
                    .filter(|(_, it)| *it == file)
                    .map(|it| it.0)
            };
            files
                .into_iter()
                .map(|file| (place(&file), file))
                .partition(|(place, _)| place.is_some())
        };
        same.sort_by_key(|(place, _)| *place);
        same.into_iter().chain(changed).map(|(_, file)| file).collect()
    }
}

/// What stands in the store, as the keeper is told.
pub(crate) struct Sealed {
    pub(crate) packing_list: String,
    pub(crate) packing_list_digest: Digest,
    /// base64 of an age file to the keeper holding the data key.
    pub(crate) grant: String,
    /// Sealed bytes that were sent for it.
    pub(crate) bytes: u64,
    /// For the next parcel.
    pub(crate) before: Before,
}

impl Outgoing {
    /// `inputs` were opened for the command, `code` before.
    pub(crate) fn new(
        ticket: &Ticket,
        owner: &VerifyingKey,
        mail: &Mail,
        (grant, permit): (&Grant, &Permit),
        code: Option<ArtifactId>,
        label: Label,
    ) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(Stage::Output, error.to_string());
        let inputs: Vec<ArtifactId> = grant.artifacts.iter().map(|artifact| artifact.artifact).collect();
        Ok(Self {
            ticket: ticket.clone(),
            owner: owner.clone(),
            store: mail.store(),
            signer: SigningKey::from_seed(&mail.signer().seed()).map_err(|error| failed(&error))?,
            step_key: canonical_digest(&(code, &inputs, &grant.job)).map_err(|error| failed(&error))?,
            grant: grant.clone(),
            permit: permit.clone(),
            label,
            lineage: inputs.into_iter().chain(code).collect(),
        })
    }

    /// The most bytes that a slot carries, where the permit has it.
    pub(crate) fn slot_bytes(&self, name: &str) -> Option<u64> {
        let slot = self.permit.standing.iter().find(|slot| slot.slot == name);
        slot.map(|slot| slot.byte_limit)
    }

    /// Describes, seals and sends a folder.
    pub(crate) async fn send(&self, parcel: Parcel) -> Result<Sealed, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(Stage::Output, error.to_string());
        let before = parcel.before;
        let attempt = &self.ticket.attempt;
        let description = Description {
            kind: parcel.kind,
            name: format!("{}/{}", attempt.run, attempt.task),
            organisation: self.ticket.organisation.clone(),
            owner: self.ticket.owner.clone(),
            label: self.label.clone(),
            lowered_from: None,
            columns: Vec::new(),
            lineage: self.lineage.clone(),
            task: attempt.task.clone(),
            step_key: self.step_key,
        };
        let (folder, key) = (parcel.folder.clone(), before.digest_key.clone());
        let described = tokio::task::spawn_blocking(move || describe(&folder, description, &key)).await;
        let mut manifest = described
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        manifest.files = before.arrange(manifest.files);
        let files = manifest.files.clone();
        if manifest.total_bytes() > parcel.limit {
            return Err(Failure::new(
                Stage::Output,
                "the command wrote more output than allowed",
            ));
        }
        let check = PermitCheck {
            owner: &self.owner,
            organisation: &self.ticket.organisation,
            from: &self.permit.to,
            to: &self.permit.from,
            run: &attempt.run,
            now: now(),
            revocation_epoch: self.permit.revocation_epoch,
        };
        let permitted = Permitted::standing(&check, &self.grant.permit_envelope, parcel.slot, manifest)
            .map_err(|refusal| failed(&refusal))?;
        let data_key = match parcel.data_key {
            Some(key) => key,
            None => DataKey::generate().map_err(|error| failed(&error))?,
        };
        let sealed = seal_to(&self.grant.output_recipient, data_key.expose()).map_err(|error| failed(&error))?;
        let crossing = Crossing {
            source: &parcel.folder,
            store: &*self.store,
            signer: &self.signer,
            data_key: &data_key,
            digest_key: &before.digest_key,
            known: &before.shards,
            state: &parcel.state,
            shards_in_flight: SHARDS_IN_FLIGHT,
            progress: &|_| {},
            gate: &|| Gate::Open,
        };
        let sent = send(&permitted, &crossing).await.map_err(|error| failed(&error))?;
        Ok(Sealed {
            packing_list: sent.packing_list.as_str().to_owned(),
            packing_list_digest: sent.packing_list_digest,
            grant: STANDARD.encode(sealed),
            bytes: sent.bytes.saturating_sub(sent.known_bytes),
            before: Before {
                files,
                shards: sent.shards,
                digest_key: before.digest_key.clone(),
            },
        })
    }
}
