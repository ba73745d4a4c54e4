//! How servers are spoken to: whom to trust, how long to wait for a connection, and how fast.

use std::io;
use std::time::Duration;

use object_store::{Certificate, ClientOptions};

use crate::address::Address;
use crate::answer::Watching;
use crate::pace::{Pace, Paced};
use crate::store::OpenError;

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(10);

/// The client of a store: one of its own where its bytes are paced.
pub(crate) fn watching(address: &Address, pace: &Pace) -> Result<Watching, OpenError> {
    if !pace.is_limited() {
        return Ok(Watching::default());
    }
    let client = direct(&address.to_string(), address.certificates.as_deref(), Way::Usual)?;
    let pace = pace.clone();
    Ok(Watching::paced(Paced { client, pace }))
}

/// The way to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the proxy that the environment names, if it names one.
    Usual,
    WithoutProxy,
}

/// A client that says nothing to whom nobody named: it follows no redirection.
pub(crate) fn direct(
    who: &str,
    certificates: Option<&std::path::Path>,
    way: Way,
) -> Result<reqwest::Client, OpenError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT);
    if way == Way::WithoutProxy {
        builder = builder.no_proxy();
    }
    if let Some(file) = certificates {
        let failed = |source| OpenError::Certificates {
            store: who.to_owned(),
            file: file.display().to_string(),
            source,
        };
        let pem = std::fs::read(file).map_err(failed)?;
        let bundle = reqwest::Certificate::from_pem_bundle(&pem);
        for certificate in bundle.map_err(|error| failed(io::Error::other(error.to_string())))? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| OpenError::Settings {
        store: who.to_owned(),
        why: error.to_string(),
    })
}

/// How a server is spoken to. Every call has a limit of time of its own.
pub(crate) fn options(
    who: &str,
    plain: bool,
    certificates: Option<&std::path::Path>,
) -> Result<ClientOptions, OpenError> {
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_allow_http(plain);
    if let Some(file) = certificates {
        let failed = |source| OpenError::Certificates {
            store: who.to_owned(),
            file: file.display().to_string(),
            source,
        };
        let pem = std::fs::read(file).map_err(failed)?;
        let bundle = Certificate::from_pem_bundle(&pem).map_err(|error| failed(io::Error::other(error.to_string())))?;
        for certificate in bundle {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}
