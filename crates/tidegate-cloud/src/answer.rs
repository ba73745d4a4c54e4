//! What servers answered: the library tells success and the commonest failures apart, and whoever tries
//! again must know more.

use std::cell::RefCell;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

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

/// The usual client, watched.
#[derive(Debug, Default)]
pub(crate) struct Watching(ReqwestConnector);

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct Watched(HttpClient);

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let result = self.0.execute(request).await;
        note(match &result {
            Ok(response) => Answer::Status(response.status().as_u16()),
            Err(error) => Answer::Broken(error.kind()),
        });
        result
    }
}
