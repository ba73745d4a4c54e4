use std::collections::BTreeSet;

use tidegate_contracts::{ObjectName, Store, StoreError};
use tidegate_seal::dsse;
use tidegate_types::PackingList;

use crate::error::TransferError;
use crate::retry;
use crate::send::sealed_name;

/// The most bytes of a packing list: a crossing of a terabyte has 16,384 shards at 110 bytes each.
pub(crate) const MAX_LIST_BYTES: u64 = 16 << 20;

/// Removes sealed objects and packing lists that nobody names any more; gives the names that it
/// removed. Nothing outside `sealed/` and `packing/` is touched.
///
/// `keep` holds the object names that a live journal names, and those of
/// [`crate::names_in_flight`] for every crossing into this store that may be going on. What a kept
/// packing list names is kept too.
///
/// # Errors
/// [`TransferError::Store`] when the store fails, [`TransferError::Unexpected`] when a kept packing
/// list cannot be read; then nothing was removed, because nobody knows what it names.
pub async fn sweep(store: &dyn Store, keep: &BTreeSet<String>) -> Result<Vec<ObjectName>, TransferError> {
    let mut kept = keep.clone();
    for name in keep.iter().filter(|name| name.starts_with("packing/")) {
        let Ok(name) = ObjectName::new(name.as_str()) else {
            continue;
        };
        match retry::patiently(|| store.get(&name, MAX_LIST_BYTES)).await {
            Ok(bytes) => kept.extend(named_by(&name, &bytes)?),
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(TransferError::store("reading a packing list")(error)),
        }
    }
    let mut removed = Vec::new();
    // Lists go first: a list without its shards would promise what is not there.
    for prefix in ["packing/", "sealed/"] {
        let mut after: Option<ObjectName> = None;
        loop {
            let page = retry::patiently(|| store.list(prefix, after.as_ref()))
                .await
                .map_err(TransferError::store("listing what was sent"))?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for info in page.iter().filter(|info| !kept.contains(info.name.as_str())) {
                retry::patiently(|| store.delete(&info.name))
                    .await
                    .map_err(TransferError::store("removing an object that nobody names"))?;
                removed.push(info.name.clone());
            }
        }
    }
    Ok(removed)
}

/// What a packing list names. Its signature does not matter here: a forged one can only keep things.
fn named_by(name: &ObjectName, bytes: &[u8]) -> Result<BTreeSet<String>, TransferError> {
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
    Ok(objects.map(|object| sealed_name(&object.digest).to_string()).collect())
}
