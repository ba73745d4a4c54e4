use std::fs::{File, FileTimes};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{Store, StoreError};
use tidegate_seal::key::DataKey;
use tidegate_transfer::{PermitCheck, Permitted, Sent, TransferError, names_in_flight, packing_list_name};

use crate::fixture::{Fault, Flaky, NOW, World, expected_sealed, files, sealed};

/// Sends through a flaky store, and checks that what then stands is one whole crossing.
async fn survives(puts: &[Fault], busy_reads: u64) -> (World, Flaky, Sent) {
    let world = World::small();
    let store = Flaky::new(&MemoryStore::new(), puts.iter().copied(), busy_reads);
    let sent = world.send(&store).await.unwrap();
    assert_eq!(sealed(&store.inner), expected_sealed(&sent), "nothing is doubled");
    world.receive(&sent, &store).await.unwrap();
    assert_eq!(files(&world.destination()), files(&world.source()));
    (world, store, sent)
}

#[tokio::test]
async fn storms_and_resets_are_survived() {
    use Fault::{Busy, Fine, Reset, ResetAfterEffect};
    survives(&[Busy, Busy, Busy, Busy, Busy], 3).await;
    survives(&[Reset, Busy, Reset, Fine, Reset, Fine, Busy], 0).await;
    let (_, store, _) = survives(&[ResetAfterEffect, ResetAfterEffect, ResetAfterEffect], 0).await;
    assert_eq!(
        store.put_calls.load(Ordering::SeqCst),
        3,
        "what stands is not put again"
    );
}

#[tokio::test]
async fn a_store_that_stays_busy_ends_it_and_the_next_call_goes_on() {
    let world = World::small();
    let memory = MemoryStore::new();
    let store = Flaky::new(&memory, [Fault::Fine].into_iter().chain([Fault::Busy; 100]), 0);
    let error = world.send(&store).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(store.put_calls.load(Ordering::SeqCst) <= 9, "tries are bounded");
    let before = sealed(&memory);
    assert_eq!(before.len(), 1);
    let sent = world.send(&memory).await.unwrap();
    assert_eq!(
        sealed(&memory),
        expected_sealed(&sent),
        "the shard that stood is used, and nothing is doubled"
    );
    assert!(sealed(&memory).contains(&before[0]));
}

#[tokio::test]
async fn a_store_that_wants_to_be_left_alone_hears_nothing_until_then() {
    let world = World::small();
    // A shard that takes a while to be sealed, and one that is there at once and is told.
    world.write("large.bin", &vec![7; 64 << 20]);
    let asked = Duration::from_secs(2);
    let store = Flaky::new(&MemoryStore::new(), [Fault::LeaveAlone(asked)], 0);
    let sent = world.send(&store).await.unwrap();
    assert_eq!(sealed(&store.inner), expected_sealed(&sent), "nothing is doubled");
    let moments = store.asked.lock().unwrap().clone();
    let quiet = moments[1] - moments[0];
    assert!(quiet >= asked, "it was asked again after {quiet:?}");
}

#[tokio::test]
async fn a_full_disk_is_no_reason_to_try_again_at_once() {
    for at in 0..3 {
        let world = World::small();
        let memory = MemoryStore::new();
        let faults = vec![Fault::Fine; at].into_iter().chain([Fault::Full]);
        let store = Flaky::new(&memory, faults, 0);
        let error = world.send(&store).await.unwrap_err();
        assert!(
            matches!(
                error,
                TransferError::Store {
                    source: StoreError::Permanent { .. },
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(store.put_calls.load(Ordering::SeqCst), at as u64 + 1);
        let sent = world.send(&memory).await.unwrap();
        assert_eq!(sealed(&memory), expected_sealed(&sent));
        world.receive(&sent, &memory).await.unwrap();
    }
}

#[tokio::test]
async fn other_bytes_under_a_name_are_never_taken_for_ours() {
    for at in 0..3 {
        let world = World::small();
        let faults = vec![Fault::Fine; at].into_iter().chain([Fault::Usurped]);
        let store = Flaky::new(&MemoryStore::new(), faults, 0);
        let error = world.send(&store).await.unwrap_err();
        assert!(matches!(error, TransferError::Occupied(_)), "object {at}: {error}");
    }
    let world = World::small();
    let store = MemoryStore::new();
    let list = packing_list_name(&world.run, &world.permit().id, &world.permitted().artifact());
    store
        .put_new(&list, Bytes::from_static(b"somebody else's"))
        .await
        .unwrap();
    let error = world.send(&store).await.unwrap_err();
    assert!(matches!(error, TransferError::Occupied(name) if name == list));
}

fn refused_by(error: TransferError, rule: &str) {
    assert!(
        matches!(&error, TransferError::Refused(refusal) if refusal.rule == rule),
        "{error}"
    );
}

#[tokio::test]
async fn the_byte_limit_counts_every_try_also_after_a_restart() {
    let world = World::small();
    let enough = world.send(&MemoryStore::new()).await.unwrap().bytes;
    // The sealed index differs by nothing in length from one sealing to the next, the list neither.
    for (limit, faults, passes) in [
        (enough, vec![], true),
        (enough - 1, vec![], false),
        (enough, vec![Fault::Reset], false),
        (enough, vec![Fault::ResetAfterEffect; 3], true),
        (
            2 * enough,
            [vec![Fault::Fine; 2], vec![Fault::Reset; 6]].concat(),
            false,
        ),
    ] {
        let world = World::small();
        let mut permit = world.permit();
        permit.byte_limit = limit;
        let store = Flaky::new(&MemoryStore::new(), faults.clone(), 0);
        let result = world.send_as(&world.verify(&permit).unwrap(), &store).await;
        assert_eq!(result.is_ok(), passes, "limit {limit} with {faults:?}: {result:?}");
        assert!(
            store.put_bytes.load(Ordering::SeqCst) <= limit,
            "no byte above the limit is put"
        );
        if let Err(error) = result {
            refused_by(error, "permit-byte-limit");
            let again = world
                .send_as(&world.verify(&permit).unwrap(), &store)
                .await
                .unwrap_err();
            refused_by(again, "permit-byte-limit");
            assert!(
                store.put_bytes.load(Ordering::SeqCst) <= limit,
                "a restart gives no new limit"
            );
        }
    }
}

#[tokio::test]
async fn a_permit_that_expires_midway_stops_the_crossing() {
    let world = World::small();
    let mut permit = world.permit();
    permit.expires = NOW + 1;
    let memory = MemoryStore::new();
    let store = Flaky::new(&memory, [Fault::Slow], 0);
    refused_by(
        world
            .send_as(&world.verify(&permit).unwrap(), &store)
            .await
            .unwrap_err(),
        "permit-expired",
    );
    assert_eq!(
        store.put_calls.load(Ordering::SeqCst),
        1,
        "after the expiry nothing was put"
    );
    assert!(memory.names().iter().all(|name| !name.as_str().starts_with("packing/")));
}

#[tokio::test]
async fn a_source_that_changes_is_noticed_before_anything_is_put() {
    let world = World::small();
    let permitted = world.permitted();
    let path = world.source().join("train.csv");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut content = std::fs::read(&path).unwrap();
    content[100] ^= 1;
    std::fs::write(&path, &content).unwrap();
    File::open(&path)
        .unwrap()
        .set_times(FileTimes::new().set_modified(modified))
        .unwrap();
    let store = MemoryStore::new();
    let changed = |error| matches!(error, TransferError::Changed { path } if path == "train.csv");
    assert!(
        changed(world.send_as(&permitted, &store).await.unwrap_err()),
        "same size and time, other content"
    );
    content.push(b'x');
    std::fs::write(&path, &content).unwrap();
    assert!(
        changed(world.send_as(&permitted, &store).await.unwrap_err()),
        "it has grown"
    );
    std::fs::write(&path, &content[..50]).unwrap();
    assert!(
        changed(world.send_as(&permitted, &store).await.unwrap_err()),
        "it was cut"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(
        changed(world.send_as(&permitted, &store).await.unwrap_err()),
        "it is gone"
    );
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    world.send_as(&permitted, &store).await.unwrap_err();
    assert!(store.names().is_empty());
}

#[tokio::test]
async fn a_crossing_goes_on_only_with_its_own_key() {
    let mut world = World::small();
    let memory = MemoryStore::new();
    let store = Flaky::new(&memory, [Fault::Fine, Fault::Full], 0);
    world.send(&store).await.unwrap_err();
    let right = std::mem::replace(&mut world.data_key, DataKey::from_bytes([6; 32]));
    let error = world.send(&memory).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Resume { why, .. } if why.contains("data key")),
        "{error}"
    );
    world.data_key = right;
    world.send(&memory).await.unwrap();
}

#[tokio::test]
async fn the_resume_file_is_private_and_survives_a_torn_line() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::small();
    let memory = MemoryStore::new();
    world
        .send(&Flaky::new(&memory, [Fault::Fine, Fault::Full], 0))
        .await
        .unwrap_err();
    let entries: Vec<_> = std::fs::read_dir(world.state())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [path] = &entries[..] else { panic!("{entries:?}") };
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path), mode(&world.state())), (0o600, 0o700));
    let in_flight = names_in_flight(&world.state()).unwrap();
    assert!(memory.names().iter().all(|name| in_flight.contains(name)));

    let whole = std::fs::read(path).unwrap();
    for cut in [1, 7, 40] {
        std::fs::write(path, &whole[..whole.len() - cut]).unwrap();
        let sent = world.send(&memory).await.unwrap();
        world.receive(&sent, &memory).await.unwrap();
        std::fs::remove_dir_all(world.destination()).unwrap();
        memory.delete(&sent.packing_list).await.unwrap();
    }
    let mut broken = whole.clone();
    broken[3] = b'\n';
    std::fs::write(path, broken).unwrap();
    let error = world.send(&memory).await.unwrap_err();
    assert!(matches!(error, TransferError::Resume { .. }), "{error}");
}

#[tokio::test]
async fn a_second_sender_of_the_same_waits_its_turn() {
    let world = World::small();
    let store = Flaky::new(&MemoryStore::new(), [Fault::Slow], 0);
    let (first, second) = tokio::join!(world.send(&store), world.send(&store));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.packing_list_digest, second.packing_list_digest);
    assert!(
        first.already != second.already,
        "one of them sent, the other found it sent"
    );
    assert_eq!(sealed(&store.inner), expected_sealed(&first));
}

#[tokio::test]
async fn an_output_crosses_back_under_its_slot_and_its_limit() {
    let world = World::small();
    let input = world.manifest();
    let envelope = world.sign(&world.permit(), &input);
    let back = PermitCheck {
        from: &world.to,
        to: &world.from,
        ..world.check()
    };
    let standing = |world: &World| Permitted::standing(&back, &envelope, "output", world.manifest()).unwrap();
    world.write("model.onnx", b"model");
    let store = MemoryStore::new();
    let sent = world.send_as(&standing(&world), &store).await.unwrap();
    assert!(sent.packing_list.as_str().starts_with("packing/run-1/permit-1-"));
    let noise: Vec<u8> = (0_u64..140_000)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    world.write("model.onnx", &noise);
    refused_by(
        world.send_as(&standing(&world), &store).await.unwrap_err(),
        "permit-byte-limit",
    );
}
