use std::collections::BTreeSet;

use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectName, Store};
use tidegate_transfer::{TransferError, names_in_flight, sweep};

use crate::fixture::{Fault, Flaky, World};

#[tokio::test]
async fn what_a_journal_names_stays_and_the_rest_goes() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    let kept = store.names();
    let orphans = ["sealed/00ff", "packing/run-0/old.json"].map(|name| ObjectName::new(name).unwrap());
    let elsewhere = ObjectName::new("mailbox/run-1/train/1-0/in/000001.json").unwrap();
    for name in orphans.iter().chain([&elsewhere]) {
        store.put_new(name, Bytes::from_static(b"x")).await.unwrap();
    }
    // Naming the list is enough to keep what it names.
    let keep = BTreeSet::from([sent.packing_list.to_string()]);
    let mut removed = sweep(&store, &keep).await.unwrap();
    removed.sort();
    assert_eq!(removed, [orphans[1].clone(), orphans[0].clone()]);
    assert!(kept.iter().all(|name| store.names().contains(name)) && store.names().contains(&elsewhere));
    world.receive(&sent, &store).await.unwrap();
    assert!(sweep(&store, &keep).await.unwrap().is_empty());
    assert_eq!(sweep(&store, &BTreeSet::new()).await.unwrap().len(), kept.len());
    assert_eq!(store.names(), [elsewhere]);
}

#[tokio::test]
async fn a_crossing_that_goes_on_loses_nothing() {
    let world = World::small();
    let store = MemoryStore::new();
    world
        .send(&Flaky::new(&store, [Fault::Fine, Fault::Full], 0))
        .await
        .unwrap_err();
    assert_eq!(store.names().len(), 1);
    let keep = names_in_flight(&world.state()).unwrap();
    assert!(sweep(&store, &keep).await.unwrap().is_empty());
    assert_eq!(names_in_flight(&world.folder.join("none")).unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn a_list_that_cannot_be_read_stops_the_sweep() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    store.overwrite(&sent.packing_list, Bytes::from_static(b"{}"));
    let before = store.names();
    let keep = BTreeSet::from([sent.packing_list.to_string()]);
    let error = sweep(&store, &keep).await.unwrap_err();
    assert!(matches!(error, TransferError::Unexpected { .. }), "{error}");
    assert_eq!(store.names(), before);
}
