//! Workers on machines that prove who they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tidegate_contracts::identity::{IdentityError, Verifier};
use tidegate_types::Digest;
use tidegate_types::event::EventType;
use tidegate_types::keeper::{ReplyBody, RequestBody};
use tidegate_types::message::WorkerMessage;

use crate::worker::{Output, Worker};
use crate::world::{World, attempt, let_pass, site};

const MACHINE: &str = "123456789012/worker/i-0a1b2c";

/// Believes `NAME NONCE` about that nonce, once it answers at all.
#[derive(Debug, Default)]
struct Platform {
    silent: AtomicUsize,
    asked: AtomicUsize,
}

#[async_trait]
impl Verifier for Platform {
    async fn machine(&self, statement: &str, nonce: &Digest) -> Result<String, IdentityError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let silent = self
            .silent
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if silent.is_ok() {
            return Err(IdentityError::Transient("it does not answer".to_owned()));
        }
        match statement.split_once(' ') {
            Some((name, about)) if about == nonce.to_hex() => Ok(name.to_owned()),
            _ => Err(IdentityError::Refused("nobody there has said that".to_owned())),
        }
    }
}

/// A site whose machines prove who they are, and a worker that was given a ticket there.
async fn world() -> (World, Worker, Arc<Platform>) {
    let platform = Arc::new(Platform::default());
    let mut world = World::new().await;
    world.verifiers.insert(site("cloud"), Arc::<Platform>::clone(&platform));
    world.restart().await;
    let permits = world.cross().await;
    let ticket = world.ticket(1, &permits).await;
    let worker = Worker::new(ticket, world.store("cloud"));
    (world, worker, platform)
}

fn is_on(machine: &str) -> RequestBody {
    RequestBody::Machine {
        attempt: attempt(1),
        machine: machine.to_owned(),
    }
}

async fn begun(world: &mut World) {
    assert!(matches!(world.done(is_on(MACHINE)).await, ReplyBody::Noted));
}

fn states(worker: &mut Worker, machine: &str) {
    worker.statement = Some(format!("{machine} {}", worker.nonce().to_hex()));
}

#[tokio::test]
async fn a_worker_is_given_something_once_its_machine_is_known_to_be_the_one_that_was_started() {
    let (mut world, mut worker, platform) = world().await;
    states(&mut worker, MACHINE);
    worker.hello().await;
    platform.silent.store(2, Ordering::SeqCst);
    begun(&mut world).await;
    begun(&mut world).await;
    worker.grants().await;
    assert_eq!(platform.asked.load(Ordering::SeqCst), 3, "until it answered");
    assert_eq!(
        world.refused(is_on("123456789012/worker/i-0f")).await,
        "hello-other-machine"
    );
    // What it said is good for minutes, and what came of it for as long as the attempt.
    platform.silent.store(usize::MAX, Ordering::SeqCst);
    world.restart().await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    let granted = world.events(EventType::Granted);
    assert_eq!(granted.len(), 2);
    assert!(granted.iter().all(|event| event.names["machine"] == MACHINE));
}

#[tokio::test]
async fn whoever_cannot_prove_to_be_that_machine_is_turned_away() {
    type Lie = fn(&mut Worker);
    let lies: [(&str, Lie); 4] = [
        ("no proof", |_| {}),
        ("another machine", |worker| states(worker, "123456789012/worker/i-0f")),
        ("words", |worker| worker.statement = Some("it is me".to_owned())),
        ("about other keys", |worker| {
            states(worker, MACHINE);
            worker.identity = tidegate_seal::envelope::Identity::generate();
        }),
    ];
    for (lie, tell) in lies {
        let (mut world, mut worker, _) = world().await;
        begun(&mut world).await;
        tell(&mut worker);
        worker.hello().await;
        let told = worker.turned_away().await;
        assert!(!told.is_empty(), "{lie}");
        assert_eq!(world.burned(1).await, "hello-other-machine", "{lie}");
    }
}

#[tokio::test]
async fn a_machine_that_nobody_names_is_waited_for_as_long_as_the_ticket_is_good() {
    let (mut world, mut worker, platform) = world().await;
    states(&mut worker, MACHINE);
    worker.hello().await;
    let_pass(1801);
    assert_eq!(world.burned(1).await, "ticket-expired");
    assert_eq!(platform.asked.load(Ordering::SeqCst), 0);
}
