use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use tempfile::tempdir;
use tidegate_contracts::{Custody, CustodyError};
use tidegate_local::{FileCustody, Passphrase};

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
    FileCustody::create(&path, None).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    for looser in [0o640, 0o604, 0o666, 0o610] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(looser)).unwrap();
        assert!(
            why(FileCustody::open(&path, None)).contains("others could read it"),
            "{looser:o}"
        );
        assert!(
            why(FileCustody::open_or_create(&path, None)).contains("others could read it"),
            "{looser:o}"
        );
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    FileCustody::open(&path, None).unwrap();
}

#[tokio::test]
async fn a_key_that_is_there_is_never_replaced() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("custody.key");
    let first = FileCustody::open_or_create(&path, None).unwrap();
    let wrapped = first.wrap(&[7; 32], "context").await.unwrap();
    why(FileCustody::create(&path, None));
    let again = FileCustody::open_or_create(&path, None).unwrap();
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
    FileCustody::create(&path, None).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let shown = format!("{:?}", FileCustody::open(&path, None).unwrap());
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
        let why = why(FileCustody::open(&path, None));
        assert!(
            why.contains("not a key file") && !why.contains("secret-of"),
            "{bad:?}: {why}"
        );
    }
    write(&good);
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    why(FileCustody::open(&link, None));
    why(FileCustody::open_or_create(&link, None));
    why(FileCustody::open(folder.path(), None));
    why(FileCustody::open(folder.path().join("missing"), None));
}

fn passphrase(text: &str) -> Passphrase {
    Some(text.to_owned().into())
}

#[tokio::test]
async fn a_passphrase_seals_the_key_file_from_its_first_or_its_next_key_on() {
    let folder = tempdir().unwrap();
    let (sealed, plain) = (folder.path().join("sealed.key"), folder.path().join("plain.key"));
    let custody = FileCustody::create(&sealed, passphrase("correct horse")).unwrap();
    let wrapped = custody.wrap(&[7; 32], "context").await.unwrap();
    let holds = |path: &std::path::Path, text: &str| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    assert!(!holds(&sealed, "tidegate.custody-key"));
    let again = FileCustody::open(&sealed, passphrase("correct horse")).unwrap();
    assert_eq!(again.unwrap_key(&wrapped, "context").await.unwrap(), [7; 32]);
    assert!(why(FileCustody::open(&sealed, None)).contains("TIDEGATE_CUSTODY_PASSPHRASE"));
    let wrong = why(FileCustody::open_or_create(&sealed, passphrase("hush hush")));
    assert!(wrong.contains("passphrase") && !wrong.contains("hush"), "{wrong}");
    // What was not sealed is when the keys are renewed, and nothing of it stays.
    FileCustody::create(&plain, None).unwrap();
    let custody = FileCustody::open(&plain, passphrase("correct horse")).unwrap();
    let wrapped = custody.wrap(&[8; 32], "context").await.unwrap();
    assert!(holds(&plain, "tidegate.custody-key"));
    custody.rotate().await.unwrap();
    assert!(!holds(&plain, "tidegate.custody-key"));
    assert!(!folder.path().join("custody.key.old").exists());
    assert!(why(FileCustody::open(&plain, None)).contains("TIDEGATE_CUSTODY_PASSPHRASE"));
    let again = FileCustody::open(&plain, passphrase("correct horse")).unwrap();
    assert_eq!(again.unwrap_key(&wrapped, "context").await.unwrap(), [8; 32]);
}

/// Debian's `age`, which asks at a terminal.
fn age(arguments: &str, answers: &str) -> bool {
    let mut script = Command::new("script")
        .args(["-qec", &format!("age {arguments}"), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
    script.wait().unwrap().success()
}

/// A passphrase is changed by `age` itself.
#[test]
fn age_opens_a_sealed_key_file_and_seals_it_anew() {
    if Command::new("age").arg("--version").output().is_err() {
        let demanded = std::env::var("TIDEGATE_INTEROP").as_deref() == Ok("1");
        assert!(!demanded, "TIDEGATE_INTEROP=1, and `age` is not installed");
        return;
    }
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    FileCustody::create(at("custody.key"), passphrase("correct horse")).unwrap();
    let shown = |name: &str| at(name).display().to_string();
    assert!(age(
        &format!("-d -o {} {}", shown("plain"), shown("custody.key")),
        "correct horse\n"
    ));
    let plain = std::fs::read_to_string(at("plain")).unwrap();
    assert!(plain.starts_with("tidegate.custody-key.v1 "), "it is no key file");
    assert!(age(
        &format!("-p -o {} {}", shown("anew"), shown("plain")),
        "battery staple\nbattery staple\n"
    ));
    std::fs::set_permissions(at("anew"), PermissionsExt::from_mode(0o600)).unwrap();
    FileCustody::open(at("anew"), passphrase("battery staple")).unwrap();
    why(FileCustody::open(at("anew"), passphrase("correct horse")));
}
