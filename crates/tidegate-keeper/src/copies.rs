//! Artifacts that stand sealed at one public site and are needed at another: this site signs and names them, and the worker
//! there brings them over. What they hold passes this site's network once.

use std::time::Duration;

use tidegate_contracts::ObjectName;
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::permit::open_permit;
use tidegate_transfer::{Expected, Permitted, SentShards, missing, object_name, patiently, sent_shards};
use tidegate_types::artifact::{Manifest, SealedObject};
use tidegate_types::ids::{ArtifactId, SiteName};
use tidegate_types::keeper::Copied;
use tidegate_types::permit::SiteReference;
use zeroize::Zeroizing;

use crate::admission::{Admitted, Worker, seal_access};
use crate::error::{KeeperError, While, refuse};
use crate::records::{CrossingRecord, PermitRecord};
use crate::service::Keeper;

/// How long a worker may take until it has fetched all of them.
const READABLE: Duration = Duration::from_secs(6 * 3600);
/// How long what lends the shards of one artifact may be, in bytes: a part of a grant, in which it is a third longer, twice.
const MOST_LENT: usize = 768 << 10;
/// The most shards of one artifact that are copied.
const MOST_SHARDS: usize = 512;

impl Keeper {
    /// The site from whose store an artifact may be copied to another one: the first that its definition names, where it
    /// stands whole under a permit that is good.
    pub(crate) fn copy_source(
        &self,
        artifact: &ArtifactId,
        to: &SiteName,
    ) -> Result<Option<SiteReference>, KeeperError> {
        let rules = self.site_definition(to)?.transfer.clone().unwrap_or_default();
        for from in &rules.copy_from {
            if self.stands_at(artifact, from)?.is_some() {
                return Ok(Some(self.reference(from)?));
            }
        }
        Ok(None)
    }

    /// The crossing of an artifact to a site that can be copied from longest.
    fn stands_at(
        &self,
        artifact: &ArtifactId,
        site: &SiteName,
    ) -> Result<Option<(PermitRecord, CrossingRecord)>, KeeperError> {
        let mut longest: Option<(PermitRecord, CrossingRecord)> = None;
        for permit in self.records.all::<PermitRecord>("permits")? {
            let good = permit.artifact == *artifact && permit.to == *site && permit.expires > (self.clock)();
            if good
                && longest.as_ref().is_none_or(|(other, _)| permit.expires > other.expires)
                && let Some(crossing) = self.records.crossing(&permit.id)?
            {
                longest = Some((permit, crossing));
            }
        }
        Ok(longest)
    }

    /// The shards that a permit lets be copied, with the site where they stand. `None` where it names none, or they cannot
    /// be copied now: then they are sent from here.
    pub(crate) async fn copyable(
        &self,
        permitted: &Permitted<Manifest>,
    ) -> Result<Option<(SiteReference, SentShards)>, KeeperError> {
        let Some(from) = permitted.permit().copied_from.clone() else {
            return Ok(None);
        };
        let site = from.site.clone();
        match self.shards_at(permitted, &from).await {
            Ok(shards) => Ok(shards.map(|shards| (from, shards))),
            Err(error) => {
                let artifact = permitted.artifact();
                tracing::warn!(%site, artifact = %artifact.short(), %error, "what stands there cannot be copied");
                Ok(None)
            }
        }
    }

    async fn shards_at(
        &self,
        permitted: &Permitted<Manifest>,
        from: &SiteReference,
    ) -> Result<Option<SentShards>, KeeperError> {
        let reading = "reading what was sent before";
        // Defined otherwise, it is another site than the one that was permitted.
        if self.reference(&from.site)? != *from {
            return Ok(None);
        }
        let Some((permit, crossing)) = self.stands_at(&permitted.artifact(), &from.site)? else {
            return Ok(None);
        };
        let store = self.store(&from.site)?;
        let public = self.keys.signing.public();
        let packing_list = ObjectName::new(crossing.packing_list.as_str()).while_(reading)?;
        let expected = Expected {
            packing_list: &packing_list,
            packing_list_digest: &crossing.packing_list_digest,
            sender: &public,
            organisation: &self.sites.organisation,
            artifact: Some(&permit.artifact),
            permit: &permit.id,
            permit_digest: &payload_digest(&permit.envelope).while_(reading)?,
            to: &permit.to,
            key_commitment: None,
            byte_limit: u64::MAX,
            plaintext_limit: u64::MAX,
            ceiling: None,
        };
        let key = self.data_key(&permit).await?;
        let shards = sent_shards(&expected, store, &key, permitted.manifest())
            .await
            .while_(reading)?;
        let Some(first) = shards.objects().next() else {
            return Ok(None);
        };
        if shards.objects().count() > MOST_SHARDS {
            return Ok(None);
        }
        // Whether this store lends anything, and how much it says of each, is known before anything depends on it.
        let name = [object_name(first)];
        let lent = patiently(|| store.lend(&name, READABLE)).await.while_(reading)?;
        let fits = |lent: &String| lent.len().saturating_mul(shards.objects().count()) <= MOST_LENT;
        Ok(lent.filter(fits).map(|_| shards))
    }

    /// For a worker that was admitted, what reads those objects that are not in its site's store yet: base64 of an age file.
    /// `None` for what was sent from here.
    pub(crate) async fn lent(
        &self,
        crossing: &CrossingRecord,
        permit: &PermitRecord,
        worker: &Admitted<Worker>,
    ) -> Result<Option<String>, KeeperError> {
        let lending = "lending what is copied";
        let Some(from) = &crossing.copied_from else {
            return Ok(None);
        };
        let opened = open_permit(&permit.envelope, &self.keys.signing.public()).while_(lending)?;
        if opened.permit.copied_from != Some(self.reference(from)?) {
            return Err(refuse(
                "permit-other-site",
                format!("lending what is copied from site `{from}` to site `{}`", permit.to),
                "that site is defined otherwise than when the permit was signed",
                "start another run, which asks for a new permit",
            )
            .into());
        }
        let missing = missing(self.store(&permit.to)?, crossing.shards())
            .await
            .while_(lending)?;
        let names: Vec<ObjectName> = missing.iter().map(object_name).collect();
        let store = self.store(from)?;
        let lent = patiently(|| store.lend(&names, READABLE)).await.while_(lending)?;
        let lent = Zeroizing::new(lent.ok_or_else(|| KeeperError::failed(lending, "its store lends nothing"))?);
        Ok(Some(seal_access(worker, lent.as_bytes())?))
    }

    /// What of a crossing has been copied by now.
    pub(crate) async fn copied(&self, crossing: &CrossingRecord, to: &SiteName) -> Result<Option<Copied>, KeeperError> {
        let Some(from) = &crossing.copied_from else {
            return Ok(None);
        };
        let all: u64 = crossing.shards().iter().map(|object| object.bytes).sum();
        let missing = missing(self.store(to)?, crossing.shards()).await;
        let missing: u64 = missing
            .while_("looking what was copied")?
            .iter()
            .map(|object| object.bytes)
            .sum();
        Ok(Some(Copied {
            from: from.clone(),
            bytes: all.saturating_sub(missing),
        }))
    }
}

impl CrossingRecord {
    /// Its shards: all objects but index and packing list, which come last.
    fn shards(&self) -> &[SealedObject] {
        self.objects
            .get(..self.objects.len().saturating_sub(2))
            .unwrap_or_default()
    }
}
