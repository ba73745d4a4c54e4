use std::sync::Arc;

use super::{Verdict, done, must};
use crate::journal::{Batch, Journal, JournalError};

/// Checks the contract of [`Journal`]. `open` gives the journal of that name; it is opened several
/// times at once, as by several processes.
///
/// # Errors
/// The first promise that was broken.
pub fn journal(open: &dyn Fn(&str) -> Arc<dyn Journal>) -> Verdict {
    entries(&*open("entries"))?;
    scanning(&*open("scanning"))?;
    atomic(&*open("atomic"))?;
    log(&*open("log"))?;
    concurrent(open)?;
    reopened(open)
}

fn is_conflict(result: &Result<(), JournalError>, table: &str, key: &str) -> bool {
    matches!(result, Err(JournalError::Conflict { table: t, key: k }) if t == table && k == key)
}

fn entries(journal: &dyn Journal) -> Verdict {
    let get = |table: &str, key: &str| done(journal.get(table, key), "an entry is read");
    must(get("t", "k")?.is_none(), "an entry that was never written is absent")?;
    done(journal.commit(&Batch::default()), "an empty batch is committed")?;
    done(
        journal.commit(&Batch::default().create("t", "k", vec![1])),
        "an entry is created",
    )?;
    must(get("t", "k")? == Some(vec![1]), "an entry is seen once committed")?;
    must(
        get("u", "k")?.is_none() && get("t", "K")?.is_none(),
        "tables and keys are told apart",
    )?;
    must(
        is_conflict(&journal.commit(&Batch::default().create("t", "k", vec![2])), "t", "k"),
        "creating what is there is a conflict that names it",
    )?;
    let replace = |old: Option<&[u8]>, new: &[u8]| {
        journal.commit(&Batch::default().replace("t", "k", old.map(<[u8]>::to_vec), new.to_vec()))
    };
    must(
        is_conflict(&replace(Some(&[9]), &[2]), "t", "k"),
        "replacing another value is a conflict",
    )?;
    must(get("t", "k")? == Some(vec![1]), "a conflict changes nothing")?;
    done(replace(Some(&[1]), &[]), "the expected value is replaced")?;
    must(get("t", "k")? == Some(vec![]), "an empty value is a value")?;
    must(
        is_conflict(&replace(None, &[3]), "t", "k"),
        "an empty value is not an absent one",
    )?;
    done(
        journal.commit(&Batch::default().set("t", "k", vec![4])),
        "an entry is set whatever it was",
    )?;
    let remove = Batch {
        delete: vec![("t".to_owned(), "k".to_owned())],
        ..Batch::default()
    };
    done(journal.commit(&remove), "an entry is removed")?;
    done(journal.commit(&remove), "removing what is gone succeeds")?;
    must(get("t", "k")?.is_none(), "a removed entry is absent")?;

    let odd = "ünïcode 'quote\" \\ % _ * ? \u{10FFFF} \n;--";
    let large: Vec<u8> = (0..1 << 20).map(|i| (i % 256) as u8).collect();
    done(
        journal.commit(&Batch::default().set(odd, odd, large.clone())),
        "any text is a key, any bytes a value",
    )?;
    must(get(odd, odd)? == Some(large), "large values are kept")
}

fn scanning(journal: &dyn Journal) -> Verdict {
    let mut keys = [
        "",
        "a",
        "a%",
        "a_",
        "aa",
        "a/1",
        "a/2",
        "a/10",
        "a\u{10FFFF}",
        "b",
        "é",
        "A",
    ]
    .map(str::to_owned);
    let mut batch = Batch::default().set("other", "a", vec![0]);
    for key in &keys {
        batch = batch.set("t", key, key.clone().into_bytes());
    }
    done(journal.commit(&batch), "several entries are written at once")?;
    keys.sort();
    for prefix in ["", "a", "a/", "a/1", "a%", "a_", "a\u{10FFFF}", "b", "c", "é", "A"] {
        let found = done(journal.scan("t", prefix), "a table is scanned")?;
        let expected: Vec<&String> = keys.iter().filter(|key| key.starts_with(prefix)).collect();
        must(
            found.iter().map(|(key, _)| key).eq(expected) && found.iter().all(|(key, value)| key.as_bytes() == value),
            &format!("a scan for `{prefix}` is complete and sorted by key"),
        )?;
    }
    must(
        done(journal.scan("nothing", ""), "a table is scanned")?.is_empty(),
        "a table that was never written is empty",
    )
}

fn atomic(journal: &dyn Journal) -> Verdict {
    done(
        journal.commit(&Batch::default().set("t", "kept", vec![1])),
        "an entry is set",
    )?;
    let mut batch = Batch::default()
        .set("t", "new", vec![2])
        .leaf("leaf", vec![3])
        .create("t", "kept", vec![4]);
    batch.delete.push(("t".to_owned(), "kept".to_owned()));
    must(
        is_conflict(&journal.commit(&batch), "t", "kept"),
        "one broken expectation refuses the batch",
    )?;
    must(
        done(journal.get("t", "new"), "an entry is read")?.is_none()
            && done(journal.get("t", "kept"), "an entry is read")? == Some(vec![1])
            && done(journal.log_size(), "the log is measured")? == 0
            && done(journal.log_index("leaf"), "a leaf is looked up")?.is_none(),
        "a refused batch changes no entry and appends no leaf",
    )
}

fn log(journal: &dyn Journal) -> Verdict {
    let size = || done(journal.log_size(), "the log is measured");
    let leaves = |from, to| done(journal.log_leaves(from, to), "leaves are read");
    must(size()? == 0 && leaves(0, 10)?.is_empty(), "a new log is empty")?;
    for i in 0..5_u8 {
        let batch = Batch::default().leaf(&format!("id-{i}"), vec![i; 3]);
        done(journal.commit(&batch), "a leaf is appended")?;
        done(journal.commit(&batch), "a leaf is appended again without harm")?;
    }
    must(size()? == 5, "a leaf whose id is there is not appended again")?;
    let other = Batch::default()
        .leaf("id-1", vec![99])
        .leaf("id-5", vec![5; 3])
        .leaf("id-5", vec![55]);
    done(journal.commit(&other), "known and new leaves are appended together")?;
    let expected: Vec<Vec<u8>> = (0..6_u8).map(|i| vec![i; 3]).collect();
    must(
        leaves(0, 6)? == expected,
        "leaves keep their order, and an index never changes its leaf",
    )?;
    must(
        Some(&leaves(2, 4)?[..]) == expected.get(2..4) && leaves(4, 100)?.len() == 2 && leaves(3, 3)?.is_empty(),
        "a range of leaves ends with the log",
    )?;
    must(
        leaves(4, 2)?.is_empty() && leaves(u64::MAX - 1, u64::MAX)?.is_empty(),
        "odd ranges are empty",
    )?;
    for i in 0..6_u64 {
        let index = done(journal.log_index(&format!("id-{i}")), "a leaf is looked up")?;
        must(index == Some(i), "a leaf is found by its id")?;
    }
    must(
        done(journal.log_index("id-6"), "a leaf is looked up")?.is_none(),
        "an id that was never appended has no index",
    )
}

fn concurrent(open: &dyn Fn(&str) -> Arc<dyn Journal>) -> Verdict {
    const WRITERS: u64 = 4;
    const ROUNDS: u64 = 25;
    let journals: Vec<Arc<dyn Journal>> = (0..WRITERS).map(|_| open("concurrent")).collect();
    let workers: Vec<_> = journals
        .into_iter()
        .zip(0_u64..)
        .map(|(journal, writer)| std::thread::spawn(move || count_up(&*journal, writer, ROUNDS)))
        .collect();
    for worker in workers {
        worker
            .join()
            .map_err(|_| "broken: a writer does not panic".to_owned())??;
    }
    let journal = open("concurrent");
    let total = done(journal.get("t", "counter"), "an entry is read")?;
    must(
        total == Some((WRITERS * ROUNDS).to_be_bytes().to_vec()),
        "compare-and-set by several writers loses no update",
    )?;
    let leaves = done(journal.log_leaves(0, u64::MAX), "leaves are read")?;
    must(
        leaves.len() as u64 == WRITERS * ROUNDS,
        "every writer's leaves are in the log once",
    )?;
    must(
        leaves.iter().zip(1_u64..).all(|(leaf, i)| *leaf == i.to_be_bytes()),
        "leaves of several writers are in the order of their commits",
    )
}

/// Adds one to a counter `rounds` times, each time with a leaf of the new value.
fn count_up(journal: &dyn Journal, writer: u64, rounds: u64) -> Verdict {
    let mut left = rounds;
    while left > 0 {
        let old = done(journal.get("t", "counter"), "an entry is read")?;
        let value = old
            .as_deref()
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_be_bytes);
        let new = (value + 1).to_be_bytes().to_vec();
        let batch = Batch::default()
            .replace("t", "counter", old, new.clone())
            .leaf(&format!("{writer}-{left}"), new);
        match journal.commit(&batch) {
            Ok(()) => left -= 1,
            Err(JournalError::Conflict { .. }) => {}
            Err(error) => return Err(format!("broken: writers wait for each other: {error}")),
        }
    }
    Ok(())
}

fn reopened(open: &dyn Fn(&str) -> Arc<dyn Journal>) -> Verdict {
    let batch = Batch::default().set("t", "k", vec![1]).leaf("id", vec![2]);
    done(open("reopened").commit(&batch), "a batch is committed")?;
    let journal = open("reopened");
    must(
        done(journal.get("t", "k"), "an entry is read")? == Some(vec![1])
            && done(journal.log_leaves(0, 9), "leaves are read")? == [vec![2]]
            && done(journal.log_index("id"), "a leaf is looked up")? == Some(0),
        "what was committed survives a restart",
    )
}
