//! The committed test vector that `docs/formats/ledger.md` points other implementers to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tidegate_ledger::{LeafProof, TrustedKeys, VerifierKey, verify_log};

use crate::fixture::{Log, event};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ledger.json")
}

fn made() -> Value {
    let mut log = Log::of(3);
    let old = log.checkpoint();
    log.grow(5);
    let base64 = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let files: BTreeMap<String, String> = log
        .files
        .borrow()
        .iter()
        .map(|(path, bytes)| (path.clone(), base64(bytes)))
        .collect();
    let consistency: Vec<String> = log
        .tree
        .consistency_proof(3, 5)
        .unwrap()
        .iter()
        .map(|hash| base64(hash.as_bytes()))
        .collect();
    json!({
        "log_seed_hex": "01".repeat(32),
        "log_key": log.log.key.to_string(),
        "keeper_seed_hex": "02".repeat(32),
        "keeper_key": log.keeper.key.to_string(),
        "leaves": (0..5).map(|n| String::from_utf8(event(n)).unwrap()).collect::<Vec<_>>(),
        "older_checkpoint": old,
        "checkpoint": log.checkpoint(),
        "consistency_proof": consistency,
        "proof_of_leaf_2": log.proof(2).to_string(),
        "files_base64": files,
    })
}

/// Set `TIDEGATE_WRITE_VECTORS=1` to write the file anew after a wanted change of format.
#[test]
fn the_committed_vector_is_what_is_written_today() {
    if std::env::var_os("TIDEGATE_WRITE_VECTORS").is_some() {
        std::fs::write(path(), serde_json::to_string_pretty(&made()).unwrap() + "\n").unwrap();
    }
    let committed: Value = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
    assert_eq!(committed, made());
}

#[test]
fn the_committed_vector_verifies() {
    let vector: Value = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    let key = |name: &str| text(name).parse::<VerifierKey>().unwrap();
    let keys = TrustedKeys {
        log: key("log_key"),
        cosigners: vec![key("keeper_key")],
    };
    let leaves: Vec<Vec<u8>> = vector["leaves"]
        .as_array()
        .unwrap()
        .iter()
        .map(|leaf| leaf.as_str().unwrap().as_bytes().to_vec())
        .collect();
    let report = verify_log(
        leaves.iter().cloned().map(Ok),
        &text("checkpoint"),
        &keys,
        Some(&text("older_checkpoint")),
    )
    .unwrap();
    assert_eq!((report.size, report.continues), (5, Some(3)));
    let proof: LeafProof = text("proof_of_leaf_2").parse().unwrap();
    proof.verify(&leaves[2], &keys).unwrap();
}
