//! Binding, running and ending.

use std::future::{Future, IntoFuture as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::connection::BoundedListener;
use crate::error::ServeError;
use crate::http::{App, handle};
use crate::options::ServeOptions;
use crate::releases::{Registry, Served, Watcher};

/// Serves until the process is asked to end (SIGINT or SIGTERM), then lets running requests finish.
///
/// # Errors
/// When the address cannot be bound, the record of what was served is damaged, or the server ends by
/// itself.
pub async fn serve(options: ServeOptions) -> Result<(), ServeError> {
    let server = Server::bind(options).await?;
    let address = server.local_addr();
    let failed = |source| ServeError::Ended { address, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tracing::info!(%address, "serving");
    let asked_to_end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; running requests may finish");
    };
    server.run(asked_to_end).await
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    watcher: Arc<Mutex<Watcher>>,
    poll: Duration,
}

impl Server {
    /// Listens on the address, reads the record of what was served, and looks for releases once, so
    /// that what is there is served from the first request on.
    ///
    /// # Errors
    /// When a limit is zero, the record is damaged, or the address cannot be bound.
    pub async fn bind(options: ServeOptions) -> Result<Self, ServeError> {
        options.check()?;
        let registry = Arc::new(Registry::default());
        let served = Served::open(options.state)?;
        let failed = |source| ServeError::Bind {
            address: options.address,
            source,
        };
        let listener = TcpListener::bind(options.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "serving without sign-in and encryption beyond this machine");
        }
        let watcher = Watcher::new(options.source, options.verify, served, Arc::clone(&registry));
        let watcher = Arc::new(Mutex::new(watcher));
        look(&watcher).await;
        let limits = options.limits;
        Ok(Self {
            listener,
            address,
            app: Arc::new(App {
                registry,
                limits,
                slots: Arc::new(Semaphore::new(limits.parallel.min(Semaphore::MAX_PERMITS))),
            }),
            watcher,
            poll: options.poll,
        })
    }

    /// Where it listens: with port 0 in the options, the port that was free.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is there, then takes no more connections and lets running requests
    /// finish, for as long as a request may take.
    ///
    /// # Errors
    /// When the server ends by itself.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let Self {
            listener,
            address,
            app,
            watcher,
            poll,
        } = self;
        let grace = app.limits.request;
        let turn = app.limits.request.saturating_add(app.limits.idle);
        let listener = BoundedListener::new(listener, app.limits.connections, turn);
        let (stop, mut stopped) = watch::channel(false);
        let stopping = async move {
            // An error means that the sender is gone, which is an end as well.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let router = Router::new().fallback(handle).with_state(app);
        let serving = axum::serve(listener, router)
            .with_graceful_shutdown(stopping)
            .into_future();
        let watching = async {
            let mut ticks = interval(poll);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                look(&watcher).await;
            }
        };
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = watching => Ok(()),
            () = shutdown => {
                stop.send_replace(true);
                // Who is still talking after that does not keep the server.
                timeout(grace, &mut serving).await.unwrap_or(Ok(()))
            }
        };
        ended.map_err(|source| ServeError::Ended { address, source })
    }
}

/// Looks for releases without blocking those who are being served.
async fn look(watcher: &Arc<Mutex<Watcher>>) {
    let watcher = Arc::clone(watcher);
    let looked = tokio::task::spawn_blocking(move || watcher.lock().unwrap_or_else(PoisonError::into_inner).look());
    if looked.await.is_err() {
        tracing::error!("looking for releases ended unexpectedly; what is served is served on");
    }
}
