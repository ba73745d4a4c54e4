//! What a machine of Amazon asks about itself: its metadata service, with tokens
//! ([IMDSv2](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html)).

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use object_store::client::HttpRequest;
use tokio::time::Instant;

use crate::client::{Server, Way};
use crate::store::OpenError;

/// How long a token is good, in seconds, and after how long it is replaced.
const TOKEN_SECONDS: u64 = 21_600;
const TOKEN_FOR: Duration = Duration::from_secs(TOKEN_SECONDS / 2);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 8192;

/// The service, and the token that it gave.
#[derive(Debug)]
pub(super) struct Metadata {
    server: Server,
    base: String,
    token: Option<(String, Instant)>,
}

impl Metadata {
    /// Asks the service at `base`, an address without a path or with one that all of it stands below.
    pub(super) fn open(base: &str) -> Result<Self, OpenError> {
        Ok(Self {
            server: Server::open("the metadata service", None, Way::WithoutProxy)?,
            base: base.trim_end_matches('/').to_owned(),
            token: None,
        })
    }

    /// What stands at a path; none where nothing does.
    pub(super) async fn get(&mut self, path: &str) -> Result<Option<Bytes>, String> {
        let token = match &self.token {
            Some((token, since)) if since.elapsed() < TOKEN_FOR => token.clone(),
            _ => {
                let lasts = ("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS.to_string());
                let answer = self.request(Method::PUT, "api/token", lasts).await?;
                if answer.status() != StatusCode::OK {
                    return Err(format!("it gives no token: {}", answer.status()));
                }
                let token = std::str::from_utf8(answer.body()).map_err(|_| "its token is no text".to_owned())?;
                self.token = Some((token.to_owned(), Instant::now()));
                token.to_owned()
            }
        };
        let answer = self
            .request(Method::GET, path, ("x-aws-ec2-metadata-token", token))
            .await?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer.into_body())),
            StatusCode::NOT_FOUND => Ok(None),
            status => {
                self.token = None;
                Err(format!("it answers {status}"))
            }
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        (name, value): (&str, String),
    ) -> Result<http::Response<Bytes>, String> {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{}/latest/{path}", self.base))
            .header(name, value);
        let request: HttpRequest = request
            .body(Vec::new().into())
            .map_err(|_| "its address is none".to_owned())?;
        self.server.answer(request, ANSWER_BYTES).await
    }
}
