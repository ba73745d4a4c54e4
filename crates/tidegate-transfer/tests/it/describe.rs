use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use tidegate_transfer::{TransferError, describe};

use crate::fixture::{DIGEST_KEY, World};

fn fault(world: &World) -> (String, &'static str) {
    match describe(&world.source(), world.description(), &DIGEST_KEY) {
        Err(TransferError::NotAFile { path, why }) => (path, why),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn files_are_sorted_and_their_digests_keyed() {
    let world = World::small();
    let manifest = world.manifest();
    let paths: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["deep/er/empty", "deep/notes.bin", "train.csv"]);
    assert_eq!(manifest.total_bytes(), 14_004);
    let other = describe(&world.source(), world.description(), &[1; 32]).unwrap();
    for (file, other) in manifest.files.iter().zip(&other.files) {
        assert_ne!(
            file.keyed_digest, other.keyed_digest,
            "an outsider cannot guess `{}`",
            file.path
        );
    }
    assert_eq!(manifest, world.manifest(), "the same files are the same artifact");
}

#[test]
fn what_is_not_a_plain_file_is_refused() {
    type Make = fn(&Path);
    let cases: [(Make, &str, &str); 5] = [
        (
            |source| symlink("/etc/passwd", source.join("deep/link")).unwrap(),
            "deep/link",
            "symbolic link",
        ),
        (
            |source| symlink("/etc", source.join("folder")).unwrap(),
            "folder",
            "symbolic link",
        ),
        (
            |source| {
                assert!(
                    std::process::Command::new("mkfifo")
                        .arg(source.join("pipe"))
                        .status()
                        .unwrap()
                        .success()
                )
            },
            "pipe",
            "neither a file nor a folder",
        ),
        (
            |source| std::fs::write(source.join("a\nb"), "").unwrap(),
            "a\nb",
            "control character",
        ),
        (
            |source| std::fs::write(source.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap(),
            "\u{fffd}",
            "not UTF-8",
        ),
    ];
    for (make, at, reason) in cases {
        let world = World::small();
        make(&world.source());
        let (path, why) = fault(&world);
        assert!(path == at && why.contains(reason), "{path:?}: {why}");
    }
}
