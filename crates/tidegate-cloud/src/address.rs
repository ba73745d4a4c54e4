//! Where a store is, as the sites file says it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use tidegate_contracts::ObjectName;
use url::{Host, Url};

/// Whose protocol a store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Amazon S3, and what is compatible with it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// How its addresses begin, without the colon.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

/// Where a store is.
///
/// ```text
/// s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME&role=ARN&certificates=FILE]
/// gs://BUCKET[/PREFIX][?endpoint=URL&role=ACCOUNT&certificates=FILE]
/// az://ACCOUNT/CONTAINER[/PREFIX][?endpoint=URL&certificates=FILE]
/// ```
/// `endpoint` is for what is not the cloud itself; it is `https:`, except on the same machine.
/// `role` names the role, or Google's service account, that a worker is given, narrowed to its own attempt. `certificates` names a file of certificate authorities in PEM that are trusted beside the system's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whose protocol it speaks.
    pub provider: Provider,
    /// The Azure storage account; none elsewhere.
    pub account: Option<String>,
    /// The bucket or container.
    pub bucket: String,
    /// What all names of objects begin with, without the slash; none for the whole bucket.
    pub prefix: Option<ObjectName>,
    /// The server, where it is not the cloud's own.
    pub endpoint: Option<Url>,
    /// The region of a bucket of S3.
    pub region: Option<String>,
    /// The role or service account that workers are given, narrowed to their attempts; for S3 and Google.
    pub role: Option<String>,
    /// Certificate authorities in PEM that are trusted beside the system's.
    pub certificates: Option<PathBuf>,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address: {why}")]
pub struct AddressError {
    text: String,
    why: String,
}

impl AddressError {
    pub(crate) fn new(text: &str, why: &str) -> Self {
        // Somebody may have written a password into it.
        let shown = match text.split_once("://") {
            Some((scheme, rest)) if rest.contains('@') => format!("{scheme}://…"),
            _ => text.split('?').next().unwrap_or_default().to_owned(),
        };
        Self {
            text: shown.chars().take(100).collect(),
            why: why.to_owned(),
        }
    }

    /// What is wrong with it.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl Address {
    /// What whoever administers the cloud grants to the credentials of keeper and control plane, and no more, as
    /// text for the cloud's own tools.
    #[must_use]
    pub fn needed_grant(&self) -> String {
        let bucket = &self.bucket;
        let account = self.account.as_deref().unwrap_or_default();
        match self.provider {
            Provider::S3 => {
                let root = self
                    .prefix
                    .as_ref()
                    .map_or(String::new(), |prefix| format!("{prefix}/"));
                let assume = self.role.as_ref().map_or(String::new(), |role| {
                    format!(
                        ",\n    {{\"Effect\": \"Allow\", \"Action\": \"sts:AssumeRole\", \"Resource\": \"{role}\"}}"
                    )
                });
                format!(
                    "{{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [\n    {{\"Effect\": \"Allow\", \
                     \"Action\": [\"s3:PutObject\", \"s3:GetObject\", \"s3:DeleteObject\"], \
                     \"Resource\": \"arn:aws:s3:::{bucket}/{root}*\"}},\n    {{\"Effect\": \"Allow\", \
                     \"Action\": \"s3:ListBucket\", \"Resource\": \"arn:aws:s3:::{bucket}\"}}{assume}\n  ]\n}}"
                )
            }
            Provider::Google => {
                let bind = format!("gcloud storage buckets add-iam-policy-binding gs://{bucket}");
                let own = format!("{bind} --member=MEMBER --role=roles/storage.objectUser");
                let workers = self.role.as_ref().map_or(String::new(), |role| {
                    format!(
                        "\ngcloud services enable iamcredentials.googleapis.com sts.googleapis.com\n\
                         {bind} --member=serviceAccount:{role} --role=roles/storage.objectUser\n\
                         gcloud iam service-accounts add-iam-policy-binding {role} --member=MEMBER \
                         --role=roles/iam.serviceAccountTokenCreator"
                    )
                });
                format!("{own}{workers}")
            }
            Provider::Azure => {
                let scope = format!(
                    "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Storage/storageAccounts/{account}"
                );
                // The second one is asked for keys that sign what workers may do.
                format!(
                    "az role assignment create --role \"Storage Blob Data Contributor\" --assignee ASSIGNEE --scope \
                     \"{scope}/blobServices/default/containers/{bucket}\"\n\
                     az role assignment create --role \"Storage Blob Delegator\" --assignee ASSIGNEE --scope \"{scope}\""
                )
            }
        }
    }

    /// Whether a text claims to be such an address, by its scheme.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        Provider::ALL.iter().any(|provider| {
            text.strip_prefix(provider.scheme())
                .is_some_and(|rest| rest.starts_with(':'))
        })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        read(text).map_err(|why| AddressError::new(text, &why))
    }
}

fn read(text: &str) -> Result<Address, String> {
    let (mut address, path) = parts(text)?;
    address.prefix = match path.trim_end_matches('/') {
        "" => None,
        prefix => Some(ObjectName::new(prefix).map_err(|error| error.to_string())?),
    };
    Ok(address)
}

/// The address of the whole bucket, and the path behind it as it is written.
pub(crate) fn parts(text: &str) -> Result<(Address, String), String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let provider = Provider::ALL
        .into_iter()
        .find(|provider| provider.scheme() == url.scheme());
    let provider = provider.ok_or("it begins with none of `s3:`, `gs:`, `az:`")?;
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() || url.fragment().is_some() {
        return Err("it holds more than names; credentials and ports have their places elsewhere".to_owned());
    }
    let host = url.host_str().filter(|host| !host.is_empty());
    let first = host
        .ok_or("a bucket is missing, as in `s3://bucket/prefix`")?
        .to_owned();
    let path = url.path().trim_start_matches('/');
    let (account, bucket, rest) = match provider {
        Provider::Azure => {
            let (container, rest) = path.split_once('/').unwrap_or((path, ""));
            if container.is_empty() {
                return Err("a container is missing, as in `az://account/container/prefix`".to_owned());
            }
            (Some(first), container.to_owned(), rest)
        }
        Provider::S3 | Provider::Google => (None, first, path),
    };
    let rest = rest.to_owned();
    let mut address = Address {
        provider,
        account,
        bucket,
        prefix: None,
        endpoint: None,
        region: None,
        role: None,
        certificates: None,
    };
    for (key, value) in url.query_pairs() {
        let set = match key.as_ref() {
            "endpoint" => address.endpoint.replace(endpoint(&value)?).is_some(),
            "region" if provider == Provider::S3 => address.region.replace(value.into_owned()).is_some(),
            "role" if provider != Provider::Azure => address.role.replace(value.into_owned()).is_some(),
            "certificates" => address.certificates.replace(PathBuf::from(value.as_ref())).is_some(),
            _ => return Err(format!("the option `{}` is not known here", key.escape_default())),
        };
        if set {
            return Err(format!("the option `{key}` stands in it twice"));
        }
    }
    Ok((address, rest))
}

fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("its endpoint: {error}"))?;
    secure(&url).map_err(|why| format!("its endpoint {why}"))?;
    if url.query().is_some() {
        return Err("its endpoint must name a server and nothing else".to_owned());
    }
    Ok(url)
}

/// Whether a server is spoken to in secret: over TLS, or on the same machine.
pub(crate) fn secure(url: &Url) -> Result<(), &'static str> {
    let same_machine = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if same_machine => {}
        _ => return Err("must begin with `https:`, unless it is this machine"),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("must name a server and nothing else");
    }
    Ok(())
}

/// Without its options.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.provider.scheme())?;
        if let Some(account) = &self.account {
            write!(f, "{account}/")?;
        }
        f.write_str(&self.bucket)?;
        match &self.prefix {
            Some(prefix) => write!(f, "/{prefix}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_provider_has_its_form() {
        let s3 = address("s3://data/st-mary/cloud?endpoint=https://s3.example.org:9000&region=eu-central-1");
        assert_eq!((s3.provider, s3.bucket.as_str()), (Provider::S3, "data"));
        assert_eq!(s3.prefix.unwrap().as_str(), "st-mary/cloud");
        assert_eq!(s3.endpoint.unwrap().as_str(), "https://s3.example.org:9000/");
        assert_eq!(s3.region.unwrap(), "eu-central-1");
        assert_eq!(address("gs://data/").prefix, None);
        let azure = address("az://mary/data/cloud/?certificates=/etc/mary.pem");
        assert_eq!(
            (azure.account.as_deref(), azure.bucket.as_str()),
            (Some("mary"), "data")
        );
        assert_eq!(
            azure.certificates.as_deref(),
            Some(std::path::Path::new("/etc/mary.pem"))
        );
        assert_eq!(azure.to_string(), "az://mary/data/cloud");
    }

    #[test]
    fn a_grant_names_what_is_needed_and_no_more() {
        let grant = address("s3://data/mary?role=arn:aws:iam::1:role/worker").needed_grant();
        let grant: serde_json::Value = serde_json::from_str(&grant).unwrap();
        assert_eq!(grant["Statement"][0]["Resource"], "arn:aws:s3:::data/mary/*");
        assert_eq!(grant["Statement"][1]["Action"], "s3:ListBucket");
        assert_eq!(grant["Statement"][2]["Resource"], "arn:aws:iam::1:role/worker");
        let google = address("gs://data").needed_grant();
        assert!(google.contains("gs://data") && google.lines().count() == 1, "{google}");
        let google = address("gs://data?role=worker@mary.iam.gserviceaccount.com").needed_grant();
        assert!(
            google.contains("service-accounts add-iam-policy-binding worker@mary.iam.gserviceaccount.com"),
            "{google}"
        );
        let azure = address("az://mary/data").needed_grant();
        let (data, keys) = azure.split_once('\n').unwrap();
        assert!(
            data.ends_with("storageAccounts/mary/blobServices/default/containers/data\""),
            "{data}"
        );
        assert!(
            keys.contains("Delegator") && keys.ends_with("storageAccounts/mary\""),
            "{keys}"
        );
    }

    #[test]
    fn what_is_no_address_is_told_with_its_reason_and_without_secrets() {
        for (text, reason) in [
            ("s3:", "bucket"),
            ("s3:///prefix", "bucket"),
            ("az://mary", "container"),
            ("ftp://data", "none of"),
            ("s3://data/../other/./x y", "cannot name an object"),
            ("s3://data?endpoint=http://s3.example.org", "https"),
            ("s3://data?endpoint=https://me:secret@s3.example.org", "nothing else"),
            ("s3://key:secret@data", "credentials"),
            ("s3://data?secret_access_key=secret", "not known"),
            ("gs://data?region=here", "not known"),
            ("s3://data?region=a&region=b", "twice"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("=secret") && !error.contains(":secret"), "{error}");
        }
        assert!(address("s3://data?endpoint=http://127.0.0.1:9000").endpoint.is_some());
    }
}
