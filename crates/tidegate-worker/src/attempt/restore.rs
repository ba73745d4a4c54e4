//! What an earlier attempt had done, for the command to go on with.

use tidegate_contracts::ObjectName;
use tidegate_seal::sign::VerifyingKey;
use tidegate_transfer::{Expected, receive};
use tidegate_types::Label;
use tidegate_types::message::GrantedCheckpoint;

use super::Attempt;
use crate::checkpoint::CHECKPOINT_SLOT;
use crate::error::{Failure, Stage};
use crate::grant::Granted;

impl Attempt {
    /// Opens what an earlier attempt had done into the command's folder; gives what its log is told. What cannot be used
    /// is left out, and the command begins anew: it was written by another machine, and nothing depends on it.
    pub(super) async fn restore(
        &mut self,
        checkpoint: &GrantedCheckpoint,
        granted: &Granted,
        label: &Label,
        limit: u64,
    ) -> Result<String, Failure> {
        let of = format!("the checkpoint of attempt {}", checkpoint.attempt);
        let failed = |why: &str| Failure::new(Stage::Input, format!("{of}: {why}"));
        let key = self.data_key(&of, &checkpoint.sealed_key)?;
        let packing_list = ObjectName::new(checkpoint.packing_list.as_str())
            .map_err(|_| failed("its packing list has a name that is none"))?;
        let sender = VerifyingKey::from_base64(&checkpoint.signing_key)
            .map_err(|_| failed("its worker's key is not an Ed25519 key in base64"))?;
        let standing = &granted.standing;
        let slots = &standing.permit.standing;
        let slot = slots.iter().find(|slot| slot.slot == CHECKPOINT_SLOT);
        let slot = slot.ok_or_else(|| failed("the permit has no slot for one"))?;
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest: &checkpoint.packing_list_digest,
            sender: &sender,
            organisation: &self.ticket.organisation,
            artifact: None,
            permit: &standing.permit.id,
            permit_digest: &standing.digest,
            to: &standing.permit.from.site,
            key_commitment: None,
            byte_limit: slot.byte_limit,
            plaintext_limit: limit,
            ceiling: Some(label),
        };
        let restored = self.scratch.state().join("restored");
        let store = self.mail.store();
        let work = receive(&expected, &*store, &key, &restored);
        match self.mail.while_leased(work).await? {
            Ok(_) => {
                let moved = std::fs::rename(&restored, self.scratch.checkpoint());
                moved.map_err(|error| failed(&error.to_string()))?;
                Ok(format!("it goes on from {of}"))
            }
            // What may pass would not have to cost what was done.
            Err(error) if error.is_transient() => Err(failed(&error.to_string())),
            Err(error) => {
                tracing::warn!(%error, "a checkpoint cannot be used");
                Ok(format!("it begins anew, because {of} cannot be used: {error}"))
            }
        }
    }
}
