//! What a caller decides about a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_bundle::{Bundle, BundleError, Files};

use crate::error::ServeError;
use crate::releases::ReleaseSource;

/// Opens the files of a bundle, or says why they are not to be believed. It must check the signature
/// against the keys that this site trusts; [`tidegate_bundle::bundle::open`] does the rest.
pub type VerifyBundle = Arc<dyn Fn(&Files) -> Result<Bundle, BundleError> + Send + Sync>;

/// Where to listen, what to serve and how much to take.
#[derive(Clone)]
pub struct ServeOptions {
    /// Where to listen. There is no sign-in and no encryption: anything but a loopback address belongs
    /// behind a proxy that has both, and is logged as a warning.
    pub address: SocketAddr,
    /// Where releases come from.
    pub source: ReleaseSource,
    /// What makes a release believable.
    pub verify: VerifyBundle,
    /// A file that remembers the newest version served of each model, so that an older release is
    /// refused also after a restart. Its folder must be writable by the server and by nobody who may
    /// not decide what is served. Without it, only a running server refuses to go back.
    pub state: Option<PathBuf>,
    /// How often the folder is looked at.
    pub poll: Duration,
    /// How much is taken.
    pub limits: Limits,
}

/// How much a server takes from its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest request body in bytes.
    pub body_bytes: usize,
    /// The most rows of one request.
    pub rows: usize,
    /// The longest time of one request, from its head to its answer.
    pub request: Duration,
    /// Inferences that run, and bodies that are held, at the same time.
    pub parallel: usize,
    /// Open connections.
    pub connections: usize,
    /// How long a connection may be held without use, beyond the time of a request: it is closed when
    /// no request has come whole, or its answer has not been taken, within both together.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 16 << 20,
            rows: 8192,
            request: Duration::from_secs(30),
            parallel: 4,
            connections: 256,
            idle: Duration::from_secs(30),
        }
    }
}

impl ServeOptions {
    /// Options with the usual limits: port 8080 of the loopback address, a look every second, nothing
    /// remembered over a restart.
    pub fn new(
        source: ReleaseSource,
        verify: impl Fn(&Files) -> Result<Bundle, BundleError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            source,
            verify: Arc::new(verify),
            state: None,
            poll: Duration::from_secs(1),
            limits: Limits::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ServeError> {
        let Limits {
            body_bytes,
            rows,
            request,
            parallel,
            connections,
            idle,
        } = self.limits;
        for (name, zero) in [
            ("body_bytes", body_bytes == 0),
            ("rows", rows == 0),
            ("request", request.is_zero()),
            ("parallel", parallel == 0),
            ("connections", connections == 0),
            ("idle", idle.is_zero()),
            ("poll", self.poll.is_zero()),
        ] {
            if zero {
                return Err(ServeError::Limit(name));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeOptions")
            .field("address", &self.address)
            .field("source", &self.source)
            .field("state", &self.state)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
