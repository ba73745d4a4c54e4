use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use tidegate_contracts::{ObjectInfo, ObjectName, Store, StoreError};
use url::Url;

use crate::address::{Address, Provider, secure};
use crate::answer::{Watching, watched};
use crate::client::{Way, direct, options, watching};
use crate::credentials::{self, Environment};
use crate::failure::{Failure, stalled};
use crate::lent::lend;
use crate::pace::{Pace, Paced, SILENCE};
use crate::profile::with_profile;
use crate::session::azure::Signing;
use crate::session::{self, Owner, Session};

/// Objects in one page of a listing.
const PAGE: usize = 1000;
/// Requests of one listing: names that are no objects of ours may stand between ours.
const PAGES: usize = 10_000;

/// Says what is being done to which object, for messages.
pub(crate) type What<'a> = &'a (dyn Fn() -> String + Sync);

/// A store of a public cloud.
#[derive(Clone)]
pub struct CloudStore {
    address: Arc<Address>,
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) pages: Arc<dyn PaginatedListStore>,
    signer: Arc<dyn Signer>,
    /// Who asks for credentials of workers.
    owner: Arc<Owner>,
    /// Whether these credentials create objects and replace none.
    creates_only: bool,
    /// The region that requests to S3 are signed for.
    pub(crate) region: Arc<str>,
    pub(crate) pace: Pace,
}

impl fmt::Debug for CloudStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CloudStore").field(&self.address.to_string()).finish()
    }
}

/// Why a store, or a custody, cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file of certificate authorities cannot be read.
    #[error("reading the certificates of `{store}` from `{file}`: {source}")]
    Certificates {
        /// The store.
        store: String,
        /// The file.
        file: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The address and what the environment says do not make a store.
    #[error("`{store}` cannot be used: {why}")]
    Settings {
        /// The store.
        store: String,
        /// What is wrong.
        why: String,
    },
}

impl CloudStore {
    /// A store at `address`, with the credentials that `environment` has for it. Connects to nobody yet.
    ///
    /// # Errors
    /// When certificates cannot be read, or the environment's settings contradict each other.
    pub fn open(address: Address, environment: &Environment) -> Result<Self, OpenError> {
        Self::open_paced(address, environment, None)
    }

    /// As [`Self::open`]; no more than `per_second` bytes are sent there in a second, by whatever holds a clone of this
    /// value, and no more are fetched. They move evenly, a few at a time.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_paced(address: Address, environment: &Environment, per_second: Option<u64>) -> Result<Self, OpenError> {
        let pace = Pace::of(per_second);
        let watching = watching(&address, &pace)?;
        let here = |url: &Url| url.scheme() == "http" && secure(url).is_ok();
        let authority = environment.get("AZURE_AUTHORITY_HOST").and_then(|url| url.parse().ok());
        let plain = address.endpoint.as_ref().is_some_and(here)
            || (address.provider == Provider::Azure && authority.as_ref().is_some_and(here));
        let client = options(&address.to_string(), plain, address.certificates.as_deref())?;
        let settings = |error: object_store::Error| OpenError::Settings {
            store: address.to_string(),
            why: error.to_string(),
        };
        let endpoint = address.endpoint.as_ref().map(|url| url.as_str().trim_end_matches('/'));
        // Whoever calls decides about trying again.
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let mut creates_only = false;
        let mut region = address.region.clone();
        let (owner, (objects, pages, signer)): (Owner, Sides) = match address.provider {
            Provider::S3 => {
                let environment = with_profile(environment).map_err(|why| OpenError::Settings {
                    store: address.to_string(),
                    why,
                })?;
                region = region.or_else(|| credentials::region(&environment));
                let mut builder = credentials::s3(AmazonS3Builder::new(), &environment)
                    .with_bucket_name(&address.bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .with_http_connector(watching.clone())
                    // The server refuses what does not arrive as it left.
                    .with_checksum_algorithm(Checksum::SHA256);
                if let Some(region) = &address.region {
                    builder = builder.with_region(region);
                }
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
                }
                let store = Arc::new(builder.build().map_err(settings)?);
                (Owner::Amazon(Arc::clone(store.credentials())), sides(store))
            }
            Provider::Google => {
                let mut builder = credentials::google(GoogleCloudStorageBuilder::new(), environment)
                    .with_bucket_name(&address.bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .with_http_connector(watching.clone());
                if let Some(endpoint) = endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                let store = Arc::new(builder.build().map_err(settings)?);
                (Owner::Google(Arc::clone(store.credentials())), sides(store))
            }
            Provider::Azure => {
                let directories = credentials::azure_directories(environment).map_err(|why| OpenError::Settings {
                    store: address.to_string(),
                    why,
                })?;
                creates_only = directories.is_some();
                let watching = match directories {
                    Some(directories) => {
                        // Whoever follows a redirection tells where it came from, and that address is signed.
                        let client = direct(&address.to_string(), address.certificates.as_deref(), Way::Usual)?;
                        let paced = Watching::paced(Paced {
                            client,
                            pace: pace.clone(),
                        });
                        paced.signing(Signing::of(&address, directories))
                    }
                    None => watching,
                };
                let mut builder = credentials::azure(MicrosoftAzureBuilder::new(), environment)
                    .with_account(address.account.clone().unwrap_or_default())
                    .with_container_name(&address.bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .with_skip_signature(creates_only)
                    .with_http_connector(watching);
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint.to_owned());
                }
                let store = Arc::new(builder.build().map_err(settings)?);
                (Owner::Azure(Arc::clone(store.credentials())), sides(store))
            }
        };
        Ok(Self {
            address: Arc::new(address),
            objects,
            pages,
            signer,
            owner: Arc::new(owner),
            creates_only,
            region: region.as_deref().unwrap_or(credentials::USUAL_REGION).into(),
            pace,
        })
    }

    /// Credentials for the worker whose mailbox is below `mailbox`, as the variables with which it opens this
    /// store: they end by themselves, after about `seconds`, and reach nothing but its mailbox and what is sealed.
    ///
    /// # Errors
    /// Where the address names no `role` and needs one, or the service refuses: nobody is given more than that.
    pub async fn for_worker(&self, mailbox: &str, seconds: u64) -> Result<Session, StoreError> {
        session::for_worker(&self.address, &self.owner, &self.region, mailbox, seconds).await
    }

    /// An address that reads one object and nothing else, for as long as `time`, without credentials.
    ///
    /// # Errors
    /// When no credentials are found that could sign it.
    pub(crate) async fn readable(&self, name: &ObjectName, time: Duration) -> Result<Url, StoreError> {
        let what = || format!("signing an address for object `{name}`");
        let path = self.path(name)?;
        let signed = self
            .call(&what, 0, self.signer.signed_url(http::Method::GET, &path, time))
            .await;
        signed.map_err(|failure| failure.or(&what))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the library leaves out of a listing what is named exactly as the prefix, taking it for a folder.
    pub(crate) fn leaves_out_prefix(&self) -> bool {
        self.address.provider == Provider::Azure
    }

    fn key(&self, name: &str) -> String {
        match &self.address.prefix {
            Some(prefix) => format!("{prefix}/{name}"),
            None => name.to_owned(),
        }
    }

    fn path(&self, name: &ObjectName) -> Result<Path, StoreError> {
        Path::parse(self.key(name.as_str())).map_err(|error| StoreError::Permanent {
            what: format!("naming object `{name}`"),
            source: io::Error::other(error),
        })
    }

    /// Does one call with a limit of time that fits `bytes`.
    pub(crate) async fn call<T>(
        &self,
        what: What<'_>,
        bytes: u64,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
        let limit = self.pace.patience(bytes);
        match watched(tokio::time::timeout(limit, call)).await {
            (Ok(Ok(value)), ..) => Ok(value),
            (Ok(Err(error)), answer, signs) => Err(self.failure(&error, answer, &signs, what)),
            (Err(_), ..) => Err(Failure::Other(stalled(what()))),
        }
    }

    async fn fetch(&self, name: &ObjectName, what: What<'_>, options: GetOptions) -> Result<GetResult, Failure> {
        let path = self.path(name).map_err(Failure::Other)?;
        self.call(what, 0, self.objects.get_opts(&path, options)).await
    }
}

/// One store, by the three things that it is to the library.
type Sides = (Arc<dyn ObjectStore>, Arc<dyn PaginatedListStore>, Arc<dyn Signer>);

fn sides<S: ObjectStore + PaginatedListStore + Signer>(store: Arc<S>) -> Sides {
    (
        Arc::clone(&store) as Arc<dyn ObjectStore>,
        Arc::clone(&store) as Arc<dyn PaginatedListStore>,
        store,
    )
}

#[async_trait]
impl Store for CloudStore {
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<(), StoreError> {
        let what = || format!("putting object `{name}`");
        let path = self.path(name)?;
        let bytes = body.len() as u64;
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let put = self.objects.put_opts(&path, PutPayload::from(body), options);
        match self.call(&what, bytes, put).await {
            Ok(_) => Ok(()),
            Err(Failure::Exists) => Err(StoreError::AlreadyExists(name.clone())),
            // Whoever may not replace objects may be told that before it is told that one is there.
            Err(Failure::Other(denied @ StoreError::Denied { .. })) if self.creates_only => {
                Err(match self.head(name).await {
                    Ok(_) => StoreError::AlreadyExists(name.clone()),
                    Err(error) if error.is_transient() => error,
                    Err(_) => denied,
                })
            }
            Err(failure) => Err(failure.or(&what)),
        }
    }

    async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StoreError> {
        Ok(self.get_in(name, limit, Vec::new()).await?.into())
    }

    async fn get_in(&self, name: &ObjectName, limit: u64, room: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let what = || format!("getting object `{name}`");
        let result = match self.fetch(name, &what, GetOptions::default()).await {
            Ok(result) => result,
            Err(Failure::NotFound) => return Err(StoreError::NotFound(name.clone())),
            Err(failure) => return Err(failure.or(&what)),
        };
        let bytes = result.meta.size;
        if bytes > limit {
            return Err(StoreError::TooLarge {
                name: name.clone(),
                bytes,
                limit,
            });
        }
        collect(result, bytes, room, &self.pace, &what).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let what = || format!("getting a part of object `{name}`");
        if range.is_empty() {
            // No request says that.
            return self.head(name).await.map(|_| Bytes::new());
        }
        let end = range.end.min(i64::MAX as u64);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.start..end)),
            ..GetOptions::default()
        };
        let failure = match self.fetch(name, &what, options).await {
            Ok(result) => {
                let bytes = result.range.end.saturating_sub(result.range.start);
                return Ok(collect(result, bytes, Vec::new(), &self.pace, &what).await?.into());
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::NotFound => Err(StoreError::NotFound(name.clone())),
            Failure::Behind => Ok(Bytes::new()),
            // Some servers answer a range behind the object with something else than 416.
            failure => match self.head(name).await {
                Ok(info) if info.bytes <= range.start => Ok(Bytes::new()),
                _ => Err(failure.or(&what)),
            },
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        let what = || format!("asking for object `{name}`");
        let path = self.path(name)?;
        match self.call(&what, 0, self.objects.head(&path)).await {
            Ok(meta) => Ok(ObjectInfo {
                name: name.clone(),
                bytes: meta.size,
            }),
            Err(Failure::NotFound) => Err(StoreError::NotFound(name.clone())),
            Err(failure) => Err(failure.or(&what)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectName>) -> Result<Vec<ObjectInfo>, StoreError> {
        let what = || format!("listing objects that begin with `{}`", prefix.escape_default());
        let mut beginning = self.key(prefix);
        if self.leaves_out_prefix() {
            beginning.pop();
        }
        let root = self.key("");
        // The clouds themselves list by bytes and begin where they are told to. What is compatible with them
        // may list by folders, so that all of it must be seen to know what comes first.
        let ordered = self.address.endpoint.is_none();
        let mut found: BTreeMap<ObjectName, u64> = BTreeMap::new();
        let mut token = None;
        for _ in 0..PAGES {
            let offset = after.filter(|_| ordered && token.is_none());
            let options = PaginatedListOptions {
                offset: offset.map(|after| self.key(after.as_str())),
                max_keys: Some(PAGE),
                page_token: token.take(),
                ..PaginatedListOptions::default()
            };
            let prefix_wanted = Some(beginning.as_str()).filter(|beginning| !beginning.is_empty());
            let page = self.pages.list_paginated(prefix_wanted, options);
            let page = self.call(&what, 0, page).await.map_err(|failure| failure.or(&what))?;
            for meta in page.result.objects {
                let key = meta.location.to_string();
                let name = key.strip_prefix(&root).map(ObjectName::new);
                // Somebody else's objects have names that none of ours has.
                if let Some(Ok(name)) = name
                    && name.as_str().starts_with(prefix)
                    && after.is_none_or(|after| name > *after)
                {
                    found.insert(name, meta.size);
                    if found.len() > PAGE {
                        found.pop_last();
                    }
                }
            }
            token = page.page_token;
            if token.is_none() || (ordered && found.len() >= PAGE) {
                let infos = found.into_iter().map(|(name, bytes)| ObjectInfo { name, bytes });
                return Ok(infos.collect());
            }
        }
        Err(StoreError::Permanent {
            what: what(),
            source: io::Error::other("too many objects of others stand between"),
        })
    }

    async fn lend(&self, names: &[ObjectName], time: Duration) -> Result<Option<String>, StoreError> {
        lend(self, names, time).await.map(Some)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let what = || format!("removing object `{name}`");
        let path = self.path(name)?;
        match self.call(&what, 0, self.objects.delete(&path)).await {
            Ok(()) | Err(Failure::NotFound) => Ok(()),
            Err(failure) => Err(failure.or(&what)),
        }
    }
}

/// Takes a body in, exactly `bytes` of it, as long as it keeps coming.
pub(crate) async fn collect(
    result: GetResult,
    bytes: u64,
    mut body: Vec<u8>,
    pace: &Pace,
    what: What<'_>,
) -> Result<Vec<u8>, StoreError> {
    let broken = |why: &str| StoreError::Transient {
        what: what(),
        source: io::Error::other(why.to_owned()),
    };
    let length = usize::try_from(bytes).map_err(|_| broken("it does not fit into memory"))?;
    body.clear();
    body.reserve_exact(length);
    let mut stream = result.into_stream();
    let until = tokio::time::Instant::now() + pace.patience(bytes);
    loop {
        let silence = until.min(tokio::time::Instant::now() + SILENCE);
        match tokio::time::timeout_at(silence, stream.next()).await {
            Err(_) => return Err(stalled(what())),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(broken("the answer broke off")),
            Ok(Some(Ok(part))) if part.len() > length - body.len() => return Err(broken("the answer is too long")),
            Ok(Some(Ok(part))) => {
                pace.pass(part.len()).await;
                body.extend_from_slice(&part);
            }
        }
    }
    if body.len() == length {
        Ok(body)
    } else {
        Err(broken("the answer broke off"))
    }
}
