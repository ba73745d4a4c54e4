//! Credentials of its store that a worker is given while it works.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_seal::envelope::{open, seal_to};
use tidegate_types::keeper::{Outcome, ReplyBody, RequestBody};
use tidegate_types::message::{KeeperMessage, WorkerMessage};
use tidegate_types::permit::Envelope;

use crate::worker::{Output, Worker};
use crate::world::{World, attempt};

type Credentials = BTreeMap<String, String>;

fn credentials(token: &str) -> Credentials {
    [("TOKEN".to_owned(), token.to_owned())].into()
}

async fn renew(world: &mut World, token: &str) {
    let text = serde_json::to_vec(&credentials(token)).unwrap();
    let body = RequestBody::RenewAccess {
        attempt: attempt(1),
        sealed: STANDARD.encode(seal_to(&world.recipient, &text).unwrap()),
    };
    assert!(matches!(world.done(body).await, ReplyBody::Noted));
}

async fn given(worker: &mut Worker) -> Credentials {
    let KeeperMessage::Access { sealed } = worker.hear().await else {
        panic!("no credentials")
    };
    let opened = open(&worker.identity, &STANDARD.decode(sealed).unwrap()).unwrap();
    serde_json::from_slice(&opened).unwrap()
}

#[tokio::test]
async fn a_worker_alone_can_open_the_credentials_that_it_is_given() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let ticket = world.ticket(1, &permits).await;
    let mut worker = Worker::new(ticket, world.store("cloud"));
    // Whoever has said nothing yet is given the newest once it has.
    renew(&mut world, "superseded").await;
    renew(&mut world, "first-token").await;
    worker.admitted().await;
    assert_eq!(given(&mut worker).await, credentials("first-token"));
    renew(&mut world, "second-token").await;
    assert_eq!(given(&mut worker).await, credentials("second-token"));
    // The store holds them only sealed.
    let mut letters = 0;
    for name in worker.store.names() {
        let body = worker.store.get(&name, 1 << 20).await.unwrap();
        let envelope: Option<Envelope> = serde_json::from_slice(&body).ok();
        let payload = envelope.map(|envelope| STANDARD.decode(envelope.payload).unwrap());
        letters += usize::from(payload.is_some());
        let payload = payload.unwrap_or_else(|| body.to_vec());
        assert!(!payload.windows(5).any(|window| window == b"token"), "{name}");
    }
    assert!(letters >= 4, "{letters} letters");
    // A keeper that was started again goes on.
    world.restart().await;
    renew(&mut world, "third-token").await;
    assert_eq!(given(&mut worker).await, credentials("third-token"));
    worker.setup_done().await;
    worker.data_grant().await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    world.accepted(1).await;
    // Nobody is given any afterwards.
    let before = worker.store.names();
    renew(&mut world, "late").await;
    world.restart().await;
    renew(&mut world, "later").await;
    assert_eq!(worker.store.names(), before);
}

#[tokio::test]
async fn credentials_for_an_attempt_that_nobody_knows_are_an_error() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    world.ticket(1, &permits).await;
    for (attempt, sealed) in [
        (attempt(2), STANDARD.encode(seal_to(&world.recipient, b"{}").unwrap())),
        (attempt(1), "cut in half".to_owned()),
        (attempt(1), STANDARD.encode(b"sealed to nobody")),
    ] {
        let answer = world.ask(RequestBody::RenewAccess { attempt, sealed }).await;
        assert!(matches!(answer, Outcome::Failed(_)), "{answer:?}");
    }
}

#[tokio::test]
async fn nobody_is_given_credentials_once_another_has_said_hello_with_the_ticket() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let ticket = world.ticket(1, &permits).await;
    let mut worker = Worker::new(ticket, world.store("cloud"));
    worker.admitted().await;
    Worker::new(worker.ticket().clone(), world.store("cloud"))
        .contest()
        .await;
    renew(&mut world, "a-token").await;
    let heard = worker.hear().await;
    assert!(matches!(heard, KeeperMessage::Refused { .. }), "{heard:?}");
    assert_eq!(world.burned(1).await, "second-hello");
}
