//! Putting a bundle where a site serves it: a copy at home, a signed release record elsewhere.

use bytes::Bytes;
use tidegate_contracts::journal::Batch;
use tidegate_contracts::store::{ObjectName, StoreError};
use tidegate_seal::dsse;
use tidegate_transfer::patiently;
use tidegate_types::files::Pipeline;
use tidegate_types::ids::{ArtifactId, PermitId, RunId, SiteName};
use tidegate_types::keeper::{PipelineText, ReplyBody};
use tidegate_types::release::{ENROLMENT_OBJECT, Enrolment, RELEASE_FORMAT, RELEASE_PAYLOAD, ReleaseRecord};
use tidegate_types::to_canonical_json;

use crate::admission::{Admitted, ServingSite, admit_site, release_key};
use crate::error::{KeeperError, While, refuse};
use crate::home::task;
use crate::permits::{Release, Wanted};
use crate::records::{ArtifactRecord, CrossingRecord, PermitRecord, value};
use crate::service::Keeper;

impl Keeper {
    pub(crate) async fn deploy(
        &self,
        run: &RunId,
        text: &PipelineText,
        bundle: &ArtifactId,
        to: &SiteName,
        permit: Option<&PermitId>,
    ) -> Result<ReplyBody, KeeperError> {
        let (pipeline, digest) = self.pipeline(text)?;
        let record = self.artifact_record(bundle)?;
        let version = record
            .manifest
            .name
            .rsplit('/')
            .next()
            .and_then(|version| version.parse::<u64>().ok())
            .ok_or_else(|| KeeperError::failed("deploying a bundle", "its name has no version"))?;
        match permit {
            None if *to == self.site => {
                let _rows = self.rows.lock().await;
                self.deploy_at_home(&pipeline, &record, version)?;
            }
            None => {
                return Err(refuse(
                    "permit-missing",
                    format!("deploying bundle {} to site `{to}`", bundle.short()),
                    "it leaves this site, and there is no permit",
                    "ask for a permit first",
                )
                .into());
            }
            Some(permit) => {
                let wanted = Wanted {
                    run,
                    task: &task(&format!("deploy-{to}"))?,
                    artifact: bundle,
                    to,
                    worker: None,
                };
                let permit = self.permit_record(permit)?;
                if permit.expires <= (self.clock)() {
                    return Err(refuse(
                        "permit-expired",
                        format!("deploying bundle {} to site `{to}`", bundle.short()),
                        "its permit has expired",
                        "run the pipeline again: a new permit is asked for",
                    )
                    .into());
                }
                let fits =
                    permit.run == *run && permit.task == *wanted.task && permit.artifact == *bundle && permit.to == *to;
                let crossing = self.records.crossing(&permit.id)?;
                let (Some(crossing), true) = (crossing, fits) else {
                    return Err(refuse(
                        "permit-other-artifact",
                        format!("publishing bundle {} at site `{to}`", bundle.short()),
                        "the permit is for something else, or nothing was sent under it",
                        "send the bundle under its own permit first",
                    )
                    .into());
                };
                self.allowed(&wanted, &pipeline, digest, Release::Key(&permit))?;
                self.publish(&pipeline, version, &permit, crossing).await?;
            }
        }
        Ok(ReplyBody::Deployed { site: to.clone() })
    }

    fn deploy_at_home(&self, pipeline: &Pipeline, record: &ArtifactRecord, version: u64) -> Result<(), KeeperError> {
        let deploying = "deploying a bundle at home";
        let models = self.folder.join("serve").join("models").join(pipeline.name.as_str());
        let target = models.join(version.to_string());
        if target.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&models).while_(deploying)?;
        // What a keeper that died here left, for whichever version.
        for entry in std::fs::read_dir(&models).while_(deploying)? {
            let entry = entry.while_(deploying)?;
            if entry.file_name().to_string_lossy().starts_with(".new-") {
                std::fs::remove_dir_all(entry.path()).while_(deploying)?;
            }
        }
        let temporary = models.join(format!(".new-{version}"));
        std::fs::create_dir(&temporary).while_(deploying)?;
        for file in &record.manifest.files {
            let (from, to) = (
                self.folder.join(&record.folder).join(&file.path),
                temporary.join(&file.path),
            );
            std::fs::copy(from, &to).while_(deploying)?;
            brought_to_disk(&to).while_(deploying)?;
        }
        brought_to_disk(&temporary).while_(deploying)?;
        std::fs::rename(&temporary, &target).while_(deploying)?;
        brought_to_disk(&models).while_(deploying)
    }

    /// Puts the signed release record into the site's store, with the data key sealed to the site.
    async fn publish(
        &self,
        pipeline: &Pipeline,
        version: u64,
        permit: &PermitRecord,
        crossing: CrossingRecord,
    ) -> Result<(), KeeperError> {
        let publishing = "publishing a release";
        let (bundle, to) = (&permit.artifact, &permit.to);
        let store = self.store(to)?;
        let admitted = self.serving_site(to).await?;
        let key = self.data_key(permit).await?;
        let record = ReleaseRecord {
            format: RELEASE_FORMAT.to_owned(),
            organisation: self.sites.organisation.clone(),
            owner: self.site.clone(),
            site: to.clone(),
            model: pipeline.name.clone(),
            version,
            bundle: *bundle,
            permit: permit.envelope.clone(),
            packing_list: crossing.packing_list,
            packing_list_digest: crossing.packing_list_digest,
            key_commitment: key.commitment(),
            sealed_key: release_key(&admitted, &key)?,
        };
        let payload = to_canonical_json(&record).while_(publishing)?;
        let envelope = dsse::sign(&self.keys.signing, RELEASE_PAYLOAD, &payload);
        let body = dsse::to_bytes(&envelope).while_(publishing)?;
        let object = ObjectName::new(ReleaseRecord::object(&pipeline.name, version)).while_(publishing)?;
        let body = Bytes::from(body);
        match patiently(|| store.put_new(&object, body.clone())).await {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists(_)) => {
                let there = patiently(|| store.get(&object, 1 << 20)).await.while_(publishing)?;
                let envelope = dsse::from_bytes(&there).while_(publishing)?;
                let payload = dsse::open(&envelope, RELEASE_PAYLOAD, &self.keys.signing.public()).while_(publishing)?;
                let there: ReleaseRecord = serde_json::from_slice(&payload).while_(publishing)?;
                if there.bundle == *bundle && there.site == *to {
                    Ok(())
                } else {
                    Err(KeeperError::failed(
                        publishing,
                        "another release has this version already",
                    ))
                }
            }
            Err(error) => Err(KeeperError::failed(publishing, error)),
        }
    }

    /// The site, if its recipient is the one that was pinned when it was seen first.
    async fn serving_site(&self, site: &SiteName) -> Result<Admitted<ServingSite>, KeeperError> {
        let reading = "reading a site's enrolment";
        let object = ObjectName::new(ENROLMENT_OBJECT).while_(reading)?;
        let store = self.store(site)?;
        let bytes = patiently(|| store.get(&object, 4096)).await.while_(reading)?;
        let enrolment: Enrolment = serde_json::from_slice(&bytes).while_(reading)?;
        loop {
            let pinned: Option<String> = self.records.get("recipients", site.as_str())?;
            let admitted = admit_site(site, pinned.as_deref(), &enrolment)?;
            let pin = Batch::default().create("recipients", site.as_str(), value(&enrolment.recipient)?);
            if pinned.is_some() || self.records.commit_if(&pin)? {
                return Ok(admitted);
            }
        }
    }
}

/// After this a file's bytes, or a folder's names, are there also when the power fails.
fn brought_to_disk(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}
