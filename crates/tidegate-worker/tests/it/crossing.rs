//! Artifacts that crossed for real, under permits of these tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::digest::sha256;
use tidegate_seal::key::DataKey;
use tidegate_seal::permit::sign_permit;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_transfer::{Crossing, Description, PermitCheck, Permitted, describe, send};
use tidegate_types::artifact::Manifest;
use tidegate_types::ids::{PermitId, Purpose};
use tidegate_types::permit::{Envelope, Evidence, Permit, SiteReference, StandingSlot};
use tidegate_types::{ArtifactId, ArtifactKind, Digest, Label, Level, RunId, SiteName, TaskName};

pub(crate) const ORGANISATION: &str = "st-mary";
const DIGEST_KEY: [u8; 32] = [3; 32];

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn site(name: &str) -> SiteReference {
    SiteReference {
        site: SiteName::new(name).unwrap(),
        definition: sha256(name.as_bytes()),
    }
}

/// An artifact that has crossed.
#[derive(Clone)]
pub(crate) struct Crossed {
    pub(crate) artifact: ArtifactId,
    pub(crate) key: [u8; 32],
    pub(crate) packing_list: ObjectName,
    pub(crate) packing_list_digest: Digest,
    pub(crate) envelope: Envelope,
    pub(crate) permit: Permit,
}

/// The permit of `kind` for the worker program in these tests; `code` as in [`Permit::code`].
pub(crate) fn permit(id: &str, code: Option<Digest>, worker: Digest) -> Permit {
    let label = Label::of(Level::Internal);
    Permit {
        id: PermitId::new(id).unwrap(),
        organisation: ORGANISATION.to_owned(),
        from: site("hospital"),
        to: site("cloud"),
        copied_from: None,
        pipeline: sha256(b"pipeline"),
        policies: sha256(b"policies"),
        code,
        worker: Some(worker),
        label: label.clone(),
        purpose: Purpose::new("quality-of-care").unwrap(),
        run: RunId::new("r1").unwrap(),
        task: TaskName::new("train").unwrap(),
        attempts: 9,
        evidence: Evidence {
            sql: None,
            label_report: None,
            k: None,
            l: None,
            suppressed_rows: None,
        },
        waivers: Vec::new(),
        approvals: Vec::new(),
        not_before: now() - 60,
        expires: now() + 3600,
        byte_limit: 1 << 30,
        revocation_epoch: 1,
        checkpoint: "checkpoint".to_owned(),
        standing: ["checkpoint", "output", "setup"]
            .map(|slot| StandingSlot {
                slot: slot.to_owned(),
                from: SiteName::new("cloud").unwrap(),
                to: SiteName::new("hospital").unwrap(),
                label: label.clone(),
                byte_limit: 1 << 20,
            })
            .into(),
    }
}

pub(crate) fn manifest_of(source: &Path, kind: ArtifactKind, permit: &Permit) -> Manifest {
    let description = Description {
        kind,
        name: permit.id.to_string(),
        organisation: ORGANISATION.to_owned(),
        owner: permit.from.site.clone(),
        label: permit.label.clone(),
        lowered_from: None,
        columns: Vec::new(),
        lineage: BTreeSet::new(),
        task: permit.task.clone(),
        step_key: sha256(b"step"),
    };
    describe(source, description, &DIGEST_KEY).unwrap()
}

pub(crate) const fn check<'a>(
    owner: &'a VerifyingKey,
    (from, to): (&'a SiteReference, &'a SiteReference),
    permit: &'a Permit,
    now: u64,
) -> PermitCheck<'a> {
    PermitCheck {
        owner,
        organisation: ORGANISATION,
        from,
        to,
        run: &permit.run,
        now,
        revocation_epoch: permit.revocation_epoch,
    }
}

/// Sends what is permitted; gives where it stands, and its key.
pub(crate) async fn put(
    permitted: &Permitted<Manifest>,
    store: &dyn Store,
    signer: &SigningKey,
    source: &Path,
) -> (ObjectName, Digest, [u8; 32]) {
    let data_key = DataKey::generate().unwrap();
    let state = tempfile::tempdir().unwrap();
    let crossing = Crossing {
        source,
        store,
        signer,
        data_key: &data_key,
        digest_key: &DIGEST_KEY,
        known: tidegate_transfer::KnownShards::NONE,
        state: state.path(),
        shards_in_flight: 1,
        progress: &|_| {},
        gate: &|| tidegate_transfer::Gate::Open,
    };
    let sent = send(permitted, &crossing).await.unwrap();
    (sent.packing_list, sent.packing_list_digest, *data_key.expose())
}

pub(crate) async fn cross(
    store: &dyn Store,
    key: &SigningKey,
    source: &Path,
    kind: ArtifactKind,
    permit: Permit,
) -> Crossed {
    let manifest = manifest_of(source, kind, &permit);
    let artifact = tidegate_seal::packing::manifest_digest(&manifest).unwrap();
    let envelope = sign_permit(key, &permit, &artifact, "test").unwrap();
    let owner = key.public();
    let check = check(&owner, (&permit.from, &permit.to), &permit, now());
    let permitted = Permitted::verify(&check, &envelope, manifest).unwrap();
    let (packing_list, packing_list_digest, data_key) = put(&permitted, store, key, source).await;
    Crossed {
        artifact,
        key: data_key,
        packing_list,
        packing_list_digest,
        envelope,
        permit,
    }
}
