//! Short-lived credentials for one worker, which reach what its attempt needs and nothing else: Amazon's
//! Security Token Service, action `AssumeRole` with a session policy (API version 2011-06-15).

use std::io;

use http::header::CONTENT_TYPE;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpRequest};
use serde::Deserialize;
use serde_json::json;
use tidegate_contracts::StoreError;
use tidegate_contracts::store::NOT_ALLOWED;
use url::form_urlencoded;

use crate::address::Address;
use crate::answer::asked_to_wait;
use crate::credentials::Environment;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 64 << 10;
/// The shortest and the longest session that the service gives.
const SECONDS: std::ops::RangeInclusive<u64> = 900..=43_200;

/// What a worker may do: read what is sealed and its mailbox, write its side of the mailbox and what it
/// sends home, and see names below the store's own prefix.
fn policy(address: &Address, mailbox: &str) -> String {
    let root = address
        .prefix
        .as_ref()
        .map_or(String::new(), |prefix| format!("{prefix}/"));
    let bucket = format!("arn:aws:s3:::{}", address.bucket);
    let objects =
        |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("{bucket}/{root}{name}*")).collect() };
    let out = format!("{mailbox}out/");
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": objects(&["sealed/", "packing/", mailbox])},
            {"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": objects(&["sealed/", "packing/", &out])},
            // Without it a store says of an object that is not there yet that it is forbidden.
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket]},
        ],
    })
    .to_string()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    assume_role_result: Granted,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Granted {
    credentials: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
}

/// Asks for credentials that end after `seconds`, at least a quarter of an hour and at most twelve.
pub(crate) async fn assume_role(
    address: &Address,
    role: &str,
    store: &AmazonS3,
    client: &HttpClient,
    region: &str,
    mailbox: &str,
    seconds: u64,
) -> Result<Environment, StoreError> {
    let what = || format!("asking for credentials of a worker for {address}");
    let failed = |why: String| StoreError::Permanent {
        what: what(),
        source: io::Error::other(why),
    };
    let owner = store.credentials().get_credential().await;
    let denied = || StoreError::Denied {
        what: what(),
        why: NOT_ALLOWED.to_owned(),
    };
    let owner = owner.map_err(|_| denied())?;
    let endpoint = match &address.endpoint {
        // What is compatible with S3 offers this service beside it.
        Some(endpoint) => endpoint.to_string(),
        None => format!("https://sts.{region}.amazonaws.com/"),
    };
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRole")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", "tidegate-worker")
        .append_pair(
            "DurationSeconds",
            &seconds.clamp(*SECONDS.start(), *SECONDS.end()).to_string(),
        )
        .append_pair("Policy", &policy(address, mailbox))
        .finish();
    let mut request: HttpRequest = http::Request::post(endpoint)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(form.into())
        .map_err(|error| failed(error.to_string()))?;
    AwsAuthorizer::new(&owner, "sts", region).authorize(&mut request, None);
    let response = client.execute(request).await.map_err(|error| StoreError::Transient {
        what: what(),
        source: io::Error::other(format!("no answer came ({:?})", error.kind())),
    })?;
    let status = response.status();
    match status.as_u16() {
        200..=299 => {}
        401 | 403 => return Err(denied()),
        429 | 500..=599 => {
            return Err(StoreError::Busy {
                what: what(),
                after: asked_to_wait(response.headers()),
            });
        }
        // The body may repeat the request, and with it names of keys.
        status => return Err(failed(format!("the service answered with status {status}"))),
    }
    let body = response.into_body().bytes().await;
    // Also an answer that ends with its connection may have been cut.
    let broken = || StoreError::Transient {
        what: what(),
        source: io::Error::other("the answer is not a whole one of AssumeRole"),
    };
    let body = body.map_err(|_| broken())?;
    let text = std::str::from_utf8(&body)
        .ok()
        .filter(|text| text.len() <= ANSWER_BYTES);
    let answer: Option<Answer> = text.and_then(|text| quick_xml::de::from_str(text).ok());
    let keys = answer.ok_or_else(broken)?;
    let keys = keys.assume_role_result.credentials;
    Ok(Environment::from([
        ("AWS_ACCESS_KEY_ID".to_owned(), keys.access_key_id),
        ("AWS_SECRET_ACCESS_KEY".to_owned(), keys.secret_access_key),
        ("AWS_SESSION_TOKEN".to_owned(), keys.session_token),
    ]))
}
