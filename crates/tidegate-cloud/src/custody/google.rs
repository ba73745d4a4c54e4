//! Custody in Google's Cloud Key Management Service (REST, version 1).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use object_store::gcp::GcpCredentialProvider;
use serde_json::{Value, json};
use tidegate_contracts::{Custody, CustodyError};
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::{Options, Service, Settling, is_plain, names_of, number_of, numbered, plain_number};
use crate::address::AddressError;
use crate::client::word;
use crate::credentials::{self, Environment};
use crate::store::OpenError;

const SERVER: &str = "https://cloudkms.googleapis.com/";
/// Pages of a hundred versions each that are looked through.
const PAGES: usize = 1000;
/// How long a version that was just made may take until it can be used.
const SETTLING: Duration = Duration::from_secs(120);

/// Where a key is: `gcp-kms://PROJECT/LOCATION/KEYRING/KEY[?endpoint=URL&certificates=FILE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoogleKmsAddress {
    project: String,
    location: String,
    ring: String,
    key: String,
    options: Options,
}

impl FromStr for GoogleKmsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError::new(text, why);
        let url = names_of(text, "gcp-kms")?;
        let names = || {
            wrong(
                "project, location, key ring and key are missing or hold other signs, as in \
                 `gcp-kms://my-project/europe-west3/hospitals/st-mary`",
            )
        };
        let project = url.host_str().unwrap_or_default().to_owned();
        let mut parts = url.path().trim_start_matches('/').split('/').map(str::to_owned);
        let (Some(location), Some(ring), Some(key), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(names());
        };
        if !is_plain(&project, "-.") || [&location, &ring, &key].iter().any(|part| !is_plain(part, "-_")) {
            return Err(names());
        }
        let options = Options::of(text, &url, true)?;
        Ok(Self {
            project,
            location,
            ring,
            key,
            options,
        })
    }
}

/// Without its options.
impl fmt::Display for GoogleKmsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gcp-kms://{}/{}/{}/{}",
            self.project, self.location, self.ring, self.key
        )
    }
}

/// What can be done with a version of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It wraps and opens.
    Usable,
    /// It does neither, and may again one day.
    Off,
    /// It was destroyed, or will be.
    Gone,
}

impl State {
    fn of(version: &Value) -> Self {
        match version["state"].as_str() {
            Some("ENABLED") => Self::Usable,
            // Those that never came to be cannot be destroyed either.
            Some(
                "DESTROYED"
                | "DESTROY_SCHEDULED"
                | "PENDING_EXTERNAL_DESTRUCTION"
                | "EXTERNAL_DESTRUCTION_FAILED"
                | "GENERATION_FAILED"
                | "IMPORT_FAILED",
            ) => Self::Gone,
            _ => Self::Off,
        }
    }
}

/// Custody in Google's Cloud Key Management Service.
///
/// The key is symmetric, and somebody else has made it; its versions have the numbers that the service gives them. The
/// one with the greatest number wraps, asked for by that number: which version the service itself takes for the first
/// is settled late. The context is the associated data.
pub struct GoogleKmsCustody {
    address: GoogleKmsAddress,
    service: Service,
    /// Finds credentials as for a store, and keeps them fresh.
    credentials: GcpCredentialProvider,
    known: Mutex<BTreeMap<u64, State>>,
}

impl fmt::Debug for GoogleKmsCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GoogleKmsCustody")
            .field(&self.address.to_string())
            .finish()
    }
}

/// How a request ended.
enum Reply {
    Done(Value),
    /// The service's name for what is wrong.
    Failed(String),
}

impl GoogleKmsCustody {
    /// The custody at `address`, with the credentials that `environment` has for it, as for a store of Google's.
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// When the certificates or the credentials cannot be read.
    pub fn open(address: GoogleKmsAddress, environment: &Environment) -> Result<Self, OpenError> {
        let certificates = address.options.certificates.as_deref();
        let plain = address
            .options
            .endpoint
            .as_ref()
            .is_some_and(|url| url.scheme() == "http");
        let service = Service::open(&address, certificates)?;
        let credentials = credentials::google_tokens(&address.to_string(), plain, certificates, environment)?;
        Ok(Self {
            address,
            service,
            credentials,
            known: Mutex::default(),
        })
    }

    fn name(&self) -> String {
        let GoogleKmsAddress {
            project,
            location,
            ring,
            key,
            ..
        } = &self.address;
        format!("projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key}")
    }

    fn version(&self, number: u64) -> String {
        format!("{}/cryptoKeyVersions/{number}", self.name())
    }

    async fn request(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, CustodyError> {
        let token = self.service.credentials(what, &*self.credentials).await?;
        let server = self.address.options.endpoint.as_ref().map_or(SERVER, Url::as_str);
        let url = format!("{server}v1/{path}");
        let request = self.service.request(what, method, &url, &token.bearer, body)?;
        let (status, bytes) = self.service.answer(what, request).await?;
        let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
        match (status, answer) {
            (200, Some(answer)) => Ok(Reply::Done(answer)),
            (400..=499, Some(answer)) => Ok(Reply::Failed(word(answer["error"].get("status")))),
            _ => Err(self
                .service
                .unreachable(what, format!("it answered with status {status}"))),
        }
    }

    /// A request that must be good.
    async fn ask(&self, what: &str, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CustodyError> {
        match self.request(what, method, path, body).await? {
            Reply::Done(answer) => Ok(answer),
            Reply::Failed(kind) => Err(self.refused(what, &kind)),
        }
    }

    fn refused(&self, what: &str, kind: &str) -> CustodyError {
        let why = match kind {
            "PERMISSION_DENIED" => "it does not allow that to this site (PERMISSION_DENIED)".to_owned(),
            "NOT_FOUND" => "there is no such key (NOT_FOUND)".to_owned(),
            kind => format!("it refused ({kind})"),
        };
        self.service.unreachable(what, why)
    }

    /// The number in the name of a version of this key.
    fn number(&self, version: &Value) -> Option<u64> {
        let name = version["name"].as_str()?.strip_prefix(&self.name())?;
        plain_number(name.strip_prefix("/cryptoKeyVersions/")?)
    }

    /// All versions of the key, as the service knows them at this moment.
    async fn versions(&self, what: &str) -> Result<BTreeMap<u64, State>, CustodyError> {
        let mut versions = BTreeMap::new();
        let mut next = String::new();
        for _ in 0..PAGES {
            let path = format!("{}/cryptoKeyVersions?pageSize=100{next}", self.name());
            let page = self.ask(what, Method::GET, &path, None).await?;
            for version in page["cryptoKeyVersions"].as_array().into_iter().flatten() {
                if let Some(number) = self.number(version) {
                    versions.insert(number, State::of(version));
                }
            }
            match page["nextPageToken"].as_str() {
                Some(token) if !token.is_empty() => {
                    let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
                    next = format!("&pageToken={token}");
                }
                _ => {
                    self.known.lock().await.clone_from(&versions);
                    return Ok(versions);
                }
            }
        }
        Err(self.service.unreachable(what, "its key has too many versions"))
    }

    /// The versions that were seen last, or now where that was never or is not enough.
    async fn seen(
        &self,
        what: &str,
        enough: impl Fn(&BTreeMap<u64, State>) -> bool,
    ) -> Result<BTreeMap<u64, State>, CustodyError> {
        let known = self.known.lock().await.clone();
        if enough(&known) {
            Ok(known)
        } else {
            self.versions(what).await
        }
    }
}

fn usable(versions: &BTreeMap<u64, State>) -> Option<u64> {
    let mut usable = versions.iter().rev().filter(|(_, state)| **state == State::Usable);
    usable.next().map(|(number, _)| *number)
}

#[async_trait]
impl Custody for GoogleKmsCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let what = "wrapping a key";
        let versions = self.seen(what, |versions| usable(versions).is_some()).await?;
        let number =
            usable(&versions).ok_or_else(|| self.service.unreachable(what, "its key has no enabled version"))?;
        let plaintext = Zeroizing::new(STANDARD.encode(key));
        let body = json!({
            "plaintext": plaintext.as_str(),
            "additionalAuthenticatedData": STANDARD.encode(context),
        });
        let path = format!("{}:encrypt", self.version(number));
        let answer = match self.request(what, Method::POST, &path, Some(&body)).await? {
            Reply::Done(answer) => answer,
            Reply::Failed(kind) => {
                // It may have been switched off or destroyed: the next call asks which one there is.
                self.known.lock().await.clear();
                return Err(self.refused(what, &kind));
            }
        };
        let ciphertext = answer["ciphertext"]
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok());
        match ciphertext {
            Some(ciphertext) if !ciphertext.is_empty() && self.number(&answer) == Some(number) => {
                Ok(numbered(number, &ciphertext))
            }
            _ => Err(self.service.unreachable(what, "its answer is not that of the service")),
        }
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let what = "opening a wrapped key";
        let wrong = || CustodyError::WrongKey {
            context: context.to_owned(),
        };
        let (number, ciphertext) = number_of(wrapped).ok_or_else(wrong)?;
        let state = |versions: &BTreeMap<u64, State>| versions.get(&number).copied();
        // Whatever else was seen may have changed: also what was destroyed can be restored for a while.
        let mut versions = self.seen(what, |known| state(known) == Some(State::Usable)).await?;
        let body = json!({
            "ciphertext": STANDARD.encode(ciphertext),
            "additionalAuthenticatedData": STANDARD.encode(context),
        });
        for again in [false, true] {
            match state(&versions) {
                Some(State::Usable) => {}
                // What it wrapped is lost only where another one has taken its place.
                Some(State::Gone) if usable(&versions).is_some_and(|newest| newest > number) => return Err(wrong()),
                Some(State::Gone) => {
                    let why =
                        format!("version {number} of its key is destroyed, and there is no newer one; restore it");
                    return Err(self.service.unreachable(what, why));
                }
                Some(State::Off) => {
                    let why = format!("version {number} of its key is not enabled");
                    return Err(self.service.unreachable(what, why));
                }
                // Of another key, if there are newer ones. Otherwise nobody here has heard of it.
                None if versions.range(number..).next().is_some() => return Err(wrong()),
                None => {
                    let why = format!("its key has no version {number}");
                    return Err(self.service.unreachable(what, why));
                }
            }
            let path = format!("{}:decrypt", self.name());
            let kind = match self.request(what, Method::POST, &path, Some(&body)).await? {
                Reply::Done(answer) => {
                    let plaintext = answer["plaintext"].as_str();
                    let plaintext = plaintext
                        .and_then(|text| STANDARD.decode(text).ok())
                        .map(Zeroizing::new);
                    let key = plaintext.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
                    // It opened, so that this is no wrong key: it is an answer that is not the service's.
                    let strange = || self.service.unreachable(what, "its answer is not that of the service");
                    return key.ok_or_else(strange);
                }
                Reply::Failed(kind) => kind,
            };
            match kind.as_str() {
                "INVALID_ARGUMENT" => return Err(wrong()),
                // Somebody has destroyed it, or switched it off, since its state was asked for.
                "FAILED_PRECONDITION" if !again => versions = self.versions(what).await?,
                kind => return Err(self.refused(what, kind)),
            }
        }
        Err(wrong())
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        let what = "making a new version of the key";
        let path = format!("{}/cryptoKeyVersions", self.name());
        let mut made = self.ask(what, Method::POST, &path, Some(&json!({}))).await?;
        let strange = || self.service.unreachable(what, "its answer names no version");
        let number = self.number(&made).ok_or_else(strange)?;
        let mut settling = Settling::within(SETTLING);
        while State::of(&made) != State::Usable {
            if !settling.goes_on().await {
                let why = format!("version {number} of its key cannot be used");
                return Err(self.service.unreachable(what, why));
            }
            made = self.ask(what, Method::GET, &self.version(number), None).await?;
        }
        // For whoever looks at the key; nothing here goes by it.
        let first = json!({"cryptoKeyVersionId": number.to_string()});
        let path = format!("{}:updatePrimaryVersion", self.name());
        self.ask(what, Method::POST, &path, Some(&first)).await?;
        self.versions(what).await?;
        Ok(number)
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        let what = "destroying old versions of the key";
        let versions = self.versions(what).await?;
        if versions.get(&before) != Some(&State::Usable) {
            let why = format!("version {before} of its key, which is to be kept, is not enabled");
            return Err(self.service.unreachable(what, why));
        }
        for (number, state) in versions.range(..before) {
            if *state != State::Gone {
                let path = format!("{}:destroy", self.version(*number));
                let gone = self.ask(what, Method::POST, &path, Some(&json!({}))).await?;
                if State::of(&gone) != State::Gone {
                    let why = format!("version {number} of its key was not destroyed");
                    return Err(self.service.unreachable(what, why));
                }
            }
        }
        self.versions(what).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_project_location_ring_and_key() {
        let address: GoogleKmsAddress = "gcp-kms://my-project/europe-west3/hospitals/st-mary?certificates=/etc/ca.pem"
            .parse()
            .unwrap();
        assert_eq!(
            address.to_string(),
            "gcp-kms://my-project/europe-west3/hospitals/st-mary"
        );
        for (text, why) in [
            ("gcp-kms://my-project/europe-west3/hospitals", "key ring and key"),
            (
                "gcp-kms://my-project/europe-west3/hospitals/st-mary/1",
                "key ring and key",
            ),
            ("gcp-kms://my-project/europe-west3//st-mary", "key ring and key"),
            (
                "gcp-kms://id:secret@my-project/europe-west3/hospitals/st-mary",
                "credentials",
            ),
            (
                "gcp-kms://my-project/europe-west3/hospitals/st-mary?endpoint=http://kms.example.org",
                "https",
            ),
            (
                "gcp-kms://my-project/europe-west3/hospitals/st-mary?token=secret",
                "not known",
            ),
            ("vault:https://host/transit/st-mary", "gcp-kms:"),
        ] {
            let error = text.parse::<GoogleKmsAddress>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
