//! The keys of the private site as a person there sees them: what they open outside, renewed, and destroyed.

use std::path::Path;

use serde_json::Value;

use crate::fixture::{Hospital, files};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn keys_are_renewed_without_touching_what_crossed_and_backups_open_no_more() {
    let hospital = Hospital::new();
    let error = hospital.tidegate(&["keys", "list"]);
    assert_eq!(
        error.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&error.stderr)
    );
    hospital.run();
    let keys = hospital.state().join("sites/hospital/keys");
    let backup = hospital.path("backup");
    copy(&keys, &backup);
    let objects = |hospital: &Hospital| crate::fixture::files(&hospital.state().join("sites/cloud/store/sealed"));
    let sealed = objects(&hospital);

    let rotated = json(&hospital.succeed(&["keys", "rotate", "--format", "json"]));
    assert!(rotated["wrapped_keys"].as_u64().unwrap() > 4, "{rotated}");
    assert_eq!(objects(&hospital), sealed);
    let old = std::fs::read_to_string(backup.join("custody.key")).unwrap();
    let new = std::fs::read_to_string(keys.join("custody.key")).unwrap();
    assert_eq!((new.lines().count(), new.contains(old.trim())), (1, false));
    let shown = hospital.succeed(&["audit", "show"]);
    assert!(shown.contains("keys-rotated"), "{shown}");
    hospital.succeed(&["audit", "verify"]);

    // Everything goes on: raw rows are predicted for, and a changed pipeline is run.
    hospital.succeed(&["predict", "--site", "hospital", "admissions.csv"]);
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    assert_eq!(hospital.run()["status"], "done");

    std::fs::copy(backup.join("site-keys.json"), keys.join("site-keys.json")).unwrap();
    let output = hospital.tidegate(&["run", "--yes"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot be opened"), "{told}");
}

#[test]
fn an_artifact_whose_keys_are_destroyed_is_never_used_again() {
    let hospital = Hospital::new();
    let summary = hospital.run();
    let kept = json(&hospital.succeed(&["keys", "list", "--format", "json"]));
    let crossed = summary["crossings"].as_array().unwrap();
    for crossing in crossed.iter().filter(|crossing| crossing["from"] == "hospital") {
        assert!(
            kept.as_array()
                .unwrap()
                .iter()
                .any(|kept| kept["permits"].as_array().unwrap().contains(&crossing["permit"])),
            "{crossing}"
        );
    }
    let train = kept
        .as_array()
        .unwrap()
        .iter()
        .find(|kept| kept["name"].as_str().unwrap().contains("train"))
        .unwrap();
    let grantee = &train["grantees"][0];
    assert_eq!((&grantee["site"], &grantee["task"]), (&"cloud".into(), &"train".into()));
    let identity = train["artifact"].as_str().unwrap();

    for unknown in ["0000000000000000", "abc"] {
        let output = hospital.tidegate(&["keys", "shred", unknown]);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let digits = identity.strip_prefix("sha256:").unwrap();
    let told = hospital.succeed(&["keys", "shred", &digits[..12]]);
    for part in [
        "are destroyed",
        identity,
        "given to a worker of task train at cloud",
        "make a new one now",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let again = json(&hospital.succeed(&["keys", "shred", identity, "--format", "json"]));
    assert!(again["shredded"].as_u64().is_some(), "{again}");
    assert_eq!(again["grantees"], train["grantees"]);
    assert!(hospital.succeed(&["keys", "list"]).contains("keys destroyed 20"));
    let shown = hospital.succeed(&["audit", "show"]);
    assert_eq!(shown.matches("shredded").count(), 1, "{shown}");
    hospital.succeed(&["audit", "verify"]);

    // What stands is still served, and nothing needs to cross for it.
    assert_eq!(
        hospital.run()["reused"].as_array().unwrap().len(),
        7,
        "every step is done"
    );
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "artifact-shredded", "{message}");
}

/// SoftHSM2 holds the wrapping key; with `TIDEGATE_INTEROP=1` it must be installed.
#[test]
fn a_hardware_security_module_holds_the_wrapping_key() {
    let module = Path::new("/usr/lib/softhsm/libsofthsm2.so");
    if !module.exists() {
        let needed = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
        assert!(!needed, "TIDEGATE_INTEROP=1 needs the package softhsm2");
        eprintln!("skipped: the package softhsm2 is not installed");
        return;
    }
    let hospital = Hospital::new();
    let settings = hospital.path("softhsm2.conf");
    let tokens = hospital.path("tokens");
    std::fs::create_dir(&tokens).unwrap();
    hospital.write(
        "softhsm2.conf",
        &format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            tokens.display()
        ),
    );
    let made = std::process::Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "st-mary",
            "--so-pin",
            "12345678",
            "--pin",
            "correct-horse",
        ])
        .env("SOFTHSM2_CONF", &settings)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let address = format!("pkcs11:token=st-mary;object=custody?module-path={}", module.display());
    hospital.edit("sites.yaml", "file:", &address);
    let with = |arguments: &[&str], pin: &str| {
        let mut command = hospital.command(arguments);
        let command = command.env("SOFTHSM2_CONF", &settings).env("TIDEGATE_PKCS11_PIN", pin);
        let output = command.output().unwrap();
        let told = [&output.stdout[..], &output.stderr]
            .map(String::from_utf8_lossy)
            .concat();
        assert!(!told.contains("correct-horse"), "{told}");
        (output.status.code(), told)
    };
    let (code, told) = with(&["run", "--yes"], "battery-staple");
    assert_eq!(code, Some(1), "{told}");
    // Once: after a few tries a token locks itself.
    assert_eq!(told.matches("does not take the PIN").count(), 1, "{told}");
    assert!(!told.contains("staple"), "{told}");
    for arguments in [&["run", "--yes"][..], &["keys", "rotate"], &["audit", "verify"]] {
        let (code, told) = with(arguments, "correct-horse");
        assert_eq!(code, Some(0), "{told}");
    }
    assert!(!hospital.state().join("sites/hospital/keys/custody.key").exists());
    let (code, told) = with(&["check"], "correct-horse");
    assert!(
        code == Some(0) && told.contains("custody wraps and opens keys"),
        "{told}"
    );
    let (code, told) = with(&["check"], "battery-staple");
    assert!(code == Some(1) && told.contains("does not take the PIN"), "{told}");
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    let (code, told) = with(&["run", "--yes"], "correct-horse");
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn a_copy_of_a_site_whose_key_file_has_a_passphrase_is_worth_nothing() {
    let hospital = Hospital::new();
    let with = |arguments: &[&str], passphrase: &str| {
        let mut command = hospital.command(arguments);
        let command = command
            .env("TIDEGATE_CUSTODY_PASSPHRASE", passphrase)
            .env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = [&output.stdout[..], &output.stderr]
            .map(String::from_utf8_lossy)
            .concat();
        assert!(
            !told.contains("correct-horse") && !told.contains("battery-staple"),
            "{told}"
        );
        (output.status.code(), told)
    };
    let (code, told) = with(&["run", "--yes"], "correct-horse");
    assert_eq!(code, Some(0), "{told}");
    let key = std::fs::read(hospital.state().join("sites/hospital/keys/custody.key")).unwrap();
    assert!(key.starts_with(b"age-encryption.org/v1\n"));
    for file in files(&hospital.state()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(13).any(|window| window == b"correct-horse");
        assert!(!found, "{} holds the passphrase", file.display());
    }
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    for passphrase in ["", "battery-staple"] {
        let (code, told) = with(&["run", "--yes"], passphrase);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("passphrase"), "{told}");
    }
    for arguments in [&["keys", "rotate"][..], &["run", "--yes"], &["audit", "verify"]] {
        let (code, told) = with(arguments, "correct-horse");
        assert_eq!(code, Some(0), "{told}");
    }
}

/// The backup is an age file: Debian's `age` makes the identity, and opens it.
#[test]
fn a_backup_brings_a_site_back_whose_wrapping_key_is_lost() {
    let hospital = Hospital::new();
    hospital.run();
    let keygen = std::process::Command::new("age-keygen").output();
    let Ok(keygen) = keygen else {
        let needed = std::env::var("TIDEGATE_INTEROP").is_ok_and(|value| value == "1");
        assert!(!needed, "TIDEGATE_INTEROP=1 needs the package age");
        eprintln!("skipped: the package age is not installed");
        return;
    };
    let identity = String::from_utf8(keygen.stdout).unwrap();
    hospital.write("key.txt", &identity);
    let recipient = identity
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .unwrap();
    let backup = ["keys", "backup", "--to", recipient, "--out", "keys.age"];
    hospital.succeed(&backup);
    let again = hospital.tidegate(&backup);
    assert_eq!(again.status.code(), Some(2), "a backup is never overwritten");
    let opened = std::process::Command::new("age")
        .args(["--decrypt", "--identity", "key.txt", "keys.age"])
        .current_dir(hospital.folder.path())
        .output()
        .unwrap();
    assert_eq!(
        json(&String::from_utf8(opened.stdout).unwrap())["format"],
        "tidegate.keys-backup.v1"
    );

    let kept = json(&hospital.succeed(&["keys", "list", "--format", "json"]));
    let names = |kept: &Value| kept["name"].as_str().unwrap().to_owned();
    let train = kept
        .as_array()
        .unwrap()
        .iter()
        .find(|kept| names(kept).contains("train"))
        .unwrap();
    hospital.succeed(&["keys", "shred", train["artifact"].as_str().unwrap()]);
    std::fs::remove_file(hospital.state().join("sites/hospital/keys/custody.key")).unwrap();
    let output = hospital.tidegate(&["run", "--yes"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let restored = json(&hospital.succeed(&[
        "keys",
        "restore",
        "keys.age",
        "--identity",
        "key.txt",
        "--format",
        "json",
    ]));
    assert_eq!(restored["site_keys"], true, "{restored}");
    assert_eq!(
        (restored["destroyed"].as_u64(), restored["lost"].as_u64()),
        (Some(1), Some(0)),
        "{restored}"
    );
    assert!(restored["data_keys"].as_u64().unwrap() >= 2, "{restored}");
    assert_eq!(hospital.run()["status"], "done");
    hospital.succeed(&["predict", "--site", "hospital", "admissions.csv"]);
    hospital.succeed(&["audit", "verify"]);
}
