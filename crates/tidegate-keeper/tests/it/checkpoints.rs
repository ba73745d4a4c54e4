//! Unfinished work of attempts: who is given it, for how long it is kept, and lies about it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::open;
use tidegate_types::message::WorkerMessage;

use crate::worker::{Output, Worker};
use crate::world::World;

/// Puts unfinished work into the store; gives the message that tells of it.
async fn unfinished(worker: &Worker, work: &[u8]) -> WorkerMessage {
    let output = Output {
        shards: vec![work.to_vec()],
        ..Output::default()
    };
    let WorkerMessage::Output {
        packing_list,
        packing_list_digest,
        grant,
    } = worker.put(output).await
    else {
        panic!("no output")
    };
    WorkerMessage::Checkpoint {
        packing_list,
        packing_list_digest,
        grant,
    }
}

/// The packing list that a message tells of.
fn list_of(message: &WorkerMessage) -> String {
    let WorkerMessage::Checkpoint { packing_list, .. } = message else {
        panic!("no checkpoint")
    };
    packing_list.clone()
}

/// Waits until an object is gone.
async fn gone(world: &World, object: &str) {
    while world.objects("cloud").iter().any(|name| name == object) {
        crate::world::pause().await;
    }
}

#[tokio::test]
async fn the_next_worker_is_given_what_the_last_one_had_done_and_nobody_else() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut first = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    first.granted().await;
    assert!(first.granted.as_ref().unwrap().checkpoint.is_none());
    let sent = world.objects("cloud");
    let (old, new) = (
        unfinished(&first, b"a third").await,
        unfinished(&first, b"a half").await,
    );
    first.tell(old.clone()).await;
    first.tell(new.clone()).await;
    // What was replaced is not kept.
    gone(&world, &list_of(&old)).await;
    world.fence(1).await;
    world.restart().await;

    let mut second = Worker::new(world.ticket(2, &permits).await, world.store("cloud"));
    second.granted().await;
    let granted = second.granted.as_ref().unwrap().checkpoint.clone().unwrap();
    assert_eq!((granted.attempt, granted.packing_list.clone()), (1, list_of(&new)));
    assert_eq!(granted.signing_key, first.signer.public().to_base64());
    let key = STANDARD.decode(&granted.sealed_key).unwrap();
    assert_eq!(open(&second.identity, &key).unwrap().len(), 32);
    assert!(open(&first.identity, &key).is_err());
    // Its own takes the place of what it was given, and goes when there is a model.
    let own = unfinished(&second, b"two thirds").await;
    second.tell(own.clone()).await;
    gone(&world, &list_of(&new)).await;
    second.output(Output::default()).await;
    second.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(2).await;
    gone(&world, &list_of(&own)).await;
    let left = world.objects("cloud");
    let left = left
        .iter()
        .filter(|name| name.starts_with("packing/") && !sent.contains(name));
    assert_eq!(left.count(), 1, "the output");
}

#[tokio::test]
async fn what_a_fenced_worker_does_counts_for_nobody() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut first = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    first.granted().await;
    world.fence(1).await;
    let late = unfinished(&first, b"late").await;
    first.tell(late).await;
    let mut second = Worker::new(world.ticket(2, &permits).await, world.store("cloud"));
    second.granted().await;
    assert!(second.granted.as_ref().unwrap().checkpoint.is_none());
}

#[tokio::test]
async fn lies_about_unfinished_work_burn_the_attempt() {
    type Lie = fn(&Worker, &mut WorkerMessage);
    let lies: [(Lie, &str); 3] = [
        (
            |_, message| {
                if let WorkerMessage::Checkpoint {
                    packing_list_digest, ..
                } = message
                {
                    *packing_list_digest = sha256(b"another list");
                }
            },
            "output-tampered",
        ),
        (
            |worker, message| {
                if let WorkerMessage::Checkpoint { grant, .. } = message {
                    *grant = worker.sealed(&[1; 32]);
                }
            },
            "output-tampered",
        ),
        (
            |_, message| {
                if let WorkerMessage::Checkpoint { grant, .. } = message {
                    "bm90aGluZw==".clone_into(grant);
                }
            },
            "message-malformed",
        ),
    ];
    for (lie, rule) in lies {
        let mut world = World::new().await;
        let permits = world.cross().await;
        let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
        worker.granted().await;
        let mut message = unfinished(&worker, b"work").await;
        lie(&worker, &mut message);
        worker.tell(message).await;
        assert_eq!(world.burned(1).await, rule);
    }
}
