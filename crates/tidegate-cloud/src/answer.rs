//! What servers answered: the library tells success and the commonest failures apart, and whoever tries
//! again must know more.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use crate::pace::Paced;
use crate::session::azure::{Signed, Signing};

tokio::task_local! {
    /// The last answer within one call of a store.
    static LAST: RefCell<(Option<Answer>, Signs)>;
}

/// What an answer says besides: why something may have been refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    /// How many seconds the server's clock is ahead of this machine's.
    pub(crate) clock: Option<i64>,
    /// The region that the bucket is in.
    pub(crate) region: Option<String>,
}

impl Signs {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // As IMF-fixdate of RFC 9110, which is a date of RFC 2822.
        let date = text(DATE.as_str()).and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let plain = |region: &&str| {
            region.len() < 64 && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        Self {
            clock: date.map(|date| date.timestamp().as_second() - jiff::Timestamp::now().as_second()),
            region: text("x-amz-bucket-region").filter(plain).map(str::to_owned),
        }
    }
}

/// How the last request of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server answered with this status.
    Status(u16),
    /// The server asked for patience (429 or 503), for so long where it said that.
    Busy(Option<Duration>),
    /// There was no answer, or not all of it.
    Broken(HttpErrorKind),
}

/// Does `call`, and tells how its last request ended; none when there was none.
pub(crate) async fn watched<T>(call: impl Future<Output = T>) -> (T, Option<Answer>, Signs) {
    LAST.scope(RefCell::default(), async {
        let result = call.await;
        let (answer, signs) = LAST.with(RefCell::take);
        (result, answer, signs)
    })
    .await
}

fn note(answer: Answer, signs: Signs) {
    // Outside of a call nobody asks.
    let _ = LAST.try_with(|last| *last.borrow_mut() = (Some(answer), signs));
}

/// What `Retry-After` says in seconds (RFC 9110, section 10.2.3). Stores do not write the other form, a date.
pub(crate) fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The longest body that any answer may have: twice the largest shard. Bodies of errors and listings are read
/// whole before anybody looks at them.
const BODY_BYTES: usize = 128 << 20;

/// A body that breaks off where it becomes too long.
fn bounded(body: HttpResponseBody) -> HttpResponseBody {
    let body = Limited::new(body, BODY_BYTES);
    HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Decode, io::Error::other(error))))
}

/// The usual client, or one whose bytes are paced, watched.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watching {
    paced: Option<HttpClient>,
    /// How requests are signed that the library leaves unsigned.
    signing: Option<Signing>,
}

impl Watching {
    /// A client whose bytes are paced already.
    pub(crate) fn paced(client: Paced) -> Self {
        Self {
            paced: Some(HttpClient::new(client)),
            signing: None,
        }
    }

    /// The same, whose requests are signed.
    pub(crate) fn signing(self, signing: Signing) -> Self {
        Self {
            signing: Some(signing),
            ..self
        }
    }
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = match &self.paced {
            Some(client) => client.clone(),
            None => ReqwestConnector::default().connect(options)?,
        };
        let client = match self.signing.clone() {
            Some(signing) => HttpClient::new(Signed { client, signing }),
            None => client,
        };
        Ok(HttpClient::new(Watched(client)))
    }
}

#[derive(Debug)]
struct Watched(HttpClient);

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let result = self.0.execute(request).await;
        let result = result.map(|response| response.map(bounded));
        match &result {
            Ok(response) => {
                let answer = match response.status().as_u16() {
                    429 | 503 => Answer::Busy(asked_to_wait(response.headers())),
                    status => Answer::Status(status),
                };
                note(answer, Signs::of(response.headers()));
            }
            Err(error) => note(Answer::Broken(error.kind()), Signs::default()),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_is_read_in_seconds() {
        let told = |text: &str| asked_to_wait(&[(RETRY_AFTER, text.parse().unwrap())].into_iter().collect());
        assert_eq!(told("7"), Some(Duration::from_secs(7)));
        assert_eq!(told("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(told("-1"), None);
        assert_eq!(asked_to_wait(&HeaderMap::new()), None);
    }

    #[test]
    fn clocks_and_regions_are_read() {
        let signs = |name: &'static str, value: &str| {
            let name = http::HeaderName::from_static(name);
            Signs::of(&[(name, value.parse().unwrap())].into_iter().collect())
        };
        let behind = signs("date", "Sun, 06 Nov 1994 08:49:37 GMT").clock.unwrap();
        assert!(behind < -900_000_000, "{behind}");
        assert_eq!(signs("date", "yesterday"), Signs::default());
        assert_eq!(
            signs("x-amz-bucket-region", "eu-west-1").region.as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(signs("x-amz-bucket-region", "<script>").region, None);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_breaks_off() {
        let short = HttpResponseBody::from(vec![1; 1000]);
        assert_eq!(bounded(short).bytes().await.unwrap().len(), 1000);
        let long = HttpResponseBody::from(vec![1; BODY_BYTES + 1]);
        assert!(bounded(long).bytes().await.is_err());
    }
}
