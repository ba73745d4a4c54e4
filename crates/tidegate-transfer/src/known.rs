//! Shards that need not be sent again.

use std::collections::BTreeMap;

use tidegate_types::KeyedDigest;
use tidegate_types::artifact::{SealedObject, ShardKey};

/// Shards that a sender has put into a store, by the keyed digest of what is in them, with the keys that open them.
///
/// A later artifact that holds the same bytes at the border of a shard names the shard that stands there already: it is
/// neither sealed again under its key nor put again. Only who keeps the digest key can tell, so that the store learns of
/// it no more than that two packing lists name one object. Holds keys: a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownShards(BTreeMap<KeyedDigest, (ShardKey, SealedObject)>);

impl KnownShards {
    /// None.
    pub const NONE: &'static Self = &Self(BTreeMap::new());

    pub(crate) fn add(&mut self, content: KeyedDigest, key: ShardKey, object: SealedObject) {
        self.0.insert(content, (key, object));
    }

    /// Takes a shard out: a packing list names no object twice.
    pub(crate) fn take(&mut self, content: &KeyedDigest) -> Option<(ShardKey, SealedObject)> {
        self.0.remove(content)
    }
}
