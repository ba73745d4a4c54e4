//! Checks the committed vectors of what is made of random bytes, by making them again.
//!
//! `tests/vectors/sealing.json` holds salts, nonces and their results, so that the writer of another
//! reader or writer can compare byte for byte. With `TIDEGATE_WRITE_VECTORS=1` the file is written
//! instead of compared.

use serde_json::{Value, json};

use crate::digest::sha256;
use crate::key::DataKey;
use crate::stream::Plain;
use crate::wrap;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/sealing.json");

fn counted(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn stream_vector(name: &str, associated_data: &str, length: usize) -> Value {
    let (key, salt, prefix) = ([0x11; 32], [0x22; 32], [0x33; 7]);
    let filled = |_, _: &mut [u8]| Ok::<_, ()>(());
    let ciphertext = Plain::copy_of(&counted(length), Vec::new())
        .seal_with(&key, associated_data.as_bytes(), salt, prefix, filled)
        .unwrap()
        .unwrap();
    let mut vector = json!({
        "name": name,
        "key": hex::encode(key),
        "associated_data": associated_data,
        "salt": hex::encode(salt),
        "nonce_prefix": hex::encode(prefix),
        "plaintext_bytes": length,
        "ciphertext_bytes": ciphertext.len(),
        "ciphertext_sha256": sha256(&ciphertext).to_hex(),
    });
    if ciphertext.len() < 1000 {
        vector["ciphertext"] = json!(hex::encode(&ciphertext));
    }
    vector
}

fn vectors() -> Value {
    let shard = |id: u8| {
        format!(
            r#"{{"organisation":"st-mary","shard":"{}","type":"tidegate.shard.v1"}}"#,
            hex::encode([id; 16])
        )
    };
    let index = format!(
        r#"{{"artifact":"{}","organisation":"st-mary","type":"tidegate.sealed-index.v1"}}"#,
        sha256(b"a manifest")
    );
    let (kek, key, nonce) = ([0x44; 32], [0x55; 32], [0x66; 12]);
    let context = "data key of permit-1";
    json!({
        "about": "Byte i of every plaintext is i mod 251. All values are hexadecimal but the associated data, which is text.",
        "streams": [
            stream_vector("an empty shard", &shard(1), 0),
            stream_vector("a short shard", &shard(2), 100),
            stream_vector("a short index", &index, 300),
            stream_vector("one full segment", &shard(3), (1 << 20) - 56),
            stream_vector("one byte more than a segment", &shard(4), (1 << 20) - 55),
            stream_vector("three segments", &shard(5), 3_000_000),
        ],
        "wrapped_keys": [{
            "key_encryption_key": hex::encode(kek),
            "key": hex::encode(key),
            "context": context,
            "associated_data": r#"{"context":"data key of permit-1","type":"tidegate.wrapped-key.v1"}"#,
            "nonce": hex::encode(nonce),
            "wrapped": hex::encode(wrap::seal(&kek, &key, context, nonce).unwrap()),
        }],
        "key_commitments": [{
            "data_key": hex::encode(key),
            "commitment": DataKey::from_bytes(key).commitment().to_string(),
        }],
    })
}

#[test]
fn committed_vectors_are_what_this_code_makes() {
    let made = vectors();
    if std::env::var_os("TIDEGATE_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
        std::fs::write(FILE, text).unwrap();
    }
    let committed: Value = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
    assert_eq!(committed, made);
}

/// The vectors are opened too, from their file alone, so that a wrong generator cannot agree with
/// itself.
#[test]
fn committed_vectors_open() {
    let committed: Value = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
    let bytes = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
    let mut opened = 0;
    for vector in committed["streams"].as_array().unwrap() {
        let Some(ciphertext) = vector.get("ciphertext") else {
            continue;
        };
        let aad = vector["associated_data"].as_str().unwrap().as_bytes();
        let key = bytes(&vector["key"]).try_into().unwrap();
        let plain = Plain::open(bytes(ciphertext), &key, aad).unwrap();
        assert_eq!(
            plain.to_vec(),
            counted(vector["plaintext_bytes"].as_u64().unwrap() as usize)
        );
        opened += 1;
    }
    assert_eq!(opened, 3);
    for vector in committed["wrapped_keys"].as_array().unwrap() {
        let kek = bytes(&vector["key_encryption_key"]).try_into().unwrap();
        let context = vector["context"].as_str().unwrap();
        let key = wrap::unwrap_key(&kek, &bytes(&vector["wrapped"]), context).unwrap();
        assert_eq!(key.to_vec(), bytes(&vector["key"]));
    }
}
