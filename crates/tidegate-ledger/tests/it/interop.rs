//! Go's `golang.org/x/mod/sumdb/note` and `tlog` as the auditor (`tests/interop/ledger/main.go`).
//! Runs where Debian's `golang-go` and `golang-golang-x-mod-dev` are; with `TIDEGATE_INTEROP=1` they
//! must be there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::fixture::{Log, ORIGIN, Signer, event};

/// Where Debian's package puts Go libraries.
const GO_PACKAGES: &str = "/usr/share/gocode";

/// Builds the auditor; `None` where Go is not there and need not be.
fn auditor(folder: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/ledger");
    let required = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
    let there = Command::new("go")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
        && Path::new(GO_PACKAGES).join("src/golang.org/x/mod/sumdb/tlog").is_dir();
    if !there {
        assert!(
            !required,
            "TIDEGATE_INTEROP=1 needs the packages golang-go and golang-golang-x-mod-dev"
        );
        println!("not run: this needs the Debian packages golang-go and golang-golang-x-mod-dev");
        return None;
    }
    let program = folder.join("auditor");
    let output = Command::new("go")
        .args(["build", "-o"])
        .args([&program])
        .arg(".")
        .current_dir(source)
        .env("GO111MODULE", "off")
        .env("GOPATH", GO_PACKAGES)
        .env("GOFLAGS", "")
        .env("GOCACHE", folder.join("go-cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

#[test]
fn go_audits_the_log_and_sees_tampering() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = auditor(folder.path()) else { return };

    let mut log = Log::of(300);
    let old = log.checkpoint();
    log.grow(70_000);
    let consistency: String = log
        .tree
        .consistency_proof(300, 70_000)
        .unwrap()
        .iter()
        .map(|hash| BASE64.encode(hash.as_bytes()) + "\n")
        .collect();
    let place = |name: &str, log: &Log, proof_of: u64| {
        let place = folder.path().join(name);
        log.write_to(&place);
        std::fs::write(place.join("old"), &old).unwrap();
        std::fs::write(place.join("consistency"), &consistency).unwrap();
        std::fs::write(place.join("proof"), log.proof(proof_of).to_string()).unwrap();
        place
    };
    let keys = [log.log.key.to_string(), log.keeper.key.to_string()];
    let run = |place: &Path, keys: &[String]| -> Output {
        let mut command = Command::new(&program);
        command.arg("-dir").arg(place);
        for key in keys {
            command.args(["-key", key]);
        }
        for flag in ["old", "consistency", "proof"] {
            command.arg(format!("-{flag}")).arg(place.join(flag));
        }
        command.output().unwrap()
    };
    let good = place("good", &log, 69_999);
    let output = run(&good, &keys);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let root = BASE64.encode(log.tree.root(70_000).unwrap().as_bytes());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("70000 {root}\n"));

    let refused = |what: &str, place: &Path, keys: &[String], reason: &str| {
        let output = run(place, keys);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && said.contains(reason),
            "{what}: {said}"
        );
    };
    let stranger = [Signer::new(ORIGIN, 9).key.to_string()];
    refused("wrong key", &good, &stranger, "no verifiable signatures");
    let more = [keys.as_slice(), &[Signer::new("st-mary/second", 3).key.to_string()]].concat();
    refused("missing cosignature", &good, &more, "2 of 3 keys have signed");

    // The cases below are small: what is tampered with does not depend on the size.
    let (mut small, mut fork) = (Log::of(300), Log::new());
    small.grow(600);
    (0..600).for_each(|number| fork.append(event(if number == 5 { 5000 } else { number })));
    fork.publish();
    refused(
        "forked history",
        &place("fork", &fork, 10),
        &keys,
        "history was rewritten",
    );

    let tampered = |name: &str, change: &dyn Fn(&Path), reason: &str| {
        let place = place(name, &small, 10);
        let proof: String = small
            .tree
            .consistency_proof(300, 600)
            .unwrap()
            .iter()
            .map(|hash| BASE64.encode(hash.as_bytes()) + "\n")
            .collect();
        std::fs::write(place.join("consistency"), proof).unwrap();
        assert!(
            run(&place, &keys).status.success(),
            "{name}: the untouched log must pass"
        );
        change(&place);
        refused(name, &place, &keys, reason);
    };
    let flip = |path: PathBuf, at: usize| {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    tampered(
        "flipped bit in a leaf",
        &|place| {
            let path = place.join("tile/entries/000");
            let text = std::fs::read(&path).unwrap();
            let at = text.windows(5).position(|window| window == b"train").unwrap();
            flip(path, at);
        },
        "the checkpoint signs",
    );
    tampered(
        "flipped bit in a tile",
        &|place| flip(place.join("tile/0/001"), 40),
        "tile",
    );
    tampered(
        "truncated log",
        &|place| {
            let path = place.join("tile/entries/002.p/88");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        "too short",
    );
    tampered(
        "flipped bit in the signature",
        &|place| {
            let path = place.join("checkpoint");
            let length = std::fs::metadata(&path).unwrap().len() as usize;
            let mut bytes = std::fs::read(&path).unwrap();
            let at = length - 20;
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            std::fs::write(path, bytes).unwrap();
        },
        "invalid signature",
    );
    tampered(
        "another log's consistency proof",
        &|place| {
            std::fs::write(place.join("consistency"), &consistency).unwrap();
        },
        "older checkpoint",
    );
    tampered(
        "a proof for another leaf",
        &|place| {
            let path = place.join("proof");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text.replacen("index 10", "index 11", 1)).unwrap();
        },
        "proof",
    );
}
