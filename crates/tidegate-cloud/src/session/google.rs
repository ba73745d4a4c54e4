//! Google's tokens with a boundary: a token of the service account that the address names (IAM Service Account
//! Credentials API, `generateAccessToken`), exchanged for one that reaches less (Security Token Service, token exchange of
//! RFC 8693 with a Credential Access Boundary).

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use object_store::CredentialProvider;
use object_store::client::HttpRequest;
use object_store::gcp::GcpCredential;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tidegate_contracts::StoreError;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{Asking, Reach, Session};
use crate::client::bearing;
use crate::credentials::{Environment, GOOGLE_TOKEN};

/// The longest that a token lasts where no organisation allows more.
const MOST_SECONDS: u64 = 3600;
/// The longest text of a boundary that the service takes.
const MOST_CHARACTERS: usize = 2048;
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What a worker may do of what its service account may. Three rules: a condition has ten terms at the most.
fn boundary(bucket: &str, reach: &Reach) -> Value {
    let resource = format!("//storage.googleapis.com/projects/_/buckets/{bucket}");
    let below = |names: &[String]| {
        let terms = names
            .iter()
            .map(|name| format!("resource.name.startsWith('projects/_/buckets/{bucket}/objects/{name}')"));
        json!({"expression": terms.collect::<Vec<_>>().join(" || ")})
    };
    let rule = |role: &str, condition: Option<Value>| {
        let mut rule =
            json!({"availableResource": resource, "availablePermissions": [format!("inRole:roles/storage.{role}")]});
        if let Some(condition) = condition {
            rule["availabilityCondition"] = condition;
        }
        rule
    };
    json!({"accessBoundary": {"accessBoundaryRules": [
        rule("legacyObjectReader", Some(below(&reach.reads))),
        rule("objectCreator", Some(below(&reach.creates))),
        // Names alone. Without it a store says of an object that is not there yet that it is forbidden.
        rule("legacyBucketReader", None),
    ]}})
}

fn token(answer: &Value, field: &str) -> Option<Zeroizing<String>> {
    Some(answer[field].as_str()?.to_owned().into())
}

fn json(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// Asks for a token that ends after an hour at the latest.
pub(super) async fn exchange(
    asking: &Asking<'_>,
    role: &str,
    owner: &dyn CredentialProvider<Credential = GcpCredential>,
) -> Result<Session, StoreError> {
    let failed = |why: String| asking.failed(why);
    let names = [&asking.address.bucket].into_iter().chain(&asking.reach.reads);
    if names.into_iter().any(|name| name.contains(['\'', '\\'])) {
        return Err(failed(
            "a name in the store's address has a quote, which no condition holds".to_owned(),
        ));
    }
    let options = boundary(&asking.address.bucket, &asking.reach).to_string();
    if options.len() > MOST_CHARACTERS {
        return Err(failed(
            "the address is too long for a boundary; use a shorter bucket and prefix".to_owned(),
        ));
    }
    let server = |usual: &str| match &asking.address.endpoint {
        // What stands in for Google offers these services beside it.
        Some(endpoint) => endpoint.as_str().trim_end_matches('/').to_owned(),
        None => format!("https://{usual}.googleapis.com"),
    };
    let owner = asking.owner(owner).await?;
    let account = utf8_percent_encode(role, NON_ALPHANUMERIC);
    let url = format!(
        "{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken",
        server("iamcredentials")
    );
    let seconds = asking.seconds.clamp(1, MOST_SECONDS);
    let wanted = json!({"scope": [SCOPE], "lifetime": format!("{seconds}s")});
    let request = bearing(Method::POST, &url, &owner.bearer, Some(&wanted)).map_err(failed)?;
    let whole = asking.answer(request, |body| token(&json(body), "accessToken")).await?;

    // A text that the form encodes once more.
    let options = utf8_percent_encode(&options, NON_ALPHANUMERIC).to_string();
    let kind = "urn:ietf:params:oauth:token-type:access_token";
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("requested_token_type", kind)
        .append_pair("subject_token_type", kind)
        .append_pair("subject_token", &whole)
        .append_pair("options", &options)
        .finish();
    let request: HttpRequest = http::Request::post(format!("{}/v1/token", server("sts")))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form.into())
        .map_err(|error| failed(error.to_string()))?;
    let read = |body: &Bytes| {
        let answer = json(body);
        // It need not say how long what it gives lasts: as long as what it was made from.
        let lasts = answer["expires_in"].as_u64().unwrap_or(seconds);
        Some((token(&answer, "access_token")?, lasts))
    };
    let (narrowed, lasts) = asking.answer(request, read).await?;
    Ok(Session {
        variables: Environment::from([(GOOGLE_TOKEN.to_owned(), narrowed.to_string())]),
        lasts: Duration::from_secs(lasts),
    })
}
