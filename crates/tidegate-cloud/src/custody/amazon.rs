//! Custody in Amazon's Key Management Service (API version 2014-11-01): the key that wraps all others never leaves
//! the service.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer};
use object_store::client::HttpRequest;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tidegate_contracts::{Custody, CustodyError};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{Service, Settling, number_of, numbered, plain_number};
use crate::client::options;
use crate::client::word;
use crate::credentials::{self, Environment};
use crate::profile::with_profile;
use crate::store::OpenError;

mod address;

pub use address::KmsAddress;

/// Pages of a hundred names each that are looked through for the keys of a site.
const PAGES: usize = 1000;
/// The shortest time, in days, after which the service destroys a key.
const DAYS: u64 = 7;
/// How long a key that was just made may take until it can be used: the service tells its parts of a new name, and of
/// who may use it, within five minutes.
const SETTLING: Duration = Duration::from_secs(400);
/// What a context is written with: as it is read in the service's own log, and never two in one way.
const CONTEXT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'/');

/// Custody in Amazon's Key Management Service.
///
/// The context is the encryption context, under `tidegate`.
pub struct KmsCustody {
    address: KmsAddress,
    service: Service,
    /// Finds credentials as for a store, and keeps them fresh.
    signer: Arc<AmazonS3>,
    /// The keys that are known, by their numbers. The service may tell of a new one late, but what it told once is so.
    known: Mutex<BTreeMap<u64, String>>,
}

impl fmt::Debug for KmsCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KmsCustody").field(&self.address.to_string()).finish()
    }
}

/// How a request ended.
enum Reply {
    Done(Value),
    /// The service's name for what is wrong.
    Failed(String),
}

impl KmsCustody {
    /// The custody at `address`, with the credentials that `environment` has for it, as for a store of S3. Connects
    /// to nobody yet.
    ///
    /// # Errors
    /// When the certificates cannot be read, or the environment's settings contradict each other.
    pub fn open(address: KmsAddress, environment: &Environment) -> Result<Self, OpenError> {
        let settings = |error: object_store::Error| OpenError::Settings {
            store: address.to_string(),
            why: error.to_string(),
        };
        let environment = with_profile(environment).map_err(|why| OpenError::Settings {
            store: address.to_string(),
            why,
        })?;
        let plain = address
            .options
            .endpoint
            .as_ref()
            .is_some_and(|url| url.scheme() == "http");
        let certificates = address.options.certificates.as_deref();
        let service = Service::open(&address, certificates)?;
        let signer = credentials::s3(AmazonS3Builder::new(), &environment)
            .with_region(&address.region)
            // Nobody asks for it: credentials are found without a bucket, but not named without one.
            .with_bucket_name("none")
            .with_client_options(options(&address.to_string(), plain, certificates)?)
            .build()
            .map_err(settings)?;
        Ok(Self {
            address,
            service,
            signer: Arc::new(signer),
            known: Mutex::default(),
        })
    }

    fn unreachable(&self, what: &str, why: impl fmt::Display) -> CustodyError {
        self.service.unreachable(what, why)
    }

    fn alias(&self, number: u64) -> String {
        format!("alias/{}/{number}", self.address.name)
    }

    /// One request. Bodies of errors are not passed on: they may repeat what was sent.
    async fn request(&self, what: &str, action: &str, body: &Value) -> Result<Reply, CustodyError> {
        let failed = |why: &dyn fmt::Display| self.unreachable(what, why);
        let region = &self.address.region;
        let server = match &self.address.options.endpoint {
            Some(endpoint) => endpoint.to_string(),
            None if region.starts_with("cn-") => format!("https://kms.{region}.amazonaws.com.cn/"),
            None => format!("https://kms.{region}.amazonaws.com/"),
        };
        let mut request: HttpRequest = http::Request::post(server)
            .header(CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("x-amz-target", format!("TrentService.{action}"))
            .body(body.to_string().into())
            .map_err(|error| failed(&error))?;
        let owner = self.service.credentials(what, &**self.signer.credentials()).await?;
        AwsAuthorizer::new(&owner, "kms", region).authorize(&mut request, None);
        let (status, text) = self.service.answer(what, request).await?;
        let answer = match (status, text.is_empty()) {
            // Some actions answer with nothing.
            (200, true) => Value::Null,
            _ => serde_json::from_slice(&text).map_err(|_| failed(&format!("it answered with status {status}")))?,
        };
        if status == 200 {
            return Ok(Reply::Done(answer));
        }
        let kind = answer["__type"].as_str().unwrap_or_default();
        let kind = word(kind.rsplit('#').next().map(Value::from).as_ref());
        match (kind.is_empty(), status) {
            (false, 400) => Ok(Reply::Failed(kind)),
            _ => Err(failed(&format!("it answered with status {status}"))),
        }
    }

    /// A request that must be good.
    async fn ask(&self, what: &str, action: &str, body: &Value) -> Result<Value, CustodyError> {
        match self.request(what, action, body).await? {
            Reply::Done(answer) => Ok(answer),
            Reply::Failed(kind) => Err(self.unreachable(what, format!("{action}: {kind}"))),
        }
    }

    /// The keys of this site: their identifiers in the service, by their numbers.
    async fn keys(&self, what: &str) -> Result<BTreeMap<u64, String>, CustodyError> {
        let beginning = self.alias(0);
        let beginning = beginning.trim_end_matches('0');
        let mut keys = BTreeMap::new();
        let mut body = json!({"Limit": 100});
        for _ in 0..PAGES {
            let page = self.ask(what, "ListAliases", &body).await?;
            for alias in page["Aliases"].as_array().into_iter().flatten() {
                let number = alias["AliasName"]
                    .as_str()
                    .and_then(|name| name.strip_prefix(beginning));
                if let (Some(number), Some(key)) = (number.and_then(plain_number), alias["TargetKeyId"].as_str()) {
                    keys.insert(number, key.to_owned());
                }
            }
            match page["NextMarker"].as_str() {
                Some(marker) if page["Truncated"] == true => body["Marker"] = marker.into(),
                _ => return Ok(keys),
            }
        }
        Err(self.unreachable(what, "there are too many aliases"))
    }

    /// The keys of this site, with those that this process has made or heard of before.
    async fn all(&self, what: &str) -> Result<BTreeMap<u64, String>, CustodyError> {
        let listed = self.keys(what).await?;
        let mut known = self.known.lock().await;
        known.extend(listed);
        Ok(known.clone())
    }

    /// Makes a key and waits until it can be used.
    async fn make(&self, what: &str, number: u64) -> Result<(), CustodyError> {
        let described = format!("Tidegate: wraps the keys of `{}`, number {number}", self.address.name);
        let made = self.ask(what, "CreateKey", &json!({"Description": described})).await?;
        let key = made["KeyMetadata"]["KeyId"].as_str();
        let key = key
            .ok_or_else(|| self.unreachable(what, "its answer names no key"))?
            .to_owned();
        let alias = json!({"AliasName": self.alias(number), "TargetKeyId": key});
        self.ask(what, "CreateAlias", &alias).await?;
        let mut settling = Settling::within(SETTLING);
        while !self.works(what, &key).await? {
            if !settling.goes_on().await {
                let why = format!("its new key `{}` cannot be used by this site", self.alias(number));
                return Err(self.unreachable(what, why));
            }
            tracing::info!(alias = self.alias(number), "waiting until the new key can be used");
        }
        self.known.lock().await.insert(number, key);
        Ok(())
    }

    /// Whether this site may wrap and open by a key.
    async fn works(&self, what: &str, key: &str) -> Result<bool, CustodyError> {
        let context = encryption_context("probe");
        let body = json!({"KeyId": key, "Plaintext": STANDARD.encode("probe"), "EncryptionContext": context});
        let Reply::Done(wrapped) = self.request(what, "Encrypt", &body).await? else {
            return Ok(false);
        };
        let body = json!({"KeyId": key, "CiphertextBlob": wrapped["CiphertextBlob"], "EncryptionContext": context});
        Ok(matches!(self.request(what, "Decrypt", &body).await?, Reply::Done(_)))
    }

    /// Makes the first key, where there is none.
    ///
    /// # Errors
    /// When the service is out of reach or does not allow it.
    pub async fn create(&self) -> Result<(), CustodyError> {
        let what = "making the site's key";
        if self.all(what).await?.is_empty() {
            self.make(what, 1).await?;
        }
        Ok(())
    }

    /// One try to open; none where the service says that this key, or this context, did not wrap it.
    async fn open_by(&self, what: &str, key: &str, ciphertext: &[u8], context: &str) -> Result<Opened, CustodyError> {
        let body = json!({
            "KeyId": key,
            "CiphertextBlob": STANDARD.encode(ciphertext),
            "EncryptionContext": encryption_context(context),
        });
        let answer = match self.request(what, "Decrypt", &body).await? {
            Reply::Done(answer) => answer,
            Reply::Failed(kind) => {
                return match kind.as_str() {
                    "InvalidCiphertextException" | "IncorrectKeyException" => Ok(Opened::Wrong),
                    "AccessDeniedException" => Ok(Opened::Denied),
                    _ => Err(self.unreachable(what, kind)),
                };
            }
        };
        let plaintext = answer["Plaintext"].as_str();
        let plaintext = plaintext
            .and_then(|text| STANDARD.decode(text).ok())
            .map(Zeroizing::new);
        let key = plaintext.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        // It opened, so that this is no wrong key: it is an answer that is not the service's.
        let key = key.ok_or_else(|| self.unreachable(what, "its answer is not that of the service"))?;
        Ok(Opened::Key(key))
    }
}

/// What came of a try to open.
enum Opened {
    Key([u8; 32]),
    Wrong,
    /// This site may not, or another key wrapped it.
    Denied,
}

fn encryption_context(context: &str) -> Value {
    // Never empty, which the service would not take.
    json!({ "tidegate": format!("v1:{}", utf8_percent_encode(context, CONTEXT)) })
}

#[async_trait]
impl Custody for KmsCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let what = "wrapping a key";
        let plaintext = Zeroizing::new(STANDARD.encode(key));
        let mut keys = self.known.lock().await.clone();
        if keys.is_empty() {
            keys = self.all(what).await?;
        }
        let missing = || format!("there is no key `{}`; the site's first run makes it", self.alias(1));
        let (number, id) = keys.last_key_value().ok_or_else(|| self.unreachable(what, missing()))?;
        let body = json!({
            "KeyId": id,
            "Plaintext": plaintext.as_str(),
            "EncryptionContext": encryption_context(context),
        });
        let answer = self.ask(what, "Encrypt", &body).await?;
        let ciphertext = answer["CiphertextBlob"].as_str();
        let ciphertext = ciphertext
            .and_then(|text| STANDARD.decode(text).ok())
            .unwrap_or_default();
        if ciphertext.is_empty() {
            return Err(self.unreachable(what, "its answer is not that of the service"));
        }
        Ok(numbered(*number, &ciphertext))
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let what = "opening a wrapped key";
        let wrong = || CustodyError::WrongKey {
            context: context.to_owned(),
        };
        let (number, ciphertext) = number_of(wrapped).ok_or_else(wrong)?;
        let mut keys = self.known.lock().await.clone();
        if !keys.contains_key(&number) {
            keys = self.all(what).await?;
        }
        let Some(key) = keys.get(&number) else {
            // Destroyed, if there are newer ones. Otherwise this is another account, or one that has not heard of it.
            return Err(match keys.range(number..).next() {
                Some(_) => wrong(),
                None => self.unreachable(what, format!("there is no key `{}`", self.alias(number))),
            });
        };
        for again in [false, true] {
            match self.open_by(what, key, ciphertext, context).await? {
                Opened::Key(key) => return Ok(key),
                Opened::Wrong => return Err(wrong()),
                // Also said of what another key wrapped. Whoever may use this one is not who is denied, and says so
                // again when it is asked again.
                Opened::Denied if again => return Err(wrong()),
                Opened::Denied if self.works(what, key).await? => {}
                Opened::Denied => return Err(self.unreachable(what, "it does not allow that to this site")),
            }
        }
        Err(wrong())
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        let what = "making a new key";
        let newest = self.all(what).await?.last_key_value().map_or(0, |(number, _)| *number);
        let number = newest.saturating_add(1);
        self.make(what, number).await?;
        Ok(number)
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        let what = "destroying old keys";
        let keys = self.all(what).await?;
        if !keys.contains_key(&before) {
            let why = format!("there is no key `{}`, which is to be kept", self.alias(before));
            return Err(self.unreachable(what, why));
        }
        for (number, key) in keys.range(..before) {
            let body = json!({"KeyId": key, "PendingWindowInDays": DAYS});
            match self.request(what, "ScheduleKeyDeletion", &body).await? {
                Reply::Done(_) => {}
                // It was scheduled when somebody died here.
                Reply::Failed(kind) if kind == "KMSInvalidStateException" => {}
                Reply::Failed(kind) => return Err(self.unreachable(what, kind)),
            }
            let alias = json!({"AliasName": self.alias(*number)});
            match self.request(what, "DeleteAlias", &alias).await? {
                Reply::Done(_) => {}
                Reply::Failed(kind) if kind == "NotFoundException" => {}
                Reply::Failed(kind) => return Err(self.unreachable(what, kind)),
            }
        }
        self.known.lock().await.retain(|number, _| *number >= before);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_stay_apart() {
        let shown = |context: &str| encryption_context(context)["tidegate"].as_str().unwrap().to_owned();
        assert_eq!(shown("p-1f/site keys"), "v1:p-1f/site%20keys");
        assert_eq!(shown(""), "v1:");
        assert_ne!(shown("a%20b"), shown("a b"));
        assert_ne!(shown("a\0"), shown("a"));
    }
}
