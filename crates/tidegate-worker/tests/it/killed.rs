//! A worker that is killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tidegate_local::FolderStore;

use crate::keeper::{Keeper, pause};

/// Where [`worker_process`] finds its store and its work folder.
const STORE: &str = "TIDEGATE_TEST_STORE";
const WORK: &str = "TIDEGATE_TEST_WORK";

/// Not a test: what [`killing_the_worker_ends_the_command_and_leaves_no_key`] starts as a process of
/// its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn worker_process() {
    let (store, work) = (std::env::var(STORE).unwrap(), std::env::var(WORK).unwrap());
    let ticket = serde_json::from_reader(std::io::stdin()).unwrap();
    let options = crate::options(work.into());
    tidegate_worker::run(
        ticket,
        Box::new(move |_| Ok(Arc::new(FolderStore::open(&store).unwrap()))),
        options,
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_worker_ends_the_command_and_leaves_no_key() {
    let site = tempfile::tempdir().unwrap();
    let store = site.path().join("store");
    let mut keeper = Keeper::new(
        Arc::new(FolderStore::open(&store).unwrap()),
        "echo $$ > \"$TIDEGATE_OUTPUT/pid\"; exec sleep 300",
    )
    .await;
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::worker_process", "--ignored", "--nocapture"])
        .env(STORE, &store)
        .env(WORK, keeper.work())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ticket = serde_json::to_vec(&keeper.ticket).unwrap();
    worker.stdin.take().unwrap().write_all(&ticket).unwrap();
    keeper.admit().await;
    let pid_file = keeper.work().join("r1-train-1-0/output/pid");
    let pid: u32 = loop {
        if let Some(pid) = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
        {
            break pid;
        }
        assert_eq!(worker.try_wait().unwrap(), None, "the worker is at work");
        pause().await;
    };
    worker.kill().unwrap();
    worker.wait().unwrap();
    while is_running(pid) {
        pause().await;
    }
    // What stays behind is for the driver to remove, and holds no key of the attempt.
    let mut files = Vec::new();
    all_files(&keeper.work(), &mut files);
    assert!(
        files.iter().any(|file| file.ends_with("input/train/rows.csv")),
        "{files:?}"
    );
    let keys = [keeper.code.key, keeper.train.key, [5; 32]];
    for file in files {
        let content = std::fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&content).to_lowercase();
        assert!(!text.contains("age-secret-key"), "{}", file.display());
        for key in &keys {
            assert!(!content.windows(32).any(|window| window == key), "{}", file.display());
            assert!(!text.contains(&hex::encode(key)), "{}", file.display());
        }
    }
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn all_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all_files(&entry.path(), files);
        } else if entry.file_type().unwrap().is_file() {
            files.push(entry.path());
        }
    }
}
