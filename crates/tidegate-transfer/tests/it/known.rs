//! What stands in a store already is not put there again.

use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectName, Store};

use crate::fixture::{World, files, sealed};

const SHARD: usize = 64 << 20;

/// Bytes that zstd cannot shrink.
fn numbers(from: u64, bytes: usize) -> Vec<u8> {
    (from..)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(bytes)
        .collect()
}

#[tokio::test]
async fn a_shard_with_the_same_content_is_named_and_not_sealed_again() {
    let (world, store) = (World::new(), MemoryStore::new());
    world.write("base", &numbers(0, SHARD));
    world.write("rest", b"one");
    let first = world.send(&store).await.unwrap();
    assert_eq!(first.known_bytes, 0);
    let before = sealed(&store);

    world.write("rest", b"another rest");
    let second = world
        .send_knowing(&world.permitted(), &store, &first.shards)
        .await
        .unwrap();
    assert_eq!(second.objects[0], first.objects[0]);
    assert_eq!(second.known_bytes, first.objects[0].bytes);
    let new: Vec<_> = sealed(&store)
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    assert_eq!(new.len(), 2, "the rest, and the index: {new:?}");
    let received = world.receive(&second, &store).await.unwrap();
    assert_eq!(received.bytes, second.bytes, "nothing but the sending is saved");
    assert_eq!(files(&world.destination()), files(&world.source()));

    // Also where the files before it are others, if it begins at the border of a shard.
    std::fs::remove_file(world.source().join("rest")).unwrap();
    world.write("a", &numbers(1 << 40, SHARD));
    let third = world
        .send_knowing(&world.permitted(), &store, &second.shards)
        .await
        .unwrap();
    assert_eq!(third.objects[1], first.objects[0]);
    assert_ne!(third.objects[0], first.objects[0]);
}

#[tokio::test]
async fn a_shard_that_somebody_has_removed_is_sent_again() {
    let (world, store) = (World::new(), MemoryStore::new());
    world.write("base", &numbers(0, 1000));
    let first = world.send(&store).await.unwrap();
    let object = ObjectName::new(format!("sealed/{}", first.objects[0].digest.to_hex())).unwrap();
    store.delete(&object).await.unwrap();
    world.write("empty", b"");
    let second = world
        .send_knowing(&world.permitted(), &store, &first.shards)
        .await
        .unwrap();
    assert_eq!(second.known_bytes, 0);
    assert_ne!(second.objects[0], first.objects[0]);
    world.receive(&second, &store).await.unwrap();
}

#[tokio::test]
async fn no_packing_list_names_a_known_shard_twice() {
    let (world, store) = (World::new(), MemoryStore::new());
    world.write("a", &numbers(0, SHARD));
    let first = world.send(&store).await.unwrap();
    world.write("b", &numbers(0, SHARD));
    let second = world
        .send_knowing(&world.permitted(), &store, &first.shards)
        .await
        .unwrap();
    assert_eq!(second.known_bytes, first.objects[0].bytes);
    assert_ne!(second.objects[0], second.objects[1]);
    world.receive(&second, &store).await.unwrap();
    assert_eq!(files(&world.destination()), files(&world.source()));
}
