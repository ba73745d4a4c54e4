//! Credentials of the store that end while an attempt goes on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectInfo, ObjectName, Store, StoreError};
use tidegate_seal::envelope::Identity;
use tidegate_types::message::KeeperMessage;
use tidegate_worker::{Opener, WorkerError};
use tokio::task::JoinHandle;

use crate::keeper::Keeper;

/// A store that refuses everything once it is closed.
#[derive(Debug)]
struct Closing {
    inner: Arc<dyn Store>,
    closed: Arc<AtomicBool>,
}

impl Closing {
    fn open(&self) -> Result<&dyn Store, StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Denied {
                what: "anything".to_owned(),
                why: "the credentials have expired".to_owned(),
            });
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl Store for Closing {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        self.open()?.put_new(name, body).await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        self.open()?.get(name, limit).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.open()?.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.open()?.head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        self.open()?.list(prefix, after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.open()?.delete(name).await
    }
}

/// A store that is open to the ticket's credentials until others are used.
fn opener(keeper: &Keeper) -> Opener {
    let inner = Arc::clone(&keeper.store);
    let closed = Arc::new(AtomicBool::new(false));
    Box::new(move |credentials| match credentials.get("TOKEN").map(String::as_str) {
        Some("old") => Ok(Arc::new(Closing {
            inner: Arc::clone(&inner),
            closed: Arc::clone(&closed),
        })),
        Some("new") => {
            closed.store(true, Ordering::SeqCst);
            Ok(Arc::clone(&inner))
        }
        Some("forbidden") => Ok(Arc::new(Closing {
            inner: Arc::clone(&inner),
            closed: Arc::new(AtomicBool::new(true)),
        })),
        _ => Err("nobody knows these credentials".to_owned()),
    })
}

async fn keeper() -> Keeper {
    let mut keeper = Keeper::new(Arc::new(MemoryStore::default()), "sh train.sh").await;
    keeper.ticket.credentials = [("TOKEN".to_owned(), "old".to_owned())].into();
    keeper
}

/// An attempt whose worker was sent credentials with its code, and has set up.
async fn sent(sealed: impl FnOnce(&Keeper) -> String) -> (Keeper, JoinHandle<Result<(), WorkerError>>) {
    let mut keeper = keeper().await;
    let worker = keeper.start_with(opener(&keeper));
    keeper.hello().await;
    let sealed = sealed(&keeper);
    keeper.grant_code().await;
    keeper.send(KeeperMessage::Access { sealed }).await;
    keeper.until_setup_is_done().await.unwrap();
    (keeper, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_with_credentials_that_open_the_store_and_without_those_that_do_not() {
    // The old ones end with the first; nobody knows the second; the third open a store, and nothing in it.
    for token in ["new", "unknown", "forbidden"] {
        let text = format!("{{\"TOKEN\":\"{token}\"}}");
        let (mut keeper, worker) = sent(|keeper| keeper.seal_to_worker(text.as_bytes())).await;
        keeper.grant_data().await;
        let ending = keeper.ending().await;
        assert_eq!(ending.failed, None, "{token}: {}", ending.text());
        worker.await.unwrap().unwrap();
        keeper.receive(&ending).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_somebody_else_end_the_attempt_and_are_not_repeated() {
    let stranger = Identity::generate().recipient();
    let (mut keeper, worker) = sent(|_| crate::keeper::seal(&stranger, br#"{"TOKEN":"SECRET"}"#)).await;
    let ending = keeper.ending().await;
    let (stage, reason, _) = ending.failed.unwrap();
    assert_eq!(stage, "grant");
    assert!(
        reason.contains("credentials of the store") && !reason.contains("SECRET"),
        "{reason}"
    );
    let error = worker.await.unwrap().unwrap_err().to_string();
    assert!(!error.contains("SECRET"), "{error}");
}
