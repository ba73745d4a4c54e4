//! One small crossing, made with the public interface.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_seal::digest::{keyed_reader, sha256};
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{manifest_digest, seal_index};
use tidegate_seal::shard::seal_shard;
use tidegate_types::artifact::{
    FileEntry, MANIFEST_FORMAT, PACKING_LIST_FORMAT, SEALED_INDEX_FORMAT, SealedIndex, SealedObject,
};
use tidegate_types::ids::{PermitId, Purpose};
use tidegate_types::label::{Label, Level};
use tidegate_types::permit::{Evidence, Permit, SiteReference, StandingSlot};
use tidegate_types::{ArtifactId, ArtifactKind, Digest, KeyedDigest, Manifest, PackingList, RunId, SiteName, TaskName};

pub(crate) const ORGANISATION: &str = "st-mary";
pub(crate) const DIGEST_KEY: [u8; 32] = [0x77; 32];

pub(crate) fn keyed(content: &[u8]) -> KeyedDigest {
    keyed_reader(&DIGEST_KEY, content).unwrap().0
}

/// Files whose first shard shrinks and whose second does not.
pub(crate) fn files() -> BTreeMap<String, Vec<u8>> {
    let rows: String = (0..2000).map(|i| format!("{},{},{}\n", i, i % 7, i % 2)).collect();
    let noise: Vec<u8> = (0..160_u32)
        .flat_map(|i| *sha256(&i.to_be_bytes()).as_bytes())
        .collect();
    BTreeMap::from([
        ("train/part-0.csv".to_owned(), rows.into_bytes()),
        ("train/weights.bin".to_owned(), noise),
    ])
}

pub(crate) fn manifest(name: &str, files: &BTreeMap<String, Vec<u8>>) -> Manifest {
    Manifest {
        format: MANIFEST_FORMAT.to_owned(),
        kind: ArtifactKind::Dataset,
        name: name.to_owned(),
        organisation: ORGANISATION.to_owned(),
        owner: SiteName::new("hospital").unwrap(),
        label: Label::of(Level::Internal),
        lowered_from: Some(Label::of(Level::Restricted)),
        files: files
            .iter()
            .map(|(path, content)| FileEntry {
                path: path.clone(),
                bytes: content.len() as u64,
                keyed_digest: keyed(content),
            })
            .collect(),
        columns: vec!["age".to_owned(), "grüße".to_owned()],
        lineage: BTreeSet::from([sha256(b"a snapshot")]),
        task: TaskName::new("prepare").unwrap(),
        step_key: sha256(b"a step"),
    }
}

/// A crossing: what lies in the store, and what only the receiver gets.
pub(crate) struct Crossing {
    pub(crate) artifact: ArtifactId,
    pub(crate) data_key: DataKey,
    pub(crate) index: SealedIndex,
    pub(crate) list: PackingList,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
}

/// Seals every file as one shard.
pub(crate) fn crossing(name: &str, permit_digest: Digest) -> Crossing {
    let files = files();
    let manifest = manifest(name, &files);
    let artifact = manifest_digest(&manifest).unwrap();
    let data_key = DataKey::generate().unwrap();
    let mut objects = BTreeMap::new();
    let mut put = |bytes: Vec<u8>| {
        let object = SealedObject {
            digest: sha256(&bytes),
            bytes: bytes.len() as u64,
        };
        objects.insert(object.digest, bytes);
        object
    };
    let (mut shards, mut keys) = (Vec::new(), Vec::new());
    for content in files.values() {
        let (sealed, key) = seal_shard(content, ORGANISATION).unwrap();
        shards.push(put(sealed));
        keys.push(key);
    }
    let index = SealedIndex {
        format: SEALED_INDEX_FORMAT.to_owned(),
        manifest,
        shards: keys,
    };
    let list = PackingList {
        format: PACKING_LIST_FORMAT.to_owned(),
        organisation: ORGANISATION.to_owned(),
        from: SiteName::new("hospital").unwrap(),
        to: SiteName::new("cloud").unwrap(),
        run: RunId::new("run-1").unwrap(),
        artifact,
        permit: PermitId::new("permit-1").unwrap(),
        permit_digest,
        key_commitment: data_key.commitment(),
        shards,
        index: put(seal_index(&index, &data_key).unwrap()),
    };
    Crossing {
        artifact,
        data_key,
        index,
        list,
        objects,
    }
}

pub(crate) fn permit() -> Permit {
    let site = |name: &str| SiteReference {
        site: SiteName::new(name).unwrap(),
        definition: sha256(name.as_bytes()),
    };
    Permit {
        id: PermitId::new("permit-1").unwrap(),
        organisation: ORGANISATION.to_owned(),
        from: site("hospital"),
        to: site("cloud"),
        copied_from: None,
        pipeline: sha256(b"a pipeline"),
        policies: sha256(b"policies"),
        code: None,
        worker: Some(sha256(b"a worker")),
        label: Label::of(Level::Internal),
        purpose: Purpose::new("quality-of-care").unwrap(),
        run: RunId::new("run-1").unwrap(),
        task: TaskName::new("train").unwrap(),
        attempts: 3,
        evidence: Evidence {
            sql: Some(sha256(b"select")),
            label_report: Some(sha256(b"labels")),
            k: Some(5),
            l: None,
            suppressed_rows: Some(12),
        },
        waivers: Vec::new(),
        approvals: Vec::new(),
        not_before: 1_800_000_000,
        expires: 1_800_007_200,
        byte_limit: 1 << 30,
        revocation_epoch: 0,
        checkpoint: "st-mary/ledger\n1\nAAAA\n".to_owned(),
        standing: vec![StandingSlot {
            slot: "output".to_owned(),
            from: SiteName::new("cloud").unwrap(),
            to: SiteName::new("hospital").unwrap(),
            label: Label::of(Level::Internal),
            byte_limit: 1 << 20,
        }],
    }
}
