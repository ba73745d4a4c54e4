//! What servers answered: the library tells success and the commonest failures apart, and whoever tries
//! again must know more.

use std::cell::RefCell;
use std::io;

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use crate::pace::Paced;

tokio::task_local! {
    /// The last answer within one call of a store.
    static LAST: RefCell<Option<Answer>>;
}

/// How the last request of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server answered with this status.
    Status(u16),
    /// There was no answer, or not all of it.
    Broken(HttpErrorKind),
}

/// Does `call`, and tells how its last request ended; none when there was none.
pub(crate) async fn watched<T>(call: impl Future<Output = T>) -> (T, Option<Answer>) {
    LAST.scope(RefCell::new(None), async {
        let result = call.await;
        (result, LAST.with(|last| *last.borrow()))
    })
    .await
}

fn note(answer: Answer) {
    // Outside of a call nobody asks.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some(answer));
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
}

impl Watching {
    /// A client whose bytes are paced already.
    pub(crate) fn paced(client: Paced) -> Self {
        Self {
            paced: Some(HttpClient::new(client)),
        }
    }
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = match &self.paced {
            Some(client) => client.clone(),
            None => ReqwestConnector::default().connect(options)?,
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
        note(match &result {
            Ok(response) => Answer::Status(response.status().as_u16()),
            Err(error) => Answer::Broken(error.kind()),
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_never_ends_breaks_off() {
        let short = HttpResponseBody::from(vec![1; 1000]);
        assert_eq!(bounded(short).bytes().await.unwrap().len(), 1000);
        let long = HttpResponseBody::from(vec![1; BODY_BYTES + 1]);
        assert!(bounded(long).bytes().await.is_err());
    }
}
