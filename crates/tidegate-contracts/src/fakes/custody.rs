use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::locked;
use crate::custody::{Custody, CustodyError};

/// What a wrapped key was wrapped as: the key, its context, and how often the wrapping key had been renewed.
type Remembered = ([u8; 32], String, u64);

/// A custody in memory that hands out random handles and remembers what they stand for. Clones share
/// their memory; it encrypts nothing, and nothing can be opened once the last clone is gone.
#[derive(Clone, Default)]
pub struct MemoryCustody {
    keys: Arc<Mutex<BTreeMap<Vec<u8>, Remembered>>>,
    /// How often the key was renewed.
    age: Arc<AtomicU64>,
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
        locked(&self.keys).insert(
            handle.clone(),
            (*key, context.to_owned(), self.age.load(Ordering::SeqCst)),
        );
        Ok(handle)
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        match locked(&self.keys).get(wrapped) {
            Some((key, made_for, _)) if made_for == context => Ok(*key),
            _ => Err(CustodyError::WrongKey {
                context: context.to_owned(),
            }),
        }
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        Ok(self.age.fetch_add(1, Ordering::SeqCst) + 1)
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        locked(&self.keys).retain(|_, (_, _, age)| *age >= before);
        Ok(())
    }
}
