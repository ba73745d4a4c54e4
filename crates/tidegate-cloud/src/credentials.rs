//! Credentials, from the variables in which each cloud's own tools look for them. Other variables are not
//! looked at: where a store is, and how it is spoken to, stands in the sites file alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use object_store::StaticCredentialProvider;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GcpCredentialProvider, GoogleCloudStorageBuilder, GoogleConfigKey};

use crate::client::options;
use crate::session::azure::Directories;
use crate::store::OpenError;

/// Variables by name, as a process has them.
pub type Environment = BTreeMap<String, String>;

/// Without any of them the machine's metadata service is asked.
const S3: [(&str, AmazonS3ConfigKey); 11] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_DEFAULT_REGION", AmazonS3ConfigKey::DefaultRegion),
    ("AWS_REGION", AmazonS3ConfigKey::Region),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
    ),
    (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
    ),
];

const GOOGLE: [(&str, GoogleConfigKey); 2] = [
    ("GOOGLE_SERVICE_ACCOUNT", GoogleConfigKey::ServiceAccount),
    (
        "GOOGLE_APPLICATION_CREDENTIALS",
        GoogleConfigKey::ApplicationCredentials,
    ),
];

const AZURE: [(&str, AzureConfigKey); 7] = [
    ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
    ("AZURE_STORAGE_SAS_TOKEN", AzureConfigKey::SasKey),
    ("AZURE_CLIENT_ID", AzureConfigKey::ClientId),
    ("AZURE_CLIENT_SECRET", AzureConfigKey::ClientSecret),
    ("AZURE_TENANT_ID", AzureConfigKey::AuthorityId),
    ("AZURE_AUTHORITY_HOST", AzureConfigKey::AuthorityHost),
    ("AZURE_FEDERATED_TOKEN_FILE", AzureConfigKey::FederatedTokenFile),
];

/// A token for Google's services, where somebody else has asked for it. No other tool has that name for one.
pub(crate) const GOOGLE_TOKEN: &str = "GOOGLE_STORAGE_ACCESS_TOKEN";
/// Shared access signatures by the directories of a container that they open, as a JSON object.
pub(crate) const AZURE_DIRECTORIES: &str = "AZURE_STORAGE_SAS_DIRECTORIES";

/// Where requests are signed for that name no region, as Amazon's own tools do.
pub(crate) const USUAL_REGION: &str = "us-east-1";

/// The region that the variables name.
pub(crate) fn region(environment: &Environment) -> Option<String> {
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    value("AWS_REGION").or_else(|| value("AWS_DEFAULT_REGION"))
}

/// The variables that are set to something, with what they mean.
fn set<'a, K>(keys: &'a [(&str, K)], environment: &'a Environment) -> impl Iterator<Item = (K, &'a String)>
where
    K: Copy,
{
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    keys.iter().filter_map(move |(name, key)| Some((*key, value(name)?)))
}

pub(crate) fn s3(builder: AmazonS3Builder, environment: &Environment) -> AmazonS3Builder {
    set(&S3, environment).fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

pub(crate) fn google(builder: GoogleCloudStorageBuilder, environment: &Environment) -> GoogleCloudStorageBuilder {
    if let Some(bearer) = environment.get(GOOGLE_TOKEN).filter(|token| !token.is_empty()) {
        let bearer = bearer.clone();
        return builder.with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential { bearer })));
    }
    set(&GOOGLE, environment).fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// Who gives tokens for any of Google's services to `who`, and keeps them fresh. `plain` says whether that service is
/// spoken to without TLS.
pub(crate) fn google_tokens(
    who: &str,
    plain: bool,
    certificates: Option<&Path>,
    environment: &Environment,
) -> Result<GcpCredentialProvider, OpenError> {
    // Nobody asks for it: credentials are found without a bucket, but not named without one.
    let storage = google(GoogleCloudStorageBuilder::new(), environment)
        .with_bucket_name("none")
        .with_client_options(options(who, plain, certificates)?)
        .build()
        .map_err(|error| OpenError::Settings {
            store: who.to_owned(),
            why: error.to_string(),
        })?;
    Ok(storage.credentials().clone())
}

pub(crate) fn azure(builder: MicrosoftAzureBuilder, environment: &Environment) -> MicrosoftAzureBuilder {
    set(&AZURE, environment).fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// What opens directories of Azure's stores, if that is what there is; or why it cannot be read.
pub(crate) fn azure_directories(environment: &Environment) -> Result<Option<Directories>, String> {
    let text = environment.get(AZURE_DIRECTORIES).filter(|text| !text.is_empty());
    let read = text.map(|text| serde_json::from_str(text)).transpose();
    // The reader's own message may repeat what it read.
    read.map_err(|_| format!("{AZURE_DIRECTORIES} is no JSON object of texts"))
}
