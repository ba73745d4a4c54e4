//! `kill -9` of a sender and of a receiver at many moments; then the same call again.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tidegate_contracts::{Store, StoreExt};
use tidegate_local::FolderStore;
use tidegate_transfer::Sent;

use crate::fixture::{World, files};

pub(crate) const FOLDER: &str = "TIDEGATE_TEST_FOLDER";

pub(crate) fn store_in(folder: &Path) -> FolderStore {
    FolderStore::open(folder.join("store")).unwrap()
}

/// Starts this program again for one ignored test, lets it run for a while, and kills it. Says whether
/// it came to its end before.
fn run_and_kill(test: &str, folder: &Path, pause: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(
            output.read_line(&mut line).unwrap(),
            0,
            "the child ended before it was ready"
        );
    }
    std::thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    rest.contains("complete")
}

pub(crate) fn in_child(work: impl AsyncFnOnce(PathBuf)) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    println!("\nready");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work(folder.into()));
    println!("\ncomplete");
}

#[test]
#[ignore = "a child of `a_killed_sender_and_receiver_end_in_the_same_place`"]
fn child_sends() {
    in_child(async |folder| {
        World::at(&folder).send(&store_in(&folder)).await.unwrap();
    });
}

#[test]
#[ignore = "a child of `a_killed_sender_and_receiver_end_in_the_same_place`"]
fn child_receives() {
    in_child(async |folder| {
        let store = store_in(&folder);
        let world = World::at(&folder);
        let sent: Sent = world.send(&store).await.unwrap();
        world.receive(&sent, &store).await.unwrap();
    });
}

/// Pauses that grow: from before the first byte to about when the whole is done.
fn pauses(until: Duration, count: u32) -> impl Iterator<Item = Duration> {
    (1..=count).map(move |i| until * i / count)
}

#[tokio::test]
async fn a_killed_sender_and_receiver_end_in_the_same_place() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let world = World::at(folder.path());
    let noise: Vec<u8> = (0_u64..)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(80 << 20)
        .collect();
    std::fs::write(source.join("a"), &noise).unwrap();
    std::fs::write(source.join("b"), &noise[..1 << 20]).unwrap();

    let store = store_in(folder.path());
    let mut published = None;
    let mut killed = 0;
    for pause in pauses(Duration::from_millis(600), 10) {
        let complete = run_and_kill("kill::child_sends", folder.path(), pause);
        killed += u32::from(!complete);
        let lists = store.list("packing/", None).await.unwrap();
        assert!(lists.len() <= 1);
        if let Some(list) = lists.first() {
            let body = store.get(&list.name, 1 << 20).await.unwrap();
            let first = published.get_or_insert_with(|| body.clone());
            assert_eq!(*first, body, "a published packing list never changes");
        }
        assert!(!complete || !lists.is_empty());
    }
    assert!(killed > 0, "no sender was killed before it was done");
    let sent = world.send(&store).await.unwrap();
    let mut expected: Vec<(String, u64)> = sent
        .objects
        .iter()
        .map(|object| match object.digest == sent.packing_list_digest {
            true => (sent.packing_list.to_string(), object.bytes),
            false => (format!("sealed/{}", object.digest.to_hex()), object.bytes),
        })
        .collect();
    expected.sort();
    let stored = store.list_all("", 1000).await.unwrap();
    let stored: Vec<(String, u64)> = stored
        .into_iter()
        .map(|info| (info.name.to_string(), info.bytes))
        .collect();
    assert_eq!(stored, expected, "nothing is lost, doubled or half-written");

    std::fs::create_dir(folder.path().join("received")).unwrap();
    for pause in pauses(Duration::from_millis(500), 8) {
        run_and_kill("kill::child_receives", folder.path(), pause);
        if world.destination().exists() {
            assert!(files(&world.destination()) == files(&source), "what appeared is whole");
            std::fs::remove_dir_all(world.destination()).unwrap();
        }
    }
    world.receive(&sent, &store).await.unwrap();
    assert!(files(&world.destination()) == files(&source), "the files differ");
    assert_eq!(
        world.received_names(),
        ["train"],
        "what killed receivers left is removed"
    );
}
