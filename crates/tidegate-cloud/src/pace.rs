//! How fast bytes may move: a limit that all requests of one store share, spread evenly over time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http_body_util::BodyExt;
use object_store::client::{
    HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use tokio::time::Instant;

/// How long a server may say nothing.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// The slowest that bytes may move before a call counts as stalled, in bytes per second.
const SLOWEST: u64 = 128 << 10;
/// As many calls may share a limit before they take each other for stalled.
const SHARING: u64 = 32;
/// Bytes that move at once under a limit.
const PIECE: usize = 16 << 10;
/// What may be caught up with of a limit: clocks wake nobody at the very moment.
const SLACK: Duration = Duration::from_millis(20);

/// The limit of a store; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace(Option<Arc<Meter>>);

#[derive(Debug)]
struct Meter {
    per_second: u64,
    /// When the next byte may move.
    next: Mutex<Instant>,
}

impl Pace {
    /// As many bytes in a second, or as many as the network carries.
    pub(crate) fn of(per_second: Option<u64>) -> Self {
        Self(per_second.map(|per_second| {
            Arc::new(Meter {
                per_second: per_second.max(1),
                next: Mutex::new(Instant::now()),
            })
        }))
    }

    /// Whether there is a limit.
    pub(crate) const fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// How long a call that moves so many bytes may take.
    pub(crate) fn patience(&self, bytes: u64) -> Duration {
        let limited = self.0.as_ref().map_or(SLOWEST, |meter| meter.per_second / SHARING);
        SILENCE + Duration::from_secs(bytes / limited.clamp(1, SLOWEST))
    }

    /// Returns when so many bytes more may move.
    pub(crate) async fn pass(&self, bytes: usize) {
        let Some(meter) = &self.0 else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / meter.per_second as f64);
        let moment = {
            let mut next = meter.next.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody used is not saved up.
            let now = Instant::now();
            let moment = (*next).max(now.checked_sub(SLACK).unwrap_or(now));
            *next = moment + takes;
            moment
        };
        tokio::time::sleep_until(moment).await;
    }

    /// The bytes, piece by piece, each when it may move.
    fn pieces(self, body: Bytes) -> impl futures::Stream<Item = Bytes> + Send {
        stream::unfold((self, body), |(pace, mut left)| async move {
            if left.is_empty() {
                return None;
            }
            let piece = left.split_to(left.len().min(PIECE));
            pace.pass(piece.len()).await;
            Some((piece, (pace, left)))
        })
    }
}

/// A client whose requests share a limit.
#[derive(Debug)]
pub(crate) struct Paced {
    pub(crate) client: reqwest::Client,
    pub(crate) pace: Pace,
}

/// When something of one request moved last.
type Moved = Arc<Mutex<Instant>>;

impl Paced {
    fn body(&self, body: HttpRequestBody, moved: &Moved) -> reqwest::Body {
        match body.as_bytes() {
            // Questions; what is stored comes otherwise, and says its length by itself.
            Some(bytes) => bytes.clone().into(),
            None => {
                let (pace, moved) = (self.pace.clone(), Arc::clone(moved));
                let parts = body.into_data_stream().flat_map(move |part| match part {
                    Ok(part) => {
                        let moved = Arc::clone(&moved);
                        let pieces = pace.clone().pieces(part);
                        pieces
                            .map(move |piece| {
                                *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                                Ok(piece)
                            })
                            .boxed()
                    }
                    Err(error) => stream::iter([Err(error)]).boxed(),
                });
                reqwest::Body::wrap_stream(parts)
            }
        }
    }
}

/// Ends once nothing of a request has moved for too long. A piece waits for others that share the limit, too.
async fn stalled(moved: Moved) {
    loop {
        let until = *moved.lock().unwrap_or_else(PoisonError::into_inner) + SILENCE;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

#[async_trait]
impl HttpService for Paced {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse::<reqwest::Url>();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let moved = Moved::new(Mutex::new(Instant::now()));
        *request.body_mut() = Some(self.body(body, &moved));
        let response = tokio::select! {
            response = self.client.execute(request) => response.map_err(failed)?,
            () = stalled(moved) => {
                let why = std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing moved for too long");
                return Err(HttpError::new(HttpErrorKind::Timeout, why));
            }
        };
        let response: http::Response<reqwest::Body> = response.into();
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(failed))))
    }
}

fn failed(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_decode() {
        HttpErrorKind::Decode
    } else {
        HttpErrorKind::Interrupted
    };
    // Addresses of requests may be signed.
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn bytes_move_evenly_whoever_moves_them() {
        let pace = Pace::of(Some(1 << 20));
        let began = Instant::now();
        let mover = |pace: Pace| async move {
            let mut pieces = std::pin::pin!(pace.pieces(Bytes::from(vec![0; 256 << 10])));
            let mut moved = 0;
            while let Some(piece) = pieces.next().await {
                moved += piece.len();
            }
            moved
        };
        let (first, second) = tokio::join!(mover(pace.clone()), mover(pace.clone()));
        assert_eq!((first, second), (256 << 10, 256 << 10));
        let took = began.elapsed();
        // The last piece goes when it may, and takes its time afterwards.
        let early = SLACK + Duration::from_secs_f64(PIECE as f64 / f64::from(1 << 20)) + Duration::from_millis(2);
        assert!(took + early >= Duration::from_millis(500), "{took:?}");

        // A pause saves nothing up for later.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        mover(pace).await;
        let took = began.elapsed();
        assert!(took + early >= Duration::from_millis(250), "{took:?}");
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        assert_eq!(Pace::of(None).pass(usize::MAX).now_or_never(), Some(()));
    }

    #[test]
    fn patience_grows_with_bytes_and_with_the_limit() {
        assert_eq!(Pace::of(None).patience(0), SILENCE);
        assert_eq!(Pace::of(None).patience(64 << 20), SILENCE + Duration::from_secs(512));
        let slow = Pace::of(Some(1 << 20)).patience(64 << 20);
        assert_eq!(slow, SILENCE + Duration::from_secs(64 * 32));
        assert_eq!(
            Pace::of(Some(1 << 40)).patience(64 << 20),
            Pace::of(None).patience(64 << 20)
        );
    }
}
