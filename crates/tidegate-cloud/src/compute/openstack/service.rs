//! OpenStack's services over HTTP: keystone's tokens (identity, version 3) and whatever stands in their catalog.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use object_store::client::HttpRequest;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::settings::{Login, OpenStackSettings};
use crate::address::secure;
use crate::client::{Server, Way};
use crate::compute::{Failure, told};
use crate::credentials::Environment;
use crate::store::OpenError;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;
/// Nova's own version, of 2017: the first in which a server is made with its tags.
const COMPUTE_VERSION: &str = "compute 2.52";
/// How long a service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds before its end from which a token is not used any more.
const EARLY: i64 = 60;
const TOKEN: &str = "x-auth-token";

/// One of OpenStack's services, as the catalog names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Compute,
    Image,
    Network,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Compute, Self::Image, Self::Network];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Image => "image",
            Self::Network => "network",
        }
    }
}

/// A token, and where it is good.
#[derive(Clone)]
struct Session {
    token: Zeroizing<String>,
    /// Second of its end (Unix time).
    until: i64,
    services: BTreeMap<Kind, Url>,
}

/// OpenStack in one region.
pub(super) struct Service {
    server: Server,
    /// Who logs in, or what is missing for that: planning needs nobody.
    login: Result<Login, String>,
    region: String,
    session: Mutex<Option<Session>>,
}

impl Service {
    pub(super) fn open(settings: &OpenStackSettings, environment: &Environment) -> Result<Self, OpenError> {
        let who = settings.to_string();
        Ok(Self {
            server: Server::open(&who, settings.certificates.as_deref(), Way::Usual)?,
            login: Login::of(settings, environment),
            region: settings.region.clone(),
            session: Mutex::default(),
        })
    }

    /// One request, with `token` where there is one.
    async fn send(
        &self,
        method: Method,
        url: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<http::Response<Bytes>, Failure> {
        let request = http::Request::builder().method(method).uri(url);
        let request = request.header(CONTENT_TYPE, "application/json").body(body.into());
        let mut request: HttpRequest = request.map_err(|error| Failure::passing(error.to_string()))?;
        let headers = request.headers_mut();
        headers.insert("openstack-api-version", HeaderValue::from_static(COMPUTE_VERSION));
        if let Some(token) = token {
            let token = HeaderValue::from_str(token);
            let mut token = token.map_err(|_| Failure::passing("its token is none"))?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        // Nova starts a machine whether or not somebody still listens.
        let answer = self.server.answer_within(PATIENCE, request, ANSWER_BYTES).await;
        answer.map_err(Failure::unheard)
    }

    fn login(&self) -> Result<&Login, Failure> {
        self.login.as_ref().map_err(|why| Failure::Refused {
            code: "NoCredentials".to_owned(),
            why: why.clone(),
        })
    }

    async fn log_in(&self) -> Result<Session, Failure> {
        let login = self.login()?;
        let url = format!("{}/auth/tokens", login.keystone);
        let body = Bytes::copy_from_slice(login.request.as_bytes());
        let answer = self.send(Method::POST, &url, None, body).await?;
        let status = answer.status().as_u16();
        if status != 201 {
            // Its words may repeat what was sent.
            return Err(failure(status, &[]));
        }
        let strange = || Failure::passing("keystone's answer is none");
        let token = answer
            .headers()
            .get("x-subject-token")
            .and_then(|token| token.to_str().ok());
        let token = Zeroizing::new(token.ok_or_else(strange)?.to_owned());
        let told: Value = serde_json::from_slice(answer.body()).map_err(|_| strange())?;
        let ends = told["token"]["expires_at"].as_str();
        let ends: Option<jiff::Timestamp> = ends.and_then(|text| text.parse().ok());
        Ok(Session {
            token,
            until: ends.ok_or_else(strange)?.as_second(),
            services: self.services(&login.interface, &told["token"]["catalog"]),
        })
    }

    /// Where the services of this region are, of those that may be told a token.
    fn services(&self, interface: &str, catalog: &Value) -> BTreeMap<Kind, Url> {
        let entries = || catalog.as_array().into_iter().flatten();
        let place = |kind: Kind| {
            let of_kind = entries().filter(|entry| entry["type"] == kind.as_str());
            let mut endpoints = of_kind.flat_map(|entry| entry["endpoints"].as_array().into_iter().flatten());
            let endpoint = endpoints
                .find(|endpoint| endpoint["interface"] == interface && endpoint["region_id"] == self.region.as_str());
            let mut url = Url::parse(endpoint?["url"].as_str()?).ok()?;
            secure(&url).ok()?;
            if kind != Kind::Compute {
                // Some catalogs name the version, which requests name too.
                let path = url.path().trim_end_matches('/').to_owned();
                let last = path.rsplit('/').next().unwrap_or_default();
                if last
                    .strip_prefix('v')
                    .is_some_and(|rest| rest.starts_with(|one: char| one.is_ascii_digit()))
                {
                    url.set_path(path.strip_suffix(last).unwrap_or_default());
                }
            }
            Some((kind, url))
        };
        Kind::ALL.into_iter().filter_map(place).collect()
    }

    /// A session that holds; another one than that of token `refused`.
    async fn session(&self, refused: Option<&str>) -> Result<Session, Failure> {
        let mut session = self.session.lock().await;
        let now = jiff::Timestamp::now().as_second();
        if let Some(there) = session.as_ref()
            && there.until - EARLY > now
            && refused != Some(there.token.as_str())
        {
            return Ok(there.clone());
        }
        let new = self.log_in().await?;
        *session = Some(new.clone());
        Ok(new)
    }

    /// A request to a service; what it answers, `Null` where that is nothing.
    pub(super) async fn ask(
        &self,
        kind: Kind,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let body = Bytes::from(body.map(ToString::to_string).unwrap_or_default());
        let mut refused = None;
        loop {
            let session = self.session(refused.as_deref()).await?;
            let place = session.services.get(&kind).ok_or_else(|| Failure::Refused {
                code: "NoEndpoint".to_owned(),
                why: format!(
                    "its catalog has no {} service in region `{}` at an address with `https:`",
                    kind.as_str(),
                    self.region
                ),
            })?;
            let url = format!("{}{path}", place.as_str().trim_end_matches('/'));
            let answer = self
                .send(method.clone(), &url, Some(&session.token), body.clone())
                .await?;
            match answer.status().as_u16() {
                200..=299 if answer.body().is_empty() => return Ok(Value::Null),
                200..=299 => {
                    let read = serde_json::from_slice(answer.body());
                    return read.map_err(|_| Failure::unheard("its answer is not JSON"));
                }
                // The token has ended before its time.
                401 if refused.is_none() => refused = Some(session.token.to_string()),
                status => return Err(failure(status, answer.body())),
            }
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// What a status means. Each service wraps its words in another name.
fn failure(status: u16, body: &[u8]) -> Failure {
    let read: Value = serde_json::from_slice(body).unwrap_or_default();
    let inner = read.as_object().and_then(|one| one.values().next());
    let words = inner
        .and_then(|one| one["message"].as_str())
        .map(told)
        .unwrap_or_default();
    let refused = |code: &str, why: String| Failure::Refused {
        code: code.to_owned(),
        why,
    };
    match status {
        401 => refused("Unauthorized", "its credentials do not allow that".to_owned()),
        403 if ["uota", "exceeded"].iter().any(|word| words.contains(word)) => Failure::Capacity(words),
        // What it says of flavors without a disk.
        403 if words.contains("volume-backed") => refused("Forbidden", words),
        403 => refused("Forbidden", "its credentials do not allow that".to_owned()),
        400 => refused("BadRequest", words),
        404 => refused("NotFound", words),
        406 => refused("NotAcceptable", "it is older than what is asked for".to_owned()),
        409 => refused("Conflict", words),
        500.. => Failure::unheard(format!("it answered with status {status}")),
        _ => Failure::passing(format!("it answered with status {status}")),
    }
}
