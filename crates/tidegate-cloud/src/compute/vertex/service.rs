//! The service over HTTP: Vertex AI's REST interface, version 1.

use std::fmt;
use std::time::Duration;

use http::Method;
use object_store::gcp::GcpCredentialProvider;
use serde_json::Value;

use super::settings::VertexSettings;
use crate::client::{Server, Way, bearing, word};
use crate::compute::{Failure, told_without};
use crate::credentials::{self, Environment};
use crate::store::OpenError;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;
/// How long the service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Vertex AI in one region.
pub(super) struct Service {
    server: Server,
    credentials: GcpCredentialProvider,
    /// Ends with a slash.
    base: String,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Service {
    pub(super) fn open(settings: &VertexSettings, environment: &Environment) -> Result<Self, OpenError> {
        let (who, certificates) = (settings.to_string(), settings.certificates.as_deref());
        let own = || format!("https://{}-aiplatform.googleapis.com", settings.region);
        let base = settings.endpoint.as_ref().map_or_else(own, ToString::to_string);
        Ok(Self {
            server: Server::open(&who, certificates, Way::Usual)?,
            credentials: credentials::google_tokens(&who, base.starts_with("http:"), certificates, environment)?,
            base: format!("{}/v1/", base.trim_end_matches('/')),
        })
    }

    /// A request for what stands at `path`; `secret` is what of the body no error may repeat.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        secret: &str,
    ) -> Result<Value, Failure> {
        let token = self.server.credentials(&*self.credentials).await;
        let token = token.map_err(Failure::passing)?;
        let request = bearing(method, &format!("{}{path}", self.base), &token.bearer, body);
        let request = request.map_err(Failure::passing)?;
        // A job is started whether or not somebody still listens.
        let answer = self.server.answer_within(PATIENCE, request, ANSWER_BYTES).await;
        let answer = answer.map_err(Failure::unheard)?;
        match answer.status().as_u16() {
            200..=299 => serde_json::from_slice(answer.body()).map_err(|_| Failure::unheard("its answer is not JSON")),
            status => Err(failure(status, answer.body(), secret)),
        }
    }
}

/// Whether words of the service say that there is no room, and not that something is wrong.
pub(super) fn says_no_room(words: &str) -> bool {
    [
        "exceed quota limits",
        "custom_model_training",
        "STOCKOUT",
        "esources are insufficient",
        "esource pool exhausted",
    ]
    .iter()
    .any(|part| words.contains(part))
}

/// What a status means.
fn failure(status: u16, body: &[u8], secret: &str) -> Failure {
    let read: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = word(read["error"].get("status"));
    let words = read["error"]["message"].as_str().unwrap_or_default();
    let shown = told_without(words, secret);
    match status {
        _ if says_no_room(words) => Failure::Capacity(shown),
        401 | 403 => Failure::Refused {
            code,
            why: "its credentials do not allow that".to_owned(),
        },
        // Asked too often, or at the same time as somebody else.
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
            let body = json!({"error": {"code": status, "status": code, "message": words}});
            failure(status, body.to_string().as_bytes(), "{\"secret\":\"c0ffee00c0ffee00\"}")
        };
        let quota = "The following quota metrics exceed quota limits: \
                     aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus";
        assert!(matches!(failed(429, "RESOURCE_EXHAUSTED", quota), Failure::Capacity(why) if why == quota));
        let often = "Quota exceeded for quota metric 'Resource management (CRUD) requests' per minute per region";
        assert!(matches!(failed(429, "RESOURCE_EXHAUSTED", often), Failure::Passing(_)));
        match failed(400, "INVALID_ARGUMENT", "Invalid value at env[0]: ...:\"c0ffee00c0f...") {
            Failure::Refused { code, why } => assert!(code == "INVALID_ARGUMENT" && why.is_empty(), "{why}"),
            other => panic!("{other:?}"),
        }
        match failed(400, "INVALID_ARGUMENT", "Machine type \"n1-huge\" is not supported.") {
            Failure::Refused { why, .. } => assert!(why.contains("n1-huge"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
