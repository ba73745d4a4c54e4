//! Grants that must not be believed. What a single field of a permit decides is tested beside the code.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_seal::envelope::{Identity, seal_to};
use tidegate_seal::sign::SigningKey;
use tidegate_types::message::{Grant, KeeperMessage};

use crate::crossing::now;
use crate::keeper::Keeper;

async fn keeper() -> Keeper {
    Keeper::new(Arc::new(MemoryStore::default()), "sh train.sh").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_grant_opens_nothing() {
    type Spoil = fn(&mut Grant, &Keeper);
    let cases: [(&str, &str, &str, Spoil); 9] = [
        ("code", "grant", "another hello", |grant, _| {
            grant.hello = tidegate_seal::digest::sha256(b"other")
        }),
        ("code", "grant", "has expired", |grant, _| grant.expires = now()),
        ("code", "grant", "something else than the code", |grant, keeper| {
            grant.artifacts = vec![keeper.granted("train", &keeper.train)];
        }),
        ("train", "grant", "the permit of another one", |grant, _| {
            grant.artifacts[0].artifact = tidegate_seal::digest::sha256(b"other");
        }),
        ("train", "grant", "another permit", |grant, keeper| {
            grant.permit = keeper.code.permit.id.clone()
        }),
        ("train", "grant", "names the code", |grant, _| {
            grant.artifacts[0].input = "code".to_owned()
        }),
        ("train", "input", "commits to", |grant, _| {
            grant.artifacts[0].key_commitment = tidegate_seal::digest::sha256(b"other");
        }),
        ("train", "input", "not sealed to this worker", |grant, keeper| {
            let other = Identity::generate().recipient();
            grant.artifacts[0].sealed_key = STANDARD.encode(seal_to(&other, &keeper.train.key).unwrap());
        }),
        ("train", "tampered", "input `train`", |grant, _| {
            grant.artifacts[0].packing_list_digest = tidegate_seal::digest::sha256(b"other");
        }),
    ];
    for (which, stage, why, spoil) in cases {
        let mut keeper = keeper().await;
        let worker = keeper.start();
        keeper.hello().await;
        let crossed = if which == "code" {
            keeper.code.clone()
        } else {
            keeper.grant_code().await;
            keeper.until_setup_is_done().await.unwrap();
            keeper.train.clone()
        };
        let mut grant = keeper.grant(which, &crossed);
        spoil(&mut grant, &keeper);
        let message = if which == "code" {
            KeeperMessage::CodeGrant(grant)
        } else {
            KeeperMessage::DataGrant(grant)
        };
        keeper.send(message).await;
        let ending = keeper.ending().await;
        let (told, reason, _) = ending.failed.clone().unwrap();
        assert_eq!(told, stage, "{why}: {reason}");
        assert!(reason.contains(why), "{why}: {reason}");
        assert!(
            worker.await.unwrap().is_err() && ending.output.is_none() && ending.log.is_empty(),
            "{why}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_somebody_else_signed_or_replayed_is_not_believed() {
    let mut keeper = keeper().await;
    let worker = keeper.start();
    keeper.hello().await;
    keeper.key = SigningKey::generate().unwrap();
    keeper.grant_code().await;
    assert_eq!(keeper.ending().await.stage(), "grant");
    assert!(worker.await.unwrap().is_err());

    // The code grant once more, in place of the data grant: the message is genuine, the grant is not
    // what is due.
    let mut keeper = self::keeper().await;
    let worker = keeper.start();
    keeper.hello().await;
    keeper.grant_code().await;
    keeper.until_setup_is_done().await.unwrap();
    keeper.grant_code().await;
    assert_eq!(keeper.ending().await.stage(), "grant");
    assert!(worker.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_before_the_code_is_refused() {
    let mut keeper = keeper().await;
    let worker = keeper.start();
    keeper.hello().await;
    keeper.grant_data().await;
    assert_eq!(keeper.ending().await.stage(), "grant");
    assert!(worker.await.unwrap().is_err());
}
