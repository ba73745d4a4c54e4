use std::collections::BTreeSet;

use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectName, Store};
use tidegate_transfer::{TransferError, named_by, names_in_flight, remove, stored};

use crate::fixture::{Fault, Flaky, World};

async fn names(store: &MemoryStore) -> Vec<ObjectName> {
    stored(store).await.unwrap().into_iter().map(|info| info.name).collect()
}

#[tokio::test]
async fn a_list_tells_what_it_names_and_the_rest_can_go() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    let kept = store.names();
    let orphans = ["packing/run-0/old.json", "sealed/00ff"].map(|name| ObjectName::new(name).unwrap());
    let elsewhere = ObjectName::new("mailbox/run-1/train/1-0/in/000001.json").unwrap();
    for name in orphans.iter().chain([&elsewhere]) {
        store.put_new(name, Bytes::from_static(b"x")).await.unwrap();
    }
    let there = names(&store).await;
    assert_eq!((there.len(), there.contains(&elsewhere)), (kept.len() + 2, false));
    let named = named_by(&store, &BTreeSet::from([sent.packing_list.clone()]))
        .await
        .unwrap();
    assert_eq!(named, kept.iter().cloned().collect());
    let rest: Vec<ObjectName> = there.into_iter().filter(|name| !named.contains(name)).collect();
    assert_eq!(rest, orphans, "lists come first");
    remove(&store, &rest).await.unwrap();
    remove(&store, &rest).await.unwrap();
    world.receive(&sent, &store).await.unwrap();
    assert!(store.names().contains(&elsewhere));
    // A list that is gone names itself.
    let gone = BTreeSet::from([orphans[0].clone()]);
    assert_eq!(named_by(&store, &gone).await.unwrap(), gone);
}

#[tokio::test]
async fn what_is_in_flight_is_noted_before_it_is_there() {
    let world = World::small();
    let store = MemoryStore::new();
    world
        .send(&Flaky::new(&store, [Fault::Fine, Fault::Full], 0))
        .await
        .unwrap_err();
    assert_eq!(store.names().len(), 1);
    let noted = names_in_flight(&world.state()).unwrap();
    assert!(names(&store).await.iter().all(|name| noted.contains(name)));
    assert_eq!(names_in_flight(&world.folder.join("none")).unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn a_list_that_cannot_be_read_names_nothing_and_is_told() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    store.overwrite(&sent.packing_list, Bytes::from_static(b"{}"));
    let error = named_by(&store, &BTreeSet::from([sent.packing_list]))
        .await
        .unwrap_err();
    assert!(matches!(error, TransferError::Unexpected { .. }), "{error}");
}

/// A shard that was noted and is not there is sealed anew, and what was sealed before appears after all.
#[tokio::test]
async fn what_a_store_finishes_late_is_removed_with_the_crossing_that_gave_it_up() {
    let world = World::small();
    let store = MemoryStore::new();
    world.send(&Flaky::new(&store, [Fault::Reset; 8], 0)).await.unwrap_err();
    let noted = names_in_flight(&world.state()).unwrap();
    let late = noted.iter().find(|name| name.as_str().starts_with("sealed/")).unwrap();
    assert_eq!(store.names(), []);
    // Full once: the second shard's put, the index, ends the call after the first was sealed anew.
    world
        .send(&Flaky::new(&store, [Fault::Fine, Fault::Full], 0))
        .await
        .unwrap_err();
    store.put_new(late, Bytes::from_static(b"late")).await.unwrap();
    let sent = world.send(&store).await.unwrap();
    assert!(!store.names().contains(late));
    let mut put = crate::fixture::expected_sealed(&sent);
    put.sort();
    assert_eq!(crate::fixture::sealed(&store), put);
}
