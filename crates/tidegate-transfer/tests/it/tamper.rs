use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectName, Store};
use tidegate_seal::digest::sha256;
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::SigningKey;
use tidegate_transfer::{Received, Sent, TransferError};
use tidegate_types::Label;
use tidegate_types::ids::{PermitId, SiteName};

use crate::fixture::{World, files, sealed};

fn refused(world: &World, result: Result<Received, TransferError>, what: &str) -> TransferError {
    let error = result.expect_err(what);
    assert_eq!(world.received_names(), Vec::<String>::new(), "{what}: nothing appears");
    error
}

async fn object(store: &MemoryStore, name: &ObjectName) -> Vec<u8> {
    store.get(name, 1 << 30).await.unwrap().to_vec()
}

#[tokio::test]
async fn every_altered_object_is_refused() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    for name in store.names() {
        let good = object(&store, &name).await;
        let mut cases = vec![
            ("empty", Vec::new()),
            ("cut by one", good[..good.len() - 1].to_vec()),
            ("cut in half", good[..good.len() / 2].to_vec()),
            ("longer by one", [&good[..], &[0]].concat()),
        ];
        for position in [0, 1, 40, good.len() / 2, good.len() - 17, good.len() - 1] {
            let mut flipped = good.clone();
            flipped[position] ^= 4;
            cases.push(("flipped", flipped));
        }
        for (what, altered) in cases {
            store.overwrite(&name, altered.into());
            refused(&world, world.receive(&sent, &store).await, &format!("{name} {what}"));
        }
        store.delete(&name).await.unwrap();
        refused(&world, world.receive(&sent, &store).await, &format!("{name} withheld"));
        store.overwrite(&name, good.into());
    }
    world.receive(&sent, &store).await.unwrap();
    assert_eq!(files(&world.destination()), files(&world.source()));
}

#[tokio::test]
async fn swapped_objects_are_refused() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    let names: Vec<ObjectName> = sealed(&store)
        .iter()
        .map(|hex| ObjectName::new(format!("sealed/{hex}")).unwrap())
        .collect();
    let (first, second) = (object(&store, &names[0]).await, object(&store, &names[1]).await);
    store.overwrite(&names[0], second.into());
    store.overwrite(&names[1], first.into());
    refused(&world, world.receive(&sent, &store).await, "swapped");
}

#[tokio::test]
async fn what_the_receiver_knows_is_what_counts() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    let (digest, stranger) = (sha256(b"other"), SigningKey::from_seed(&[8; 32]).unwrap().public());
    let (permit, site) = (PermitId::new("permit-2").unwrap(), SiteName::new("ward").unwrap());
    macro_rules! told {
        ($field:ident, $value:expr) => {{
            let result = world
                .receive_with(&sent, &store, |expected| expected.$field = $value)
                .await;
            refused(&world, result, stringify!($field))
        }};
    }
    // What is told instead has to outlive every call; a test may leak some bytes for that.
    let digest: &'static _ = Box::leak(Box::new(digest));
    let stranger: &'static _ = Box::leak(Box::new(stranger));
    let permit: &'static _ = Box::leak(Box::new(permit));
    let site: &'static _ = Box::leak(Box::new(site));
    told!(packing_list_digest, digest);
    assert!(matches!(told!(sender, stranger), TransferError::Seal { .. }));
    told!(organisation, "other");
    told!(artifact, Some(digest));
    told!(permit, permit);
    told!(permit_digest, digest);
    told!(to, site);
    told!(key_commitment, Some(digest));
    told!(byte_limit, sent.bytes - 1);
    told!(byte_limit, 0);
    told!(plaintext_limit, world.manifest().total_bytes() - 1);
    let public: &'static _ = Box::leak(Box::new(Label::public()));
    assert!(matches!(
        told!(ceiling, Some(public)),
        TransferError::Refused(refusal) if refusal.rule == "label-above-slot"
    ));
    world
        .receive_with(&sent, &store, |expected| {
            expected.artifact = None;
            expected.key_commitment = None;
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn another_data_key_opens_nothing() {
    let mut world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    world.data_key = DataKey::from_bytes([6; 32]);
    let result = world
        .receive_with(&sent, &store, |expected| expected.key_commitment = None)
        .await;
    let error = refused(&world, result, "another key");
    assert!(error.to_string().contains("data key"), "{error}");
}

/// Two crossings of the same files under the same permit name, by senders that know nothing of each other.
async fn two_crossings() -> (World, Sent, Vec<(ObjectName, Vec<u8>)>) {
    let world = World::small();
    let old = MemoryStore::new();
    world.send(&old).await.unwrap();
    std::fs::remove_dir_all(world.state()).unwrap();
    let new = MemoryStore::new();
    let sent = world.send(&new).await.unwrap();
    let mut objects = Vec::new();
    for name in old.names() {
        objects.push((name.clone(), object(&old, &name).await));
    }
    for name in new.names().into_iter().filter(|name| *name != sent.packing_list) {
        objects.push((name.clone(), object(&new, &name).await));
    }
    (world, sent, objects)
}

#[tokio::test]
async fn a_replayed_packing_list_is_refused() {
    let (world, sent, objects) = two_crossings().await;
    let store = MemoryStore::new();
    for (name, body) in objects {
        store.put_new(&name, Bytes::from(body)).await.unwrap();
    }
    // The old list is genuine, complete, and stands under the name that the receiver was told.
    store.head(&sent.packing_list).await.unwrap();
    let error = refused(&world, world.receive(&sent, &store).await, "replayed");
    assert!(
        matches!(&error, TransferError::Unexpected { why, .. } if why.contains("digest")),
        "{error}"
    );
}

#[tokio::test]
async fn a_list_under_another_name_is_refused() {
    let world = World::small();
    let store = MemoryStore::new();
    let mut sent = world.send(&store).await.unwrap();
    let list = object(&store, &sent.packing_list).await;
    sent.packing_list = ObjectName::new("packing/run-2/permit-1.json").unwrap();
    store.put_new(&sent.packing_list, list.into()).await.unwrap();
    refused(&world, world.receive(&sent, &store).await, "another name");
}
