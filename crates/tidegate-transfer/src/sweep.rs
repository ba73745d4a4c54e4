use std::collections::BTreeSet;

use tidegate_contracts::{ObjectInfo, ObjectName, Store, StoreError, StoreExt};
use tidegate_seal::dsse;
use tidegate_types::PackingList;

use crate::error::TransferError;
use crate::retry;
use crate::send::sealed_name;

/// The most bytes of a packing list: a crossing of a terabyte has 16,384 shards at 110 bytes each.
pub(crate) const MAX_LIST_BYTES: u64 = 16 << 20;
/// The most objects of one kind in a store that is looked through.
const MAX_OBJECTS: usize = 1 << 20;

/// What crossings have put into a store: packing lists, then what is sealed. Nothing else that stands there.
///
/// Whoever removes what nobody names must call this first, and find out what is named afterwards: what a sender is
/// about to put it notes before.
///
/// # Errors
/// [`TransferError::Store`] when the store fails, or holds more than a million of either kind: what was not looked at
/// may name what was.
pub async fn stored(store: &dyn Store) -> Result<Vec<ObjectInfo>, TransferError> {
    // Lists last, since they are put last: of a crossing that ends meanwhile no shard is seen without its list.
    let sealed = listed(store, "sealed/").await?;
    let mut found = listed(store, "packing/").await?;
    found.extend(sealed);
    Ok(found)
}

async fn listed(store: &dyn Store, prefix: &str) -> Result<Vec<ObjectInfo>, TransferError> {
    let failed = TransferError::store("listing what was sent");
    let found = match retry::patiently(|| store.list_all(prefix, MAX_OBJECTS)).await {
        Ok(found) => found,
        Err(error) => return Err(failed(error)),
    };
    if found.len() < MAX_OBJECTS {
        return Ok(found);
    }
    Err(failed(StoreError::Permanent {
        what: format!("listing `{prefix}`"),
        source: std::io::Error::other("there are more objects than are looked through"),
    }))
}

/// The names of packing lists and of everything that they name, where they stand in the store.
///
/// # Errors
/// [`TransferError::Store`] when the store fails, [`TransferError::Unexpected`] when a list cannot be read: nobody
/// knows what it names.
pub async fn named_by(store: &dyn Store, lists: &BTreeSet<ObjectName>) -> Result<BTreeSet<ObjectName>, TransferError> {
    let mut named = lists.clone();
    for name in lists {
        match retry::patiently(|| store.get(name, MAX_LIST_BYTES)).await {
            Ok(bytes) => named.extend(read(name, &bytes)?),
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(TransferError::store("reading a packing list")(error)),
        }
    }
    Ok(named)
}

/// Removes objects, in order: lists should come before what they name, since a list without its shards promises what
/// is not there.
///
/// # Errors
/// [`TransferError::Store`] when the store fails; those before are gone.
pub async fn remove(store: &dyn Store, objects: &[ObjectName]) -> Result<(), TransferError> {
    for name in objects {
        retry::patiently(|| store.delete(name))
            .await
            .map_err(TransferError::store("removing an object that nobody names"))?;
    }
    Ok(())
}

/// What a packing list names. Its signature does not matter: what it names is kept, and nothing removed for it.
fn read(name: &ObjectName, bytes: &[u8]) -> Result<BTreeSet<ObjectName>, TransferError> {
    let unreadable = |why: String| TransferError::Unexpected {
        name: name.clone(),
        why,
    };
    let payload = dsse::from_bytes(bytes)
        .and_then(|envelope| dsse::peek(&envelope))
        .map_err(|error| unreadable(error.to_string()))?;
    let list: PackingList =
        serde_json::from_slice(&payload).map_err(|_| unreadable("it is not a packing list".to_owned()))?;
    let objects = list.shards.iter().chain([&list.index]);
    Ok(objects.map(|object| sealed_name(&object.digest)).collect())
}
