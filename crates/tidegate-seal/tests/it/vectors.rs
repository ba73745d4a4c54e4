//! A whole crossing as a committed file, for whoever writes another reader: made once with random keys
//! (`TIDEGATE_WRITE_VECTORS=1` makes another), opened here by every test run.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse;
use tidegate_seal::envelope::{self, Identity};
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{manifest_digest, open_index, open_packing_list, sign_packing_list};
use tidegate_seal::permit::{open_permit, sign_permit};
use tidegate_seal::shard::open_shard;
use tidegate_seal::sign::{SigningKey, VerifyingKey};
use tidegate_types::permit::Envelope;

use crate::sample::{DIGEST_KEY, ORGANISATION, crossing, files, keyed, manifest, permit};

fn path(name: &str) -> String {
    format!("{}/../../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A committed vector.
pub(crate) fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn made() -> Value {
    let owner = SigningKey::from_seed(&[1; 32]).unwrap();
    let name = "admissions/train";
    let artifact = manifest_digest(&manifest(name, &files())).unwrap();
    let envelope = sign_permit(&owner, &permit(), &artifact, name).unwrap();
    let sent = crossing(name, dsse::payload_digest(&envelope).unwrap());
    let worker = Identity::generate();
    let list = format!("packing/run-1/permit-1-{}.json", artifact.short());
    let mut objects: Map<String, Value> = sent
        .objects
        .iter()
        .map(|(digest, bytes)| (format!("sealed/{}", digest.to_hex()), json!(STANDARD.encode(bytes))))
        .collect();
    let signed = sign_packing_list(&owner, &sent.list).unwrap();
    objects.insert(list.clone(), json!(STANDARD.encode(signed)));
    let expected: Map<String, Value> = files()
        .iter()
        .map(|(path, content)| (path.clone(), json!(sha256(content).to_string())))
        .collect();
    json!({
        "about": "A crossing as its receiver finds it. `expected` has the SHA-256 of every file that comes out.",
        "organisation": ORGANISATION,
        "owner_public_key": owner.public().to_base64(),
        "permit": envelope,
        "packing_list": list,
        "objects": objects,
        "worker_identity": *worker.secret(),
        "sealed_key": STANDARD.encode(envelope::seal_to(&worker.recipient(), sent.data_key.expose()).unwrap()),
        "data_key": hex::encode(sent.data_key.expose()),
        "digest_key": hex::encode(DIGEST_KEY),
        "expected": expected,
    })
}

#[test]
fn the_committed_crossing_opens() {
    if std::env::var_os("TIDEGATE_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&made()).unwrap() + "\n";
        std::fs::write(path("crossing.json"), text).unwrap();
    }
    let vector = read("crossing.json");
    let text = |name: &str| vector[name].as_str().unwrap();
    let decode = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let object = |name: &str| decode(&vector["objects"][name]);

    let owner = VerifyingKey::from_base64(text("owner_public_key")).unwrap();
    let envelope: Envelope = serde_json::from_value(vector["permit"].clone()).unwrap();
    let permit = open_permit(&envelope, &owner).unwrap();
    let list = open_packing_list(&object(text("packing_list")), &owner).unwrap();
    assert_eq!((list.artifact, list.permit_digest), (permit.artifact, permit.digest));

    let worker = Identity::from_secret(text("worker_identity")).unwrap();
    let key = envelope::open(&worker, &decode(&vector["sealed_key"])).unwrap();
    assert_eq!(hex::encode(&*key), text("data_key"));
    let key = DataKey::from_bytes(key.as_slice().try_into().unwrap());
    assert_eq!(key.commitment(), list.key_commitment);

    let organisation = text("organisation");
    let index = open_index(
        &object(&format!("sealed/{}", list.index.digest.to_hex())),
        &key,
        organisation,
        &list.artifact,
    );
    let index = index.unwrap();
    let mut content = Vec::new();
    for (shard, key) in list.shards.iter().zip(&index.shards) {
        let sealed = object(&format!("sealed/{}", shard.digest.to_hex()));
        assert_eq!((sha256(&sealed), sealed.len() as u64), (shard.digest, shard.bytes));
        content.extend(open_shard(&sealed, key, organisation).unwrap());
    }
    assert!(index.shards.iter().any(|key| key.zstd) && index.shards.iter().any(|key| !key.zstd));
    let mut rest = content.as_slice();
    for file in &index.manifest.files {
        let (now, later) = rest.split_at(file.bytes as usize);
        assert_eq!(vector["expected"][&file.path], sha256(now).to_string());
        assert_eq!(keyed(now), file.keyed_digest);
        rest = later;
    }
    assert!(rest.is_empty());
}
