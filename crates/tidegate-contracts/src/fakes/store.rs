use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::locked;
use crate::store::{ObjectInfo, ObjectName, Pace, Store, StoreError};

/// A store in memory. Clones share their objects.
#[derive(Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<ObjectName, Bytes>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<ObjectName> {
        locked(&self.objects).keys().cloned().collect()
    }

    /// Puts other bytes under a name, as a hostile operator of a store might.
    pub fn overwrite(&self, name: &ObjectName, body: Bytes) {
        locked(&self.objects).insert(name.clone(), body);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("objects", &locked(&self.objects).len())
            .finish()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        let mut objects = locked(&self.objects);
        if objects.contains_key(name) {
            return Err(StoreError::AlreadyExists(name.clone()));
        }
        objects.insert(name.clone(), body);
        Ok(())
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        let objects = locked(&self.objects);
        let body = objects.get(name).ok_or_else(|| StoreError::NotFound(name.clone()))?;
        let bytes = body.len() as u64;
        if bytes > limit {
            return Err(StoreError::TooLarge {
                name: name.clone(),
                bytes,
                limit,
            });
        }
        Ok(body.clone())
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let objects = locked(&self.objects);
        let body = objects.get(name).ok_or_else(|| StoreError::NotFound(name.clone()))?;
        let inside = |at: u64| usize::try_from(at).map_or(body.len(), |at| at.min(body.len()));
        let (start, end) = (inside(range.start), inside(range.end));
        Ok(body.slice(start..end.max(start)))
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        let objects = locked(&self.objects);
        let body = objects.get(name).ok_or_else(|| StoreError::NotFound(name.clone()))?;
        Ok(ObjectInfo {
            name: name.clone(),
            bytes: body.len() as u64,
        })
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        let objects = locked(&self.objects);
        Ok(objects
            .iter()
            .filter(|(name, _)| name.as_str().starts_with(prefix) && after.is_none_or(|after| *name > after))
            .take(1000)
            .map(|(name, body)| ObjectInfo {
                name: name.clone(),
                bytes: body.len() as u64,
            })
            .collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        locked(&self.objects).remove(name);
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace::NEAR
    }
}
