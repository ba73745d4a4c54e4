use std::sync::Arc;
use std::time::Duration;

use tempfile::tempdir;
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_local::{FileCustody, FolderStore, ProcessDriver, SqliteJournal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folder_store() {
    let folder = tempdir().unwrap();
    let verdict = conformance::store(&|name| Arc::new(FolderStore::open(folder.path().join(name)).unwrap())).await;
    assert_eq!(verdict, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folder_mailbox() {
    let folder = tempdir().unwrap();
    let open = |name: &str| Arc::new(FolderStore::open_mailbox(folder.path().join(name)).unwrap());
    let verdict = conformance::store(&|name| open(name)).await;
    assert_eq!(verdict, Ok(()));
}

#[test]
fn sqlite_journal() {
    let folder = tempdir().unwrap();
    let verdict = conformance::journal(&|name| {
        Arc::new(SqliteJournal::open(folder.path().join(format!("{name}.sqlite"))).unwrap())
    });
    assert_eq!(verdict, Ok(()));
}

#[tokio::test]
async fn file_custody() {
    let folder = tempdir().unwrap();
    let verdict =
        conformance::custody(&|name| Arc::new(FileCustody::open_or_create(folder.path().join(name), None).unwrap()))
            .await;
    assert_eq!(verdict, Ok(()));
}

#[tokio::test]
async fn file_custody_under_a_passphrase() {
    let folder = tempdir().unwrap();
    let passphrase = || Some("correct horse".to_owned().into());
    let verdict = conformance::custody(&|name| {
        Arc::new(FileCustody::open_or_create(folder.path().join(name), passphrase()).unwrap())
    })
    .await;
    assert_eq!(verdict, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_driver() {
    let folder = tempdir().unwrap();
    let verdict = conformance::compute(&ComputeSubject {
        open: &|name| Arc::new(ProcessDriver::open(folder.path().join(name)).unwrap()),
        ends: &|code, ticket| {
            let script =
                format!("test \"$(cat)\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        },
        runs: ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec(),
        patience: Duration::from_secs(20),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));
}
