//! Disks that are full: of the receiver, of the store, of the notes. Each is a small file system of its own, in a
//! namespace where mounting one is allowed.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use tidegate_contracts::{Store, StoreError};
use tidegate_transfer::TransferError;

use crate::fixture::{World, files};
use crate::kill::{FOLDER, in_child, store_in};

fn run(program: &str, arguments: &[&str]) {
    assert!(
        Command::new(program).args(arguments).status().unwrap().success(),
        "{program} {arguments:?}"
    );
}

/// A file system in memory with so much room at a folder.
fn small(folder: &Path, room: &str) {
    std::fs::create_dir_all(folder).unwrap();
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            &format!("size={room}"),
            "none",
            folder.to_str().unwrap(),
        ],
    );
}

fn grow(folder: &Path, room: &str) {
    run(
        "mount",
        &["-o", &format!("remount,size={room}"), folder.to_str().unwrap()],
    );
}

/// Takes all room that is left.
fn fill(folder: &Path) {
    let mut file = std::fs::File::create(folder.join("filler")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

fn is_full(error: &TransferError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::StorageFull)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[test]
#[ignore = "a child of `what_does_not_fit_is_told_and_fits_once_there_is_room`"]
fn child_on_small_disks() {
    in_child(async |folder| {
        let world = World::at(&folder);
        let noise: Vec<u8> = (0_u64..400_000)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        world.write("noise", &noise);
        world.write("deep/er/text", b"a few words");

        // The notes: nothing is put that could not be noted before.
        small(&world.state(), "64k");
        fill(&world.state());
        let store_folder = folder.join("store");
        small(&store_folder, "1m");
        let store = store_in(&folder);
        let error = world.send(&store).await.unwrap_err();
        assert!(is_full(&error), "{error}");
        assert_eq!(store.list("", None).await.unwrap(), []);
        std::fs::remove_file(world.state().join("filler")).unwrap();

        // The store: no part of an object stands there under its name.
        let error = world.send(&store).await.unwrap_err();
        assert!(is_full(&error), "{error}");
        assert!(
            matches!(
                &error,
                TransferError::Store {
                    source: StoreError::Permanent { .. },
                    ..
                }
            ),
            "nobody tries again by itself: {error:?}"
        );
        assert_eq!(store.list("", None).await.unwrap(), []);
        grow(&store_folder, "16m");
        let sent = world.send(&store).await.unwrap();
        assert_eq!(store.list("", None).await.unwrap().len(), sent.objects.len());

        // The receiver: nothing of the artifact is there, and no part of it beside.
        let received = folder.join("received");
        small(&received, "1m");
        let error = world.receive(&sent, &store).await.unwrap_err();
        assert!(is_full(&error), "{error}");
        assert_eq!(world.received_names(), Vec::<String>::new());
        grow(&received, "16m");
        world.receive(&sent, &store).await.unwrap();
        assert_eq!(files(&world.destination()), files(&world.source()));
        assert_eq!(world.received_names(), ["train"]);
    });
}

#[test]
fn what_does_not_fit_is_told_and_fits_once_there_is_room() {
    let alone = ["--user", "--map-root-user", "--mount", "--"];
    let mounts = |words: &[&str]| Command::new("unshare").args(alone).args(words).output();
    let allowed = ["mount", "-t", "tmpfs", "none", "/mnt"];
    if !mounts(&allowed).is_ok_and(|output| output.status.success()) {
        eprintln!("left out: nothing can be mounted here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(alone)
        .arg(std::env::current_exe().unwrap())
        .args(["full::child_on_small_disks", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success() && out.contains("complete"), "{out}{err}");
}
