//! How servers are spoken to: whom to trust, how long to wait for a connection, and how fast.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt, Limited};
use object_store::client::{HttpClient, HttpRequest};
use object_store::{Certificate, ClientOptions, CredentialProvider};
use serde_json::Value;
use tidegate_seal::random::random_bytes;
use tokio::time::Instant;
use url::Url;

use crate::address::Address;
use crate::answer::Watching;
use crate::pace::{Pace, Paced};
use crate::store::OpenError;

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The client of a store: one of its own where its bytes are paced.
pub(crate) fn watching(address: &Address, pace: &Pace) -> Result<Watching, OpenError> {
    if !pace.is_limited() {
        return Ok(Watching::default());
    }
    let client = direct(&address.to_string(), address.certificates.as_deref(), Way::Usual)?;
    let pace = pace.clone();
    Ok(Watching::paced(Paced { client, pace }))
}

/// The metadata service of a machine in a cloud, which speaks without TLS and to this machine alone.
pub(crate) const METADATA: &str = "http://169.254.169.254";

/// The way to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the proxy that the environment names, if it names one.
    Usual,
    WithoutProxy,
}

/// A client that says nothing to whom nobody named: it follows no redirection.
pub(crate) fn direct(who: &str, certificates: Option<&Path>, way: Way) -> Result<reqwest::Client, OpenError> {
    let read = certificates.map(std::fs::read).transpose();
    let pem = read.map_err(|source| OpenError::Certificates {
        store: who.to_owned(),
        file: certificates.unwrap_or(Path::new("")).display().to_string(),
        source,
    })?;
    client(who, certificates.zip(pem.as_deref()), way)
}

/// As [`direct`], trusting besides the system's the certificate authorities that were read from a file.
pub(crate) fn client(who: &str, certificates: Option<(&Path, &[u8])>, way: Way) -> Result<reqwest::Client, OpenError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT);
    if way == Way::WithoutProxy {
        builder = builder.no_proxy();
    }
    if let Some((file, pem)) = certificates {
        let failed = |source| OpenError::Certificates {
            store: who.to_owned(),
            file: file.display().to_string(),
            source,
        };
        let bundle = reqwest::Certificate::from_pem_bundle(pem);
        for certificate in bundle.map_err(|error| failed(io::Error::other(error.to_string())))? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| OpenError::Settings {
        store: who.to_owned(),
        why: error.to_string(),
    })
}

/// A service that answers requests of a few kilobytes: no store.
#[derive(Debug)]
pub(crate) struct Server {
    client: HttpClient,
}

impl Server {
    /// Trusts the certificates in `certificates` besides the system's.
    pub(crate) fn open(who: &str, certificates: Option<&Path>, way: Way) -> Result<Self, OpenError> {
        // Requests may hold keys in the clear, and their headers tokens: a redirection is an answer like any other.
        let client = HttpClient::new(Paced {
            client: direct(who, certificates, way)?,
            pace: Pace::default(),
        });
        Ok(Self { client })
    }

    /// The answer to a request, with at most `most` bytes; or why there is none. Bodies of errors are not to be passed on:
    /// they may repeat what was sent.
    pub(crate) async fn answer(&self, request: HttpRequest, most: usize) -> Result<http::Response<Bytes>, String> {
        self.answer_within(PATIENCE, request, most).await
    }

    /// As [`Self::answer`], of a service that may take longer.
    pub(crate) async fn answer_within(
        &self,
        patience: Duration,
        request: HttpRequest,
        most: usize,
    ) -> Result<http::Response<Bytes>, String> {
        let answered = async {
            let response = self.client.execute(request).await;
            let response = response.map_err(|error| format!("no answer came ({:?})", error.kind()))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, most).collect().await;
            let body = body.map_err(|_| "the answer broke off, or is too long".to_owned())?;
            Ok(http::Response::from_parts(parts, body.to_bytes()))
        };
        let answered = tokio::time::timeout(patience, answered).await;
        answered.unwrap_or_else(|_| Err("no answer came in time".to_owned()))
    }

    /// What a provider of credentials gives, in time.
    pub(crate) async fn credentials<T>(
        &self,
        provider: &dyn CredentialProvider<Credential = T>,
    ) -> Result<Arc<T>, String> {
        match tokio::time::timeout(PATIENCE, provider.get_credential()).await {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(_)) => Err("no credentials were found".to_owned()),
            Err(_) => Err("no credentials came in time".to_owned()),
        }
    }
}

/// Waiting for what a service has promised and not done yet, with pauses that double.
pub(crate) struct Settling {
    until: Instant,
    pause: Duration,
}

impl Settling {
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(10);

    pub(crate) fn within(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            pause: Self::FIRST_PAUSE,
        }
    }

    /// Pauses, with a random part so that sites do not ask together; false once it has taken too long.
    pub(crate) async fn goes_on(&mut self) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        // Without randomness the pause is merely not spread.
        let random = random_bytes::<1>().map_or(255, |[byte]| byte);
        tokio::time::sleep(self.pause.mul_f64(0.5 + f64::from(random) / 510.0)).await;
        self.pause = (self.pause * 2).min(Self::LONGEST_PAUSE);
        true
    }
}

/// How a server is spoken to. Every call has a limit of time of its own.
pub(crate) fn options(who: &str, plain: bool, certificates: Option<&Path>) -> Result<ClientOptions, OpenError> {
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

/// A request in JSON, for whoever holds `token`; or why there can be none.
pub(crate) fn bearing(
    method: http::Method,
    url: &str,
    token: &str,
    body: Option<&Value>,
) -> Result<HttpRequest, String> {
    let text = body.map(ToString::to_string).unwrap_or_default();
    let request = http::Request::builder().method(method).uri(url);
    let request = request.header(CONTENT_TYPE, "application/json").body(text.into());
    let mut request: HttpRequest = request.map_err(|error| error.to_string())?;
    let token = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut token = token.map_err(|_| "its token is none".to_owned())?;
    token.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, token);
    Ok(request)
}

/// The address of the next page, if it leads to the same server: tokens go to it and to nobody whom an answer
/// names. The service writes its usual port, which addresses leave out.
pub(crate) fn next_page(server: &Url, next: &str) -> Option<String> {
    let next = Url::parse(next).ok()?;
    (next.origin() == server.origin()).then(|| next.to_string())
}

/// A word of a service's own for what is wrong, if it is one: nothing else of an error is shown.
pub(crate) fn word(text: Option<&Value>) -> String {
    let word = text.and_then(Value::as_str).unwrap_or_default();
    let plain = word.len() <= 64 && word.chars().all(|one| one.is_ascii_alphanumeric() || one == '_');
    if plain { word.to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_on_at_the_same_server_alone() {
        let vault: Url = "https://my-vault.vault.azure.net/".parse().unwrap();
        let page = "keys?api-version=7.4&$skiptoken=a";
        let next = next_page(&vault, &format!("https://my-vault.vault.azure.net:443/{page}"));
        assert_eq!(next, Some(format!("{vault}{page}")));
        for elsewhere in [
            "https://my-vault.vault.azure.net.example.org/keys",
            "https://my-vault.vault.azure.net:8443/keys",
            "http://my-vault.vault.azure.net/keys",
            "keys?more",
        ] {
            assert_eq!(next_page(&vault, elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn of_an_error_only_a_word_is_shown() {
        assert_eq!(word(Some(&"PERMISSION_DENIED".into())), "PERMISSION_DENIED");
        assert_eq!(word(Some(&"the plaintext was AAAA".into())), "");
        assert_eq!(word(None), "");
    }
}
