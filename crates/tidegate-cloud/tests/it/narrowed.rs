//! Credentials of workers: what they reach, and what they do not.

use std::time::Duration;

use bytes::Bytes;
use tidegate_cloud::{CloudStore, Environment};
use tidegate_contracts::{ObjectName, Store, StoreError};

use crate::conformance::{admin, environment, identity, open, service_account};
use crate::peers::stores::{ACCOUNT_KEY, WORKER_ACCOUNT, azure_storage, google_storage};
use crate::peers::{Peer, make_bucket, seaweed};

const MAILBOX: &str = "mailbox/run/train/1-0/";

fn object(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

/// A worker reaches what its attempt needs and nothing else, whosever store it is.
async fn narrowed(owner: &CloudStore, worker: impl Fn(&Environment) -> CloudStore) -> CloudStore {
    let body = Bytes::from_static(b"sealed");
    for name in [
        "sealed/aa",
        "mailbox/run/train/1-0/in/000001.json",
        "mailbox/run/train/2-0/in/000001.json",
        "mailbox/run/train/1-01/in/000001.json",
        "sealed-not/aa",
        "packing/another/aa",
        "packing/run-not/aa",
        "releases/1",
    ] {
        owner.put_new(&object(name), body.clone()).await.unwrap();
    }
    let session = owner.for_worker(MAILBOX, 900).await.unwrap();
    let soon = Duration::from_secs(880)..=Duration::from_secs(900);
    assert!(soon.contains(&session.lasts), "{session:?}");
    let worker = worker(&session.variables);
    for name in ["sealed/aa", "mailbox/run/train/1-0/in/000001.json"] {
        assert_eq!(worker.get(&object(name), 100).await.unwrap(), body, "{name}");
    }
    for name in ["mailbox/run/train/1-0/out/000001.json", "sealed/bb", "packing/run/cc"] {
        worker.put_new(&object(name), body.clone()).await.unwrap();
        assert_eq!(owner.get(&object(name), 100).await.unwrap(), body, "{name}");
        // What was put before is found to be there: whoever lost the answer asks again.
        let again = worker.put_new(&object(name), body.clone()).await.unwrap_err();
        assert!(matches!(again, StoreError::AlreadyExists(_)), "{name}: {again}");
    }
    // A message that is not there yet is missing, and not forbidden.
    let later = object("mailbox/run/train/1-0/in/000002.json");
    for missing in [
        worker.get(&later, 100).await.map(drop),
        worker.head(&later).await.map(drop),
    ] {
        let missing = missing.unwrap_err();
        assert!(matches!(missing, StoreError::NotFound(_)), "{missing}");
    }
    let get = async |name: &str| worker.get(&object(name), 100).await.map(drop);
    let put = async |name: &str| worker.put_new(&object(name), body.clone()).await;
    for result in [
        get("mailbox/run/train/2-0/in/000001.json").await,
        get("mailbox/run/train/1-01/in/000001.json").await,
        get("sealed-not/aa").await,
        get("packing/another/aa").await,
        get("packing/run-not/aa").await,
        get("releases/1").await,
        put("mailbox/run/train/1-0/in/000002.json").await,
        put("mailbox/run/train/2-0/out/000001.json").await,
        put("mailbox/run/train/1-01/out/000001.json").await,
        put("sealed-not/bb").await,
        put("packing/another/bb").await,
        put("releases/2").await,
        worker.delete(&object("sealed/aa")).await,
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    }
    // They are shown nowhere.
    let shown = format!("{session:?} {worker:?}");
    for secret in session.variables.values() {
        assert!(!shown.contains(secret.as_str()));
    }
    worker
}

/// Whoever was narrowed makes nothing wider of it.
async fn cannot_widen(worker: &CloudStore) {
    let error = worker.for_worker("mailbox/run/train/2-0/", 900).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_worker_reaches_what_its_attempt_needs_in_s3() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "stores");
    let address = peer.s3("stores", "st-mary/cloud");
    let address = format!("{address}&role={}", Peer::ROLE);
    narrowed(&open(&address, &admin()), |credentials| open(&address, credentials)).await;
    // (SeaweedFS does not ask a session's policy who may have another session.) Nobody is given more than that where there
    // is nothing to narrow.
    let without = open(&peer.s3("stores", "st-mary/cloud"), &admin());
    let error = without.for_worker(MAILBOX, 900).await.unwrap_err().to_string();
    assert!(error.contains("`role`"), "{error}");
}

#[tokio::test]
async fn a_worker_reaches_what_its_attempt_needs_in_google_cloud_storage() {
    let Some(peer) = google_storage(&[]) else { return };
    let known = service_account(&peer, "known");
    let address = format!("{}&role={WORKER_ACCOUNT}", peer.google("st-mary/cloud"));
    let worker = narrowed(&open(&address, &known), |credentials| open(&address, credentials)).await;
    cannot_widen(&worker).await;
    let without = open(&peer.google("st-mary/cloud"), &known);
    let error = without.for_worker(MAILBOX, 900).await.unwrap_err().to_string();
    assert!(error.contains("`role`"), "{error}");
    // Neither a stranger is given any, nor anybody those of another account.
    let other = format!(
        "{}&role=other@st-mary.iam.gserviceaccount.com",
        peer.google("st-mary/cloud")
    );
    for store in [
        open(&address, &service_account(&peer, "stranger")),
        open(&other, &known),
    ] {
        let error = store.for_worker(MAILBOX, 900).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    // A token lasts no longer than the service allows.
    let session = open(&address, &known).for_worker(MAILBOX, 43_200).await.unwrap();
    assert!(session.lasts <= Duration::from_secs(3600), "{session:?}");
    // It need not say how long that is.
    let peer = google_storage(&["--unsaid"]).unwrap();
    let address = format!("{}&role={WORKER_ACCOUNT}", peer.google("st-mary/cloud"));
    let owner = open(&address, &service_account(&peer, "known"));
    let session = owner.for_worker(MAILBOX, 900).await.unwrap();
    assert_eq!(session.lasts, Duration::from_secs(900));
}

#[tokio::test]
async fn a_worker_reaches_what_its_attempt_needs_in_azure_storage() {
    // The service may say that something may not be replaced before it says that it is there.
    for more in [&[][..], &["--strict"]] {
        let Some(peer) = azure_storage(more) else { return };
        let address = peer.azure("st-mary/cloud");
        let known = identity(&peer);
        let worker = narrowed(&open(&address, &known), |credentials| open(&address, credentials)).await;
        cannot_widen(&worker).await;
        // Keys of the account sign everything, and are asked for nothing.
        let key = environment(&[("AZURE_STORAGE_KEY", ACCOUNT_KEY)]);
        let error = open(&address, &key)
            .for_worker(MAILBOX, 900)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("Entra ID") && !error.contains(ACCOUNT_KEY), "{error}");
    }
}

#[test]
fn credentials_that_cannot_be_read_are_not_repeated() {
    let broken = environment(&[("AZURE_STORAGE_SAS_DIRECTORIES", "sig=SECRET")]);
    let address = "az://marystore/stores/st-mary".parse().unwrap();
    let error = CloudStore::open(address, &broken).unwrap_err().to_string();
    assert!(
        error.contains("AZURE_STORAGE_SAS_DIRECTORIES") && !error.contains("SECRET"),
        "{error}"
    );
}
