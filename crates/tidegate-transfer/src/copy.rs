//! Shards that stand sealed in the store of one site and are needed in that of another: copied as they are, and opened by
//! nobody on the way.
//!
//! The sender's part is [`sent_shards`] and [`send_copied`](crate::send_copied()): a new packing list and index, under a new
//! permit and data key, that name the shards of an earlier crossing. The receiver's part is [`Copying`]: whoever may open
//! the artifact brings them over before it does.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tidegate_contracts::{ObjectInfo, ObjectName, Pace, Store, StoreError};
use tidegate_seal::digest::sha256;
use tidegate_seal::key::DataKey;
use tidegate_types::Manifest;
use tidegate_types::artifact::{SealedObject, ShardKey};

use crate::error::TransferError;
use crate::receive::{Expected, open_list};
use crate::retry;
use crate::send::sealed_name;

/// Questions about objects that are under way at once.
const ASKED_AT_ONCE: usize = 8;

/// The shards of a complete crossing, in order, with the keys that open them: a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SentShards(pub(crate) Vec<(ShardKey, SealedObject)>);

/// Without the keys.
impl fmt::Debug for SentShards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.objects()).finish()
    }
}

impl SentShards {
    /// The shards as they stand in the store.
    pub fn objects(&self) -> impl Iterator<Item = &SealedObject> {
        self.0.iter().map(|(_, object)| object)
    }
}

/// The shards of an artifact that was sent before, if all of them still stand in that store.
///
/// # Errors
/// As [`crate::receive()`]; [`TransferError::Unexpected`] also where the artifact is not the one that `manifest` describes,
/// or a shard of it is gone.
pub async fn sent_shards(
    expected: &Expected<'_>,
    store: &dyn Store,
    data_key: &DataKey,
    manifest: &Manifest,
) -> Result<SentShards, TransferError> {
    let (list, index, _) = open_list(expected, store, data_key).await?;
    let unexpected = |why: &str| TransferError::Unexpected {
        name: expected.packing_list.clone(),
        why: why.to_owned(),
    };
    if index.manifest != *manifest {
        return Err(unexpected("it is of another artifact"));
    }
    if !missing(store, &list.shards).await?.is_empty() {
        return Err(unexpected("shards that it names are not there any more"));
    }
    Ok(SentShards(index.shards.into_iter().zip(list.shards).collect()))
}

/// Those of some sealed objects that do not stand in a store, whole.
///
/// # Errors
/// [`TransferError::Store`] where the store does not say.
pub async fn missing(store: &dyn Store, objects: &[SealedObject]) -> Result<Vec<SealedObject>, TransferError> {
    let asked = stream::iter(objects.to_vec()).map(|object| async move {
        let name = sealed_name(&object.digest);
        match retry::patiently(|| store.head(&name)).await {
            Ok(info) => Ok((info.bytes != object.bytes).then_some(object)),
            Err(StoreError::NotFound(_)) => Ok(Some(object)),
            Err(error) => Err(TransferError::store("asking for a stored object")(error)),
        }
    });
    let missing: Vec<_> = asked.buffered(ASKED_AT_ONCE).try_collect().await?;
    Ok(missing.into_iter().flatten().collect())
}

/// The name under which a sealed object stands in every store.
#[must_use]
pub fn object_name(object: &SealedObject) -> ObjectName {
    sealed_name(&object.digest)
}

/// A store that brings over what does not stand in it yet and is asked for whole, from another one.
///
/// What arrives is kept only if it has the digest that it is named by. Of several machines that bring the same object each
/// has it, and one of them puts it.
#[derive(Debug)]
pub struct Copying<'a> {
    store: &'a dyn Store,
    from: &'a dyn Store,
}

impl<'a> Copying<'a> {
    /// `store`, with what stands in `from` besides.
    #[must_use]
    pub fn new(store: &'a dyn Store, from: &'a dyn Store) -> Self {
        Self { store, from }
    }

    async fn copy(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>, StoreError> {
        let broken = |why: &str| StoreError::Permanent {
            what: format!("copying object `{name}`"),
            source: std::io::Error::other(why.to_owned()),
        };
        let bytes = self.from.get_in(name, limit, Vec::new()).await?;
        let (bytes, found) = tokio::task::spawn_blocking(move || {
            let found = sealed_name(&sha256(&bytes));
            (bytes, found)
        })
        .await
        .map_err(|_| broken("the step was stopped"))?;
        if found != *name {
            return Err(broken("other bytes stand there than are named"));
        }
        let body = Bytes::from(bytes);
        match self.store.put_new(name, body.clone()).await {
            Ok(()) | Err(StoreError::AlreadyExists(_)) => Ok(body.into()),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Store for Copying<'_> {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        self.store.put_new(name, body).await
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        Ok(self.get_in(name, limit, Vec::new()).await?.into())
    }

    async fn get_in(&self, name: &ObjectName, limit: u64, room: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        match self.store.get_in(name, limit, room).await {
            Err(StoreError::NotFound(_)) => self.copy(name, limit).await,
            read => read,
        }
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.store.head(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        self.store.list(prefix, after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.store.delete(name).await
    }

    fn pace(&self) -> Pace {
        self.store.pace()
    }
}
