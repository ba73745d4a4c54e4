//! Whom a keeper admits, and what burns an attempt.

use std::process::Command;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tidegate_contracts::Store;
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::Identity;
use tidegate_seal::key::DataKey;
use tidegate_seal::sign::SigningKey;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::{SandboxEvidence, WorkerMessage};

use crate::worker::{Output, Worker};
use crate::world::{World, let_pass, object, pause};

/// A world with a ticket for the first attempt, and its worker.
async fn begun() -> (World, Worker) {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let ticket = world.ticket(1, &permits).await;
    let worker = Worker::new(ticket, world.store("cloud"));
    (world, worker)
}

/// Whoever comes second with the ticket of `worker`.
fn second(world: &World, worker: &Worker) -> Worker {
    Worker::new(worker.ticket().clone(), world.store("cloud"))
}

fn grants(world: &World) -> usize {
    let leaves = tidegate_contracts::Journal::log_leaves(&world.journal, 0, u64::MAX).unwrap();
    let granted = b"dev.tidegate.granted";
    leaves
        .iter()
        .filter(|leaf| leaf.windows(granted.len()).any(|window| window == granted))
        .count()
}

#[tokio::test]
async fn a_worker_that_keeps_the_rules_brings_its_output_home() {
    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    worker.log("first line\n").await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    assert_eq!(grants(&world), 2);
    assert_eq!(world.models().len(), 1);
}

/// A policy that had nothing against a permit may have something against the key.
#[tokio::test]
async fn the_organisations_policy_is_asked_again_before_a_key_is_released() {
    for (policy, granted) in [
        (
            "@id(\"no-keys-today\") @why(\"the office is closed\") @fix(\"come back\")
             forbid (principal, action == Action::\"release_key\", resource);",
            0,
        ),
        (
            "@id(\"no-keys-today\") @why(\"data needs a signature\") @fix(\"come back\")
             forbid (principal, action == Action::\"release_key\", resource) when { resource.kind == \"dataset\" };",
            1,
        ),
    ] {
        let mut world = World::under(policy).await;
        let permits = world.cross().await;
        let ticket = world.ticket(1, &permits).await;
        let mut worker = Worker::new(ticket, world.store("cloud"));
        if granted == 0 {
            worker.hello().await;
        } else {
            worker.admitted().await;
            worker.setup_done().await;
        }
        assert!(worker.turned_away().await.contains("no-keys-today"), "{policy}");
        assert_eq!(world.burned(1).await, "no-keys-today");
        assert_eq!(grants(&world), granted, "{policy}");
    }
}

/// What a worker was given, opened by software that is not ours.
#[tokio::test]
async fn age_opens_the_keys_of_a_grant() {
    if Command::new("age").arg("--version").output().is_err() {
        let demanded = std::env::var("TIDEGATE_INTEROP").as_deref() == Ok("1");
        assert!(!demanded, "TIDEGATE_INTEROP=1, and `age` is not installed");
        return;
    }
    let (world, mut worker) = begun().await;
    // Debian's has no identities that hold against quantum computers; a keeper takes both.
    worker.identity = Identity::generate_classic();
    worker.granted().await;
    let identity = world.folder.path().join("identity");
    std::fs::write(&identity, format!("{}\n", &*worker.identity.secret())).unwrap();
    let artifacts = worker.granted.as_ref().unwrap().artifacts.clone();
    assert_eq!(artifacts.len(), 2);
    for granted in artifacts {
        let sealed = world.folder.path().join("sealed");
        std::fs::write(&sealed, STANDARD.decode(&granted.sealed_key).unwrap()).unwrap();
        let mut age = Command::new("age");
        let opened = age.arg("-d").arg("-i").arg(&identity).arg(&sealed).output().unwrap();
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        let key = DataKey::from_bytes(opened.stdout.try_into().unwrap());
        assert_eq!(key.commitment(), granted.key_commitment);
    }
}

#[tokio::test]
async fn a_second_hello_before_the_first_is_read_gets_neither_of_them_a_key() {
    let (mut world, mut worker) = begun().await;
    second(&world, &worker).contest().await;
    worker.hello().await;
    assert_eq!(world.burned(1).await, "second-hello");
    assert!(worker.turned_away().await.contains("second-hello"));
    assert_eq!(grants(&world), 0);
}

#[tokio::test]
async fn a_second_hello_after_the_code_was_granted_keeps_the_data_keys() {
    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    second(&world, &worker).contest().await;
    worker.setup_done().await;
    assert_eq!(world.burned(1).await, "second-hello");
    assert!(worker.turned_away().await.contains("second-hello"));
    assert_eq!(grants(&world), 1);
}

#[tokio::test]
async fn a_second_hello_after_the_data_were_granted_costs_the_output() {
    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    worker.output(Output::default()).await;
    while world.models().is_empty() {
        pause().await;
    }
    second(&world, &worker).contest().await;
    world.restart().await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    assert_eq!(world.burned(1).await, "second-hello");
    assert_eq!(
        world.entries("artifacts"),
        3,
        "code, train and validation, and no model"
    );
    // Burned for good: the first worker and the next keeper change nothing.
    world.restart().await;
    assert_eq!(world.burned(1).await, "second-hello");
}

#[tokio::test]
async fn a_second_hello_is_noticed_though_the_first_worker_says_nothing_more() {
    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    second(&world, &worker).contest().await;
    assert_eq!(world.burned(1).await, "second-hello");
    assert!(worker.turned_away().await.contains("second-hello"));
}

#[tokio::test]
async fn whoever_runs_the_store_cannot_burn_an_attempt_by_a_second_hello() {
    let (mut world, mut worker) = begun().await;
    worker.hello().await;
    // The first hello once more, one made without the secret, and rubbish.
    worker.contest().await;
    let mut ticket = worker.ticket().clone();
    ticket.secret = hex::encode([1; 32]);
    Worker::new(ticket, world.store("cloud")).contest().await;
    let name = object("mailbox/r1/train/1-0/out/contested/x.json");
    world
        .store("cloud")
        .put_new(&name, Bytes::from_static(b"{}"))
        .await
        .unwrap();
    world.restart().await;
    worker.grants().await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
}

#[tokio::test]
async fn another_hello_in_the_place_of_the_accepted_one_is_refused_after_a_restart() {
    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    let other = second(&world, &worker).letter();
    world.store("cloud").overwrite(&other.object, other.body);
    world.restart().await;
    assert_eq!(world.burned(1).await, "second-hello");
    assert_eq!(grants(&world), 1);
}

#[tokio::test]
async fn another_program_or_an_open_sandbox_gets_no_key() {
    type Spoil = fn(&mut Worker);
    let cases: [(&str, Spoil); 2] = [
        ("worker-digest", |worker| worker.program = sha256(b"another program")),
        ("sandbox-network", |worker| worker.sandbox = SandboxEvidence::default()),
    ];
    for (rule, spoil) in cases {
        let (mut world, mut worker) = begun().await;
        spoil(&mut worker);
        worker.hello().await;
        assert_eq!(world.burned(1).await, rule);
        assert!(worker.turned_away().await.contains(rule));
        assert_eq!(grants(&world), 0);
    }
}

#[tokio::test]
async fn a_sandbox_that_opened_during_setup_gets_no_data() {
    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    worker.sandbox.network.clear();
    worker.setup_done().await;
    assert_eq!(world.burned(1).await, "sandbox-network");
    assert!(worker.turned_away().await.contains("sandbox-network"));
    assert_eq!(grants(&world), 1);
}

#[tokio::test]
async fn messages_out_of_order_burn_the_attempt() {
    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    assert_eq!(world.burned(1).await, "message-order");
    assert!(worker.turned_away().await.contains("message-order"));

    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    worker.setup_done().await;
    assert_eq!(world.burned(1).await, "message-order");
    assert!(worker.turned_away().await.contains("message-order"));
    assert_eq!(grants(&world), 2, "the data keys were not given twice");
}

#[tokio::test]
async fn replayed_and_forged_messages_burn_the_attempt() {
    for forged in [false, true] {
        let (mut world, mut worker) = begun().await;
        worker.admitted().await;
        if forged {
            worker.signer = SigningKey::generate().unwrap();
            worker.setup_done().await;
        } else {
            let first = object("mailbox/r1/train/1-0/out/000001.json");
            let again = object("mailbox/r1/train/1-0/out/000002.json");
            let body = worker.store.get(&first, 1 << 20).await.unwrap();
            worker.store.put_new(&again, body).await.unwrap();
        }
        assert_eq!(world.burned(1).await, "mailbox-tampered");
        assert!(worker.turned_away().await.contains("mailbox-tampered"));
        assert_eq!(grants(&world), 1);
    }
}

#[tokio::test]
async fn what_nobody_can_open_burns_the_attempt_at_once() {
    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    let sealed = "bm90IGFuIGFnZSBmaWxl".to_owned();
    worker.tell(WorkerMessage::Log { sealed }).await;
    assert_eq!(world.burned(1).await, "message-malformed");
}

#[tokio::test]
async fn a_fenced_attempt_is_granted_nothing_more() {
    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    world.fence(1).await;
    worker.setup_done().await;
    assert!(matches!(world.ended(1).await, AttemptOutcome::Fenced { .. }));
    worker.turned_away().await;
    assert_eq!(grants(&world), 1);
}

#[tokio::test]
async fn a_ticket_and_a_permit_end_with_their_time() {
    let (mut world, mut worker) = begun().await;
    let_pass(1801);
    assert_eq!(world.burned(1).await, "ticket-expired");
    worker.hello().await;
    assert!(worker.turned_away().await.contains("ticket-expired"));
    assert_eq!(grants(&world), 0);

    let (mut world, mut worker) = begun().await;
    worker.admitted().await;
    let_pass(25 * 3600);
    worker.setup_done().await;
    assert_eq!(world.burned(1).await, "permit-expired");
    assert!(worker.turned_away().await.contains("permit-expired"));
    assert_eq!(grants(&world), 1);
}

#[tokio::test]
async fn a_log_is_whole_and_not_doubled_when_a_keeper_dies_beside_it() {
    let (mut world, mut worker) = begun().await;
    worker.granted().await;
    worker.log("one\n").await;
    let log = world.folder.path().join("logs/r1/train-1.log");
    let written = || std::fs::read_to_string(&log).unwrap_or_default();
    while written() != "one\n" {
        pause().await;
    }
    // The piece is written, and the journal breaks off before it holds so.
    world.journal.failing.store(true, Ordering::SeqCst);
    worker.log("two\n").await;
    while world.journal.failed.load(Ordering::SeqCst) < 2 {
        pause().await;
    }
    assert_eq!(written(), "one\ntwo\n");
    world.restart().await;
    world.journal.failing.store(false, Ordering::SeqCst);
    worker.log("three\n").await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    assert_eq!(written(), "one\ntwo\nthree\n");
}
