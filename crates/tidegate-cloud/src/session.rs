//! Short-lived credentials for one worker, which reach what its attempt needs and nothing else.

mod amazon;
pub(crate) mod azure;
mod google;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::CredentialProvider;
use object_store::aws::AwsCredentialProvider;
use object_store::azure::AzureCredentialProvider;
use object_store::client::HttpRequest;
use object_store::gcp::GcpCredentialProvider;
use tidegate_contracts::StoreError;
use tidegate_contracts::store::NOT_ALLOWED;

use crate::address::Address;
use crate::answer::asked_to_wait;
use crate::client::{Server, Way};
use crate::credentials::Environment;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 64 << 10;

/// Who opens a store, and may ask for less than that for somebody else.
pub(crate) enum Owner {
    Amazon(AwsCredentialProvider),
    Google(GcpCredentialProvider),
    Azure(AzureCredentialProvider),
}

/// What a worker may do, by how the names of objects begin in the whole bucket.
struct Reach {
    /// Below these it reads: what is sealed, the packing lists of its run, and its mailbox.
    reads: Vec<String>,
    /// Below these it creates: what it sends home with its packing lists, and its side of the mailbox.
    creates: Vec<String>,
}

impl Reach {
    fn of(address: &Address, mailbox: &str) -> Self {
        let root = address
            .prefix
            .as_ref()
            .map_or(String::new(), |prefix| format!("{prefix}/"));
        let below = |names: [&str; 3]| names.iter().map(|name| format!("{root}{name}")).collect();
        // `mailbox/RUN/…`
        let run = mailbox.split('/').nth(1).unwrap_or_default();
        let lists = format!("packing/{run}/");
        Self {
            reads: below(["sealed/", &lists, mailbox]),
            creates: below(["sealed/", &lists, &format!("{mailbox}out/")]),
        }
    }
}

/// What a worker opens the store with, and for how long.
#[derive(Clone)]
pub struct Session {
    /// The variables.
    pub variables: Environment,
    /// How long the service takes them for good.
    pub lasts: Duration,
}

/// Without the variables.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lasts", &self.lasts)
            .finish_non_exhaustive()
    }
}

/// One question for credentials.
struct Asking<'a> {
    address: &'a Address,
    server: Server,
    reach: Reach,
    seconds: u64,
}

impl Asking<'_> {
    fn what(&self) -> String {
        what(self.address)
    }

    fn denied(&self) -> StoreError {
        StoreError::Denied {
            what: self.what(),
            why: NOT_ALLOWED.to_owned(),
        }
    }

    fn failed(&self, why: impl Into<String>) -> StoreError {
        failed(self.address, why)
    }

    /// Whose credentials ask.
    async fn owner<T>(&self, owner: &dyn CredentialProvider<Credential = T>) -> Result<Arc<T>, StoreError> {
        self.server.credentials(owner).await.map_err(|_| self.denied())
    }

    /// The body of a good answer, as somebody reads it.
    async fn answer<T>(&self, request: HttpRequest, read: impl Fn(&Bytes) -> Option<T>) -> Result<T, StoreError> {
        let transient = |why: String| StoreError::Transient {
            what: self.what(),
            source: io::Error::other(why),
        };
        let answered = self.server.answer(request, ANSWER_BYTES).await.map_err(transient)?;
        match answered.status().as_u16() {
            // What ended with its connection may have been cut.
            200..=299 => read(answered.body()).ok_or_else(|| transient("the answer is not a whole one".to_owned())),
            401 | 403 => Err(self.denied()),
            429 | 500..=599 => Err(StoreError::Busy {
                what: self.what(),
                after: asked_to_wait(answered.headers()),
            }),
            // The body may repeat the request, and with it names of keys.
            status => Err(self.failed(format!("the service answered with status {status}"))),
        }
    }
}

fn what(address: &Address) -> String {
    format!("asking for credentials of a worker for {address}")
}

fn failed(address: &Address, why: impl Into<String>) -> StoreError {
    StoreError::Permanent {
        what: what(address),
        source: io::Error::other(why.into()),
    }
}

/// Asks for credentials for the worker whose mailbox is below `mailbox`.
pub(crate) async fn for_worker(
    address: &Address,
    owner: &Owner,
    region: &str,
    mailbox: &str,
    seconds: u64,
) -> Result<Session, StoreError> {
    let server = Server::open(&address.to_string(), address.certificates.as_deref(), Way::Usual);
    let asking = Asking {
        address,
        server: server.map_err(|error| failed(address, error.to_string()))?,
        reach: Reach::of(address, mailbox),
        seconds,
    };
    let role = || {
        let role = address.role.as_deref();
        role.ok_or_else(|| asking.failed("the address names no `role` that could be narrowed to one attempt"))
    };
    match owner {
        Owner::Amazon(owner) => amazon::assume_role(&asking, role()?, &**owner, region).await,
        Owner::Google(owner) => google::exchange(&asking, role()?, &**owner).await,
        Owner::Azure(owner) => azure::sign(&asking, &**owner).await,
    }
}
