//! Custody in SoftHSM2, a token in software that is not ours. With `TIDEGATE_INTEROP=1` it must be installed.
//!
//! The module reads its settings from the environment, so each test starts itself again with them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tidegate_contracts::{Custody, conformance};
use tidegate_local::{Pkcs11Address, Pkcs11Custody};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const SETTINGS: &str = "SOFTHSM2_CONF";
const PIN: &str = "correct-horse";

/// Runs an ignored test of this program with a token of its own, labelled `st mary`.
fn with_token(test: &str) {
    if !Path::new(MODULE).exists() {
        let needed = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
        assert!(!needed, "TIDEGATE_INTEROP=1 needs the package softhsm2");
        eprintln!("skipped: the package softhsm2 is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (tokens, settings) = (folder.path().join("tokens"), folder.path().join("softhsm2.conf"));
    std::fs::create_dir(&tokens).unwrap();
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&settings, text).unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "st mary",
            "--so-pin",
            "12345678",
            "--pin",
            PIN,
        ])
        .env(SETTINGS, &settings)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SETTINGS, &settings)
        .output()
        .unwrap();
    let told = [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat();
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

fn custody(object: &str, pin: &str) -> Pkcs11Custody {
    let address: Pkcs11Address = format!("pkcs11:token=st%20mary;object={object}?module-path={MODULE}")
        .parse()
        .unwrap();
    Pkcs11Custody::new(address, pin.to_owned().into())
}

#[test]
fn a_token_is_a_custody() {
    with_token("pkcs11::keeps_the_contract");
}

#[tokio::test]
#[ignore = "started by another test"]
async fn keeps_the_contract() {
    for name in ["site", "other"] {
        let custody = custody(name, PIN);
        let error = custody.wrap(&[7; 32], "context").await.unwrap_err().to_string();
        assert!(error.contains("no key of this name"), "{error}");
        custody.create().await.unwrap();
        custody.create().await.unwrap();
    }
    let open = |name: &str| -> Arc<dyn Custody> { Arc::new(custody(name, PIN)) };
    conformance::custody(&open).await.unwrap();
}

#[test]
fn a_wrong_pin_and_a_token_that_is_not_there_are_out_of_reach() {
    with_token("pkcs11::refuses");
}

#[tokio::test]
#[ignore = "started by another test"]
async fn refuses() {
    let wrong = custody("site", "battery-staple");
    let error = wrong.create().await.unwrap_err().to_string();
    assert!(
        error.contains("does not take the PIN") && !error.contains("staple"),
        "{error}"
    );
    let address = format!("pkcs11:token=nobody;object=site?module-path={MODULE}")
        .parse()
        .unwrap();
    let error = Pkcs11Custody::new(address, PIN.to_owned().into())
        .create()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no token of this name"), "{error}");
}

/// What is wrapped is Tink's raw AES-256-GCM but for the bytes in front, and the key cannot be taken out: shown
/// with OpenSC's tool where it is installed.
#[test]
fn the_key_cannot_be_taken_out() {
    with_token("pkcs11::keeps_its_key");
}

#[tokio::test]
#[ignore = "started by another test"]
async fn keeps_its_key() {
    custody("site", PIN).create().await.unwrap();
    let listed = Command::new("pkcs11-tool")
        .args([
            "--module",
            MODULE,
            "--token-label",
            "st mary",
            "--login",
            "--pin",
            PIN,
            "--list-objects",
        ])
        .output();
    let Ok(listed) = listed else {
        eprintln!("skipped: the package opensc is not installed");
        return;
    };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for part in ["AES length 32", "site", "never extractable", "sensitive"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
}
