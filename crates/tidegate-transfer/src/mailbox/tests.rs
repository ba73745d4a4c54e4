use tidegate_contracts::fakes::MemoryStore;
use tidegate_types::message::{KeeperMessage, SandboxEvidence};
use tidegate_types::{RunId, TaskName};

use super::*;

const SECRET: [u8; 32] = [7; 32];

fn attempt(number: u32) -> Attempt {
    Attempt {
        run: RunId::new("r1").unwrap(),
        task: TaskName::new("train").unwrap(),
        attempt: number,
        rank: 0,
    }
}

fn lease(expires: u64) -> KeeperMessage {
    KeeperMessage::Lease { expires }
}

fn hello(key: &SigningKey, secret: &[u8; 32]) -> WorkerMessage {
    let message = |mac| WorkerMessage::Hello {
        recipient: "age1x".to_owned(),
        signing_key: key.public().to_base64(),
        worker: sha256(b"worker"),
        sandbox: SandboxEvidence::default(),
        identity: None,
        mac,
    };
    let numbered = Numbered {
        attempt: attempt(1),
        number: 1,
        previous: None,
        message: message(String::new()),
    };
    message(hello_mac(secret, &numbered).unwrap())
}

async fn next(inbox: &mut Inbox, store: &MemoryStore, key: &SigningKey) -> Result<Option<u64>, MailboxError> {
    let opened = inbox.next::<KeeperMessage>(store, &key.public()).await?;
    Ok(opened.map(|opened| match opened.numbered.message {
        KeeperMessage::Lease { expires } => expires,
        _ => 0,
    }))
}

#[tokio::test]
async fn messages_arrive_in_order_and_once() {
    let (store, key) = (MemoryStore::default(), SigningKey::generate().unwrap());
    let mut out = Outbox::new(attempt(1), Side::Keeper);
    let mut inbox = Inbox::new(attempt(1), Side::Worker);
    assert_eq!(next(&mut inbox, &store, &key).await.unwrap(), None);
    for expires in 1..=3 {
        let letter = out.post(&store, &key, lease(expires)).await.unwrap();
        assert_eq!(
            letter.object.as_str(),
            format!("mailbox/r1/train/1-0/in/00000{expires}.json")
        );
    }
    for expires in 1..=3 {
        assert_eq!(next(&mut inbox, &store, &key).await.unwrap(), Some(expires));
    }
    assert_eq!(next(&mut inbox, &store, &key).await.unwrap(), None);
    assert_eq!((inbox.number(), inbox.previous()), (3, out.previous()));
}

#[tokio::test]
async fn both_sides_go_on_after_a_restart() {
    let (store, key) = (MemoryStore::default(), SigningKey::generate().unwrap());
    let mut out = Outbox::new(attempt(1), Side::Keeper);
    out.post(&store, &key, lease(1)).await.unwrap();
    // The journal holds the letter, the store holds it too, and the process died before it knew.
    let letter = out.seal(&key, lease(2)).unwrap();
    out.clone().deliver(&store, &letter).await.unwrap();
    let mut resumed = Outbox::resume(attempt(1), Side::Keeper, 1, out.previous());
    resumed.deliver(&store, &letter).await.unwrap();
    resumed.post(&store, &key, lease(3)).await.unwrap();

    let mut inbox = Inbox::new(attempt(1), Side::Worker);
    next(&mut inbox, &store, &key).await.unwrap();
    let mut inbox = Inbox::resume(attempt(1), Side::Worker, inbox.number(), inbox.previous());
    assert_eq!(next(&mut inbox, &store, &key).await.unwrap(), Some(2));
    assert_eq!(next(&mut inbox, &store, &key).await.unwrap(), Some(3));
}

#[tokio::test]
async fn two_who_speak_for_one_side_are_found_out() {
    let (store, key) = (MemoryStore::default(), SigningKey::generate().unwrap());
    Outbox::new(attempt(1), Side::Worker)
        .post(&store, &key, hello(&key, &SECRET))
        .await
        .unwrap();
    let other = SigningKey::generate().unwrap();
    let second = Outbox::new(attempt(1), Side::Worker)
        .post(&store, &other, hello(&other, &SECRET))
        .await;
    assert!(matches!(second, Err(MailboxError::Taken { .. })), "{second:?}");
}

#[tokio::test]
async fn a_letter_is_delivered_in_its_turn_only() {
    let (store, key) = (MemoryStore::default(), SigningKey::generate().unwrap());
    let mut out = Outbox::new(attempt(1), Side::Keeper);
    let first = out.post(&store, &key, lease(1)).await.unwrap();
    assert!(matches!(
        out.deliver(&store, &first).await,
        Err(MailboxError::Misplaced { .. })
    ));
    let of_other_side = Outbox::resume(attempt(1), Side::Worker, 1, None)
        .seal(&key, lease(2))
        .unwrap();
    assert!(matches!(
        out.deliver(&store, &of_other_side).await,
        Err(MailboxError::Misplaced { .. })
    ));
}

/// Puts `body` where message `number` of attempt 1 is expected by the worker.
async fn plant(store: &MemoryStore, number: u64, body: Bytes) {
    store
        .put_new(&object_name(&attempt(1), "in", number).unwrap(), body)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_not_the_next_message_is_refused() {
    let key = SigningKey::generate().unwrap();
    let stranger = SigningKey::generate().unwrap();
    let digest = sha256(b"previous");
    let seal = |attempt_number: u32, number: u64, previous, signer: &SigningKey| {
        let out = Outbox::resume(attempt(attempt_number), Side::Keeper, number - 1, previous);
        out.seal(signer, lease(1)).unwrap().body
    };
    let cases = [
        ("another attempt", seal(2, 1, None, &key)),
        ("another number", seal(1, 2, None, &key)),
        ("another message before", seal(1, 1, Some(digest), &key)),
        ("another signer", seal(1, 1, None, &stranger)),
        ("no envelope", Bytes::from_static(b"{}")),
    ];
    for (what, body) in cases {
        let store = MemoryStore::default();
        plant(&store, 1, body).await;
        let mut inbox = Inbox::new(attempt(1), Side::Worker);
        assert!(next(&mut inbox, &store, &key).await.is_err(), "{what}");
        assert_eq!(
            (inbox.number(), inbox.previous()),
            (0, None),
            "{what}: the inbox did not move"
        );
    }
    let store = MemoryStore::default();
    plant(&store, 1, vec![b' '; MESSAGE_BYTES as usize + 1].into()).await;
    assert!(
        next(&mut Inbox::new(attempt(1), Side::Worker), &store, &key)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_hello_needs_the_secret_and_its_own_key() {
    let (store, key) = (MemoryStore::default(), SigningKey::generate().unwrap());
    let mut inbox = Inbox::new(attempt(1), Side::Keeper);
    assert_eq!(inbox.hello(&store, &SECRET).await.unwrap(), None);
    let letter = Outbox::new(attempt(1), Side::Worker)
        .post(&store, &key, hello(&key, &SECRET))
        .await
        .unwrap();
    assert!(inbox.clone().hello(&store, &[8; 32]).await.is_err(), "another secret");
    let opened = inbox.hello(&store, &SECRET).await.unwrap().unwrap();
    assert_eq!((opened.digest(), opened.signing_key()), (letter.digest, &key.public()));
    assert_eq!((inbox.number(), inbox.previous()), (1, Some(letter.digest)));

    let stranger = SigningKey::generate().unwrap();
    let not_a_hello = WorkerMessage::Finished { seconds: 1 };
    for (what, signer, message) in [
        (
            "signed by another key than the one inside",
            &stranger,
            hello(&key, &SECRET),
        ),
        ("made without the secret", &key, hello(&key, &[8; 32])),
        ("no hello", &key, not_a_hello),
    ] {
        let store = MemoryStore::default();
        Outbox::new(attempt(1), Side::Worker)
            .post(&store, signer, message)
            .await
            .unwrap();
        let opened = Inbox::new(attempt(1), Side::Keeper).hello(&store, &SECRET).await;
        assert!(opened.is_err(), "{what}");
    }
}

#[tokio::test]
async fn only_another_hello_by_the_same_secret_contests() {
    let store = MemoryStore::default();
    let letter = |secret: &[u8; 32]| {
        let key = SigningKey::generate().unwrap();
        let out = Outbox::new(attempt(1), Side::Worker);
        out.seal(&key, hello(&key, secret)).unwrap()
    };
    let (first, forged, second) = (letter(&SECRET), letter(&[8; 32]), letter(&SECRET));
    let contested = async || is_contested(&attempt(1), &store, &SECRET, &first.digest).await.unwrap();
    assert!(!contested().await);
    // What whoever runs the store can do: repeat the first hello, forge one, leave rubbish.
    contest(&attempt(1), &store, &first).await.unwrap();
    contest(&attempt(1), &store, &forged).await.unwrap();
    for (name, body) in [
        ("0.json", Bytes::from_static(b"{}")),
        ("1.json", vec![b' '; CONTEST_BYTES as usize + 1].into()),
    ] {
        let object = ObjectName::new(format!("{}{name}", contests(&attempt(1)))).unwrap();
        store.put_new(&object, body).await.unwrap();
    }
    assert!(!contested().await);
    contest(&attempt(1), &store, &second).await.unwrap();
    contest(&attempt(1), &store, &second).await.unwrap();
    assert!(contested().await);
    // A hello of another attempt, though by the same secret, says nothing about this one.
    let other = MemoryStore::default();
    contest(&attempt(2), &other, &second).await.unwrap();
    assert!(!is_contested(&attempt(2), &other, &SECRET, &first.digest).await.unwrap());
}

#[tokio::test]
async fn a_contest_is_not_hidden_behind_rubbish() {
    let store = MemoryStore::default();
    let key = SigningKey::generate().unwrap();
    let out = Outbox::new(attempt(1), Side::Worker);
    let first = out.seal(&key, hello(&key, &SECRET)).unwrap();
    let put = async |number: usize| {
        let object = ObjectName::new(format!("{}{number:04}.json", contests(&attempt(1)))).unwrap();
        store.put_new(&object, Bytes::from_static(b"{}")).await.unwrap();
    };
    for number in 0..CONTESTS {
        put(number).await;
    }
    assert!(!is_contested(&attempt(1), &store, &SECRET, &first.digest).await.unwrap());
    put(CONTESTS).await;
    let found = is_contested(&attempt(1), &store, &SECRET, &first.digest).await;
    assert!(matches!(&found, Err(MailboxError::Misplaced { .. })), "{found:?}");
}

#[test]
fn the_mac_covers_every_field() {
    let key = SigningKey::generate().unwrap();
    let numbered = Numbered {
        attempt: attempt(1),
        number: 1,
        previous: None,
        message: hello(&key, &SECRET),
    };
    let mac = hello_mac(&SECRET, &numbered).unwrap();
    let mut other = numbered.clone();
    other.attempt = attempt(2);
    assert_ne!(hello_mac(&SECRET, &other).unwrap(), mac);
    let mut other = numbered;
    if let WorkerMessage::Hello { sandbox, .. } = &mut other.message {
        sandbox.files = "landlock-v1".to_owned();
    }
    assert_ne!(hello_mac(&SECRET, &other).unwrap(), mac);
}
