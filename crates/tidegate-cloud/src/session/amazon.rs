//! Amazon's Security Token Service, action `AssumeRole` with a session policy (API version 2011-06-15).

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use object_store::CredentialProvider;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequest;
use serde::Deserialize;
use serde_json::json;
use tidegate_contracts::StoreError;
use url::form_urlencoded;

use super::{Asking, Reach, Session};
use crate::credentials::Environment;

/// The shortest and the longest session that the service gives.
const SECONDS: std::ops::RangeInclusive<u64> = 900..=43_200;

/// What a worker may do, and that it sees names in the bucket. Where the service is Amazon's own, it creates objects and
/// replaces none: others may not know what that condition says.
fn policy(bucket: &str, reach: &Reach, amazons: bool) -> String {
    let bucket = format!("arn:aws:s3:::{bucket}");
    let objects = |names: &[String]| -> Vec<String> { names.iter().map(|name| format!("{bucket}/{name}*")).collect() };
    let mut creates = json!({"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": objects(&reach.creates)});
    if amazons {
        creates["Condition"] = json!({"Null": {"s3:if-none-match": "false"}});
    }
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": objects(&reach.reads)},
            creates,
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
    /// As of RFC 3339.
    expiration: jiff::Timestamp,
}

fn read(body: &Bytes) -> Option<Keys> {
    let answer: Answer = quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()?;
    Some(answer.assume_role_result.credentials)
}

/// Asks for credentials that end after a quarter of an hour at the earliest and twelve hours at the latest.
pub(super) async fn assume_role(
    asking: &Asking<'_>,
    role: &str,
    owner: &dyn CredentialProvider<Credential = AwsCredential>,
    region: &str,
) -> Result<Session, StoreError> {
    let owner = asking.owner(owner).await?;
    let endpoint = match &asking.address.endpoint {
        // What is compatible with S3 offers this service beside it.
        Some(endpoint) => endpoint.to_string(),
        None => format!("https://sts.{region}.amazonaws.com/"),
    };
    let seconds = asking.seconds.clamp(*SECONDS.start(), *SECONDS.end());
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRole")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", "tidegate-worker")
        .append_pair("DurationSeconds", &seconds.to_string())
        .append_pair(
            "Policy",
            &policy(&asking.address.bucket, &asking.reach, asking.address.endpoint.is_none()),
        )
        .finish();
    let mut request: HttpRequest = http::Request::post(endpoint)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(form.into())
        .map_err(|error| asking.failed(error.to_string()))?;
    AwsAuthorizer::new(&owner, "sts", region).authorize(&mut request, None);
    let keys = asking.answer(request, read).await?;
    let left = keys.expiration.duration_since(jiff::Timestamp::now());
    let left: Option<Duration> = left.try_into().ok().filter(|left: &Duration| !left.is_zero());
    Ok(Session {
        variables: Environment::from([
            ("AWS_ACCESS_KEY_ID".to_owned(), keys.access_key_id),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), keys.secret_access_key),
            ("AWS_SESSION_TOKEN".to_owned(), keys.session_token),
        ]),
        // Where they seem to be over already, the clocks differ: nobody asks without a pause for that.
        lasts: left.unwrap_or(Duration::from_secs(seconds)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_one_attempt_and_lets_nothing_be_replaced_where_that_can_be_said() {
        let address = "s3://data/mary".parse().unwrap();
        let reach = Reach::of(&address, "mailbox/r1/train/1-0/");
        let read = |amazons| -> serde_json::Value { serde_json::from_str(&policy("data", &reach, amazons)).unwrap() };
        let statements = read(true)["Statement"].clone();
        let expected = json!([
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject"],
                "Resource": [
                    "arn:aws:s3:::data/mary/sealed/*",
                    "arn:aws:s3:::data/mary/packing/r1/*",
                    "arn:aws:s3:::data/mary/mailbox/r1/train/1-0/*",
                ],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:PutObject"],
                "Resource": [
                    "arn:aws:s3:::data/mary/sealed/*",
                    "arn:aws:s3:::data/mary/packing/r1/*",
                    "arn:aws:s3:::data/mary/mailbox/r1/train/1-0/out/*",
                ],
                "Condition": {"Null": {"s3:if-none-match": "false"}},
            },
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::data"]},
        ]);
        assert_eq!(statements, expected);
        assert!(read(false)["Statement"][1].get("Condition").is_none());
    }
}
