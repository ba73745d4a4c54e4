//! The web service of EC2: its query interface, API version 2016-11-15, signed with Signature Version 4.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer};
use object_store::client::HttpRequest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::Ec2Settings;
use super::identity::is_role;
use crate::client::{Server, Way, options};
use crate::compute::{Failure, told};
use crate::credentials::{self, Environment};
use crate::profile::with_profile;
use crate::store::OpenError;

const VERSION: &str = "2016-11-15";
/// The longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;
/// The most pages of a listing that are read.
const PAGES: usize = 1000;

/// What the service says when there is no room; elsewhere, or later, there may be.
const CAPACITY: [&str; 14] = [
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientAddressCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "VolumeLimitExceeded",
    "PendingVerification",
    "ResourceCountExceeded",
    // This kind of machine is not to be had in this zone.
    "Unsupported",
];
/// What it says when it may be better the next time.
const PASSING: [&str; 9] = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "EC2ThrottledException",
    "InternalError",
    "InternalFailure",
    "Unavailable",
    "ServiceUnavailable",
    "ConcurrentRequest",
];
/// What it says of credentials: nobody can say whether they are renewed.
const DENIED: [&str; 7] = [
    "UnauthorizedOperation",
    "AuthFailure",
    "ExpiredToken",
    "RequestExpired",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "AccessDenied",
];

/// EC2 in one region.
pub(super) struct Service {
    url: String,
    /// The address of IAM, which is one for all regions, and the region that it is asked in.
    iam: (String, &'static str),
    region: String,
    server: Server,
    /// Finds credentials as for a store, and keeps them fresh.
    signer: Arc<AmazonS3>,
}

impl Service {
    pub(super) fn open(settings: &Ec2Settings, environment: &Environment) -> Result<Self, OpenError> {
        let who = settings.to_string();
        let failed = |why: String| OpenError::Settings {
            store: who.clone(),
            why,
        };
        let environment = with_profile(environment).map_err(failed)?;
        let certificates = settings.certificates.as_deref();
        let plain = settings.endpoint.as_ref().is_some_and(|url| url.scheme() == "http");
        let region = settings.region.clone();
        let signer = credentials::s3(AmazonS3Builder::new(), &environment)
            .with_region(&region)
            // Nobody asks for it: credentials are found without a bucket, but not named without one.
            .with_bucket_name("none")
            .with_client_options(options(&who, plain, certificates)?)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let (url, iam) = match &settings.endpoint {
            // What is compatible with EC2 offers this service beside it.
            Some(endpoint) => (endpoint.to_string(), (endpoint.to_string(), "us-east-1")),
            None if region.starts_with("cn-") => (
                format!("https://ec2.{region}.amazonaws.com.cn/"),
                ("https://iam.cn-north-1.amazonaws.com.cn/".to_owned(), "cn-north-1"),
            ),
            None => (
                format!("https://ec2.{region}.amazonaws.com/"),
                ("https://iam.amazonaws.com/".to_owned(), "us-east-1"),
            ),
        };
        Ok(Self {
            url,
            iam,
            region,
            server: Server::open(&who, certificates, Way::Usual)?,
            signer: Arc::new(signer),
        })
    }

    /// One signed request, and the status of its answer.
    async fn answer(&self, url: &str, (service, region): (&str, &str), form: String) -> Result<(u16, Bytes), Failure> {
        let request = http::Request::post(url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
            .body(form.into());
        let mut request: HttpRequest = request.map_err(|error| Failure::passing(error.to_string()))?;
        let owner = self.server.credentials(&**self.signer.credentials()).await;
        let owner = owner.map_err(Failure::passing)?;
        AwsAuthorizer::new(&owner, service, region).authorize(&mut request, None);
        let answered = self
            .server
            .answer(request, ANSWER_BYTES)
            .await
            .map_err(Failure::unheard)?;
        Ok((answered.status().as_u16(), answered.into_body()))
    }

    /// One request, as pairs of names and values besides its action.
    async fn request(&self, action: &str, pairs: &[(String, String)]) -> Result<Bytes, Failure> {
        let form = form(action, VERSION, pairs);
        let (status, body) = self.answer(&self.url, ("ec2", &self.region), form).await?;
        if status == 200 {
            return Ok(body);
        }
        match refusal(&body) {
            Some(error) => Err(failure(error)),
            None => Err(Failure::unheard(format!("it answered with status {status}"))),
        }
    }

    /// A request whose answer is read.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        action: &str,
        pairs: &[(String, String)],
    ) -> Result<T, Failure> {
        let body = self.request(action, pairs).await?;
        parsed(&body).ok_or_else(|| Failure::unheard(format!("its answer is none of {action}")))
    }

    /// All instances that a description asks for.
    pub(super) async fn instances(&self, pairs: &[(String, String)]) -> Result<Vec<Instance>, Failure> {
        let (mut all, mut pairs) = (Vec::new(), pairs.to_vec());
        for _ in 0..PAGES {
            let page: Described = self.ask("DescribeInstances", &pairs).await?;
            let reservations = page.reservation_set.unwrap_or_default().item.into_iter();
            all.extend(reservations.flat_map(|reservation| reservation.instances_set.item));
            pairs.retain(|(name, _)| name != "NextToken");
            match page.next_token.filter(|token| !token.is_empty()) {
                Some(token) => pairs.push(("NextToken".to_owned(), token)),
                None => return Ok(all),
            }
        }
        Err(Failure::passing("it lists more machines than are looked at"))
    }

    /// The account that a machine is of.
    pub(super) async fn account_of(&self, instance: &str) -> Result<String, Failure> {
        let pairs = [("InstanceId.1".to_owned(), instance.to_owned())];
        let described: Described = self.ask("DescribeInstances", &pairs).await?;
        let mut reservations = described.reservation_set.unwrap_or_default().item.into_iter();
        let account = reservations.next().map(|one| one.owner_id);
        account
            .filter(|account| !account.is_empty() && account.chars().all(|one| one.is_ascii_digit()))
            .ok_or_else(|| Failure::passing("it does not say whose the machine is"))
    }

    /// The role of an instance profile, by IAM's query interface, API version 2010-05-08.
    pub(super) async fn role_of(&self, profile: &str) -> Result<String, Failure> {
        // Of an ARN the last part is the name.
        let name = profile.rsplit_once('/').map_or(profile, |(_, name)| name);
        let pairs = [("InstanceProfileName".to_owned(), name.to_owned())];
        let (url, region) = &self.iam;
        let form = form("GetInstanceProfile", "2010-05-08", &pairs);
        let (status, body) = self.answer(url, ("iam", region), form).await?;
        if status == 200 {
            let profile: Option<ProfileAnswer> = parsed(&body);
            let roles = profile.map(|answer| answer.get_instance_profile_result.instance_profile.roles.member);
            let role = roles
                .and_then(|roles| roles.into_iter().next())
                .map(|role| role.role_name);
            return role.filter(|role| is_role(role)).ok_or_else(|| Failure::Refused {
                code: "NoRole".to_owned(),
                why: format!(
                    "the instance profile `{profile_name}` has no role",
                    profile_name = told(name)
                ),
            });
        }
        match refusal(&body) {
            Some(error) if error.code == "AccessDenied" => Err(Failure::Refused {
                code: error.code,
                why: "its credentials do not allow `iam:GetInstanceProfile` of the machines' profile".to_owned(),
            }),
            Some(error) => Err(failure(error)),
            None => Err(Failure::unheard(format!("it answered with status {status}"))),
        }
    }

    /// What a machine wrote on its console.
    pub(super) async fn console(&self, instance: &str) -> Result<String, Failure> {
        let pairs = [("InstanceId".to_owned(), instance.to_owned())];
        let console: Console = self.ask("GetConsoleOutput", &pairs).await?;
        let text = console.output.unwrap_or_default();
        let bytes = STANDARD.decode(text.split_whitespace().collect::<String>());
        Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    }
}

fn form(action: &str, version: &str, pairs: &[(String, String)]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("Action", action).append_pair("Version", version);
    form.extend_pairs(pairs).finish()
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    quick_xml::de::from_str(std::str::from_utf8(body).ok()?).ok()
}

fn failure(error: Told) -> Failure {
    // A word, or nothing of it is shown.
    let plain = |one: char| one.is_ascii_alphanumeric() || one == '.' || one == '_';
    let code: String = error.code.chars().filter(|one| plain(*one)).take(64).collect();
    let words = || told(&error.message);
    let is = |codes: &[&str]| codes.contains(&code.as_str());
    if is(&PASSING) {
        Failure::passing(code)
    } else if is(&CAPACITY) {
        Failure::Capacity(format!("{code}: {}", words()))
    } else if is(&DENIED) {
        // Its words name who asked, and may hold the request.
        let why = "its credentials do not allow that".to_owned();
        Failure::Refused { code, why }
    } else {
        let why = words();
        Failure::Refused { code, why }
    }
}

/// Why a service of Amazon's did not do something, in its words: EC2 has a list of them, others one.
pub(super) fn refusal(body: &[u8]) -> Option<Told> {
    let errors: Errors = parsed(body)?;
    errors.error.or_else(|| errors.errors?.error.into_iter().next())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Errors {
    error: Option<Told>,
    errors: Option<ErrorList>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorList {
    #[serde(default)]
    error: Vec<Told>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Told {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// A list, as the service writes one.
#[derive(Debug, Deserialize)]
pub(super) struct Items<T> {
    #[serde(default = "Vec::new")]
    pub(super) item: Vec<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { item: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    reservation_set: Option<Items<Reservation>>,
    next_token: Option<String>,
}

/// What was started by one request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reservation {
    #[serde(default)]
    owner_id: String,
    pub(super) instances_set: Items<Instance>,
}

/// A machine, as the service describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) instance_id: String,
    pub(super) instance_state: State,
    #[serde(default)]
    pub(super) launch_time: String,
    state_reason: Option<StateReason>,
    #[serde(default)]
    tag_set: Tags,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct State {
    pub(super) name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct StateReason {
    code: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Tags {
    #[serde(default)]
    item: Vec<Tag>,
}

#[derive(Debug, Clone, Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

impl Instance {
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        let tag = self.tag_set.item.iter().find(|tag| tag.key == key);
        tag.map(|tag| tag.value.as_str())
    }

    /// Why it is in its state, in the service's words.
    pub(super) fn reason(&self) -> &str {
        self.state_reason.as_ref().map_or("", |reason| &reason.code)
    }

    /// Whether it may still work.
    pub(super) fn lives(&self) -> bool {
        matches!(self.instance_state.name.as_str(), "pending" | "running")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProfileAnswer {
    get_instance_profile_result: ProfileFound,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProfileFound {
    instance_profile: Profile,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Profile {
    #[serde(default)]
    roles: Roles,
}

#[derive(Default, Deserialize)]
struct Roles {
    #[serde(default)]
    member: Vec<Role>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Role {
    role_name: String,
}

#[derive(Deserialize)]
struct Console {
    output: Option<String>,
}

/// The zones of networks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subnets {
    pub(super) subnet_set: Items<Subnet>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subnet {
    pub(super) subnet_id: String,
    pub(super) availability_zone: String,
}

/// What machines that may be taken away have cost.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpotPrices {
    pub(super) spot_price_history_set: Items<SpotPrice>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpotPrice {
    pub(super) availability_zone: String,
    pub(super) spot_price: String,
}
