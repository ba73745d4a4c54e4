//! Outputs that lie about what they are.

use tidegate_seal::shard::MAX_PLAINTEXT_BYTES;
use tidegate_types::message::WorkerMessage;
use tidegate_types::{Label, Level};

use crate::worker::{Output, Worker};
use crate::world::World;

/// The rule that refuses an output. Nothing of it may be at home afterwards.
async fn refused(output: Output) -> String {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    worker.output(output).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    let rule = world.burned(1).await;
    assert!(worker.turned_away().await.contains(&rule));
    assert_eq!(world.models().len(), 0, "{rule}");
    assert_eq!(
        world.entries("artifacts"),
        3,
        "code, train and validation, and no model"
    );
    rule
}

#[tokio::test]
async fn an_altered_output_stays_out() {
    let output = Output {
        tampered: |sealed| sealed[50] ^= 1,
        ..Output::default()
    };
    assert_eq!(refused(output).await, "output-tampered");
}

#[tokio::test]
async fn a_label_above_the_slots_stays_out() {
    let output = Output {
        label: Label::of(Level::Confidential),
        ..Output::default()
    };
    assert_eq!(refused(output).await, "label-above-slot");
}

#[tokio::test]
async fn a_few_sealed_bytes_that_unpack_to_more_than_the_slot_stay_out() {
    // Five full shards of zeros: some 30 KiB in the store, and 320 MiB on the disk.
    let output = Output {
        shards: vec![vec![0; MAX_PLAINTEXT_BYTES]; 5],
        ..Output::default()
    };
    assert_eq!(refused(output).await, "output-tampered");
    // One that says that it unpacks to less than it does.
    let output = Output {
        shards: vec![vec![0; MAX_PLAINTEXT_BYTES]],
        told: |key| key.plaintext_bytes = 10,
        ..Output::default()
    };
    assert_eq!(refused(output).await, "output-tampered");
}

#[tokio::test]
async fn more_files_than_an_artifact_may_have_stay_out() {
    let output = Output {
        empty_files: 100_000,
        ..Output::default()
    };
    assert_eq!(refused(output).await, "output-tampered");
}

#[tokio::test]
async fn an_output_under_another_key_or_list_stays_out() {
    for spoiled_key in [true, false] {
        let mut world = World::new().await;
        let permits = world.cross().await;
        let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
        worker.granted().await;
        let WorkerMessage::Output {
            packing_list,
            mut packing_list_digest,
            mut grant,
        } = worker.put(Output::default()).await
        else {
            panic!("no output")
        };
        if spoiled_key {
            grant = worker.sealed(&[1; 32]);
        } else {
            packing_list_digest = tidegate_seal::digest::sha256(b"another list");
        }
        let message = WorkerMessage::Output {
            packing_list,
            packing_list_digest,
            grant,
        };
        worker.tell(message).await;
        assert_eq!(world.burned(1).await, "output-tampered");
        assert_eq!(world.models().len(), 0);
    }
}
