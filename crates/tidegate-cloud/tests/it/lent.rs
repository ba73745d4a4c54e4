//! Objects that are lent to somebody without credentials.

use std::time::Duration;

use bytes::Bytes;
use tidegate_cloud::{CloudStore, LentStore};
use tidegate_contracts::{ObjectName, Store, StoreError};

use crate::conformance::{admin, identity, open, service_account};
use crate::peers::stores::{azure_storage, google_storage};
use crate::peers::{make_bucket, seaweed};

fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

/// Who was lent two objects reads these, whole, for a while, and does nothing else.
async fn lends(store: &CloudStore) {
    let names = ["sealed/aa", "sealed/bb"].map(object);
    for name in &names {
        store
            .put_new(name, Bytes::from(format!("sealed {name}")))
            .await
            .unwrap();
    }
    store
        .put_new(&object("sealed/cc"), Bytes::from_static(b"not lent"))
        .await
        .unwrap();
    let lent = store.lend(&names, Duration::from_secs(600)).await.unwrap().unwrap();
    let borrowed = LentStore::open(&lent).unwrap();
    for name in &names {
        assert_eq!(borrowed.get(name, 100).await.unwrap(), format!("sealed {name}"));
        let short = borrowed.get(name, 5).await.unwrap_err();
        assert!(matches!(short, StoreError::TooLarge { .. }), "{short}");
    }
    let other = borrowed.get(&object("sealed/cc"), 100).await.unwrap_err();
    assert!(matches!(other, StoreError::NotFound(_)), "{other}");
    for refused in [
        borrowed.put_new(&names[0], Bytes::new()).await,
        borrowed.delete(&names[0]).await,
        borrowed.list("", None).await.map(drop),
        borrowed.head(&names[0]).await.map(drop),
        borrowed.get_range(&names[0], 0..1).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, StoreError::Denied { .. }), "{refused}");
    }
    // Not even what it shows of itself tells an address.
    let shown = format!("{borrowed:?}");
    assert!(shown.contains("sealed/aa") && !shown.contains("127.0.0.1"), "{shown}");
    store.delete(&names[1]).await.unwrap();
    let gone = borrowed.get(&names[1], 100).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound(_)), "{gone}");
    // An address for one object is none for another.
    let forged = lent.replace("/sealed/aa?", "/sealed/cc?");
    assert_ne!(forged, lent);
    let forged = LentStore::open(&forged).unwrap().get(&names[0], 100).await.unwrap_err();
    assert!(matches!(forged, StoreError::Denied { .. }), "{forged}");
    assert!(!forged.to_string().contains("127.0.0.1"), "{forged}");
    // A loan that has ended: it was for a second, and that is over.
    let lent = store.lend(&names, Duration::from_secs(1)).await.unwrap().unwrap();
    let borrowed = LentStore::open(&lent).unwrap();
    let began = std::time::Instant::now();
    let ended = loop {
        match borrowed.get(&names[0], 100).await {
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(60)),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, StoreError::Denied { .. }), "{ended}");
    assert!(ended.to_string().contains("expired"), "{ended}");
}

#[tokio::test]
async fn objects_of_s3_are_lent() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "stores");
    // Over TLS, by an authority that nobody else knows.
    lends(&open(&peer.s3("stores", "st-mary/cloud"), &admin())).await;
}

#[tokio::test]
async fn objects_of_azure_are_lent() {
    let Some(peer) = azure_storage(&[]) else { return };
    lends(&open(&peer.azure("st-mary/cloud"), &identity(&peer))).await;
}

#[tokio::test]
async fn objects_of_google_are_lent() {
    let Some(peer) = google_storage(&[]) else { return };
    lends(&open(&peer.google("st-mary/cloud"), &service_account(&peer, "known"))).await;
}

#[tokio::test]
async fn what_is_no_loan_is_not_opened() {
    let lent = |text: &str| LentStore::open(text).unwrap_err().to_string();
    for (text, why) in [
        ("", "cannot be read"),
        (
            "{\"objects\": {\"sealed/aa\": \"http://store.example.org/aa\"}}",
            "must begin with `https:`",
        ),
        (
            "{\"objects\": {\"sealed/aa\": \"https://id:hushhush@store.example.org/aa\"}}",
            "a server and nothing else",
        ),
        (
            "{\"objects\": {\"../aa\": \"https://store.example.org/aa\"}}",
            "no name",
        ),
        ("{\"objects\": {\"sealed/aa\": \"sealed/aa\"}}", "none"),
        (
            "{\"objects\": {}, \"certificates\": \"-----BEGIN CERTIFICATE-----\"}",
            "what was lent",
        ),
    ] {
        let told = lent(text);
        assert!(told.contains(why) && !told.contains("hushhush"), "{text}: {told}");
    }
}
