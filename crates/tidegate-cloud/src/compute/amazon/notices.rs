//! What Amazon tells a spot machine about its end: its metadata service says it two minutes before, and sometimes earlier
//! that it is likely ([Spot Instance interruption notices](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html),
//! [rebalance recommendations](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html)).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, StatusCode};
use object_store::client::HttpRequest;
use serde::Deserialize;
use tokio::time::Instant;

use crate::client::{Server, Way};
use crate::store::OpenError;

/// How often it is asked: what the vendor recommends.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long a token is good, in seconds, and after how long it is replaced.
const TOKEN_SECONDS: u64 = 21_600;
const TOKEN_FOR: Duration = Duration::from_secs(TOKEN_SECONDS / 2);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 4096;

/// What is said about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpotNotice {
    /// It is likely to be taken back sooner than others.
    Likely,
    /// It is taken back at that time.
    Certain(SystemTime),
}

/// Asks a machine's metadata service.
#[derive(Debug)]
pub struct SpotNotices {
    server: Server,
    base: String,
    token: Option<(String, Instant)>,
    said: Option<SpotNotice>,
    silent: bool,
}

#[derive(Deserialize)]
struct Action {
    time: jiff::Timestamp,
}

impl SpotNotices {
    /// The variable that tells a worker on a spot machine where to ask.
    pub const VARIABLE: &str = "TIDEGATE_SPOT_NOTICES";

    /// Asks the service at `base`, an address without a path or with one that all of it stands below.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn open(base: &str) -> Result<Self, OpenError> {
        Ok(Self {
            server: Server::open("the metadata service", None, Way::WithoutProxy)?,
            base: base.trim_end_matches('/').to_owned(),
            token: None,
            said: None,
            silent: false,
        })
    }

    /// Waits for something that was not said before. May be dropped and called again.
    pub async fn next(&mut self) -> SpotNotice {
        loop {
            match self.ask().await {
                Ok(said) => {
                    self.silent = false;
                    if let Some(said) = said.filter(|said| self.said != Some(*said)) {
                        self.said = Some(said);
                        return said;
                    }
                }
                Err(why) => {
                    if !std::mem::replace(&mut self.silent, true) {
                        tracing::warn!(
                            why,
                            "the metadata service does not say whether this machine is taken back; asked again"
                        );
                    }
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn ask(&mut self) -> Result<Option<SpotNotice>, String> {
        if let Some(text) = self.get("meta-data/spot/instance-action").await? {
            // Whatever it will do, hibernate, stop or terminate: this worker does not go on.
            let action: Action = serde_json::from_slice(&text).map_err(|_| "its notice cannot be read".to_owned())?;
            return Ok(Some(SpotNotice::Certain(action.time.into())));
        }
        let likely = self.get("meta-data/events/recommendations/rebalance").await?;
        Ok(likely.map(|_| SpotNotice::Likely))
    }

    /// What stands at a path; none where nothing does.
    async fn get(&mut self, path: &str) -> Result<Option<Bytes>, String> {
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
