//! Which machine of EC2 somebody is: it signs a request to Amazon's Security Token Service with the credentials of its
//! instance profile, and whoever is to believe it sends that request
//! ([`GetCallerIdentity`](https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html), API version
//! 2011-06-15). Signature Version 4 covers the nonce, which stands in a header of its own; a signature is good for minutes.

use std::time::Duration;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequest;
use serde::{Deserialize, Serialize};
use tidegate_contracts::identity::{IdentityError, Prover, Verifier};
use tidegate_types::digest::Digest;
use tokio::sync::Mutex;

use super::Ec2Settings;
use super::metadata::Metadata;
use super::service::{Told, refusal};
use crate::client::{Server, Settling, Way};
use crate::compute::told;
use crate::store::OpenError;

/// What is asked, and nothing else is ever sent.
const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
/// The header that holds the nonce.
const NONCE: HeaderName = HeaderName::from_static("x-tidegate-nonce");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
/// The longest statement, and the longest answer, that is read.
const STATEMENT_BYTES: usize = 16 << 10;
const ANSWER_BYTES: usize = 64 << 10;
/// A machine that has just begun may not have its credentials yet.
const BEGINNING: Duration = Duration::from_secs(30);
/// Codes of refusals that may pass.
const PASSING: [&str; 6] = [
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "InternalFailure",
    "InternalError",
    "ServiceUnavailable",
];

/// What of a signed request the other side does not know by itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    region: String,
    authorization: String,
    date: String,
    token: String,
}

/// The credentials of an instance profile, as the metadata service gives them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

/// A machine that has an instance profile.
#[derive(Debug)]
pub struct Ec2Prover {
    metadata: Mutex<Metadata>,
}

impl Ec2Prover {
    /// The variable that tells a worker where its machine's metadata service is, if the machine can prove who it is.
    pub const VARIABLE: &str = "TIDEGATE_MACHINE_IDENTITY";

    /// Asks the service at `base`, an address without a path or with one that all of it stands below.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn open(base: &str) -> Result<Self, OpenError> {
        Ok(Self {
            metadata: Mutex::new(Metadata::open(base)?),
        })
    }

    async fn text(&self, path: &str) -> Result<Option<String>, String> {
        let answer = self.metadata.lock().await.get(path).await?;
        let text = answer.map(|bytes| String::from_utf8(bytes.into()).map_err(|_| format!("`{path}` is no text")));
        text.transpose()
    }

    /// The region, and the credentials.
    async fn credentials(&self) -> Result<(String, AwsCredential), String> {
        let below = "meta-data/iam/security-credentials";
        let role = self.text(&format!("{below}/")).await?;
        let role = role.as_deref().map(str::trim).filter(|role| is_role(role));
        let role = role.ok_or("it names no role of this machine's instance profile")?;
        let keys = self.text(&format!("{below}/{role}")).await?;
        let keys: Option<Keys> = keys.and_then(|text| serde_json::from_str(&text).ok());
        let keys = keys.filter(|keys| [&keys.access_key_id, &keys.token].iter().all(|text| is_plain(text)));
        let keys = keys.ok_or("it has no credentials of this machine's role")?;
        let region = self.text("meta-data/placement/region").await?;
        let region = region.filter(|region| is_region(region));
        let credentials = AwsCredential {
            key_id: keys.access_key_id,
            secret_key: keys.secret_access_key,
            token: Some(keys.token),
        };
        Ok((region.ok_or("it does not say in which region it is")?, credentials))
    }
}

#[async_trait]
impl Prover for Ec2Prover {
    async fn state(&self, nonce: &Digest) -> Result<String, String> {
        let mut settling = Settling::within(BEGINNING);
        let (region, credentials) = loop {
            match self.credentials().await {
                Ok(found) => break found,
                Err(why) if !settling.goes_on().await => return Err(format!("the metadata service: {why}")),
                Err(_) => {}
            }
        };
        let url = format!("https://{}/", host(&region));
        let mut request = asking(&url, nonce).map_err(|()| "its region is none".to_owned())?;
        AwsAuthorizer::new(&credentials, "sts", &region).authorize(&mut request, None);
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let statement = Statement {
            authorization: header(AUTHORIZATION).unwrap_or_default().to_owned(),
            date: header(DATE).unwrap_or_default().to_owned(),
            token: header(TOKEN).unwrap_or_default().to_owned(),
            region,
        };
        serde_json::to_string(&statement).map_err(|error| error.to_string())
    }
}

/// Asks Amazon who signed a statement.
#[derive(Debug)]
pub struct Ec2Verifier {
    region: String,
    url: String,
    server: Server,
}

impl Ec2Verifier {
    /// Of machines with `settings`. Connects to nobody yet, and needs no credentials.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn open(settings: &Ec2Settings) -> Result<Self, OpenError> {
        let region = settings.region.clone();
        Ok(Self {
            url: match &settings.endpoint {
                // What is compatible with EC2 offers this service beside it.
                Some(endpoint) => endpoint.to_string(),
                None => format!("https://{}/", host(&region)),
            },
            server: Server::open(&settings.to_string(), settings.certificates.as_deref(), Way::Usual)?,
            region,
        })
    }

    /// The request that was signed.
    fn signed(&self, statement: &str, nonce: &Digest) -> Result<HttpRequest, &'static str> {
        if statement.len() > STATEMENT_BYTES {
            return Err("what its machine says of itself is too long");
        }
        let statement: Statement =
            serde_json::from_str(statement).map_err(|_| "what its machine says of itself cannot be read")?;
        if statement.region != self.region {
            return Err("its machine is in another region");
        }
        if !covers(&statement.authorization, &self.region) {
            return Err("what its machine signed does not cover what was asked");
        }
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| "what its machine says of itself is no text");
        let mut request = asking(&self.url, nonce).map_err(|()| "its region is none")?;
        let headers = request.headers_mut();
        headers.insert(HOST, value(&host(&self.region))?);
        headers.insert(HASH, value(&tidegate_seal::digest::sha256(BODY.as_bytes()).to_hex())?);
        headers.insert(AUTHORIZATION, value(&statement.authorization)?);
        headers.insert(DATE, value(&statement.date)?);
        headers.insert(TOKEN, value(&statement.token)?);
        Ok(request)
    }
}

#[async_trait]
impl Verifier for Ec2Verifier {
    async fn machine(&self, statement: &str, nonce: &Digest) -> Result<String, IdentityError> {
        let refused = |why: &str| IdentityError::Refused(why.to_owned());
        let request = self.signed(statement, nonce).map_err(refused)?;
        let answered = self.server.answer(request, ANSWER_BYTES).await;
        let answered = answered.map_err(IdentityError::Transient)?;
        let text = std::str::from_utf8(answered.body()).unwrap_or_default();
        match answered.status().as_u16() {
            200 => {
                let caller: Option<Caller> = quick_xml::de::from_str(text).ok();
                let machine = caller.and_then(|caller| machine_of(&caller.get_caller_identity_result));
                machine.ok_or_else(|| refused("Amazon says that it was signed by no machine"))
            }
            status => {
                let error = refusal(answered.body());
                if error.as_ref().is_some_and(is_late) {
                    return Err(IdentityError::Expired);
                }
                match error.map(|error| told(&error.code)) {
                    Some(code) if status < 500 && !PASSING.contains(&code.as_str()) => Err(IdentityError::Refused(
                        format!("Amazon does not believe what its machine says of itself: {code}"),
                    )),
                    _ => Err(IdentityError::Transient(format!("it answered with status {status}"))),
                }
            }
        }
    }
}

/// How a machine is named once it is known: its account, the role of its profile, and itself.
pub(super) fn named(account: &str, role: &str, instance: &str) -> String {
    format!("{account}/{role}/{instance}")
}

/// The question about a nonce, not signed yet.
fn asking(url: &str, nonce: &Digest) -> Result<HttpRequest, ()> {
    let request = http::Request::post(url)
        .header(CONTENT_TYPE, FORM)
        .header(NONCE, nonce.to_hex());
    request.body(BODY.to_owned().into()).map_err(|_| ())
}

fn host(region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("sts.{region}.amazonaws.com{china}")
}

/// Whether a signature is one for this service, and covers the nonce and everything else that is not known. Nothing is
/// taken that two readers could understand in two ways.
fn covers(authorization: &str, region: &str) -> bool {
    let parts = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .map(|rest| rest.split(", ").collect::<Vec<_>>());
    let Some([credential, headers, signature]) = parts.as_deref() else {
        return false;
    };
    let plain = |text: &str| {
        text.chars()
            .all(|one| one.is_ascii_alphanumeric() || "-_;/".contains(one))
    };
    let scope = format!("/{region}/sts/aws4_request");
    let credential = credential.strip_prefix("Credential=").filter(|text| plain(text));
    let headers = headers.strip_prefix("SignedHeaders=").filter(|text| plain(text));
    let signature = signature.strip_prefix("Signature=").filter(|text| plain(text));
    let covered: Vec<&str> = headers.unwrap_or_default().split(';').collect();
    credential.is_some_and(|text| text.ends_with(&scope))
        && signature.is_some()
        && [HOST, NONCE, DATE].iter().all(|name| covered.contains(&name.as_str()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Caller {
    get_caller_identity_result: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Identity {
    arn: String,
    account: String,
}

/// A signature is good for minutes, and its credentials for hours.
fn is_late(told: &Told) -> bool {
    ["RequestExpired", "ExpiredToken", "ExpiredTokenException"].contains(&told.code.as_str())
        || (told.code == "SignatureDoesNotMatch" && told.message.starts_with("Signature expired"))
}

/// A role that a machine has taken: its session has the machine's name.
fn machine_of(caller: &Identity) -> Option<String> {
    let mut parts = caller.arn.split(':');
    let (Some("arn"), Some(_), Some("sts"), Some(""), Some(account), Some(resource), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return None;
    };
    let (role, instance) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
    let is_instance = instance
        .strip_prefix("i-")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|one| one.is_ascii_hexdigit()));
    (account == caller.account && is_role(role) && is_instance).then(|| named(account, role, instance))
}

/// Names of roles, as IAM takes them.
pub(super) fn is_role(name: &str) -> bool {
    let plain = |one: char| one.is_ascii_alphanumeric() || "+=,.@_-".contains(one);
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

fn is_region(name: &str) -> bool {
    !name.is_empty() && name.len() <= 32 && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '-')
}

/// What can stand in a header.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|one| one.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use tidegate_seal::digest::sha256;

    use super::*;

    fn verifier() -> Ec2Verifier {
        Ec2Verifier {
            region: "eu-central-1".to_owned(),
            url: "https://sts.eu-central-1.amazonaws.com/".to_owned(),
            server: Server::open("a test", None, Way::Usual).unwrap(),
        }
    }

    /// As a machine signs it.
    fn signed(region: &str, nonce: &Digest) -> Statement {
        let credentials = AwsCredential {
            key_id: "ASIAEXAMPLE".to_owned(),
            secret_key: "secret".to_owned(),
            token: Some("token".to_owned()),
        };
        let mut request = asking(&format!("https://{}/", host(region)), nonce).unwrap();
        AwsAuthorizer::new(&credentials, "sts", region).authorize(&mut request, None);
        let header = |name| request.headers()[name].to_str().unwrap().to_owned();
        Statement {
            region: region.to_owned(),
            authorization: header(AUTHORIZATION),
            date: header(DATE),
            token: header(TOKEN),
        }
    }

    #[test]
    fn what_is_sent_is_exactly_what_was_signed() {
        let nonce = sha256(b"nonce");
        let statement = signed("eu-central-1", &nonce);
        let request = verifier()
            .signed(&serde_json::to_string(&statement).unwrap(), &nonce)
            .unwrap();
        let (_, headers) = statement.authorization.split_once("SignedHeaders=").unwrap();
        let mut named: Vec<&str> = headers.split_once(", ").unwrap().0.split(';').collect();
        let mut sent: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        sent.retain(|name| *name != "authorization");
        named.sort_unstable();
        sent.sort_unstable();
        assert_eq!(named, sent);
        assert_eq!(request.headers()[HOST], "sts.eu-central-1.amazonaws.com");
        assert_eq!(request.headers()[NONCE].to_str().unwrap(), nonce.to_hex());
    }

    #[test]
    fn a_signature_that_does_not_cover_the_nonce_is_not_sent() {
        let nonce = sha256(b"nonce");
        let good = signed("eu-central-1", &nonce);
        let told = |change: &dyn Fn(&mut Statement)| {
            let mut statement = Statement {
                ..signed("eu-central-1", &nonce)
            };
            change(&mut statement);
            verifier()
                .signed(&serde_json::to_string(&statement).unwrap(), &nonce)
                .err()
        };
        assert_eq!(told(&|_| ()), None);
        assert_eq!(
            told(&|one| one.region = "us-east-1".to_owned()),
            Some("its machine is in another region")
        );
        let uncovered = Some("what its machine signed does not cover what was asked");
        let elsewhere = signed("us-east-1", &nonce).authorization;
        assert_eq!(told(&|one| one.authorization.clone_from(&elsewhere)), uncovered);
        let without = good.authorization.replace(";x-tidegate-nonce", "");
        assert_ne!(without, good.authorization);
        assert_eq!(told(&|one| one.authorization.clone_from(&without)), uncovered);
        let twice = format!("{}, SignedHeaders=host;x-amz-date", good.authorization);
        assert_eq!(told(&|one| one.authorization.clone_from(&twice)), uncovered);
        let another = good.authorization.replace("/sts/", "/s3/");
        assert_eq!(told(&|one| one.authorization.clone_from(&another)), uncovered);
        let broken = Some("what its machine says of itself is no text");
        assert_eq!(told(&|one| one.token = "a\nb".to_owned()), broken);
    }

    #[test]
    fn only_a_machine_is_a_machine() {
        let caller = |arn: &str| {
            machine_of(&Identity {
                arn: arn.to_owned(),
                account: "123456789012".to_owned(),
            })
        };
        let role = "arn:aws:sts::123456789012:assumed-role";
        let named = Some("123456789012/worker/i-0a1b2c".to_owned());
        assert_eq!(caller(&format!("{role}/worker/i-0a1b2c")), named);
        for other in [
            "arn:aws:iam::123456789012:user/i-0a1b2c".to_owned(),
            "arn:aws:sts::999999999999:assumed-role/worker/i-0a1b2c".to_owned(),
            format!("{role}/worker/somebody"),
            format!("{role}/worker/i-"),
            format!("{role}/worker/i-0a/i-0b"),
            format!("{role}/worker/i-0a1b2c:more"),
        ] {
            assert_eq!(caller(&other), None, "{other}");
        }
    }
}
