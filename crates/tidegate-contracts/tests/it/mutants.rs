//! A suite that cannot fail is worth nothing: stores with one fault each are all refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectInfo, ObjectName, Store, StoreError, conformance};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Overwrites,
    IgnoresLimit,
    CutsRange,
    ListsUnsorted,
    ListsFromAfter,
    ListsOnlyFolders,
    EndlessPage,
    DeleteFails,
    PutsInParts,
}

#[derive(Debug, Clone)]
struct Faulty {
    inner: MemoryStore,
    fault: Fault,
}

#[async_trait]
impl Store for Faulty {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        if self.fault == Fault::PutsInParts && self.inner.head(name).await.is_err() {
            self.inner.overwrite(name, body.slice(..body.len() / 2));
            tokio::task::yield_now().await;
            self.inner.overwrite(name, body);
            return Ok(());
        }
        if self.fault == Fault::Overwrites {
            self.inner.overwrite(name, body);
            return Ok(());
        }
        self.inner.put_new(name, body).await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        let limit = if self.fault == Fault::IgnoresLimit {
            u64::MAX
        } else {
            limit
        };
        self.inner.get(name, limit).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if self.fault == Fault::CutsRange && range.end > self.inner.head(name).await?.bytes {
            return Ok(Bytes::new());
        }
        self.inner.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut page = self.inner.list(prefix, after).await?;
        match self.fault {
            Fault::ListsUnsorted => page.reverse(),
            Fault::ListsFromAfter => {
                if let Some(after) = after.filter(|after| after.as_str().starts_with(prefix)) {
                    page.insert(0, self.inner.head(after).await?);
                }
            }
            Fault::ListsOnlyFolders if !prefix.is_empty() => {
                let folder = format!("{}/", prefix.trim_end_matches('/'));
                page.retain(|info| info.name.as_str().starts_with(&folder));
            }
            Fault::EndlessPage if page.len() == 1000 => {
                page.extend(self.inner.list(prefix, page.last().map(|info| &info.name)).await?);
            }
            _ => {}
        }
        Ok(page)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        if self.fault == Fault::DeleteFails {
            self.inner.head(name).await?;
        }
        self.inner.delete(name).await
    }
}

#[tokio::test]
async fn each_fault_of_a_store_is_noticed() {
    for fault in [
        Fault::None,
        Fault::Overwrites,
        Fault::IgnoresLimit,
        Fault::CutsRange,
        Fault::ListsUnsorted,
        Fault::ListsFromAfter,
        Fault::ListsOnlyFolders,
        Fault::EndlessPage,
        Fault::DeleteFails,
        Fault::PutsInParts,
    ] {
        let stores: Mutex<BTreeMap<String, MemoryStore>> = Mutex::default();
        let verdict = conformance::store(&|name| {
            let inner = stores.lock().unwrap().entry(name.to_owned()).or_default().clone();
            Arc::new(Faulty { inner, fault })
        })
        .await;
        assert_eq!(verdict.is_ok(), fault == Fault::None, "{fault:?}: {verdict:?}");
    }
}
