//! What stands sealed at one public site and is needed at another: who is lent it, and who is not.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_seal::dsse;
use tidegate_seal::envelope::open;
use tidegate_types::ids::{ArtifactId, PermitId};
use tidegate_types::keeper::{Copied, ReplyBody, RequestBody};
use tidegate_types::permit::{Permit, Statement};

use crate::worker::Worker;
use crate::world::{World, attempt, let_pass, object, program, site};

/// A permit for an artifact to cross to the second site, with its statement.
async fn permit(world: &mut World, artifact: &ArtifactId) -> (PermitId, Permit) {
    let body = world.permit_request(artifact, "second");
    let ReplyBody::Permit {
        permit,
        envelope,
        checkpoint,
    } = world.done(body).await
    else {
        panic!("no permit")
    };
    world.seen(&checkpoint);
    let statement: Statement<Permit> = serde_json::from_slice(&dsse::peek(&envelope).unwrap()).unwrap();
    (permit, statement.predicate)
}

async fn sent(world: &mut World, permit: &PermitId) -> (u64, Option<Copied>) {
    loop {
        let body = RequestBody::Send { permit: permit.clone() };
        match world.done(body).await {
            ReplyBody::Sent { bytes, copied } => return (bytes, copied),
            ReplyBody::Sending { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Everything of the training for the second site: what of it stands in the first.
async fn cross(world: &mut World) -> BTreeMap<String, PermitId> {
    let mut permits = BTreeMap::new();
    for (name, artifact) in world.prepare().await {
        let (permit, _) = permit(world, &artifact).await;
        sent(world, &permit).await;
        permits.insert(name, permit);
    }
    permits
}

async fn started(world: &mut World, permits: &BTreeMap<String, PermitId>) -> Worker {
    let body = RequestBody::StartAttempt {
        attempt: attempt(1),
        pipeline: world.pipeline.clone(),
        site: site("second"),
        worker: program(),
        permits: permits.clone(),
    };
    let ReplyBody::Ticket { ticket, .. } = world.done(body).await else {
        panic!("no ticket")
    };
    Worker::new(ticket, world.store("second"))
}

fn sealed(world: &World, name: &str) -> Vec<String> {
    let names = world.objects(name).into_iter();
    names.filter(|name| name.starts_with("sealed/")).collect()
}

#[tokio::test]
async fn what_stands_at_another_site_is_named_here_and_lent_to_the_worker_there() {
    let mut world = World::of_two_clouds().await;
    world.lends.store(true, Ordering::SeqCst);
    world.cross().await;
    let artifacts = world.prepare().await;
    let mut permits = BTreeMap::new();
    for (name, artifact) in &artifacts {
        let (permit, statement) = permit(&mut world, artifact).await;
        assert_eq!(statement.copied_from.unwrap().site, site("cloud"));
        let (bytes, copied) = sent(&mut world, &permit).await;
        let nothing_yet = Copied {
            from: site("cloud"),
            bytes: 0,
        };
        assert_eq!(copied, Some(nothing_yet), "{name}");
        assert!(bytes < 10_000, "index and list: {bytes}");
        permits.insert(name.clone(), permit);
    }
    assert_eq!(sealed(&world, "second").len(), artifacts.len(), "an index of each");
    let mut worker = started(&mut world, &permits).await;
    worker.granted().await;
    let grant = worker.granted.clone().unwrap();
    let mut wanted = 0;
    for granted in &grant.artifacts {
        let lent = STANDARD.decode(granted.lent.as_ref().unwrap()).unwrap();
        let lent = String::from_utf8(open(&worker.identity, &lent).unwrap().to_vec()).unwrap();
        // What a worker does with it.
        let (cloud, second) = (world.store("cloud"), world.store("second"));
        let mut moved = 0;
        for name in lent.lines() {
            let body = cloud.get(&object(name), u64::MAX).await.unwrap();
            moved += body.len() as u64;
            second.put_new(&object(name), body).await.unwrap();
        }
        assert!(moved > 0);
        let (_, copied) = sent(&mut world, &permits[&granted.input]).await;
        assert_eq!(copied.unwrap().bytes, moved, "{}", granted.input);
        wanted += 1;
    }
    assert_eq!(wanted, 2, "both inputs but the code");
}

#[tokio::test]
async fn what_a_store_does_not_lend_is_sent_from_home() {
    let mut world = World::of_two_clouds().await;
    let first = world.cross().await;
    let permits = cross(&mut world).await;
    let (bytes, copied) = sent(&mut world, &permits["train"]).await;
    assert_eq!(copied, None);
    let (there, _) = sent(&mut world, &first["train"]).await;
    assert!(bytes.abs_diff(there) < 200, "{bytes} and {there}");
    let mut worker = started(&mut world, &permits).await;
    worker.granted().await;
    assert!(
        worker
            .granted
            .unwrap()
            .artifacts
            .iter()
            .all(|artifact| artifact.lent.is_none())
    );
}

#[tokio::test]
async fn what_is_gone_at_the_other_site_is_sent_from_home() {
    let mut world = World::of_two_clouds().await;
    world.lends.store(true, Ordering::SeqCst);
    world.cross().await;
    for name in sealed(&world, "cloud") {
        world.store("cloud").delete(&object(&name)).await.unwrap();
    }
    let permits = cross(&mut world).await;
    assert_eq!(sent(&mut world, &permits["train"]).await.1, None);
    assert!(sealed(&world, "second").len() > permits.len());
}

#[tokio::test]
async fn what_never_stood_there_or_whose_permit_has_ended_is_not_copied() {
    let mut world = World::of_two_clouds().await;
    world.lends.store(true, Ordering::SeqCst);
    let train = world.prepare().await["train"];
    assert!(permit(&mut world, &train).await.1.copied_from.is_none());
    let mut world = World::of_two_clouds().await;
    world.lends.store(true, Ordering::SeqCst);
    world.cross().await;
    let_pass(8 * 24 * 3600);
    let train = world.prepare().await["train"];
    assert!(permit(&mut world, &train).await.1.copied_from.is_none());
}
