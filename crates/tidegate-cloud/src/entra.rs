//! Who this site is to Microsoft's services: tokens of Entra ID, by a secret, a federated token, or the machine's own
//! identity.

use std::path::PathBuf;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use object_store::client::HttpRequest;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use crate::address::secure;
use crate::client::{METADATA, Server, Way, word};
use crate::credentials::Environment;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// A token is not used so shortly before it ends.
const MARGIN: Duration = Duration::from_secs(300);

/// How a token is asked for.
enum Login {
    Secret {
        tenant: String,
        client: String,
        secret: Zeroizing<String>,
    },
    /// A token that the platform puts into a file, as Kubernetes does.
    Federated {
        tenant: String,
        client: String,
        file: PathBuf,
    },
    /// The machine's identity, or one of several.
    Machine { client: Option<String> },
}

/// Gets tokens for one resource, and keeps the last one while it is good.
pub(crate) struct Identity {
    login: Login,
    authority: String,
    /// Where the metadata service is, and the way to it: no proxy hears what it says.
    metadata: (String, Server),
    resource: String,
    held: Mutex<Option<(Zeroizing<String>, Instant)>>,
}

impl Identity {
    /// From the variables that Microsoft's own tools read.
    pub(crate) fn of(environment: &Environment, resource: String) -> Result<Self, String> {
        let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
        let (tenant, client) = (value("AZURE_TENANT_ID"), value("AZURE_CLIENT_ID"));
        let login = match (
            tenant,
            client,
            value("AZURE_CLIENT_SECRET"),
            value("AZURE_FEDERATED_TOKEN_FILE"),
        ) {
            (Some(tenant), Some(client), Some(secret), _) => Login::Secret {
                tenant,
                client,
                secret: secret.into(),
            },
            (Some(tenant), Some(client), None, Some(file)) => Login::Federated {
                tenant,
                client,
                file: file.into(),
            },
            (_, _, Some(_), _) | (_, _, _, Some(_)) => {
                return Err("set AZURE_TENANT_ID and AZURE_CLIENT_ID besides".to_owned());
            }
            (_, client, None, None) => Login::Machine { client },
        };
        let authority = value("AZURE_AUTHORITY_HOST").unwrap_or_else(|| AUTHORITY.to_owned());
        let server = Url::parse(&authority).map_err(|_| "AZURE_AUTHORITY_HOST is no address".to_owned())?;
        secure(&server).map_err(|why| format!("AZURE_AUTHORITY_HOST {why}"))?;
        let metadata = value("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or_else(|| METADATA.to_owned());
        let metadata = metadata.trim_end_matches('/').to_owned();
        let nearby = Server::open(&metadata, None, Way::WithoutProxy).map_err(|error| error.to_string())?;
        Ok(Self {
            login,
            authority: authority.trim_end_matches('/').to_owned(),
            metadata: (metadata, nearby),
            resource,
            held: Mutex::new(None),
        })
    }

    fn form(&self, tenant: &str, client: &str, more: &[(&str, &str)]) -> Result<HttpRequest, http::Error> {
        let scope = format!("{}/.default", self.resource);
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        form.append_pair("client_id", client).append_pair("scope", &scope);
        form.extend_pairs(more);
        http::Request::post(format!("{}/{tenant}/oauth2/v2.0/token", self.authority))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.finish().into())
    }

    fn request(&self) -> Result<HttpRequest, String> {
        let made = match &self.login {
            Login::Secret { tenant, client, secret } => {
                self.form(tenant, client, &[("client_secret", secret.as_str())])
            }
            Login::Federated { tenant, client, file } => {
                // It is renewed every hour or so: read each time.
                let token = std::fs::read_to_string(file).map(Zeroizing::new);
                let token = token.map_err(|error| format!("reading AZURE_FEDERATED_TOKEN_FILE: {error}"))?;
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                let assertion = [("client_assertion_type", kind), ("client_assertion", token.trim())];
                self.form(tenant, client, &assertion)
            }
            Login::Machine { client } => {
                let mut query = Serializer::new(String::new());
                query.append_pair("api-version", "2018-02-01");
                query.append_pair("resource", &self.resource);
                query.extend_pairs(client.iter().map(|client| ("client_id", client)));
                let url = format!("{}/metadata/identity/oauth2/token?{}", self.metadata.0, query.finish());
                http::Request::get(url)
                    .header("Metadata", "true")
                    .body(Vec::new().into())
            }
        };
        made.map_err(|error| error.to_string())
    }

    /// A token, by logging in over `server` where there is none that is good for long enough, or where a `fresh` one is
    /// wanted; or why there is none.
    pub(crate) async fn token(&self, server: &Server, fresh: bool) -> Result<Zeroizing<String>, String> {
        let mut held = self.held.lock().await;
        if let (Some((token, until)), false) = (&*held, fresh)
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let server = match self.login {
            Login::Machine { .. } => &self.metadata.1,
            Login::Secret { .. } | Login::Federated { .. } => server,
        };
        let answered = server.answer(self.request()?, ANSWER_BYTES).await?;
        let status = answered.status().as_u16();
        let answer: Value = serde_json::from_slice(answered.body()).unwrap_or_default();
        let Some(token) = answer["access_token"].as_str().filter(|_| status == 200) else {
            let why = word(answer.get("error"));
            return Err(format!("logging in failed with status {status} ({why})"));
        };
        let token = Zeroizing::new(token.to_owned());
        // A number from Entra ID, a text from the metadata service.
        let lasts = answer["expires_in"].as_u64();
        let lasts = lasts.or_else(|| answer["expires_in"].as_str()?.parse().ok());
        let lasts = Duration::from_secs(lasts.unwrap_or_default().min(24 * 3600));
        *held = Some((token.clone(), Instant::now() + lasts.saturating_sub(MARGIN)));
        Ok(token)
    }
}
