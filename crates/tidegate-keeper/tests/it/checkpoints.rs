//! Unfinished work of attempts: who is given it, for how long it is kept, and lies about it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::open;

use tidegate_types::Digest;
use tidegate_types::keeper::{ReplyBody, RequestBody};
use tidegate_types::message::WorkerMessage;

use crate::worker::{Output, Worker};
use crate::world::{World, attempt, site};

/// Puts unfinished work into the store; gives the message that tells of it.
pub(crate) async fn unfinished(worker: &Worker, work: &[u8]) -> WorkerMessage {
    naming(worker, work, Vec::new()).await
}

/// The same, whose list names objects of others too.
async fn naming(worker: &Worker, work: &[u8], also: Vec<Digest>) -> WorkerMessage {
    let output = Output {
        shards: vec![work.to_vec()],
        also,
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
pub(crate) fn list_of(message: &WorkerMessage) -> String {
    let WorkerMessage::Checkpoint { packing_list, .. } = message else {
        panic!("no checkpoint")
    };
    packing_list.clone()
}

/// Waits until an object is gone.
pub(crate) async fn gone(world: &World, object: &str) {
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
async fn what_was_done_elsewhere_comes_home_and_is_given_to_the_next_worker_there() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut first = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    first.granted().await;
    let (old, new) = (
        unfinished(&first, b"a third").await,
        unfinished(&first, b"a half").await,
    );
    first.tell(old.clone()).await;
    first.tell(new.clone()).await;
    gone(&world, &list_of(&old)).await;
    world.fence(1).await;
    let fetch = |place: &str| RequestBody::FetchCheckpoint {
        attempt: attempt(2),
        site: site(place),
    };
    // Where it stands already, nothing has to move.
    assert_eq!(
        world.done(fetch("cloud")).await,
        ReplyBody::Checkpoint { checkpoint: None }
    );
    let mut carried = None;
    for _ in 0..2 {
        let ReplyBody::Checkpoint { checkpoint } = world.done(fetch("hospital")).await else {
            panic!("another reply")
        };
        let again = checkpoint.unwrap();
        assert_eq!((again.attempt, again.from.as_str()), (1, "cloud"));
        assert!(
            carried.is_none_or(|before| before == again),
            "asking again changes nothing"
        );
        carried = Some(again);
    }
    let RequestBody::StartAttempt {
        attempt,
        pipeline,
        worker,
        ..
    } = world.start_request(2, &permits)
    else {
        panic!("another request")
    };
    let start = RequestBody::StartAttempt {
        attempt,
        pipeline,
        site: site("hospital"),
        worker,
        permits: BTreeMap::new(),
    };
    let ReplyBody::Ticket { ticket, .. } = world.done(start).await else {
        panic!("no ticket")
    };
    let mut second = Worker::new(ticket, world.store("hospital"));
    second.granted().await;
    let grant = second.granted.as_ref().unwrap();
    assert!(grant.checkpoint.is_none(), "it is an input like the others");
    let given = grant
        .artifacts
        .iter()
        .find(|given| given.input == "checkpoint")
        .unwrap();
    assert_eq!(given.artifact, carried.unwrap().artifact.artifact);
}

#[tokio::test]
async fn a_worker_that_names_what_is_not_its_own_has_nothing_of_it_removed() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    let sealed: Vec<String> = world
        .objects("cloud")
        .into_iter()
        .filter(|name| name.starts_with("sealed/"))
        .collect();
    let digests = sealed
        .iter()
        .take(3)
        .map(|name| name.replace("sealed/", "sha256:").parse().unwrap());
    let greedy = naming(&worker, b"a third", digests.collect()).await;
    worker.tell(greedy.clone()).await;
    let next = unfinished(&worker, b"a half").await;
    worker.tell(next).await;
    gone(&world, &list_of(&greedy)).await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    let left = world.objects("cloud");
    assert!(sealed.iter().all(|name| left.contains(name)), "{left:?}");
}

/// A worker names a shard of the checkpoint before where its content is the same.
#[tokio::test]
async fn a_shard_that_the_next_one_names_too_stays_when_the_one_before_is_removed() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    let before = world.objects("cloud");
    let first = unfinished(&worker, b"a third").await;
    let new = world.objects("cloud").into_iter().filter(|name| !before.contains(name));
    let sealed: Vec<String> = new.filter(|name| name.starts_with("sealed/")).collect();
    let [one, other] = &sealed[..] else {
        panic!("shard and index: {sealed:?}")
    };
    worker.tell(first.clone()).await;
    let digest = one.replace("sealed/", "sha256:").parse().unwrap();
    let second = naming(&worker, b"a half", vec![digest]).await;
    worker.tell(second).await;
    gone(&world, &list_of(&first)).await;
    gone(&world, other).await;
    assert!(world.objects("cloud").contains(one));
    // With the last one that names it, it goes.
    let third = unfinished(&worker, b"two thirds").await;
    worker.tell(third).await;
    gone(&world, one).await;
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
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    let many = (0..100_u8).map(|number| sha256(&[number])).collect();
    let many = naming(&worker, b"work", many).await;
    worker.tell(many).await;
    assert_eq!(world.burned(1).await, "output-tampered");
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
