use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::locked;
use crate::custody::{Custody, CustodyError};

/// What a wrapped key was wrapped as: the key and its context.
type Remembered = ([u8; 32], String);

/// A custody in memory that hands out random handles and remembers what they stand for. Clones share
/// their memory; it encrypts nothing, and nothing can be opened once the last clone is gone.
#[derive(Clone, Default)]
pub struct MemoryCustody {
    keys: Arc<Mutex<BTreeMap<Vec<u8>, Remembered>>>,
}

impl MemoryCustody {
    /// A custody that has wrapped nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryCustody([secret])")
    }
}

#[async_trait]
impl Custody for MemoryCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        // `RandomState` is the only randomness of the standard library; a fake needs no better.
        let handle: Vec<u8> = (0..4_u8)
            .flat_map(|part| RandomState::new().hash_one(part).to_be_bytes())
            .collect();
        locked(&self.keys).insert(handle.clone(), (*key, context.to_owned()));
        Ok(handle)
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        match locked(&self.keys).get(wrapped) {
            Some((key, made_for)) if made_for == context => Ok(*key),
            _ => Err(CustodyError::WrongKey {
                context: context.to_owned(),
            }),
        }
    }
}
