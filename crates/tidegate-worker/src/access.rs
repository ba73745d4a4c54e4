//! The site's store, opened again where its credentials end and the keeper sends others.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_contracts::{ObjectInfo, ObjectName, Pace, Store, StoreError};

/// Opens the store with variables that hold its credentials, or says why it cannot.
pub type Opener = Box<dyn Fn(&BTreeMap<String, String>) -> Result<Arc<dyn Store>, String> + Send + Sync>;

/// Opens what [`Store::lend`] gave, or says why it cannot.
pub type Borrow = fn(&str) -> Result<Arc<dyn Store>, String>;

/// A store with the newest credentials: calls that are under way end with those that they began with.
pub(crate) struct Access {
    opener: Opener,
    newest: RwLock<Arc<dyn Store>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Access").field(&self.newest()).finish()
    }
}

impl Access {
    pub(crate) fn open(opener: Opener, credentials: &BTreeMap<String, String>) -> Result<Self, String> {
        let newest = RwLock::new(opener(credentials)?);
        Ok(Self { opener, newest })
    }

    /// Goes on with other credentials, if they open what is `known` to be there.
    pub(crate) async fn renew(
        &self,
        credentials: &BTreeMap<String, String>,
        known: Option<&ObjectName>,
    ) -> Result<(), String> {
        let opened = (self.opener)(credentials)?;
        if let Some(known) = known
            && let Err(error) = opened.head(known).await
            // One that may pass says nothing about the credentials.
            && !error.is_transient()
        {
            return Err(error.to_string());
        }
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(())
    }

    fn newest(&self) -> Arc<dyn Store> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Store for Access {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        self.newest().put_new(name, body).await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        self.newest().get(name, limit).await
    }

    async fn get_in(&self, name: &ObjectName, limit: u64, room: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.newest().get_in(name, limit, room).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.newest().get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.newest().head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        self.newest().list(prefix, after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.newest().delete(name).await
    }

    fn pace(&self) -> Pace {
        self.newest().pace()
    }
}
