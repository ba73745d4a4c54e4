//! What Amazon tells a spot machine about its end: its metadata service says it two minutes before, and sometimes earlier
//! that it is likely ([Spot Instance interruption notices](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html),
//! [rebalance recommendations](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html)).

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::metadata::Metadata;
use crate::store::OpenError;

/// How often it is asked: what the vendor recommends.
const ASK_EVERY: Duration = Duration::from_secs(5);

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
    metadata: Metadata,
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
            metadata: Metadata::open(base)?,
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
        if let Some(text) = self.metadata.get("meta-data/spot/instance-action").await? {
            // Whatever it will do, hibernate, stop or terminate: this worker does not go on.
            let action: Action = serde_json::from_slice(&text).map_err(|_| "its notice cannot be read".to_owned())?;
            return Ok(Some(SpotNotice::Certain(action.time.into())));
        }
        let likely = self.metadata.get("meta-data/events/recommendations/rebalance").await?;
        Ok(likely.map(|_| SpotNotice::Likely))
    }
}
