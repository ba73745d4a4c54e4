//! Azure's shared access signatures for directories, signed by a user delegation key (Blob service REST API, Get User
//! Delegation Key and Create User Delegation SAS, version 2020-12-06). Only storage accounts with a hierarchical namespace
//! know directories.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Uri;
use http::header::{AUTHORIZATION, HeaderValue};
use object_store::CredentialProvider;
use object_store::azure::AzureCredential;
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpResponse, HttpService};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tidegate_contracts::StoreError;
use tidegate_seal::digest::hmac_sha256;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{Asking, Session};
use crate::address::Address;
use crate::credentials::{AZURE_DIRECTORIES, Environment};

/// The version of the service whose signatures these are.
const VERSION: &str = "2020-12-06";
/// A key is good for a week.
const MOST_SECONDS: u64 = 7 * 24 * 3600;
/// Clocks differ.
const BEFORE: i64 = 900;

/// The service's answer: whose key it is, for how long, and the key.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Key {
    signed_oid: String,
    signed_tid: String,
    signed_start: String,
    signed_expiry: String,
    signed_service: String,
    signed_version: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename = "KeyInfo", rename_all = "PascalCase")]
struct Wanted {
    start: String,
    expiry: String,
}

/// Queries by the directories, from the container's root and without the last slash, that they open.
pub(crate) type Directories = BTreeMap<String, String>;

fn read(body: &Bytes) -> Option<Key> {
    quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()
}

impl Key {
    /// The query that lets its holder do what `permissions` say, in the service's order, below one directory.
    fn query(&self, account: &str, container: &str, directory: &str, permissions: &str) -> Option<String> {
        let key = Zeroizing::new(STANDARD.decode(self.value.as_bytes()).ok()?);
        let resource = format!("/blob/{account}/{container}/{directory}");
        let depth = directory.split('/').count().to_string();
        let signed = [
            permissions,
            "",
            &self.signed_expiry,
            &resource,
            &self.signed_oid,
            &self.signed_tid,
            &self.signed_start,
            &self.signed_expiry,
            &self.signed_service,
            &self.signed_version,
            // Neither another user, nor a correlation, nor an address.
            "",
            "",
            "",
            "",
            "https",
            VERSION,
            "d",
            // Neither a snapshot, nor a scope of encryption, nor headers of answers.
            "",
            "",
            "",
            "",
            "",
            "",
            "",
        ];
        let signature = hmac_sha256(&key, signed.join("\n").as_bytes());
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("sv", VERSION)
            .append_pair("sr", "d")
            .append_pair("sdd", &depth)
            .append_pair("sp", permissions)
            .append_pair("se", &self.signed_expiry)
            .append_pair("spr", "https")
            .append_pair("skoid", &self.signed_oid)
            .append_pair("sktid", &self.signed_tid)
            .append_pair("skt", &self.signed_start)
            .append_pair("ske", &self.signed_expiry)
            .append_pair("sks", &self.signed_service)
            .append_pair("skv", &self.signed_version)
            .append_pair("sig", &STANDARD.encode(signature.as_bytes()))
            .finish();
        Some(query)
    }
}

/// Asks for a key and signs with it what a worker may do.
pub(super) async fn sign(
    asking: &Asking<'_>,
    owner: &dyn CredentialProvider<Credential = AzureCredential>,
) -> Result<Session, StoreError> {
    let address = asking.address;
    let account = address.account.as_deref().unwrap_or_default();
    let token = match &*asking.owner(owner).await? {
        AzureCredential::BearerToken(token) => Zeroizing::new(token.clone()),
        AzureCredential::AccessKey(_) | AzureCredential::SASToken(_) => {
            return Err(asking.failed(
                "credentials of a worker are asked for by an identity of Entra ID; a key or a signature of the account is \
                 none",
            ));
        }
    };
    let server = match &address.endpoint {
        Some(endpoint) => endpoint.as_str().trim_end_matches('/').to_owned(),
        None => format!("https://{account}.blob.core.windows.net"),
    };
    let now = jiff::Timestamp::now().as_second();
    let seconds = i64::try_from(asking.seconds.clamp(1, MOST_SECONDS)).unwrap_or(i64::MAX);
    let time = |second: i64| jiff::Timestamp::from_second(second).map(|time| time.to_string());
    let wanted = time(now - BEFORE).and_then(|start| {
        let expiry = time(now + seconds)?;
        Ok(Wanted { start, expiry })
    });
    let wanted = wanted.map_err(|error| asking.failed(error.to_string()))?;
    let body = quick_xml::se::to_string(&wanted).map_err(|error| asking.failed(error.to_string()))?;
    let token = HeaderValue::from_str(&format!("Bearer {}", *token));
    let mut token = token.map_err(|_| asking.failed("the token is none"))?;
    token.set_sensitive(true);
    let request = http::Request::post(format!("{server}/?restype=service&comp=userdelegationkey"))
        .header("x-ms-version", VERSION)
        .header(AUTHORIZATION, token)
        .body(body.into());
    let request: HttpRequest = request.map_err(|error| asking.failed(error.to_string()))?;
    let key = asking.answer(request, read).await?;

    let mut permissions: BTreeMap<&str, &str> = BTreeMap::new();
    for name in &asking.reach.reads {
        permissions.insert(name.trim_end_matches('/'), "r");
    }
    for name in &asking.reach.creates {
        let both = permissions.entry(name.trim_end_matches('/')).or_insert("rc");
        *both = "rc";
    }
    let directories: Option<Directories> = permissions
        .iter()
        .map(|(directory, allowed)| {
            let query = key.query(account, &address.bucket, directory, allowed)?;
            Some(((*directory).to_owned(), query))
        })
        .collect();
    let directories = directories.ok_or_else(|| asking.failed("the service's key is none"))?;
    let text = serde_json::to_string(&directories).map_err(|error| asking.failed(error.to_string()))?;
    let ends: Option<jiff::Timestamp> = key.signed_expiry.parse().ok();
    let left = ends.map(|ends| ends.duration_since(jiff::Timestamp::now()));
    Ok(Session {
        variables: Environment::from([(AZURE_DIRECTORIES.to_owned(), text)]),
        lasts: left.and_then(|left| left.try_into().ok()).unwrap_or_default(),
    })
}

/// Sends each request with the query of the directory that its object is in.
#[derive(Clone)]
pub(crate) struct Signing {
    /// What the paths of objects begin with: the container, behind the endpoint's own path.
    root: String,
    directories: Directories,
}

/// Without the signatures.
impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Signing {
    pub(crate) fn of(address: &Address, directories: Directories) -> Self {
        let server = address
            .endpoint
            .as_ref()
            .map_or("", |endpoint| endpoint.path().trim_end_matches('/'));
        Self {
            root: format!("{server}/{}", address.bucket),
            directories,
        }
    }

    /// The query for an object by the path of a request; none where nothing opens it.
    fn query(&self, path: &str) -> Option<&str> {
        let path = percent_decode_str(path).decode_utf8().ok()?;
        let name = path.strip_prefix(&self.root)?.strip_prefix('/')?;
        let holds = |directory: &str| name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
        let inside = self.directories.iter().filter(|(directory, _)| holds(directory));
        let (_, query) = inside.max_by_key(|(directory, _)| directory.len())?;
        Some(query)
    }

    fn signed(&self, uri: &Uri) -> Option<Uri> {
        let query = self.query(uri.path())?;
        let path = match uri.query() {
            Some(before) => format!("{}?{before}&{query}", uri.path()),
            None => format!("{}?{query}", uri.path()),
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(path.parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) client: HttpClient,
    pub(crate) signing: Signing,
}

#[async_trait]
impl HttpService for Signed {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // What nothing opens goes without, and the service refuses it.
        if let Some(uri) = self.signing.signed(request.uri()) {
            *request.uri_mut() = uri;
        }
        self.client.execute(request).await
    }
}
