//! Whoever changes a byte of what was sealed, released or recorded is found out.

use std::path::Path;

use crate::fixture::Hospital;

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = file.metadata().unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    std::fs::set_permissions(file, permissions).unwrap();
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_changed_ledger_does_not_verify() {
    let hospital = Hospital::new();
    let size = hospital.run()["ledger"]["size"].as_u64().unwrap();
    // The tiles of the newest size; smaller ones beside them are read by nobody any more.
    for tile in [format!("tile/entries/000.p/{size}"), format!("tile/0/000.p/{size}")] {
        let file = hospital.state().join("control/ledger").join(&tile);
        let whole = std::fs::read(&file).unwrap();
        hospital.succeed(&["audit", "verify"]);
        flip(&file);
        let output = hospital.tidegate(&["audit", "verify"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{tile}: {message}");
        assert!(message.contains("ledger-tampered"), "{message}");
        std::fs::write(&file, whole).unwrap();
    }
    hospital.succeed(&["audit", "verify"]);
}

#[test]
fn a_cut_ledger_does_not_continue_an_older_checkpoint() {
    let hospital = Hospital::new();
    hospital.run();
    let checkpoint = hospital.state().join("control/ledger/checkpoint");
    std::fs::copy(&checkpoint, hospital.path("earlier.txt")).unwrap();
    hospital.succeed(&["audit", "verify", "--since", "earlier.txt"]);
    // Another history: everything but the private site's state is gone, and the pipeline runs again.
    std::fs::remove_dir_all(hospital.state().join("control/ledger")).unwrap();
    std::fs::remove_file(hospital.state().join("control/journal.sqlite")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(hospital.state().join(format!("control/journal.sqlite{suffix}")));
    }
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    let output = hospital.tidegate(&["run", "--yes"]);
    // The keeper remembers the ledger that it cosigned.
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("ledger-tampered"));
    let output = hospital.tidegate(&["audit", "verify", "--since", "earlier.txt"]);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_changed_bundle_is_not_used() {
    let hospital = Hospital::new();
    hospital.run();
    flip(
        &hospital
            .state()
            .join("sites/hospital/serve/models/readmission/1/calibration.json"),
    );
    hospital.write("new.csv", &crate::fixture::rows(5));
    let output = hospital.tidegate(&["predict", "--site", "hospital", "new.csv"]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
