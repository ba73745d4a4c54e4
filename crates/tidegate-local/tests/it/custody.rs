use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::tempdir;
use tidegate_contracts::{Custody, CustodyError};
use tidegate_local::FileCustody;

fn why(result: Result<FileCustody, CustodyError>) -> String {
    match result {
        Err(CustodyError::Unreachable { why, .. }) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn the_key_file_is_its_owners_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("keys/custody.key");
    FileCustody::create(&path).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    for looser in [0o640, 0o604, 0o666, 0o610] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(looser)).unwrap();
        assert!(
            why(FileCustody::open(&path)).contains("others could read it"),
            "{looser:o}"
        );
        assert!(
            why(FileCustody::open_or_create(&path)).contains("others could read it"),
            "{looser:o}"
        );
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    FileCustody::open(&path).unwrap();
}

#[tokio::test]
async fn a_key_that_is_there_is_never_replaced() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("custody.key");
    let first = FileCustody::open_or_create(&path).unwrap();
    let wrapped = first.wrap(&[7; 32], "context").await.unwrap();
    why(FileCustody::create(&path));
    let again = FileCustody::open_or_create(&path).unwrap();
    assert_eq!(again.unwrap_key(&wrapped, "context").await.unwrap(), [7; 32]);
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["custody.key"], "nothing is left beside the key");
}

#[test]
fn whatever_is_no_key_file_is_refused_and_not_shown() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("custody.key");
    FileCustody::create(&path).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let shown = format!("{:?}", FileCustody::open(&path).unwrap());
    assert!(!shown.contains(good.split_whitespace().last().unwrap()), "{shown}");
    let write = |content: &str| std::fs::write(&path, content).unwrap();
    for bad in [
        "",
        "secret-of-somebody\n",
        good.trim_end(),
        &format!("{good}\n"),
        &good.replacen("v1", "v2", 1),
        &good.replacen(' ', " g", 1),
        &good[..good.len() - 2],
    ] {
        write(bad);
        let why = why(FileCustody::open(&path));
        assert!(
            why.contains("not a key file") && !why.contains("secret-of"),
            "{bad:?}: {why}"
        );
    }
    write(&good);
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    why(FileCustody::open(&link));
    why(FileCustody::open_or_create(&link));
    why(FileCustody::open(folder.path()));
    why(FileCustody::open(folder.path().join("missing")));
}
