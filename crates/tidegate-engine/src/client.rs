//! Requests to a keeper through a mailbox.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_contracts::journal::Journal;
use tidegate_contracts::store::{ObjectName, Patience, Store, StoreError, StoreExt};
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::{Outcome, REPLY_PAYLOAD, REQUEST_PAYLOAD, Reply, ReplyBody, Request, RequestBody};
use tidegate_types::to_canonical_json;

use crate::error::{EngineError, While};
use crate::key::ControlKey;
use crate::state::{get, put};

const REPLY_BYTES: u64 = 64 << 20;
/// Objects that are looked at when a mailbox is swept.
const LEFTOVERS: usize = 100_000;

/// Says whether waiting still makes sense: an error ends the wait.
pub type Watchdog = Arc<dyn Fn() -> Result<(), EngineError> + Send + Sync>;

/// Talks to the keeper of one private site.
pub struct KeeperClient {
    site: SiteName,
    mailbox: Arc<dyn Store>,
    key: Arc<ControlKey>,
    journal: Arc<dyn Journal>,
    watchdog: Watchdog,
}

impl std::fmt::Debug for KeeperClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeeperClient")
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

impl KeeperClient {
    /// A client over the mailbox of `site`.
    #[must_use]
    pub fn new(
        site: SiteName,
        mailbox: Arc<dyn Store>,
        key: Arc<ControlKey>,
        journal: Arc<dyn Journal>,
        watchdog: Watchdog,
    ) -> Self {
        Self {
            site,
            mailbox,
            key,
            journal,
            watchdog,
        }
    }

    /// The site.
    #[must_use]
    pub const fn site(&self) -> &SiteName {
        &self.site
    }

    /// Removes what an earlier control plane that was killed left in the mailbox: questions that nobody
    /// waits for, and answers of yesterday. Whatever is still needed is asked again.
    ///
    /// # Errors
    /// When the mailbox is out of reach.
    pub async fn sweep(&self) -> Result<(), EngineError> {
        let sweeping = "tidying the keeper's mailbox";
        for folder in ["in/", "out/"] {
            for object in self.mailbox.list_all(folder, LEFTOVERS).await.while_(sweeping)? {
                self.mailbox.delete(&object.name).await.while_(sweeping)?;
            }
        }
        Ok(())
    }

    /// Introduces the control plane; pins the keeper's key the first time. Gives the keeper's public
    /// key and the checkpoint that it saw last.
    ///
    /// # Errors
    /// When the keeper is out of reach, or is not the one that was pinned.
    pub async fn identify(&self) -> Result<(VerifyingKey, String), EngineError> {
        let body = RequestBody::Identify {
            control_key: self.key.public().to_base64(),
        };
        match self.ask("identify", body).await? {
            ReplyBody::Identity {
                signing_key,
                checkpoint,
            } => Ok((
                VerifyingKey::from_base64(&signing_key).while_("reading the keeper's key")?,
                checkpoint,
            )),
            _ => Err(self.wrong_reply()),
        }
    }

    /// The error for a reply of another kind than was asked for.
    #[must_use]
    pub fn wrong_reply(&self) -> EngineError {
        EngineError::failed(
            format!("asking the keeper of site `{}`", self.site),
            "it answered something else than was asked",
        )
    }

    /// Asks, and waits for the answer. The same `label` and body are the same request: asked again
    /// after a crash, an answer that is already there is used.
    ///
    /// # Errors
    /// The keeper's refusal, what went wrong there, or that the wait was ended.
    pub async fn ask(&self, label: &str, body: RequestBody) -> Result<ReplyBody, EngineError> {
        let asking = format!("asking the keeper of site `{}` to {label}", self.site);
        let text = to_canonical_json(&body).while_(&asking)?;
        let id = format!("{label}.{}", sha256(&text).to_hex().get(..16).unwrap_or_default());
        let request = Request {
            site: self.site.clone(),
            id: id.clone(),
            body,
        };
        let payload = to_canonical_json(&request).while_(&asking)?;
        let envelope = dsse::sign(self.key.signing(), REQUEST_PAYLOAD, &payload);
        let bytes = Bytes::from(dsse::to_bytes(&envelope).while_(&asking)?);
        let (object, answer) = (name(&format!("in/{id}"))?, name(&format!("out/{id}"))?);
        // Questions about the present must not find yesterday's answer.
        if matches!(request.body, RequestBody::Identify { .. } | RequestBody::Analyse { .. }) {
            self.forget(&object, &answer).await?;
        }
        self.mailbox.put_same(&object, bytes).await.while_(&asking)?;
        let patience = Patience::begin(self.mailbox.pace());
        let reply = loop {
            match self.mailbox.get(&answer, REPLY_BYTES).await {
                Ok(bytes) => break bytes,
                Err(StoreError::NotFound(_)) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(EngineError::failed(asking, error)),
            }
            (self.watchdog)()?;
            tokio::time::sleep(patience.pause()).await;
        };
        let reply = self.open(&reply, &payload, &asking);
        self.forget(&object, &answer).await?;
        match reply?.outcome {
            Outcome::Done(body) => Ok(*body),
            Outcome::Refused(refusal) => Err(EngineError::Refused(refusal)),
            Outcome::Input(why) => Err(EngineError::Input(why)),
            Outcome::Failed(why) => Err(EngineError::failed(asking, why)),
        }
    }

    async fn forget(&self, request: &ObjectName, answer: &ObjectName) -> Result<(), EngineError> {
        let forgetting = "tidying the keeper's mailbox";
        self.mailbox.delete(request).await.while_(forgetting)?;
        self.mailbox.delete(answer).await.while_(forgetting)
    }

    /// Verifies a reply with the pinned key; the first keeper that answers is pinned.
    fn open(&self, bytes: &[u8], request: &[u8], asking: &str) -> Result<Reply, EngineError> {
        let envelope = dsse::from_bytes(bytes).while_(asking)?;
        let pinned: Option<String> = get(&*self.journal, "keepers", self.site.as_str())?;
        let text = match &pinned {
            Some(key) => key.clone(),
            None => introduced(&dsse::peek(&envelope).while_(asking)?, asking)?,
        };
        let key = VerifyingKey::from_base64(&text).while_(asking)?;
        let payload = dsse::open(&envelope, REPLY_PAYLOAD, &key).while_(asking)?;
        let reply: Reply = serde_json::from_slice(&payload).while_(asking)?;
        if reply.request != sha256(request) {
            return Err(EngineError::failed(asking, "the answer belongs to another request"));
        }
        if pinned.is_none() {
            put(&*self.journal, "keepers", self.site.as_str(), &text)?;
        }
        Ok(reply)
    }
}

/// The key in an identity reply that nobody has verified yet.
fn introduced(payload: &[u8], asking: &str) -> Result<String, EngineError> {
    let reply: Reply = serde_json::from_slice(payload).while_(asking)?;
    match reply.outcome {
        Outcome::Done(body) => match *body {
            ReplyBody::Identity { signing_key, .. } => Ok(signing_key),
            _ => Err(EngineError::failed(asking, "the keeper did not introduce itself first")),
        },
        // Nobody vouches for it yet, but it moves nothing.
        Outcome::Refused(refusal) => Err(EngineError::Refused(refusal)),
        Outcome::Input(why) => Err(EngineError::Input(why)),
        Outcome::Failed(why) => Err(EngineError::failed(asking, why)),
    }
}

fn name(text: &str) -> Result<ObjectName, EngineError> {
    ObjectName::new(text).while_("naming a request")
}
