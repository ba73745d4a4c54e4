//! What stands in a store and nobody needs: found, told apart from what others need, and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tidegate_contracts::Store;
use tidegate_keeper::{Needless, Removal, Sweep};
use tidegate_transfer::names_in_flight;
use tidegate_types::keeper::{Outcome, RequestBody};
use tidegate_types::message::WorkerMessage;

use crate::transfers::transfers;
use crate::worker::{Output, Worker};
use crate::world::{World, let_pass, object, site};

const HOUR: u64 = 3600;

async fn sweep(world: &World, removal: Removal) -> Sweep {
    let stores = ["hospital", "cloud", "ward"]
        .map(|name| (site(name), Arc::new(world.store(name)) as Arc<dyn Store>))
        .into();
    transfers(world).sweep(&stores, removal).await.unwrap()
}

/// The names that were found, with the reasons.
fn found(sweep: &Sweep) -> BTreeMap<String, Needless> {
    let needless = sweep.needless.iter();
    needless.map(|found| (found.object.clone(), found.why)).collect()
}

fn all(objects: Vec<String>, why: Needless) -> BTreeMap<String, Needless> {
    objects.into_iter().map(|name| (name, why)).collect()
}

async fn put(world: &World, name: &str) {
    let body = Bytes::from_static(b"left");
    world.store("cloud").put_new(&object(name), body).await.unwrap();
}

#[tokio::test]
async fn what_can_still_be_used_stays_and_so_does_what_others_sent() {
    let mut world = World::new().await;
    world.cross().await;
    let ours = world.objects("cloud");
    // Somebody else sends into the same store.
    let mut other = World::new().await;
    other.cross().await;
    let theirs = other.objects("cloud");
    for name in &theirs {
        let body = other.store("cloud").get(&object(name), 1 << 20).await.unwrap();
        world.store("cloud").put_new(&object(name), body).await.unwrap();
    }
    put(&world, "sealed/00ff").await;
    put(&world, "mailbox/run-1/train/1-0/in/000001.json").await;
    let first = sweep(&world, Removal::Known).await;
    assert_eq!((first.needless.len(), first.waiting), (0, 1), "{first:?}");
    let_pass(23 * HOUR);
    assert_eq!(sweep(&world, Removal::Known).await, first, "it may be on its way");

    // A day later the permits have ended, and nobody has come for what no list names.
    let_pass(2 * HOUR);
    let mut expected = all(ours, Needless::PermitEnded);
    expected.insert("sealed/00ff".to_owned(), Needless::Unnamed);
    let before = world.store("cloud").names();
    let looked = sweep(&world, Removal::Nothing).await;
    assert_eq!(found(&looked), expected);
    assert_eq!(world.store("cloud").names(), before, "looking removes nothing");
    let lists = looked.needless.iter().map(|found| found.object.starts_with("packing/"));
    assert!(lists.is_sorted_by(|earlier, later| earlier >= later), "lists go first");
    // What nobody names goes only when somebody says that nobody else sends there.
    assert_eq!(found(&sweep(&world, Removal::Known).await), expected);
    assert_eq!(world.objects("cloud").len(), theirs.len() + 1);
    assert_eq!(
        found(&sweep(&world, Removal::Unnamed).await),
        all(vec!["sealed/00ff".to_owned()], Needless::Unnamed)
    );
    assert_eq!(world.objects("cloud"), theirs);
    assert_eq!(
        world.store("cloud").names().len(),
        theirs.len() + 1,
        "letters are left alone"
    );
    assert_eq!(sweep(&world, Removal::Known).await, Sweep::default());
}

#[tokio::test]
async fn what_nobody_can_read_any_more_goes() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let before: BTreeSet<String> = world.objects("cloud").into_iter().collect();
    let artifacts = world.prepare().await;
    crate::custodian::custodian(&world, u64::MAX)
        .shred(&artifacts["train"])
        .await
        .unwrap();
    let gone = found(&sweep(&world, Removal::Known).await);
    // One shard, the index and the list.
    assert_eq!(gone.len(), 3, "{gone:?}");
    assert!(gone.values().all(|why| *why == Needless::Shredded));
    let list = format!("packing/r1/{}-", permits["train"]);
    assert!(gone.keys().any(|name| name.starts_with(&list)));
    let left: BTreeSet<String> = world.objects("cloud").into_iter().collect();
    assert_eq!(
        left,
        before.into_iter().filter(|name| !gone.contains_key(name)).collect()
    );
}

#[tokio::test]
async fn while_a_worker_is_at_work_nothing_of_it_is_touched() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let crossed: BTreeSet<String> = world.objects("cloud").into_iter().collect();
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    let output = worker.put(Output::default()).await;
    put(&world, "sealed/00ff").await;
    let unclear = Sweep {
        unclear: [site("cloud")].into(),
        ..Sweep::default()
    };
    assert_eq!(sweep(&world, Removal::Unnamed).await, unclear);
    worker.tell(output).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    let sent: Vec<String> = world.objects("cloud");
    let sent = sent
        .into_iter()
        .filter(|name| !crossed.contains(name) && name != "sealed/00ff");
    let after = sweep(&world, Removal::Known).await;
    assert_eq!(found(&after), all(sent.collect(), Needless::AttemptEnded));
    assert_eq!((after.waiting, after.needless.len()), (1, 3));
}

#[tokio::test]
async fn what_was_begun_and_never_sent_goes_with_its_notes() {
    let mut world = World::new().await;
    let permit = world.permit_to_train().await;
    world.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let outcome = world.ask(RequestBody::Send { permit: permit.clone() }).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    let notes = world.folder.path().join("transfers").join(permit.as_str());
    let noted = names_in_flight(&notes).unwrap();
    let shard = noted.iter().find(|name| name.as_str().starts_with("sealed/")).unwrap();
    put(&world, shard.as_str()).await;
    assert_eq!(sweep(&world, Removal::Known).await, Sweep::default(), "it may go on");
    let_pass(25 * HOUR);
    assert_eq!(
        found(&sweep(&world, Removal::Nothing).await),
        all(vec![shard.to_string()], Needless::NeverSent)
    );
    assert!(notes.exists());
    sweep(&world, Removal::Known).await;
    assert_eq!(world.objects("cloud"), Vec::<String>::new());
    assert!(!notes.exists(), "keys of shards were in it");
}

#[tokio::test]
async fn an_output_that_was_not_accepted_waits_and_so_does_what_its_list_names() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    let output = Output {
        tampered: |sealed| sealed[50] ^= 1,
        ..Output::default()
    };
    worker.output(output).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.burned(1).await;
    let swept = sweep(&world, Removal::Unnamed).await;
    assert_eq!((swept.needless.len(), swept.waiting), (0, 3), "{swept:?}");
}

#[tokio::test]
async fn what_a_site_serves_stays_however_long_its_permit_has_ended() {
    let (world, ..) = crate::releases::released().await;
    let served = world.objects("ward");
    let_pass(1000 * HOUR);
    let swept = sweep(&world, Removal::Unnamed).await;
    assert!(
        swept.needless.iter().all(|object| object.site == site("cloud")),
        "{swept:?}"
    );
    assert!(found(&swept).values().any(|why| *why == Needless::PermitEnded));
    assert_eq!(world.objects("ward"), served);
}

#[tokio::test]
async fn a_list_of_others_that_cannot_be_read_may_name_anything() {
    let world = World::new().await;
    put(&world, "packing/r9/p-another-0011.json").await;
    put(&world, "sealed/00ff").await;
    let unclear = Sweep {
        unclear: [site("cloud")].into(),
        ..Sweep::default()
    };
    assert_eq!(sweep(&world, Removal::Unnamed).await, unclear);
    let_pass(1000 * HOUR);
    assert_eq!(sweep(&world, Removal::Unnamed).await, unclear);
    assert_eq!(world.objects("cloud").len(), 2);
}
