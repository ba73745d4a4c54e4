//! What setups left: who is given it, for how long it is kept, and lies about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::Store;
use tidegate_keeper::{Needless, Removal};
use tidegate_seal::digest::sha256;
use tidegate_seal::envelope::open;
use tidegate_seal::key::DataKey;
use tidegate_types::Digest;
use tidegate_types::ids::PermitId;
use tidegate_types::message::WorkerMessage;

use crate::checkpoints::gone;
use crate::transfers::transfers;
use crate::worker::{Output, Worker};
use crate::world::{World, let_pass, object, site};

const SALT: [u8; 32] = [9; 32];

/// Puts what a setup left into the store; gives the message that tells of it.
async fn left(worker: &Worker, machine: Digest, archive: &[u8]) -> WorkerMessage {
    let output = Output {
        shards: vec![archive.to_vec()],
        data_key: Some(code_key(worker).derived("setup", &SALT)),
        ..Output::default()
    };
    let WorkerMessage::Output {
        packing_list,
        packing_list_digest,
        ..
    } = worker.put(output).await
    else {
        panic!("no output")
    };
    WorkerMessage::Setup {
        machine,
        packing_list,
        packing_list_digest,
        salt: hex::encode(SALT),
    }
}

/// The key of the code that a worker was granted.
fn code_key(worker: &Worker) -> DataKey {
    let artifacts = &worker.granted.as_ref().unwrap().artifacts;
    let sealed = STANDARD.decode(&artifacts[0].sealed_key).unwrap();
    DataKey::from_bytes(open(&worker.identity, &sealed).unwrap().as_slice().try_into().unwrap())
}

fn list_of(message: &WorkerMessage) -> String {
    let WorkerMessage::Setup { packing_list, .. } = message else {
        panic!("no setup")
    };
    packing_list.clone()
}

/// A worker that has the code grant.
async fn begun(world: &mut World, attempt: u32, permits: &BTreeMap<String, PermitId>) -> Worker {
    let mut worker = Worker::new(world.ticket(attempt, permits).await, world.store("cloud"));
    worker.admitted().await;
    worker
}

/// Tells it, and waits until the keeper has taken note.
async fn told(world: &mut World, worker: &mut Worker, message: WorkerMessage) {
    worker.tell(message).await;
    worker.setup_done().await;
    worker.data_grant().await;
    world.restart().await;
}

#[tokio::test]
async fn the_next_worker_is_given_what_the_same_setup_left_and_nobody_else() {
    let mut world = World::with_setup().await;
    let permits = world.cross().await;
    let (one, other) = (sha256(b"a machine"), sha256(b"another machine"));
    let mut first = begun(&mut world, 1, &permits).await;
    assert!(first.granted.as_ref().unwrap().setup.is_none());
    let derived = code_key(&first).derived("setup", &SALT);
    let old = left(&first, one, b"tools").await;
    told(&mut world, &mut first, old.clone()).await;
    assert!(
        first.granted.as_ref().unwrap().setup.is_none(),
        "it comes with the code"
    );
    world.fence(1).await;

    let mut second = begun(&mut world, 2, &permits).await;
    let granted = second.granted.as_ref().unwrap();
    let setup = granted.setup.clone().unwrap();
    assert_eq!((setup.machine, setup.sealed.packing_list.clone()), (one, list_of(&old)));
    assert_eq!(
        (&setup.permit, setup.permit_digest),
        (&granted.permit, granted.permit_digest)
    );
    assert_eq!(setup.sealed.signing_key, first.signer.public().to_base64());
    let key = STANDARD.decode(&setup.sealed.sealed_key).unwrap();
    assert_eq!(open(&second.identity, &key).unwrap().as_slice(), derived.expose());
    assert!(open(&first.identity, &key).is_err());
    // Its machine is another one: what its own setup left takes the place of what it could not use.
    let new = left(&second, other, b"other tools").await;
    told(&mut world, &mut second, new.clone()).await;
    gone(&world, &list_of(&old)).await;
    world.fence(2).await;
    let third = begun(&mut world, 3, &permits).await;
    assert_eq!(third.granted.as_ref().unwrap().setup.as_ref().unwrap().machine, other);
}

#[tokio::test]
async fn it_outlives_its_permit_and_goes_with_the_keys_of_its_code() {
    let mut world = World::with_setup().await;
    let permits = world.cross().await;
    let mut worker = begun(&mut world, 1, &permits).await;
    let message = left(&worker, sha256(b"a machine"), b"tools").await;
    told(&mut world, &mut worker, message.clone()).await;
    world.fence(1).await;
    let stores: BTreeMap<_, _> = [(site("cloud"), Arc::new(world.store("cloud")) as Arc<dyn Store>)].into();
    // What nobody knows goes once it was seen twice.
    for _ in 0..3 {
        let_pass(25 * 3600);
        transfers(&world).sweep(&stores, Removal::Unnamed).await.unwrap();
    }
    let list = object(&list_of(&message));
    assert!(world.store("cloud").names().contains(&list));
    let sealed = world
        .objects("cloud")
        .into_iter()
        .filter(|name| name.starts_with("sealed/"));
    assert_eq!(sealed.count(), 2, "shard and index");

    let code = world.prepare().await["code"];
    crate::custodian::custodian(&world, u64::MAX)
        .shred(&code)
        .await
        .unwrap();
    let swept = transfers(&world).sweep(&stores, Removal::Known).await.unwrap();
    assert!(
        swept.needless.iter().all(|one| one.why == Needless::Shredded),
        "{swept:?}"
    );
    assert_eq!(swept.needless.len(), 3, "shard, index and list");
    assert!(!world.store("cloud").names().contains(&list));
}

#[tokio::test]
async fn lies_about_a_setup_burn_the_attempt() {
    type Lie = fn(&mut WorkerMessage);
    let lies: [(Lie, &str); 3] = [
        (
            |message| {
                if let WorkerMessage::Setup {
                    packing_list_digest, ..
                } = message
                {
                    *packing_list_digest = sha256(b"another list");
                }
            },
            "output-tampered",
        ),
        (
            |message| {
                if let WorkerMessage::Setup { salt, .. } = message {
                    "no salt".clone_into(salt);
                }
            },
            "message-malformed",
        ),
        (
            |message| {
                if let WorkerMessage::Setup { salt, .. } = message {
                    *salt = hex::encode([8; 32]);
                }
            },
            "output-tampered",
        ),
    ];
    for (lie, rule) in lies {
        let mut world = World::with_setup().await;
        let permits = world.cross().await;
        let mut worker = begun(&mut world, 1, &permits).await;
        let mut message = left(&worker, sha256(b"a machine"), b"tools").await;
        lie(&mut message);
        worker.tell(message).await;
        assert_eq!(world.burned(1).await, rule);
    }
    // Once data is there, nothing that comes is of a setup: it could hold rows.
    let mut world = World::with_setup().await;
    let permits = world.cross().await;
    let mut worker = begun(&mut world, 1, &permits).await;
    let late = left(&worker, sha256(b"a machine"), b"rows").await;
    worker.setup_done().await;
    worker.data_grant().await;
    worker.tell(late).await;
    assert_eq!(world.burned(1).await, "message-order");
}
