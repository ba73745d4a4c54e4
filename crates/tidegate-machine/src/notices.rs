//! What a worker hears about its machine: that the platform ends it (SIGTERM, which containers and services get some time
//! before), or that Amazon takes a spot machine back.

use std::time::{Duration, SystemTime};

use tidegate_cloud::{SpotNotice, SpotNotices};
use tidegate_worker::{Notice, Notices};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long a process has after SIGTERM: what Kubernetes, Vertex AI and Azure's low-priority machines give.
const GRACE: Duration = Duration::from_secs(30);

/// Begins to listen; for as long as this process runs.
#[must_use]
pub fn listen() -> Notices {
    let (tell, heard) = watch::channel(None);
    let told = tell.clone();
    tokio::spawn(async move {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                if signals.recv().await.is_some() {
                    tell_end(&told, "was told to end (SIGTERM)", SystemTime::now() + GRACE);
                }
            }
            Err(error) => tracing::warn!(%error, "this worker will not hear that it is to end"),
        }
    });
    if let Ok(base) = std::env::var(SpotNotices::VARIABLE) {
        tokio::spawn(async move {
            match SpotNotices::open(&base) {
                Ok(notices) => follow(notices, &tell).await,
                Err(error) => tracing::warn!(%error, "this worker will not hear that its machine is taken back"),
            }
        });
    }
    Notices::new(heard)
}

async fn follow(mut notices: SpotNotices, tell: &watch::Sender<Option<Notice>>) {
    loop {
        match notices.next().await {
            SpotNotice::Certain(ends) => {
                return tell_end(tell, "is taken back by the cloud: it is a spot machine", ends);
            }
            SpotNotice::Likely => {
                tell.send_if_modified(|told| {
                    let first = told.is_none();
                    if first {
                        *told = Some(Notice {
                            why: "may soon be taken back by the cloud: it is a spot machine".to_owned(),
                            ends: None,
                        });
                    }
                    first
                });
            }
        }
    }
}

/// The sooner end counts.
fn tell_end(tell: &watch::Sender<Option<Notice>>, why: &str, ends: SystemTime) {
    tell.send_if_modified(|told| {
        let before = told.as_ref().and_then(|told| told.ends);
        if before.is_some_and(|before| before <= ends) {
            return false;
        }
        *told = Some(Notice {
            why: why.to_owned(),
            ends: Some(ends),
        });
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_end_counts_and_is_never_unsaid() {
        let (tell, heard) = watch::channel(None);
        let now = SystemTime::now();
        let told = || heard.borrow().clone().map(|notice: Notice| notice.why);
        tell_end(&tell, "late", now + Duration::from_secs(120));
        tell_end(&tell, "soon", now + Duration::from_secs(30));
        tell_end(&tell, "later", now + Duration::from_secs(60));
        assert_eq!(told().as_deref(), Some("soon"));
    }
}
