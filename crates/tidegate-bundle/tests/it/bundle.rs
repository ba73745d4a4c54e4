//! A bundle is whole, signed and understood, or it is refused.

use std::collections::BTreeMap;

use tidegate_bundle::bundle::{self, CONTENT_FILES, MANIFEST_FILE, SIGNATURE_FILE, read_folder, sha256, write_folder};
use tidegate_bundle::{BundleContent, BundleError, Calibration, Files, inspect};

use crate::models::{mixed_network, mixed_schema};

/// A stand-in for a signature that tests can make and check: a digest before the payload.
fn sign(payload: &[u8]) -> Result<Vec<u8>, String> {
    Ok([sha256(payload).as_bytes(), payload].concat())
}

fn verify(envelope: &[u8]) -> Result<Vec<u8>, String> {
    let (tag, payload) = envelope.split_at_checked(32).ok_or("too short")?;
    if sha256(payload).as_bytes() == tag {
        Ok(payload.to_vec())
    } else {
        Err("not signed by an accepted key".into())
    }
}

fn build() -> Files {
    let schema = mixed_schema();
    let model = inspect(&mixed_network().to_onnx(3), &schema).unwrap();
    let content = BundleContent {
        name: "readmission",
        version: 3,
        created: "2026-01-02T03:04:05Z",
        provenance: BTreeMap::from([("run".to_owned(), sha256(b"run"))]),
        model: &model,
        recipe: b"{\"sql\":\"select 1\"}",
        schema: &schema,
        calibration: Calibration {
            a: 1.25,
            b: -0.5,
            threshold: 0.3,
        },
        card: "# card\n",
        metrics: &serde_json::json!({"roc_auc": {"value": 0.8, "low": 0.7, "high": 0.9}}),
    };
    bundle::build(&content, sign).unwrap()
}

#[test]
fn what_was_built_is_what_is_opened() {
    let files = build();
    let opened = bundle::open(files.clone(), verify).unwrap();
    assert_eq!(
        (
            opened.manifest.name.as_str(),
            opened.manifest.version,
            opened.manifest.threshold
        ),
        ("readmission", 3, 0.3)
    );
    assert_eq!(opened.digest, sha256(&files[MANIFEST_FILE]));
    assert_eq!(opened.schema, mixed_schema());
    assert_eq!(opened.model.bytes(), &files["model.onnx"][..]);
    assert_eq!(build(), files, "the same content gives the same bytes");
    insta::assert_snapshot!(String::from_utf8(files[MANIFEST_FILE].clone()).unwrap());
}

#[test]
fn any_altered_missing_or_added_file_is_refused() {
    let files = build();
    for name in files.keys() {
        let mut altered = files.clone();
        let bytes = altered.get_mut(name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(bundle::open(altered, verify).is_err(), "altered {name}");
        let mut missing = files.clone();
        missing.remove(name);
        assert!(
            matches!(bundle::open(missing, verify), Err(BundleError::Files { .. })),
            "missing {name}"
        );
    }
    for name in ["extra.txt", "../model.onnx", "/etc/passwd", "sub/model.onnx"] {
        let mut added = files.clone();
        added.insert(name.to_owned(), vec![]);
        assert!(
            matches!(bundle::open(added, verify), Err(BundleError::Files { .. })),
            "added {name}"
        );
    }
}

#[test]
fn a_signature_over_another_list_is_refused() {
    let mut files = build();
    let other = String::from_utf8(files[MANIFEST_FILE].clone())
        .unwrap()
        .replace("\"version\":3", "\"version\":4");
    files.insert(SIGNATURE_FILE.to_owned(), sign(other.as_bytes()).unwrap());
    assert!(matches!(bundle::open(files, verify), Err(BundleError::Signature(_))));
}

#[test]
fn a_signed_list_that_names_other_files_or_fields_is_refused() {
    for (from, to) in [
        ("\"card.md\"", "\"../card.md\""),
        ("\"name\"", "\"more\":1,\"name\""),
        ("tidegate.bundle.v1", "tidegate.bundle.v2"),
        ("\"version\":3", "\"version\":0"),
        ("\"threshold\":0.3", "\"threshold\":0.4"),
    ] {
        let mut files = build();
        let changed = String::from_utf8(files[MANIFEST_FILE].clone())
            .unwrap()
            .replace(from, to);
        files.insert(SIGNATURE_FILE.to_owned(), sign(changed.as_bytes()).unwrap());
        files.insert(MANIFEST_FILE.to_owned(), changed.into_bytes());
        assert!(
            matches!(bundle::open(files, verify), Err(BundleError::Manifest(_))),
            "{from}"
        );
    }
}

#[test]
fn folders_hold_plain_files_with_known_names_only() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("readmission-3");
    let files = build();
    // What an interrupted writer left behind is in nobody's way.
    std::fs::create_dir_all(home.path().join("readmission-3.partial/old")).unwrap();
    write_folder(&folder, &files).unwrap();
    write_folder(&folder, &files).unwrap();
    assert_eq!(read_folder(&folder).unwrap(), files);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);

    let mut other = files.clone();
    other.insert("card.md".to_owned(), b"other".to_vec());
    assert!(write_folder(&folder, &other).is_err(), "a release is never overwritten");
    std::fs::write(folder.join("notes.txt"), b"x").unwrap();
    assert!(matches!(read_folder(&folder), Err(BundleError::Files { .. })));
    std::fs::remove_file(folder.join("notes.txt")).unwrap();
    let card = folder.join(CONTENT_FILES[1]);
    std::fs::remove_file(&card).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &card).unwrap();
    assert!(matches!(read_folder(&folder), Err(BundleError::Files { .. })));
}

#[test]
fn a_calibration_that_turns_the_order_around_is_refused() {
    for text in [
        r#"{"a":-1,"b":0,"threshold":0.5}"#,
        r#"{"a":0,"b":0,"threshold":0.5}"#,
        r#"{"a":1,"b":0,"threshold":2}"#,
        r#"{"a":1,"b":0}"#,
    ] {
        assert!(Calibration::from_json(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(Calibration::IDENTITY.apply(0.123), 0.123);
    let calibration = Calibration {
        a: 2.0,
        b: 0.0,
        threshold: 0.5,
    };
    assert!((calibration.apply(0.75) - 0.9).abs() < 1e-12, "odds 3 become odds 9");
    assert!(calibration.apply(0.0) > 0.0 && calibration.apply(1.0) < 1.0);
}
