//! Objects of one store that are lent to somebody who has no credentials for it: each by an address that reads it and
//! nothing else, for a while.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tidegate_contracts::{ObjectInfo, ObjectName, Store, StoreError};
use url::Url;

use crate::address::secure;
use crate::client::{Way, client};
use crate::failure::stalled;
use crate::pace::{Pace, SILENCE};
use crate::store::{CloudStore, OpenError};

/// Addresses that are signed at the same time.
const SIGNED_AT_ONCE: usize = 32;

/// What is lent, as it is told to whoever may read it: a secret for as long as the addresses are good.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lending {
    /// Addresses by the names of objects.
    objects: BTreeMap<String, String>,
    /// Certificate authorities that their server may be vouched for by, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificates: Option<String>,
}

/// The text that [`LentStore::open`] reads.
pub(crate) async fn lend(store: &CloudStore, names: &[ObjectName], time: Duration) -> Result<String, StoreError> {
    let failed = |source| StoreError::Permanent {
        what: "lending objects".to_owned(),
        source,
    };
    // Where no key is at hand, each is signed by a request.
    let signed = stream::iter(names.to_vec()).map(|name| async move {
        let address = store.readable(&name, time).await?;
        Ok((name.to_string(), address.to_string()))
    });
    let objects: BTreeMap<_, _> = signed.buffered(SIGNED_AT_ONCE).try_collect().await?;
    let certificates = match &store.address().certificates {
        Some(file) => Some(tokio::fs::read_to_string(file).await.map_err(failed)?),
        None => None,
    };
    serde_json::to_string(&Lending { objects, certificates }).map_err(|error| failed(error.into()))
}

/// Objects of a store of a cloud, for somebody who was lent them: they can be read whole, and nothing else can be done.
pub struct LentStore {
    client: reqwest::Client,
    objects: BTreeMap<ObjectName, Url>,
    pace: Pace,
}

/// Without the addresses.
impl fmt::Debug for LentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.objects.keys()).finish()
    }
}

impl LentStore {
    /// Reads what [`Store::lend`] of a [`CloudStore`] gave. Connects to nobody yet.
    ///
    /// # Errors
    /// When it is no such text, or names a server that is spoken to in the clear.
    pub fn open(lent: &str) -> Result<Self, OpenError> {
        let who = "what was lent";
        let settings = |why: &str| OpenError::Settings {
            store: who.to_owned(),
            why: why.to_owned(),
        };
        let lending: Lending = serde_json::from_str(lent).map_err(|_| settings("it cannot be read"))?;
        let mut objects = BTreeMap::new();
        for (name, url) in lending.objects {
            let url = Url::parse(&url).map_err(|_| settings("it names an address that is none"))?;
            secure(&url).map_err(|why| settings(&format!("its address {why}")))?;
            let name = ObjectName::new(name).map_err(|_| settings("it names an object by what is no name"))?;
            objects.insert(name, url);
        }
        let pem = lending.certificates.map(String::into_bytes);
        let certificates = pem.as_deref().map(|pem| (Path::new("what was lent"), pem));
        Ok(Self {
            client: client(who, certificates, Way::Usual)?,
            objects,
            pace: Pace::default(),
        })
    }

    async fn fetch(&self, name: &ObjectName, url: &Url, limit: u64) -> Result<Vec<u8>, StoreError> {
        let what = || format!("getting object `{name}`");
        // Neither the address nor what a library says of it is passed on.
        let broken = |why: &str| StoreError::Transient {
            what: what(),
            source: io::Error::other(why.to_owned()),
        };
        let response = self.client.get(url.clone()).send().await;
        let response = response.map_err(|_| broken("no answer came from the store that lends it"))?;
        let answered = |status: u16| io::Error::other(format!("the store that lends it answered with status {status}"));
        match response.status().as_u16() {
            200 => {}
            404 => return Err(StoreError::NotFound(name.clone())),
            400 | 401 | 403 => {
                let why = "what was lent has expired, or was taken back; the next attempt is lent it anew".to_owned();
                return Err(StoreError::Denied { what: what(), why });
            }
            429 | 503 => {
                return Err(StoreError::Busy {
                    what: what(),
                    after: None,
                });
            }
            status if status >= 500 || status == 408 => {
                return Err(StoreError::Transient {
                    what: what(),
                    source: answered(status),
                });
            }
            status => {
                return Err(StoreError::Permanent {
                    what: what(),
                    source: answered(status),
                });
            }
        }
        let too_large = |bytes| StoreError::TooLarge {
            name: name.clone(),
            bytes,
            limit,
        };
        let length = response.content_length();
        if let Some(bytes) = length.filter(|bytes| *bytes > limit) {
            return Err(too_large(bytes));
        }
        let mut body = Vec::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0));
        let mut parts = response.bytes_stream();
        loop {
            match tokio::time::timeout(SILENCE, parts.next()).await {
                Err(_) => return Err(stalled(what())),
                Ok(Some(Err(_))) => return Err(broken("the answer broke off")),
                Ok(None) if length.is_some_and(|length| length != body.len() as u64) => {
                    return Err(broken("the answer broke off"));
                }
                Ok(None) => return Ok(body),
                Ok(Some(Ok(part))) if (body.len() + part.len()) as u64 > limit => {
                    return Err(too_large((body.len() + part.len()) as u64));
                }
                Ok(Some(Ok(part))) => body.extend_from_slice(&part),
            }
        }
    }

    fn only_read(&self, what: String) -> StoreError {
        let why = "it was lent to be read, and for nothing else".to_owned();
        StoreError::Denied { what, why }
    }
}

#[async_trait]
impl Store for LentStore {
    async fn put_new(&self, name: &ObjectName, _: Bytes) -> Result<(), StoreError> {
        Err(self.only_read(format!("putting object `{name}`")))
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        let Some(url) = self.objects.get(name) else {
            return Err(StoreError::NotFound(name.clone()));
        };
        let patience = self.pace.patience(limit.min(MOST_WAITED_FOR));
        let fetched = tokio::time::timeout(patience, self.fetch(name, url, limit)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(stalled(format!("getting object `{name}`"))));
        fetched.map(Bytes::from)
    }

    async fn get_range(&self, name: &ObjectName, _: Range<u64>) -> Result<Bytes, StoreError> {
        Err(self.only_read(format!("getting a part of object `{name}`")))
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        Err(self.only_read(format!("asking for object `{name}`")))
    }

    async fn list(&self, _: &str, _: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        Err(self.only_read("listing objects".to_owned()))
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        Err(self.only_read(format!("removing object `{name}`")))
    }
}

/// Larger objects than a sealed shard are not waited for longer than one.
const MOST_WAITED_FOR: u64 = 1 << 30;
