//! Custody in Microsoft's Azure Key Vault (REST, version 7.4).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};
use tidegate_contracts::{Custody, CustodyError};
use tidegate_seal::digest::Sha256;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{Service, Settling, number_of, numbered, plain_number};
use crate::client::{next_page, word};
use crate::credentials::Environment;
use crate::entra::Identity;
use crate::store::OpenError;

mod address;

pub use address::KeyVaultAddress;

const VERSION: &str = "api-version=7.4";
/// Pages of 25 keys each that are looked through for the keys of a site.
const PAGES: usize = 4000;
/// As strong as 128 bits of a symmetric key (NIST SP 800-57).
const KEY_BITS: u64 = 3072;
/// How long a key that was deleted may take until it can be purged.
const SETTLING: Duration = Duration::from_secs(60);
/// What is signed begins with this.
const PURPOSE: &[u8] = b"tidegate.wrapped-key.v1\n";

/// Custody in Azure Key Vault.
///
/// The service's keys are RSA (3,072 bits), and everybody may know the public part of one: what is wrapped with it
/// (RSA-OAEP-256) is therefore signed by it too (PS256), over the context and the wrapped bytes, and nothing is opened
/// whose signature the service does not confirm.
///
/// A wrapped key is one byte of format, the number of the key (eight bytes, big-endian), the first eight bytes of the
/// SHA-256 of number and rest, and the rest: the version of the key (16 bytes), the length of the wrapped bytes (two
/// bytes, big-endian), the wrapped bytes, the signature.
pub struct KeyVaultCustody {
    address: KeyVaultAddress,
    service: Service,
    identity: Identity,
    /// The keys that were seen last, by their numbers.
    known: Mutex<BTreeMap<u64, Key>>,
}

/// A key of this site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    /// The newest one.
    version: [u8; 16],
    enabled: bool,
}

impl fmt::Debug for KeyVaultCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyVaultCustody")
            .field(&self.address.to_string())
            .finish()
    }
}

/// How a request ended.
enum Reply {
    Done(Value),
    Failed {
        status: u16,
        /// The service's name for what is wrong.
        kind: String,
    },
}

/// What a wrapped key holds behind its number.
struct Wrapped<'a> {
    version: &'a [u8; 16],
    bytes: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Wrapped<'a> {
    fn of(rest: &'a [u8]) -> Option<Self> {
        let (version, rest) = rest.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (bytes, signature) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        Some(Self {
            version,
            bytes,
            signature,
        })
    }
}

/// What is signed of a wrapped key. The context is the last, so that nothing of it passes for anything else.
fn signed(version: &[u8; 16], bytes: &[u8], context: &str) -> String {
    let mut digest = Sha256::default();
    digest.update(PURPOSE);
    digest.update(version);
    digest.update(&(bytes.len() as u64).to_be_bytes());
    digest.update(bytes);
    digest.update(context.as_bytes());
    URL_SAFE_NO_PAD.encode(digest.finish().as_bytes())
}

fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(value.as_str()?).ok()?;
    Some(bytes).filter(|bytes| !bytes.is_empty())
}

fn hexadecimal(version: &[u8; 16]) -> String {
    version.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl KeyVaultCustody {
    /// The custody at `address`, with what `environment` has for it: `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and
    /// `AZURE_CLIENT_SECRET` or `AZURE_FEDERATED_TOKEN_FILE`, or nothing, for the machine's own identity. Connects to
    /// nobody yet.
    ///
    /// # Errors
    /// When the certificates cannot be read, or the environment has half of what is needed.
    pub fn open(address: KeyVaultAddress, environment: &Environment) -> Result<Self, OpenError> {
        let service = Service::open(&address, address.options.certificates.as_deref())?;
        let identity = Identity::of(environment, address.resource()).map_err(|why| OpenError::Settings {
            store: address.to_string(),
            why,
        })?;
        Ok(Self {
            address,
            service,
            identity,
            known: Mutex::default(),
        })
    }

    fn name(&self, number: u64) -> String {
        format!("{}-{number}", self.address.name)
    }

    /// One request, once more with a new token if that was refused.
    async fn request(
        &self,
        what: &str,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Reply, CustodyError> {
        for fresh in [false, true] {
            let token = self.identity.token(&self.service.server, fresh).await;
            let token = token.map_err(|why| self.service.unreachable(what, why))?;
            let request = self.service.request(what, method.clone(), url, &token, body)?;
            let (status, bytes) = self.service.answer(what, request).await?;
            let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
            match (status, answer) {
                (401, _) => {}
                (200, Some(answer)) => return Ok(Reply::Done(answer)),
                (204, _) => return Ok(Reply::Done(Value::Null)),
                (400..=499, Some(answer)) => {
                    let kind = word(answer["error"].get("code"));
                    return Ok(Reply::Failed { status, kind });
                }
                _ => {
                    return Err(self
                        .service
                        .unreachable(what, format!("it answered with status {status}")));
                }
            }
        }
        Err(self.service.unreachable(what, "it does not know this site (401)"))
    }

    /// A request below the vault that must be good.
    async fn ask(&self, what: &str, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CustodyError> {
        let url = format!("{}{path}?{VERSION}", self.address.server);
        match self.request(what, method, &url, body).await? {
            Reply::Done(answer) => Ok(answer),
            Reply::Failed { status, kind } => Err(self.refused(what, status, &kind)),
        }
    }

    fn refused(&self, what: &str, status: u16, kind: &str) -> CustodyError {
        let why = match status {
            403 => format!("it does not allow that to this site ({kind})"),
            404 => format!("there is no such key ({kind})"),
            _ => format!("it refused ({status} {kind})"),
        };
        self.service.unreachable(what, why)
    }

    /// The version in the identifier of a key of this site: `https://HOST/keys/NAME/VERSION`.
    fn version(&self, number: u64, key: &Value) -> Option<[u8; 16]> {
        let beginning = format!("{}keys/{}/", self.address.server, self.name(number));
        let text = key["kid"].as_str()?.strip_prefix(&beginning)?;
        let digits = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let version: Option<Vec<u8>> = digits.0.iter().map(byte).collect();
        let version = version?.try_into().ok()?;
        (hexadecimal(&version) == text).then_some(version)
    }

    /// This site's keys in a list of the vault's: their numbers, and what the list says of each.
    async fn listed(&self, what: &str, list: &str) -> Result<Vec<(u64, Value)>, CustodyError> {
        let mut keys = Vec::new();
        let beginning = format!("{}keys/{}-", self.address.server, self.address.name);
        let mut url = format!("{}{list}?{VERSION}", self.address.server);
        for _ in 0..PAGES {
            let page = match self.request(what, Method::GET, &url, None).await? {
                Reply::Done(page) => page,
                Reply::Failed { status, kind } => return Err(self.refused(what, status, &kind)),
            };
            for key in page["value"].as_array().into_iter().flatten() {
                let number = key["kid"].as_str().and_then(|kid| kid.strip_prefix(&beginning));
                keys.extend(number.and_then(plain_number).map(|number| (number, key.clone())));
            }
            match page["nextLink"].as_str() {
                None | Some("") => return Ok(keys),
                Some(next) => {
                    let leads_elsewhere = || self.service.unreachable(what, "its list of keys leads elsewhere");
                    url = next_page(&self.address.server, next).ok_or_else(leads_elsewhere)?;
                }
            }
        }
        Err(self.service.unreachable(what, "there are too many keys"))
    }

    /// The keys of this site, by their numbers, each in its newest version.
    async fn keys(&self, what: &str) -> Result<BTreeMap<u64, Key>, CustodyError> {
        let known = self.known.lock().await.clone();
        let mut keys = BTreeMap::new();
        for (number, item) in self.listed(what, "keys").await? {
            let enabled = item["attributes"]["enabled"] != false;
            let version = match known.get(&number) {
                Some(key) => key.version,
                None => {
                    let path = format!("keys/{}", self.name(number));
                    let key = self.ask(what, Method::GET, &path, None).await?;
                    let version = self.version(number, &key["key"]);
                    version.ok_or_else(|| self.strange(what))?
                }
            };
            keys.insert(number, Key { version, enabled });
        }
        self.known.lock().await.clone_from(&keys);
        Ok(keys)
    }

    /// Whether the key of a number can open what it wrapped; what it wrapped is lost only where it is gone and a newer
    /// one is there.
    fn opens(&self, what: &str, keys: &BTreeMap<u64, Key>, number: u64, context: &str) -> Result<(), CustodyError> {
        match keys.get(&number) {
            Some(key) if key.enabled => Ok(()),
            Some(_) => {
                let why = format!("its key `{}` is disabled", self.name(number));
                Err(self.service.unreachable(what, why))
            }
            None if keys.range(number..).next().is_some() => Err(CustodyError::WrongKey {
                context: context.to_owned(),
            }),
            // This is another vault, or nobody has made it, or somebody has deleted it, who can bring it back.
            None => {
                let why = format!("there is no key `{}`", self.name(number));
                Err(self.service.unreachable(what, why))
            }
        }
    }

    fn strange(&self, what: &str) -> CustodyError {
        self.service.unreachable(what, "its answer is not that of the service")
    }

    async fn make(&self, what: &str, number: u64) -> Result<(), CustodyError> {
        let body = json!({
            "kty": "RSA",
            "key_size": KEY_BITS,
            "key_ops": ["wrapKey", "unwrapKey", "sign", "verify"],
        });
        let path = format!("keys/{}/create", self.name(number));
        let made = self.ask(what, Method::POST, &path, Some(&body)).await?;
        let version = self.version(number, &made["key"]).ok_or_else(|| self.strange(what))?;
        self.known.lock().await.insert(number, Key { version, enabled: true });
        Ok(())
    }

    /// Makes the first key, where there is none.
    ///
    /// # Errors
    /// When the service is out of reach or does not allow it.
    pub async fn create(&self) -> Result<(), CustodyError> {
        let what = "making the site's key";
        if self.keys(what).await?.is_empty() {
            self.make(what, 1).await?;
        }
        Ok(())
    }

    /// An operation with a version of a key.
    async fn operate(
        &self,
        what: &str,
        number: u64,
        version: &[u8; 16],
        operation: &str,
        body: &Value,
    ) -> Result<Reply, CustodyError> {
        let key = format!("keys/{}/{}", self.name(number), hexadecimal(version));
        let url = format!("{}{key}/{operation}?{VERSION}", self.address.server);
        self.request(what, Method::POST, &url, Some(body)).await
    }

    /// An operation that must be good, and what it gives.
    async fn give(
        &self,
        what: &str,
        number: u64,
        version: &[u8; 16],
        operation: &str,
        body: &Value,
    ) -> Result<Vec<u8>, CustodyError> {
        match self.operate(what, number, version, operation, body).await? {
            Reply::Done(answer) => bytes_of(&answer["value"]).ok_or_else(|| self.strange(what)),
            Reply::Failed { status, kind } => {
                // It may have been disabled or deleted: the next call asks which keys there are.
                self.known.lock().await.clear();
                Err(self.refused(what, status, &kind))
            }
        }
    }

    /// Waits until a key that was deleted stands among the deleted ones, from where it can be removed for good.
    async fn is_deleted(&self, what: &str, number: u64) -> Result<(), CustodyError> {
        let url = format!("{}deletedkeys/{}?{VERSION}", self.address.server, self.name(number));
        let mut settling = Settling::within(SETTLING);
        while let Reply::Failed { status: 404, .. } = self.request(what, Method::GET, &url, None).await? {
            if !settling.goes_on().await {
                let why = format!("its key `{}` is still being deleted", self.name(number));
                return Err(self.service.unreachable(what, why));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Custody for KeyVaultCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let what = "wrapping a key";
        let usable = |keys: &BTreeMap<u64, Key>| {
            let usable = keys.iter().rev().find(|(_, key)| key.enabled);
            usable.map(|(number, key)| (*number, key.version))
        };
        let mut newest = usable(&*self.known.lock().await);
        if newest.is_none() {
            newest = usable(&self.keys(what).await?);
        }
        let missing = || format!("there is no enabled key; the site's first run makes `{}`", self.name(1));
        let (number, version) = newest.ok_or_else(|| self.service.unreachable(what, missing()))?;
        let plaintext = Zeroizing::new(URL_SAFE_NO_PAD.encode(key));
        let body = json!({"alg": "RSA-OAEP-256", "value": plaintext.as_str()});
        let bytes = self.give(what, number, &version, "wrapkey", &body).await?;
        let body = json!({"alg": "PS256", "value": signed(&version, &bytes, context)});
        let signature = self.give(what, number, &version, "sign", &body).await?;
        let length = u16::try_from(bytes.len()).map_err(|_| self.strange(what))?;
        let rest = [&version[..], &length.to_be_bytes(), &bytes, &signature].concat();
        Ok(numbered(number, &rest))
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let what = "opening a wrapped key";
        let wrong = || CustodyError::WrongKey {
            context: context.to_owned(),
        };
        let (number, rest) = number_of(wrapped).ok_or_else(wrong)?;
        let wrapped = Wrapped::of(rest).ok_or_else(wrong)?;
        let known = self.known.lock().await.get(&number).copied();
        if !known.is_some_and(|key| key.enabled) {
            self.opens(what, &self.keys(what).await?, number, context)?;
        }
        let version = wrapped.version;
        let body = json!({
            "alg": "PS256",
            "digest": signed(version, wrapped.bytes, context),
            "value": URL_SAFE_NO_PAD.encode(wrapped.signature),
        });
        match self.operate(what, number, version, "verify", &body).await? {
            Reply::Done(answer) if answer["value"] == true => {}
            Reply::Done(answer) if answer["value"] == false => return Err(wrong()),
            Reply::Done(_) => return Err(self.strange(what)),
            Reply::Failed { status: 404, .. } => {
                self.opens(what, &self.keys(what).await?, number, context)?;
                // The key is there, and such a version of it is not.
                return Err(wrong());
            }
            Reply::Failed { status, kind } => return Err(self.refused(what, status, &kind)),
        }
        let body = json!({"alg": "RSA-OAEP-256", "value": URL_SAFE_NO_PAD.encode(wrapped.bytes)});
        let opened = Zeroizing::new(self.give(what, number, version, "unwrapkey", &body).await?);
        // It was signed here, so that this is no wrong key: it is an answer that is not the service's.
        <[u8; 32]>::try_from(opened.as_slice()).map_err(|_| self.strange(what))
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        let what = "making a new key";
        let newest = self.keys(what).await?.last_key_value().map_or(0, |(number, _)| *number);
        let number = newest.saturating_add(1);
        self.make(what, number).await?;
        Ok(number)
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        let what = "destroying old keys";
        let keys = self.keys(what).await?;
        if !keys.get(&before).is_some_and(|key| key.enabled) {
            let why = format!(
                "its key `{}`, which is to be kept, is not there or disabled",
                self.name(before)
            );
            return Err(self.service.unreachable(what, why));
        }
        for (number, _) in keys.range(..before) {
            let path = format!("keys/{}", self.name(*number));
            let url = format!("{}{path}?{VERSION}", self.address.server);
            match self.request(what, Method::DELETE, &url, None).await? {
                Reply::Done(deleted) if deleted["recoveryId"].is_string() => self.is_deleted(what, *number).await?,
                Reply::Done(_) | Reply::Failed { status: 404, .. } => {}
                Reply::Failed { status, kind } => return Err(self.refused(what, status, &kind)),
            }
            self.known.lock().await.remove(number);
        }
        // Those too that were deleted when somebody died here.
        for (number, item) in self.listed(what, "deletedkeys").await? {
            if number >= before {
                continue;
            }
            let level = item["attributes"]["recoveryLevel"].as_str().unwrap_or("Purgeable");
            if !level.contains("Purgeable") {
                tracing::warn!(
                    key = self.name(number),
                    level,
                    "deleted, and kept until its time is over"
                );
                continue;
            }
            let path = format!("deletedkeys/{}", self.name(number));
            let url = format!("{}{path}?{VERSION}", self.address.server);
            match self.request(what, Method::DELETE, &url, None).await? {
                Reply::Done(_) | Reply::Failed { status: 404, .. } => {}
                Reply::Failed { status, kind } => return Err(self.refused(what, status, &kind)),
            }
        }
        Ok(())
    }
}
