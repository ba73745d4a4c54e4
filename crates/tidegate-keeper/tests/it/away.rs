//! Work on rows that a machine of the private site does in the keeper's place.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tidegate_types::keeper::{AttemptOutcome, Outcome, ReplyBody, RequestBody};
use tidegate_types::message::{Attempt, WorkerMessage};
use tidegate_types::{Label, Level, TaskName};

use crate::worker::{Output, Worker};
use crate::world::{World, program, run, site};

fn prepare(world: &World) -> RequestBody {
    RequestBody::Prepare {
        run: run(),
        pipeline: world.pipeline.clone(),
    }
}

fn start(world: &World, number: u32, at: &str) -> RequestBody {
    RequestBody::StartAttempt {
        attempt: attempt(number),
        pipeline: world.pipeline.clone(),
        site: site(at),
        worker: program(),
        permits: BTreeMap::new(),
    }
}

fn attempt(number: u32) -> Attempt {
    Attempt {
        run: run(),
        task: TaskName::new("prepare").unwrap(),
        attempt: number,
        rank: 0,
    }
}

async fn begun(world: &mut World, number: u32) -> Worker {
    let body = start(world, number, "hospital");
    let ReplyBody::Ticket { ticket, .. } = world.done(body).await else {
        panic!("no ticket")
    };
    let mut worker = Worker::new(ticket, world.store("hospital"));
    worker.granted().await;
    worker
}

/// Works to the end; gives how the attempt ended.
async fn work(world: &mut World, number: u32) -> AttemptOutcome {
    let mut worker = begun(world, number).await;
    let output = Output {
        label: Label::of(Level::Restricted),
        ..Output::default()
    };
    worker.output(output).await;
    worker.tell(WorkerMessage::Finished { seconds: 7 }).await;
    let body = RequestBody::AwaitAttempt {
        attempt: attempt(number),
    };
    let ReplyBody::AttemptEnded { outcome } = world.done(body).await else {
        panic!("not ended")
    };
    outcome
}

#[tokio::test]
async fn a_machine_of_the_site_does_it_and_nothing_of_it_is_left() {
    let mut world = World::with_machines_for_rows().await;
    world.rows.away.store(true, Ordering::SeqCst);
    let before = world.objects("hospital");
    let body = prepare(&world);
    for _ in 0..2 {
        assert_eq!(
            world.done(body.clone()).await,
            ReplyBody::OnMachine,
            "asked twice, packed once"
        );
    }
    // It is asked of no other site, whoever asks.
    let elsewhere = start(&world, 1, "cloud");
    assert_eq!(world.refused(elsewhere).await, "rows-stay-home");
    // A machine that is lost says nothing, and the next one does it.
    let worker = begun(&mut world, 1).await;
    let granted: Vec<_> = worker
        .granted
        .as_ref()
        .unwrap()
        .artifacts
        .iter()
        .map(|one| &one.input)
        .collect();
    assert_eq!(granted, ["rows"]);
    let job = &worker.granted.as_ref().unwrap().job;
    assert!(
        job.setup.is_empty() && !job.run_network && job.run.ends_with(" rows"),
        "{job:?}"
    );
    let body_of_fence = RequestBody::Fence {
        attempt: attempt(1),
        why: "lost".to_owned(),
    };
    world.done(body_of_fence).await;
    world.restart().await;
    assert_eq!(work(&mut world, 2).await, AttemptOutcome::Worked { seconds: 7 });
    assert!(matches!(world.done(body).await, ReplyBody::Prepared { .. }));
    assert_eq!(
        world.objects("hospital"),
        before,
        "neither what it was given nor what it made"
    );
    let away = world.folder.path().join("away");
    assert_eq!(std::fs::read_dir(away).unwrap().count(), 0);
}

#[tokio::test]
async fn what_it_refuses_is_refused_once_and_then_tried_again() {
    let mut world = World::with_machines_for_rows().await;
    world.rows.away.store(true, Ordering::SeqCst);
    world.rows.refusing.store(true, Ordering::SeqCst);
    let body = prepare(&world);
    assert_eq!(world.done(body.clone()).await, ReplyBody::OnMachine);
    assert_eq!(work(&mut world, 1).await, AttemptOutcome::Worked { seconds: 7 });
    assert_eq!(world.refused(body.clone()).await, "k-not-reached");
    world.rows.refusing.store(false, Ordering::SeqCst);
    assert_eq!(world.done(body.clone()).await, ReplyBody::OnMachine);
    assert_eq!(work(&mut world, 2).await, AttemptOutcome::Worked { seconds: 7 });
    assert!(matches!(world.ask(body).await, Outcome::Done(_)));
}
