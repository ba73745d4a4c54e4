//! The service over HTTP: Azure Machine Learning's resources in Azure Resource Manager (API version 2025-12-01).

use std::fmt;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use url::Url;

use super::settings::AzureMlSettings;
use crate::client::{Server, Way, bearing, next_page, word};
use crate::compute::{Failure, told_without};
use crate::credentials::Environment;
use crate::entra::Identity;
use crate::store::OpenError;

const VERSION: &str = "api-version=2025-12-01";
const SERVER: &str = "https://management.azure.com";
/// The longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;
/// How long the service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most pages of a listing.
const PAGES: usize = 1000;

/// Azure Resource Manager.
pub(super) struct Service {
    server: Server,
    /// Who asks, or what is missing for that: planning needs nobody.
    identity: Result<Identity, String>,
    base: Url,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

impl Service {
    pub(super) fn open(settings: &AzureMlSettings, environment: &Environment) -> Result<Self, OpenError> {
        let who = settings.to_string();
        let base = settings.endpoint.as_ref().map_or(SERVER, Url::as_str);
        Ok(Self {
            server: Server::open(&who, settings.certificates.as_deref(), Way::Usual)?,
            identity: Identity::of(environment, SERVER.to_owned()),
            base: Url::parse(base).map_err(|error| OpenError::Settings {
                store: who,
                why: error.to_string(),
            })?,
        })
    }

    /// A request for the resource at `path`, which begins with a slash and may have a query; `secret` is what of the
    /// body no error may repeat. `Null` where the answer is empty.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        secret: &str,
    ) -> Result<Value, Failure> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let more = if query.is_empty() {
            String::new()
        } else {
            format!("&{query}")
        };
        let url = format!("{}{path}?{VERSION}{more}", self.base.as_str().trim_end_matches('/'));
        self.send(method, &url, body, secret).await
    }

    /// One request, once more with a new token if that was refused.
    async fn send(&self, method: Method, url: &str, body: Option<&Value>, secret: &str) -> Result<Value, Failure> {
        let refused = |code: &str, why: &str| Failure::Refused {
            code: code.to_owned(),
            why: why.to_owned(),
        };
        let identity = self.identity.as_ref().map_err(|why| refused("NoCredentials", why))?;
        for fresh in [false, true] {
            let token = identity.token(&self.server, fresh).await;
            let token = token.map_err(|why| Failure::Refused {
                code: "Login".to_owned(),
                why,
            })?;
            let request = bearing(method.clone(), url, &token, body).map_err(Failure::passing)?;
            // A job is started whether or not somebody still listens.
            let answer = self.server.answer_within(PATIENCE, request, ANSWER_BYTES).await;
            let answer = answer.map_err(Failure::unheard)?;
            match answer.status().as_u16() {
                401 => {}
                200..=299 if answer.body().is_empty() => return Ok(Value::Null),
                200..=299 => {
                    let read = serde_json::from_slice(answer.body());
                    return read.map_err(|_| Failure::unheard("its answer is not JSON"));
                }
                status => return Err(failure(status, answer.body(), secret)),
            }
        }
        Err(refused("Unauthorized", "its credentials do not allow that"))
    }

    /// All items of a list.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut page = self.ask(Method::GET, path, None, "").await?;
        let mut all = Vec::new();
        for _ in 0..PAGES {
            if let Value::Array(items) = page["value"].take() {
                all.extend(items);
            }
            match page["nextLink"].as_str() {
                None | Some("") => return Ok(all),
                Some(next) => {
                    let leads_elsewhere = || Failure::passing("its list leads elsewhere");
                    let url = next_page(&self.base, next).ok_or_else(leads_elsewhere)?;
                    page = self.send(Method::GET, &url, None, "").await?;
                }
            }
        }
        Err(Failure::passing("it lists more than is looked at"))
    }
}

/// What a status means.
fn failure(status: u16, body: &[u8], secret: &str) -> Failure {
    let read: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = word(read["error"].get("code"));
    let words = read["error"]["message"].as_str().unwrap_or_default();
    let shown = told_without(words, secret);
    let no_room = ["Quota", "Capacity", "AllocationFailed", "OverconstrainedAllocation"]
        .iter()
        .any(|part| code.contains(part))
        || ["uota exceeded", "exceeding approved", "nsufficient capacity"]
            .iter()
            .any(|part| words.contains(part));
    match status {
        _ if no_room => Failure::Capacity(format!("{code}: {shown}")),
        403 => Failure::Refused {
            code,
            why: "its credentials do not allow that".to_owned(),
        },
        404 => Failure::Refused {
            code: "NotFound".to_owned(),
            why: shown,
        },
        409 => Failure::Refused {
            code: "Conflict".to_owned(),
            why: shown,
        },
        408 | 429 => Failure::passing(code),
        500.. => Failure::unheard(format!("it answered with status {status} ({code})")),
        _ => Failure::Refused { code, why: shown },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_room_is_told_apart_from_too_many_requests_and_no_secret_is_repeated() {
        let failed = |status: u16, code: &str, words: &str| {
            let body = json!({"error": {"code": code, "message": words}});
            failure(status, body.to_string().as_bytes(), "{\"secret\":\"c0ffee00c0ffee00\"}")
        };
        assert!(matches!(
            failed(400, "ClusterCoreQuotaReached", "…"),
            Failure::Capacity(_)
        ));
        let exceeding = "Operation could not be completed as it results in exceeding approved cores quota.";
        assert!(matches!(
            failed(409, "OperationNotAllowed", exceeding),
            Failure::Capacity(_)
        ));
        assert!(matches!(failed(429, "TooManyRequests", "wait"), Failure::Passing(_)));
        match failed(
            400,
            "ValidationError",
            "TIDEGATE_TICKET: {\"secret\":\"c0ffee00c0ffee00\"}",
        ) {
            Failure::Refused { why, .. } => assert!(why.is_empty(), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
