//! Credentials of its store that a worker is given while it works.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_seal::envelope::open;
use tidegate_types::keeper::{ReplyBody, RequestBody};
use tidegate_types::message::{Credentials, KeeperMessage, WorkerMessage};

use crate::worker::{Output, Worker};
use crate::world::{World, attempt};

fn credentials(token: &str) -> Credentials {
    Credentials([("TOKEN".to_owned(), token.to_owned())].into())
}

async fn renew(world: &mut World, token: &str) {
    let body = RequestBody::RenewAccess {
        attempt: attempt(1),
        credentials: credentials(token),
    };
    assert!(matches!(world.done(body).await, ReplyBody::Renewing));
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
    for name in world.objects("cloud") {
        let body = worker.store.get(&crate::world::object(&name), 1 << 20).await.unwrap();
        assert!(!body.windows(5).any(|window| window == b"token"), "{name}");
    }
    assert_eq!(format!("{:?}", credentials("third-token")), "{\"TOKEN\"}");
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
    renew(&mut world, "late").await;
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
