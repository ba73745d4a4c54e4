//! Custody in the transit engine of Vault or OpenBao: the key that wraps all others never leaves the service.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, HeaderValue};
use object_store::client::HttpRequest;
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_contracts::{Custody, CustodyError};
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::Service;
use crate::address::{AddressError, secure};
use crate::credentials::Environment;
use crate::store::OpenError;

/// What a wrapped key of this custody begins with.
const FORMAT: u8 = 1;

/// Where a key is: `vault:https://HOST[:PORT]/MOUNT/KEY[?certificates=FILE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAddress {
    server: Url,
    mount: String,
    key: String,
    certificates: Option<PathBuf>,
}

impl FromStr for VaultAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why: &str| AddressError::new(text, why);
        let rest = text
            .strip_prefix("vault:")
            .ok_or_else(|| wrong("it does not begin with `vault:`"))?;
        let mut server = Url::parse(rest).map_err(|error| wrong(&error.to_string()))?;
        secure(&server).map_err(|why| wrong(&format!("its server {why}")))?;
        let mut certificates = None;
        for (key, value) in server.query_pairs() {
            match key.as_ref() {
                "certificates" if certificates.is_none() => certificates = Some(PathBuf::from(value.as_ref())),
                _ => return Err(wrong("it has an option that is not known here, or one twice")),
            }
        }
        let path = server.path().trim_matches('/').to_owned();
        let (mount, key) = path
            .rsplit_once('/')
            .filter(|(mount, key)| !mount.is_empty() && !key.is_empty())
            .ok_or_else(|| wrong("mount and key are missing, as in `vault:https://host:8200/transit/st-mary`"))?;
        let (mount, key) = (mount.to_owned(), key.to_owned());
        server.set_path("");
        server.set_query(None);
        Ok(Self {
            server,
            mount,
            key,
            certificates,
        })
    }
}

/// Without its options.
impl fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vault:{}{}/{}", self.server, self.mount, self.key)
    }
}

/// Who this site is to the service.
enum Login {
    Token(Zeroizing<String>),
    AppRole { role: String, secret: Zeroizing<String> },
}

/// Custody in the transit engine of Vault or OpenBao.
///
/// Keys are wrapped by the engine's own encryption with the context as associated data, which needs a key of
/// type `aes256-gcm96` or another that authenticates. A wrapped key is one byte of format, the version of the
/// engine's key (four bytes, big-endian) and the engine's ciphertext, so that every changed bit is noticed.
pub struct VaultCustody {
    address: VaultAddress,
    service: Service,
    login: Login,
    token: Mutex<Option<Zeroizing<String>>>,
}

impl fmt::Debug for VaultCustody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VaultCustody").field(&self.address.to_string()).finish()
    }
}

/// How a request ended.
enum Reply {
    Done(Value),
    /// The request itself is wrong: a ciphertext that does not open.
    Wrong,
    /// The token has ended, or never was good enough.
    Forbidden,
}

impl VaultCustody {
    /// The custody at `address`, with what `environment` has for it: `VAULT_ROLE_ID` and `VAULT_SECRET_ID`
    /// (AppRole), or `VAULT_TOKEN`. Connects to nobody yet.
    ///
    /// # Errors
    /// When it has neither, or the certificates cannot be read.
    pub fn open(address: VaultAddress, environment: &Environment) -> Result<Self, OpenError> {
        let settings = |why: String| OpenError::Settings {
            store: address.to_string(),
            why,
        };
        let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
        let login = match (value("VAULT_ROLE_ID"), value("VAULT_SECRET_ID"), value("VAULT_TOKEN")) {
            (Some(role), Some(secret), _) => Login::AppRole {
                role,
                secret: Zeroizing::new(secret),
            },
            (_, _, Some(token)) => Login::Token(Zeroizing::new(token)),
            _ => {
                let why = "set VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_TOKEN";
                return Err(settings(why.to_owned()));
            }
        };
        let service = Service::open(&address, address.certificates.as_deref())?;
        Ok(Self {
            address,
            service,
            login,
            token: Mutex::new(None),
        })
    }

    fn unreachable(&self, what: &str, why: impl fmt::Display) -> CustodyError {
        self.service.unreachable(what, why)
    }

    /// One request. Bodies of errors are not passed on: they may repeat what was sent.
    async fn request(
        &self,
        what: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Reply, CustodyError> {
        let failed = |why: &dyn fmt::Display| self.unreachable(what, why);
        let url = format!("{}v1/{path}", self.address.server);
        let request = match body {
            Some(body) => http::Request::post(url)
                .header(CONTENT_TYPE, "application/json")
                .body(body.to_string().into()),
            None => http::Request::get(url).body(Vec::new().into()),
        };
        let mut request: HttpRequest = request.map_err(|error| failed(&error))?;
        if let Some(token) = token {
            let mut token = HeaderValue::from_str(token).map_err(|_| failed(&"its token is none"))?;
            token.set_sensitive(true);
            request.headers_mut().insert("x-vault-token", token);
        }
        let (status, bytes) = self.service.answer(what, request).await?;
        match status {
            204 => Ok(Reply::Done(Value::Null)),
            200..=299 => serde_json::from_slice(&bytes)
                .map(Reply::Done)
                .map_err(|_| failed(&"its answer is no JSON")),
            400 => Ok(Reply::Wrong),
            403 => Ok(Reply::Forbidden),
            404 => Err(failed(&"there is no such mount or key")),
            503 => Err(failed(&"it is sealed or not ready")),
            status => Err(failed(&format!("it answered with status {status}"))),
        }
    }

    /// A token, by logging in where there is none yet.
    async fn token(&self, what: &str, fresh: bool) -> Result<Zeroizing<String>, CustodyError> {
        let (role, secret) = match &self.login {
            Login::Token(token) => return Ok(token.clone()),
            Login::AppRole { role, secret } => (role, secret),
        };
        let mut held = self.token.lock().await;
        if let (Some(token), false) = (&*held, fresh) {
            return Ok(token.clone());
        }
        let body = json!({"role_id": role, "secret_id": secret.as_str()});
        let reply = self.request(what, "auth/approle/login", None, Some(&body)).await?;
        let Reply::Done(answer) = reply else {
            return Err(self.unreachable(what, "it does not know this role and secret"));
        };
        let token = answer["auth"]["client_token"].as_str();
        let token = token.ok_or_else(|| self.unreachable(what, "its answer to the login has no token"))?;
        let token = Zeroizing::new(token.to_owned());
        *held = Some(token.clone());
        Ok(token)
    }

    /// A request with a token; once more with a new one if it was refused. None where the request is wrong.
    async fn ask(&self, what: &str, path: &str, body: Option<&Value>) -> Result<Option<Value>, CustodyError> {
        let path = format!("{}/{path}", self.address.mount);
        for fresh in [false, true] {
            let token = self.token(what, fresh).await?;
            match self.request(what, &path, Some(&token), body).await? {
                Reply::Done(answer) => return Ok(Some(answer)),
                Reply::Wrong => return Ok(None),
                Reply::Forbidden => {}
            }
        }
        Err(self.unreachable(what, "it does not allow that to this site"))
    }

    /// Changes the engine's key.
    async fn change(&self, what: &str, change: &str, body: &Value) -> Result<(), CustodyError> {
        let path = format!("keys/{}/{change}", self.address.key);
        let answer = self.ask(what, &path, Some(body)).await?;
        answer
            .map(|_| ())
            .ok_or_else(|| self.unreachable(what, "it refused to change its key"))
    }
}

#[derive(Deserialize)]
struct Encrypted {
    data: Ciphertext,
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

/// From `vault:v3:BASE64`.
fn to_bytes(ciphertext: &str) -> Option<Vec<u8>> {
    let (version, text) = ciphertext.strip_prefix("vault:v")?.split_once(':')?;
    let version: u32 = version.parse().ok()?;
    let mut bytes = vec![FORMAT];
    bytes.extend(version.to_be_bytes());
    bytes.extend(STANDARD.decode(text).ok()?);
    Some(bytes)
}

fn to_text(wrapped: &[u8]) -> Option<String> {
    let (format, rest) = wrapped.split_first()?;
    let (version, bytes) = rest.split_first_chunk::<4>()?;
    let version = u32::from_be_bytes(*version);
    // The engine takes version 0 for version 1.
    (*format == FORMAT && version != 0).then(|| format!("vault:v{version}:{}", STANDARD.encode(bytes)))
}

#[async_trait]
impl Custody for VaultCustody {
    async fn wrap(&self, key: &[u8; 32], context: &str) -> Result<Vec<u8>, CustodyError> {
        let what = "wrapping a key";
        let plaintext = Zeroizing::new(STANDARD.encode(key));
        let body = json!({"plaintext": plaintext.as_str(), "associated_data": STANDARD.encode(context)});
        let answer = self
            .ask(what, &format!("encrypt/{}", self.address.key), Some(&body))
            .await?;
        let answer = answer.ok_or_else(|| self.unreachable(what, "its key cannot wrap with a context"))?;
        let encrypted: Option<Encrypted> = serde_json::from_value(answer).ok();
        let wrapped = encrypted.and_then(|encrypted| to_bytes(&encrypted.data.ciphertext));
        wrapped.ok_or_else(|| self.unreachable(what, "its answer is not that of the transit engine"))
    }

    async fn unwrap_key(&self, wrapped: &[u8], context: &str) -> Result<[u8; 32], CustodyError> {
        let what = "opening a wrapped key";
        let wrong = || CustodyError::WrongKey {
            context: context.to_owned(),
        };
        let ciphertext = to_text(wrapped).ok_or_else(wrong)?;
        let body = json!({"ciphertext": ciphertext, "associated_data": STANDARD.encode(context)});
        let path = format!("decrypt/{}", self.address.key);
        let answer = self.ask(what, &path, Some(&body)).await?.ok_or_else(wrong)?;
        let plaintext = answer["data"]["plaintext"].as_str();
        let plaintext = plaintext
            .and_then(|text| STANDARD.decode(text).ok())
            .map(Zeroizing::new);
        let key = plaintext.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        key.ok_or_else(wrong)
    }

    async fn rotate(&self) -> Result<u64, CustodyError> {
        let what = "making a new version of the key";
        self.change(what, "rotate", &json!({})).await?;
        let key = self.ask(what, &format!("keys/{}", self.address.key), None).await?;
        let newest = key.and_then(|key| key["data"]["latest_version"].as_u64());
        newest.ok_or_else(|| self.unreachable(what, "it does not say which version is the newest"))
    }

    async fn retire(&self, before: u64) -> Result<(), CustodyError> {
        let what = "destroying old versions of the key";
        let limits = json!({"min_decryption_version": before, "min_encryption_version": before});
        self.change(what, "config", &limits).await?;
        self.change(what, "trim", &json!({"min_available_version": before}))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_server_mount_and_key() {
        let address: VaultAddress = "vault:https://keys.example.org:8200/transit/st-mary?certificates=/etc/ca.pem"
            .parse()
            .unwrap();
        assert_eq!(
            address.to_string(),
            "vault:https://keys.example.org:8200/transit/st-mary"
        );
        for (text, why) in [
            ("vault:https://keys.example.org:8200/transit", "mount and key"),
            ("vault:http://keys.example.org/transit/st-mary", "https"),
            (
                "vault:https://a:secret@keys.example.org/transit/st-mary",
                "nothing else",
            ),
            (
                "vault:https://keys.example.org/transit/st-mary?token=secret",
                "not known",
            ),
            ("file:", "vault:"),
        ] {
            let error = text.parse::<VaultAddress>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_ciphertext_is_kept_in_one_form() {
        let bytes = to_bytes("vault:v258:AAEC").unwrap();
        assert_eq!(bytes, [1, 0, 0, 1, 2, 0, 1, 2]);
        assert_eq!(to_text(&bytes).unwrap(), "vault:v258:AAEC");
        for none in ["vault:258:AAEC", "vault:v:AAEC", "vault:v1", "vault:v1:A", "v1:AAEC"] {
            assert_eq!(to_bytes(none), None, "{none}");
        }
        for none in [&[][..], &[1, 0, 0, 0], &[2, 0, 0, 0, 1, 9], &[1, 0, 0, 0, 0, 9]] {
            assert_eq!(to_text(none), None, "{none:?}");
        }
    }
}
