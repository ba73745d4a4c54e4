//! Machines that work at one job: granted together or not at all, and one output.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Journal as _;
use tidegate_types::ids::PermitId;
use tidegate_types::keeper::{AttemptOutcome, RequestBody};
use tidegate_types::message::{Attempt, Node, WorkerMessage};

use crate::checkpoints::{gone, list_of, unfinished};
use crate::worker::{Output, Worker};
use crate::world::{World, attempt, pause};

fn machine(number: u32, rank: u32) -> Attempt {
    Attempt {
        rank,
        ..attempt(number)
    }
}

/// The worker of one machine, with a ticket.
async fn worker(world: &mut World, of: Attempt, permits: &BTreeMap<String, PermitId>) -> Worker {
    let node = Node {
        key: STANDARD.encode([u8::try_from(of.rank).unwrap(); 32]),
        endpoint: ([127, 0, 0, 1], 51_820 + u16::try_from(of.rank).unwrap()).into(),
    };
    let ticket = world.ticket_of(of, permits).await;
    let mut worker = Worker::new(ticket, world.store("cloud"));
    worker.sandbox.network = "network-namespace+seccomp".to_owned();
    worker.node = Some(node);
    worker
}

async fn begun() -> (World, BTreeMap<String, PermitId>, [Worker; 2]) {
    let mut world = World::of_two_machines().await;
    let permits = world.cross().await;
    let first = worker(&mut world, machine(1, 0), &permits).await;
    let second = worker(&mut world, machine(1, 1), &permits).await;
    (world, permits, [first, second])
}

/// Brings both machines to where they have the data.
async fn granted(first: &mut Worker, second: &mut Worker) {
    for worker in [&mut *first, &mut *second] {
        worker.admitted().await;
        worker.setup_done().await;
    }
    first.data_grant().await;
    second.data_grant().await;
}

#[tokio::test]
async fn data_is_granted_once_all_machines_are_set_up_and_the_first_ones_output_counts() {
    let (mut world, _, [mut first, mut second]) = begun().await;
    first.admitted().await;
    first.setup_done().await;
    // It waits also where its keeper is another process meanwhile.
    second.admitted().await;
    world.restart().await;
    world.ticket_of(machine(1, 0), &BTreeMap::new()).await;
    world.ticket_of(machine(1, 1), &BTreeMap::new()).await;
    assert_eq!(
        world
            .store("cloud")
            .names()
            .iter()
            .filter(|name| name.as_str().contains("1-0/in/"))
            .count(),
        1
    );
    second.setup_done().await;
    second.data_grant().await;
    first.data_grant().await;
    let expected = [first.node.clone().unwrap(), second.node.clone().unwrap()];
    for worker in [&first, &second] {
        assert_eq!(worker.granted.as_ref().unwrap().nodes, expected);
        assert_eq!(worker.granted.as_ref().unwrap().job.others, 1);
    }
    first.log("of the first\n").await;
    second.log("of the second\n").await;
    second.tell(WorkerMessage::Finished { seconds: 3 }).await;
    assert_eq!(
        world.ended_of(machine(1, 1)).await,
        AttemptOutcome::Worked { seconds: 3 }
    );
    first.output(Output::default()).await;
    first.tell(WorkerMessage::Finished { seconds: 4 }).await;
    world.accepted(1).await;
    assert_eq!(world.models().len(), 1);
    for (name, text) in [
        ("train-1.log", "of the first\n"),
        ("train-1-rank-1.log", "of the second\n"),
    ] {
        let file = world.folder.path().join("logs/r1").join(name);
        assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    }
}

#[tokio::test]
async fn an_output_of_another_machine_than_the_first_is_refused() {
    let (mut world, _, [mut first, mut second]) = begun().await;
    for worker in [&mut first, &mut second] {
        worker.admitted().await;
        worker.setup_done().await;
    }
    second.data_grant().await;
    second.output(Output::default()).await;
    assert_eq!(world.burned_of(machine(1, 1)).await, "message-order");
    assert!(world.models().is_empty());
}

#[tokio::test]
async fn a_machine_alone_is_granted_nothing() {
    let (mut world, permits, [mut first, mut second]) = begun().await;
    first.admitted().await;
    first.setup_done().await;
    // The other one is lost before it is set up, and no third one may come.
    world.fence_of(machine(1, 1)).await;
    assert!(second.turned_away().await.contains("lost"));
    world.fence_of(machine(1, 0)).await;
    assert!(first.turned_away().await.contains("lost"), "and no data before");
    // The next attempt needs both of them again.
    let mut first = worker(&mut world, machine(2, 0), &permits).await;
    let mut second = worker(&mut world, machine(2, 1), &permits).await;
    granted(&mut first, &mut second).await;
}

#[tokio::test]
async fn a_machine_that_is_not_asked_for_or_does_not_say_where_it_is_gets_nothing() {
    let (mut world, permits, [mut first, _]) = begun().await;
    let mut request = world.start_request(1, &permits);
    if let RequestBody::StartAttempt { attempt, .. } = &mut request {
        attempt.rank = 2;
    }
    assert_eq!(world.refused(request).await, "nodes-not-allowed");
    first.node = None;
    first.admitted().await;
    first.setup_done().await;
    assert_eq!(world.burned(1).await, "message-malformed");
}

#[tokio::test]
async fn what_one_machine_says_of_where_it_is_cannot_hurt_the_others() {
    type Lie = fn(&mut Node, &Node);
    let lies: [Lie; 5] = [
        |node, other| node.key.clone_from(&other.key),
        |node, other| node.endpoint = other.endpoint,
        |node, _| node.key = STANDARD.encode([1; 31]),
        |node, _| node.endpoint.set_port(53),
        |node, _| node.endpoint.set_ip([224, 0, 0, 1].into()),
    ];
    for lie in lies {
        let (mut world, _, [mut first, mut second]) = begun().await;
        first.admitted().await;
        first.setup_done().await;
        lie(second.node.as_mut().unwrap(), first.node.as_ref().unwrap());
        second.admitted().await;
        // The one is set up before the other one lies.
        while !set_up(&world, 0) {
            pause().await;
        }
        second.setup_done().await;
        assert_eq!(world.burned_of(machine(1, 1)).await, "message-malformed");
        assert!(matches!(
            world.ended_of(machine(1, 0)).await,
            AttemptOutcome::Fenced { .. }
        ));
    }
}

/// Whether a machine waits for the others, by the keeper's journal.
fn set_up(world: &World, rank: u32) -> bool {
    let record = world.journal.get("attempts", &format!("r1.train.1-{rank}")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record.unwrap()).unwrap();
    record["phase"] == "set_up"
}

#[tokio::test]
async fn a_ticket_in_two_hands_burns_the_attempt_of_all_machines() {
    for late in [false, true] {
        let (mut world, _, [mut first, mut second]) = begun().await;
        granted(&mut first, &mut second).await;
        if late {
            // Nobody looks into the mailbox of a machine that is done, but whoever accepts the output.
            second.tell(WorkerMessage::Finished { seconds: 1 }).await;
            world.ended_of(machine(1, 1)).await;
        }
        let thief = Worker::new(second.ticket().clone(), world.store("cloud"));
        thief.contest().await;
        if !late {
            second.log("a line\n").await;
            assert_eq!(world.burned_of(machine(1, 1)).await, "second-hello");
            assert!(matches!(world.ended(1).await, AttemptOutcome::Fenced { .. }));
            continue;
        }
        first.output(Output::default()).await;
        first.tell(WorkerMessage::Finished { seconds: 1 }).await;
        assert_eq!(world.burned(1).await, "second-hello");
    }
}

#[tokio::test]
async fn a_machine_that_is_done_quickly_keeps_nothing_from_the_others() {
    let (mut world, _, [mut first, mut second]) = begun().await;
    granted(&mut first, &mut second).await;
    second.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.ended_of(machine(1, 1)).await;
    // As if the keeper had been killed before it granted the data of the first one.
    let key = "r1.train.1-0";
    let old = world.journal.get("attempts", key).unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&old).unwrap();
    record["phase"] = "set_up".into();
    let new = tidegate_types::to_canonical_json(&record).unwrap();
    let batch = tidegate_contracts::journal::Batch::default().replace("attempts", key, Some(old), new);
    world.journal.commit(&batch).unwrap();
    world.restart().await;
    world.ticket_of(machine(1, 0), &BTreeMap::new()).await;
    first.data_grant().await;
    assert_eq!(first.granted.as_ref().unwrap().nodes.len(), 2);
}

#[tokio::test]
async fn what_happens_to_each_machine_is_an_event_of_its_own() {
    let (mut world, _, _workers) = begun().await;
    world.fence_of(machine(1, 0)).await;
    world.fence_of(machine(1, 1)).await;
    let leaves = world.journal.log_leaves(0, u64::MAX).unwrap();
    let events = leaves
        .iter()
        .map(|leaf| serde_json::from_slice::<tidegate_types::event::Event>(leaf).unwrap());
    let of = |word: &str| -> Vec<_> {
        let all = events.clone().filter(|event| event.event_type.ends_with(word));
        all.map(|event| (event.id, event.data.numbers)).collect()
    };
    for word in ["attempt-started", "fenced"] {
        let of = of(word);
        assert_eq!(of.len(), 2, "{word}");
        assert_ne!(of[0].0, of[1].0, "{word}");
        assert_eq!(of[1].1.get("rank"), Some(&1), "{word}");
    }
}

#[tokio::test]
async fn every_machine_goes_on_with_what_the_first_one_kept() {
    let (mut world, permits, [mut first, mut second]) = begun().await;
    granted(&mut first, &mut second).await;
    let (old, new) = (
        unfinished(&first, b"a third").await,
        unfinished(&first, b"a half").await,
    );
    first.tell(old.clone()).await;
    first.tell(new.clone()).await;
    gone(&world, &list_of(&old)).await;
    for rank in [0, 1] {
        world.fence_of(machine(1, rank)).await;
    }
    let mut first = worker(&mut world, machine(2, 0), &permits).await;
    let mut second = worker(&mut world, machine(2, 1), &permits).await;
    for worker in [&mut first, &mut second] {
        worker.admitted().await;
        worker.setup_done().await;
    }
    for worker in [&mut first, &mut second] {
        worker.data_grant().await;
        let checkpoint = worker.granted.as_ref().unwrap().checkpoint.as_ref().unwrap();
        assert_eq!(
            (checkpoint.attempt, checkpoint.packing_list.clone()),
            (1, list_of(&new))
        );
    }
    // The second machine may still be fetching it when the first one has more; it goes when there is a model.
    let (own, more) = (
        unfinished(&first, b"two thirds").await,
        unfinished(&first, b"most").await,
    );
    first.tell(own.clone()).await;
    first.tell(more.clone()).await;
    gone(&world, &list_of(&own)).await;
    assert!(world.objects("cloud").contains(&list_of(&new)));
    first.output(Output::default()).await;
    first.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(2).await;
    gone(&world, &list_of(&new)).await;
    gone(&world, &list_of(&more)).await;
}

#[tokio::test]
async fn what_only_the_first_one_may_keep_is_refused_of_another() {
    let (mut world, _, [mut first, mut second]) = begun().await;
    for worker in [&mut first, &mut second] {
        worker.admitted().await;
        worker.setup_done().await;
    }
    second.data_grant().await;
    let told = unfinished(&second, b"a third").await;
    second.tell(told).await;
    assert_eq!(world.burned_of(machine(1, 1)).await, "message-order");
}
