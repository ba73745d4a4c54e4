//! The ledger as this site saw it: what the keeper cosigns before it lets anything go.

use std::sync::PoisonError;

use tidegate_ledger::merkle::{leaf_hash, verify_inclusion};
use tidegate_ledger::{SignedCheckpoint, VerifierKey, checkpoint};
use tidegate_types::digest::Digest;
use tidegate_types::event::{Event, EventType};
use tidegate_types::ids::{ArtifactId, RunId, SiteName, TaskName};
use tidegate_types::keeper::LedgerProof;

use crate::error::{KeeperError, While, refuse};
use crate::service::Keeper;

/// What the name of every log begins with.
const ORIGINS: &str = "tidegate.dev/";

/// The name of an organisation's log, which is also the name of the log's key.
#[must_use]
pub fn log_origin(organisation: &str) -> String {
    format!("{ORIGINS}{organisation}")
}

/// The organisation whose log has this name, if it is the name of a log.
#[must_use]
pub fn organisation(origin: &str) -> Option<&str> {
    origin
        .strip_prefix(ORIGINS)
        .filter(|organisation| !organisation.is_empty())
}

/// The name of a keeper's cosigning key.
#[must_use]
pub fn cosigner_name(organisation: &str, site: &SiteName) -> String {
    format!("{ORIGINS}{organisation}/{site}")
}

/// What a requested permit, or a release, must say in the ledger to be given.
pub(crate) struct Intended<'a> {
    pub(crate) run: &'a RunId,
    pub(crate) task: &'a TaskName,
    pub(crate) artifact: &'a ArtifactId,
    pub(crate) to: Option<&'a SiteName>,
}

impl Keeper {
    /// Verifies that the ledger holds an entry, the intent where one is needed, and continues what was
    /// seen before, remembers the new checkpoint and gives it with this keeper's signature.
    pub(crate) fn witness(&self, proof: &LedgerProof, intended: Option<&Intended<'_>>) -> Result<String, KeeperError> {
        let _one_at_a_time = self.witnessing.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.records.checkpoint()?;
        let text = self.continued(last.as_deref(), proof, intended)?;
        self.records.set_checkpoint(&text)?;
        Ok(text)
    }

    fn continued(
        &self,
        last: Option<&str>,
        proof: &LedgerProof,
        intended: Option<&Intended<'_>>,
    ) -> Result<String, KeeperError> {
        let what = intended.map_or_else(
            || "cosigning the ledger".to_owned(),
            |intended| format!("acting on the intent for `{}` of run `{}`", intended.task, intended.run),
        );
        let denied = |why: String| {
            KeeperError::Refused(refuse(
                "ledger-first",
                what.clone(),
                why,
                "let the control plane write the intent into its ledger, and ask again with a proof against its newest checkpoint",
            ))
        };
        let event: Event =
            serde_json::from_str(&proof.leaf).map_err(|_| denied("the intent is not an event".to_owned()))?;
        let names = |key: &str| event.data.names.get(key).map(String::as_str);
        let fits = |intended: &Intended<'_>| {
            event.event_type == EventType::PermitRequested.cloud_event_type()
                && event.subject == intended.run.as_str()
                && names("task") == Some(intended.task.as_str())
                && names("to") == intended.to.map(SiteName::as_str)
                && event.data.digests.get("artifact") == Some(intended.artifact)
        };
        if !intended.is_none_or(fits) {
            return Err(denied("the intent in the ledger is for something else".to_owned()));
        }
        let (organisation, signing) = (&self.sites.organisation, &self.keys.signing);
        let log = VerifierKey::new(log_origin(organisation), *self.control_key()?.as_bytes())
            .while_("naming the ledger's key")?;
        let cosigner = VerifierKey::new(cosigner_name(organisation, &self.site), *signing.public().as_bytes())
            .while_("naming the keeper's key")?;
        let last = last
            .map(|text| SignedCheckpoint::parse(text).while_("reading the last checkpoint"))
            .transpose()?;
        let consistency = hashes(&proof.consistency).ok_or_else(|| denied("the proof is malformed".to_owned()))?;
        let inclusion = hashes(&proof.inclusion).ok_or_else(|| denied("the proof is malformed".to_owned()))?;
        let new = SignedCheckpoint::parse(&proof.checkpoint).map_err(|error| denied(error.to_string()))?;
        let same = last.as_ref().is_some_and(|last| last.checkpoint() == new.checkpoint());
        let cosigned = checkpoint::witness(
            last.as_ref().map(SignedCheckpoint::checkpoint),
            &proof.checkpoint,
            if same { &[] } else { &consistency },
            &log,
            &cosigner,
            &|text| signing.sign(text),
        )
        .map_err(|error| denied(error.to_string()))?;
        let head = cosigned.checkpoint();
        verify_inclusion(
            &leaf_hash(proof.leaf.as_bytes()),
            proof.index,
            head.size,
            &inclusion,
            &head.root,
        )
        .map_err(|error| denied(error.to_string()))?;
        Ok(cosigned.to_string())
    }
}

fn hashes(texts: &[String]) -> Option<Vec<Digest>> {
    texts
        .iter()
        .map(|text| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).ok()?;
            Some(Digest::from_bytes(bytes))
        })
        .collect()
}
