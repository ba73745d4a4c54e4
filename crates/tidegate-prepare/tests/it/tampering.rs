//! What was written is used again only as it was written.

use tidegate_prepare::{Part, home_rows, raw_rows, scan_code};

use super::fixture::{Hospital, KEYS, block_on, inputs};

/// Changes one byte of a file and nothing of its length.
fn tamper(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_changed_after_it_was_prepared_is_made_again() {
    let hospital = Hospital::new(400);
    let first = hospital.prepare().unwrap();
    assert!(hospital.prepare().unwrap().reused);
    let bytes = inputs(&first);
    let folder = first.home.parent().unwrap().to_path_buf();
    let snapshot = hospital.stage().join("snapshots");
    let snapshot = std::fs::read_dir(snapshot).unwrap().next().unwrap().unwrap().path();
    for (path, made_again) in [
        (folder.join("inputs/train/part-00000.csv"), true),
        (folder.join("inputs/validation/part-00000.csv"), true),
        (folder.join("home/recipe.json"), true),
        (folder.join("home/home.json"), true),
        (folder.join("report.json"), true),
        (folder.join("report.seal"), true),
        (snapshot.join("00000.csv"), false),
        (snapshot.join("snapshot.json"), false),
    ] {
        tamper(&path);
        let again = hospital.prepare().unwrap();
        assert_eq!(again.reused, !made_again, "{}", path.display());
        assert_eq!(
            (inputs(&again), &again.risk),
            (bytes.clone(), &first.risk),
            "{}",
            path.display()
        );
        assert!(hospital.prepare().unwrap().reused, "{}", path.display());
        assert!(
            block_on(home_rows(&first.home, &KEYS, Part::Test, &[])).is_ok(),
            "{}",
            path.display()
        );
    }
    // Later stages keep files of their own at home.
    std::fs::write(folder.join("home/risk.json"), "{}").unwrap();
    assert!(hospital.prepare().unwrap().reused);
    assert!(block_on(home_rows(&first.home, &KEYS, Part::Test, &[])).is_ok());
    // A file more would cross with the others; a file less would be missed.
    std::fs::write(folder.join("inputs/train/part-00001.csv"), "x").unwrap();
    assert!(!hospital.prepare().unwrap().reused);
    std::fs::remove_dir_all(folder.join("inputs/validation")).unwrap();
    let again = hospital.prepare().unwrap();
    assert!(!again.reused);
    assert_eq!(inputs(&again), bytes);
}

#[test]
fn changed_home_files_and_snapshots_are_not_read() {
    let hospital = Hospital::new(400);
    let prepared = hospital.prepare().unwrap();
    let snapshot = hospital.stage().join("snapshots");
    let snapshot = std::fs::read_dir(snapshot).unwrap().next().unwrap().unwrap().path();
    for path in [
        prepared.home.join("recipe.json"),
        prepared.home.join("home.json"),
        prepared.home.parent().unwrap().join("report.json"),
        snapshot.join("00000.csv"),
    ] {
        let whole = std::fs::read(&path).unwrap();
        tamper(&path);
        for error in [
            block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[])).unwrap_err(),
            block_on(raw_rows(&prepared.home, &KEYS, Part::Train)).unwrap_err(),
            block_on(scan_code(&prepared.home, &KEYS, "train.py", b"import os")).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(
                error.contains("it is not what") && error.contains("repare again"),
                "{error}"
            );
        }
        std::fs::write(&path, whole).unwrap();
        assert!(block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[])).is_ok());
    }
}
