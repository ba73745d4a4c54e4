use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use proptest::prelude::*;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_transfer::{Crossing, TransferError, send};

use crate::fixture::{DIGEST_KEY, World, expected_sealed, files, sealed};

#[tokio::test]
async fn what_is_sent_is_received() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    assert_eq!(sealed(&store), expected_sealed(&sent));
    let name = sent.packing_list.as_str();
    let artifact = world.permitted().artifact();
    assert_eq!(name, format!("packing/run-1/permit-1-{}.json", artifact.short()));
    assert_eq!(store.names().len(), sent.objects.len());

    let received = world.receive(&sent, &store).await.unwrap();
    assert_eq!(received.manifest, world.manifest());
    assert_eq!(received.bytes, sent.bytes);
    assert_eq!(files(&world.destination()), files(&world.source()));
    assert_eq!(world.received_names(), ["train"]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.destination()), 0o700);
    assert_eq!(mode(&world.destination().join("train.csv")), 0o600);
}

#[tokio::test]
async fn nothing_that_crosses_shows_names_or_content() {
    let world = World::small();
    let store = MemoryStore::new();
    world.send(&store).await.unwrap();
    for name in store.names() {
        let body = tidegate_contracts::Store::get(&store, &name, 1 << 30).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        for secret in ["train.csv", "notes.bin", "70,1", "age", "admissions"] {
            assert!(!text.contains(secret), "{name} shows `{secret}`");
        }
    }
}

#[tokio::test]
async fn sending_and_receiving_again_change_nothing() {
    let world = World::small();
    let store = MemoryStore::new();
    let first = world.send(&store).await.unwrap();
    world.receive(&first, &store).await.unwrap();
    let names = store.names();
    // The files may be gone by then: what was sent was sent.
    let permitted = world.permitted();
    let content = std::fs::read(world.source().join("train.csv")).unwrap();
    std::fs::remove_file(world.source().join("train.csv")).unwrap();
    let again = world.send_as(&permitted, &store).await.unwrap();
    assert!(again.already && !first.already);
    assert_eq!(
        (&again.packing_list_digest, &again.objects),
        (&first.packing_list_digest, &first.objects)
    );
    assert_eq!(store.names(), names);
    world.write("train.csv", &content);
    world.receive(&again, &store).await.unwrap();

    std::fs::write(world.destination().join("train.csv"), "shorter").unwrap();
    let error = world.receive(&again, &store).await.unwrap_err();
    assert!(matches!(error, TransferError::Destination { path } if path == "train.csv"));
    assert_eq!(
        std::fs::read(world.destination().join("train.csv")).unwrap(),
        b"shorter"
    );
}

#[tokio::test]
async fn shards_cross_file_borders() {
    let world = World::new();
    // 150 MiB in files of which two share each shard's border; the numbers make every place different.
    let numbers = |from: u64, bytes: usize| -> Vec<u8> {
        (from..)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .take(bytes)
            .collect()
    };
    world.write("a", &numbers(0, (60 << 20) + 1));
    world.write("b", b"");
    world.write("c", &numbers(1 << 40, 70 << 20));
    world.write("d", &vec![b'x'; 20 << 20]);
    let store = MemoryStore::new();
    let seen = Mutex::new(Vec::new());
    let progress = |bytes| seen.lock().unwrap().push(bytes);
    let crossing = Crossing {
        source: &world.source(),
        store: &store,
        signer: &world.owner,
        data_key: &world.data_key,
        digest_key: &DIGEST_KEY,
        known: tidegate_transfer::KnownShards::NONE,
        state: &world.state(),
        shards_in_flight: 2,
        progress: &progress,
        gate: &|| tidegate_transfer::Gate::Open,
    };
    let sent = send(&world.permitted(), &crossing).await.unwrap();
    assert_eq!(sent.objects.len(), 3 + 2, "three shards, index, packing list");
    let seen = seen.into_inner().unwrap();
    assert!(
        seen.is_sorted() && seen.len() == 3 && seen.last() == Some(&world.manifest().total_bytes()),
        "{seen:?}"
    );
    world.receive(&sent, &store).await.unwrap();
    assert!(
        files(&world.destination()) == files(&world.source()),
        "the files differ"
    );

    // Two shards under each other's names are two objects that are not what the list names.
    let names: Vec<_> = sent.objects[..2]
        .iter()
        .map(|object| tidegate_contracts::ObjectName::new(format!("sealed/{}", object.digest.to_hex())).unwrap())
        .collect();
    let first = tidegate_contracts::Store::get(&store, &names[0], 1 << 30)
        .await
        .unwrap();
    let second = tidegate_contracts::Store::get(&store, &names[1], 1 << 30)
        .await
        .unwrap();
    store.overwrite(&names[0], second);
    store.overwrite(&names[1], first);
    std::fs::remove_dir_all(world.destination()).unwrap();
    let error = world.receive(&sent, &store).await.unwrap_err();
    assert!(matches!(error, TransferError::Unexpected { .. }), "{error}");
    assert_eq!(world.received_names(), Vec::<String>::new());
}

#[tokio::test]
async fn an_artifact_without_bytes_crosses() {
    let world = World::new();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    world.receive(&sent, &store).await.unwrap();
    assert!(files(&world.destination()).is_empty());
    let world = World::new();
    world.write("a/empty", b"");
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    world.receive(&sent, &store).await.unwrap();
    assert_eq!(files(&world.destination()), [("a/empty".to_owned(), Vec::new())]);
}

#[tokio::test]
async fn what_a_crashed_receiver_left_is_removed() {
    let world = World::small();
    let store = MemoryStore::new();
    let sent = world.send(&store).await.unwrap();
    let parent = world.destination().parent().unwrap().to_owned();
    std::fs::create_dir_all(parent.join(".train.partial-00/deep")).unwrap();
    std::fs::write(parent.join(".train.partial-00/deep/plaintext"), "left").unwrap();
    std::fs::create_dir(parent.join(".train.partial-01")).unwrap();
    let alive = std::fs::File::open(parent.join(".train.partial-01")).unwrap();
    alive.lock().unwrap();
    world.receive(&sent, &store).await.unwrap();
    let mut names = world.received_names();
    names.sort();
    assert_eq!(
        names,
        [".train.partial-01", "train"],
        "only what nobody holds is removed"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_files_arrive_as_they_left(tree in proptest::collection::btree_map(
        "[a-c]{1,2}(/[d-f é]{1,2}){0,2}", proptest::collection::vec(any::<u8>(), 0..20_000), 0..8,
    )) {
        let world = World::new();
        let tree: BTreeMap<String, Vec<u8>> = tree;
        for (path, content) in &tree {
            // A path that is a folder of another one cannot be a file too.
            let inside = format!("{path}/");
            if !tree.keys().any(|other| other.starts_with(&inside)) {
                world.write(path, content);
            }
        }
        let store = MemoryStore::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sent = world.send(&store).await.unwrap();
            world.receive(&sent, &store).await.unwrap();
        });
        prop_assert_eq!(files(&world.destination()), files(&world.source()));
    }
}
