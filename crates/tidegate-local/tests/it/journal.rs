use std::os::unix::fs::PermissionsExt;

use tempfile::tempdir;
use tidegate_contracts::{Batch, Journal};
use tidegate_local::SqliteJournal;

use crate::child;

#[test]
fn a_journal_of_another_kind_or_version_is_refused() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(
        &text,
        "not a database, but a long enough text to be read as the header of one\n".repeat(20),
    )
    .unwrap();
    assert!(SqliteJournal::open(&text).is_err());

    let newer = folder.path().join("newer");
    drop(SqliteJournal::open(&newer).unwrap());
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    let error = SqliteJournal::open(&newer).unwrap_err().to_string();
    assert!(error.contains("version is 2"), "{error}");

    let foreign = folder.path().join("foreign");
    rusqlite::Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE t (a)")
        .unwrap();
    assert!(SqliteJournal::open(&foreign).is_err());
}

#[test]
fn only_the_owner_reads_it() {
    let folder = tempdir().unwrap();
    let journal = SqliteJournal::open(folder.path().join("deep/journal.sqlite")).unwrap();
    journal.commit(&Batch::default().set("t", "k", vec![1])).unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path().join("deep"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(files.len() >= 2, "the write-ahead log is beside it");
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.file_name());
    }
}

/// One batch of the child: a counter, a mirror of it and a leaf, that must agree for ever.
fn batch(old: Option<u64>, new: u64) -> Batch {
    Batch::default()
        .replace(
            "t",
            "a",
            old.map(|n| n.to_be_bytes().to_vec()),
            new.to_be_bytes().to_vec(),
        )
        .set("t", "b", new.to_be_bytes().repeat(1000))
        .leaf(&new.to_string(), new.to_be_bytes().to_vec())
}

fn counter(journal: &SqliteJournal) -> Option<u64> {
    let value = journal.get("t", "a").unwrap()?;
    Some(u64::from_be_bytes(value.try_into().unwrap()))
}

#[test]
#[ignore = "a child of `a_killed_writer_leaves_whole_commits`"]
fn child_commits() {
    let Some(folder) = child::folder() else { return };
    let journal = SqliteJournal::open(folder.join("journal.sqlite")).unwrap();
    println!("\nready");
    loop {
        let old = counter(&journal);
        let new = old.unwrap_or(0) + 1;
        journal.commit(&batch(old, new)).unwrap();
        println!("\ncommitted {new}");
    }
}

#[test]
fn a_killed_writer_leaves_whole_commits() {
    let folder = tempdir().unwrap();
    for pause in child::pauses(20) {
        let (mut process, output) = child::start("journal::child_commits", folder.path());
        std::thread::sleep(pause);
        process.kill().unwrap();
        process.wait().unwrap();
        let told: Option<u64> = child::lines(output, "committed ")
            .last()
            .map(|line| line.parse().unwrap());

        let journal = SqliteJournal::open(folder.path().join("journal.sqlite")).unwrap();
        let count = counter(&journal).unwrap_or(0);
        assert!(
            told.unwrap_or(0) <= count,
            "commit {told:?} was told and is lost: {count}"
        );
        assert_eq!(journal.log_size().unwrap(), count);
        let leaves: Vec<Vec<u8>> = (1..=count).map(|n| n.to_be_bytes().to_vec()).collect();
        assert_eq!(journal.log_leaves(0, count).unwrap(), leaves);
        if count > 0 {
            assert_eq!(journal.get("t", "b").unwrap(), Some(count.to_be_bytes().repeat(1000)));
        }
    }
    assert!(counter(&SqliteJournal::open(folder.path().join("journal.sqlite")).unwrap()).is_some());
}
