//! The mailbox loop: reads requests, answers each once, and keeps following what it began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidegate_contracts::custody::Custody;
use tidegate_contracts::identity::Verifier;
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_contracts::later::Later;
use tidegate_contracts::stage::HomeStages;
use tidegate_contracts::store::{ObjectName, Patience, Store, StoreError, StoreExt};
use tidegate_policy::PolicySet;
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_seal::dsse;
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::digest::Digest;
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::rules::MAX_NODES;
use tidegate_types::files::sites::Site;
use tidegate_types::files::{Catalog, Pipeline, Sites};
use tidegate_types::ids::{RunId, SiteName};
use tidegate_types::keeper::{
    Outcome, PipelineText, REPLY_PAYLOAD, REQUEST_PAYLOAD, Reply, ReplyBody, Request, RequestBody,
};
use tidegate_types::message::Attempt;
use tidegate_types::to_canonical_json;
use zeroize::Zeroizing;

use crate::attempt::FollowedBy;
use crate::error::{KeeperError, While, refuse};
use crate::keys::SiteKeys;
use crate::permits::Wanted;
use crate::records::{Records, value};
use crate::underway::{AllUnderway, EndsWith};

/// A request is at most this long.
const REQUEST_BYTES: u64 = 32 << 20;
/// Requests that are answered at the same time: each machine of an attempt waits in one for its end, and what ends it needs
/// another.
const REQUESTS_AT_ONCE: usize = 4 * MAX_NODES as usize;

/// What a keeper is made of.
#[derive(Debug)]
pub struct Setup {
    /// The site.
    pub site: SiteName,
    /// The owner's statement about places, read by this site itself.
    pub sites: Sites,
    /// The owner's statement about data.
    pub catalog: Catalog,
    /// What the catalog's sources are relative to.
    pub catalog_folder: PathBuf,
    /// What is asked before anything moves.
    pub policies: PolicySet,
    /// The site's own folder; everything that the keeper keeps is below it.
    pub folder: PathBuf,
    /// State that survives a crash.
    pub journal: Arc<dyn Journal>,
    /// Wraps the site's keys.
    pub custody: Arc<dyn Custody>,
    /// What is done with rows.
    pub stages: Arc<dyn HomeStages>,
    /// The stores of all sites that this one may send to or hear from, its own included.
    pub stores: BTreeMap<SiteName, Arc<dyn Store>>,
    /// Who knows the machines of a site, of all sites whose machines can prove who they are: there a worker is given
    /// nothing before its machine has.
    pub verifiers: BTreeMap<SiteName, Arc<dyn Verifier>>,
    /// Where requests come from.
    pub mailbox: Arc<dyn Store>,
    /// Digests of the programs that may open what this site sends to a worker.
    pub workers: Later<BTreeSet<Digest>>,
    /// Unix time in seconds.
    pub clock: fn() -> u64,
    /// A crossing for which nobody has asked so long is stopped: whoever wanted it has given it up.
    pub unasked: Duration,
}

impl Setup {
    /// A control plane asks every few seconds; one that has been silent so long is gone.
    pub const UNASKED: Duration = Duration::from_secs(60);
}

/// The keeper of one private site.
#[derive(Debug)]
pub struct Keeper {
    pub(crate) site: SiteName,
    pub(crate) sites: Sites,
    pub(crate) catalog: Catalog,
    pub(crate) catalog_folder: PathBuf,
    pub(crate) policies: PolicySet,
    pub(crate) folder: PathBuf,
    pub(crate) records: Records,
    pub(crate) custody: Arc<dyn Custody>,
    pub(crate) stages: Arc<dyn HomeStages>,
    pub(crate) workers: Later<BTreeSet<Digest>>,
    pub(crate) clock: fn() -> u64,
    pub(crate) unasked: Duration,
    pub(crate) keys: SiteKeys,
    /// Held while a permit is signed, so that asking twice gives one.
    pub(crate) permitting: tokio::sync::Mutex<()>,
    /// Held while a checkpoint is cosigned: one after the other.
    pub(crate) witnessing: Mutex<()>,
    /// Held while rows are read: one stage at a time bounds memory.
    pub(crate) rows: tokio::sync::Mutex<()>,
    /// Who follows which attempt.
    pub(crate) watched: Mutex<BTreeMap<Attempt, tokio::task::AbortHandle>>,
    /// Held by whoever begins an attempt, by run and task; there are as many as requests are answered at most.
    pub(crate) starting: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Credentials of stores that workers have not been given yet, as a JSON object. In memory alone: whoever gave them
    /// gives others long before the worker's own end.
    pub(crate) access: Mutex<BTreeMap<Attempt, Zeroizing<Vec<u8>>>>,
    /// An attempt that was followed has ended.
    pub(crate) ended: tokio::sync::Notify,
    /// What is being sent.
    pub(crate) underway: AllUnderway,
    pub(crate) verifiers: BTreeMap<SiteName, Arc<dyn Verifier>>,
    stores: BTreeMap<SiteName, Arc<dyn Store>>,
    mailbox: Arc<dyn Store>,
}

impl Keeper {
    /// Opens the site's keys and journal.
    ///
    /// # Errors
    /// When the site is not a private site of the sites file, or its keys cannot be opened.
    pub async fn open(setup: Setup) -> Result<Arc<Self>, KeeperError> {
        let opening = "starting the keeper";
        let definition =
            setup.sites.sites.get(&setup.site).ok_or_else(|| {
                KeeperError::failed(opening, format!("site `{}` is not in the sites file", setup.site))
            })?;
        if definition.kind != tidegate_types::files::sites::SiteKind::Private {
            return Err(KeeperError::failed(
                opening,
                format!("site `{}` is not private; only private sites have a keeper", setup.site),
            ));
        }
        let folder = std::path::absolute(&setup.folder).while_(opening)?;
        let keys = SiteKeys::open(
            &folder.join("keys").join("site-keys.json"),
            &*setup.custody,
            &setup.site,
        )
        .await?;
        Ok(Arc::new(Self {
            site: setup.site,
            sites: setup.sites,
            catalog: setup.catalog,
            catalog_folder: setup.catalog_folder,
            policies: setup.policies,
            folder,
            records: Records { journal: setup.journal },
            custody: setup.custody,
            stages: setup.stages,
            workers: setup.workers,
            clock: setup.clock,
            unasked: setup.unasked,
            verifiers: setup.verifiers,
            keys,
            permitting: tokio::sync::Mutex::new(()),
            witnessing: Mutex::new(()),
            rows: tokio::sync::Mutex::new(()),
            watched: Mutex::default(),
            starting: Mutex::default(),
            access: Mutex::new(BTreeMap::new()),
            ended: tokio::sync::Notify::new(),
            underway: AllUnderway::default(),
            stores: setup.stores,
            mailbox: setup.mailbox,
        }))
    }

    /// What others verify this keeper's signatures with.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.keys.signing.public()
    }

    /// Answers requests until `stop` is ready.
    ///
    /// # Errors
    /// When the mailbox or the journal is lost for good.
    pub async fn run(self: &Arc<Self>, stop: impl Future<Output = ()> + Send) -> Result<(), KeeperError> {
        // Of runs that were ended while it was packed, nobody else would remove it.
        self.forget_packed(Path::new(crate::away::TABLE))?;
        let _following = FollowedBy(self);
        for record in self.records.open_attempts()? {
            self.watch(record.attempt);
        }
        let _ending = EndsWith(&self.underway);
        tokio::pin!(stop);
        let mut answering: BTreeSet<ObjectName> = BTreeSet::new();
        let mut tasks = tokio::task::JoinSet::new();
        let mut patience = Patience::begin(self.mailbox.pace());
        loop {
            let listed = match self.mailbox.list_all("in/", REQUESTS_AT_ONCE * 4).await {
                Ok(listed) => listed,
                Err(error) if error.is_transient() => Vec::new(),
                Err(error) => return Err(KeeperError::failed("listing requests", error)),
            };
            for object in listed {
                let room = answering.len() < REQUESTS_AT_ONCE && !answering.contains(&object.name);
                if room && !self.is_answered(&object.name).await {
                    patience = Patience::begin(self.mailbox.pace());
                    answering.insert(object.name.clone());
                    let keeper = Arc::clone(self);
                    tasks.spawn(async move {
                        let name = object.name.clone();
                        // A task of its own, so that a defect in one answer ends that answer alone.
                        let served = tokio::spawn(async move { keeper.serve(&name).await }).await;
                        match served {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => tracing::warn!(request = %object.name, %error, "request not answered"),
                            Err(error) => tracing::error!(request = %object.name, %error, "request not answered"),
                        }
                        object.name
                    });
                }
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Ok(name) = done {
                        answering.remove(&name);
                    }
                }
                () = tokio::time::sleep(patience.pause()) => {}
            }
        }
    }

    async fn is_answered(&self, request: &ObjectName) -> bool {
        match answer_object(request) {
            Ok(name) => self.mailbox.head(&name).await.is_ok(),
            Err(_) => true,
        }
    }

    /// Answers one request.
    async fn serve(self: &Arc<Self>, object: &ObjectName) -> Result<(), KeeperError> {
        let reading = "reading a request";
        let bytes = match self.mailbox.get(object, REQUEST_BYTES).await {
            Err(StoreError::NotFound(_)) => return Ok(()),
            other => other.while_(reading)?,
        };
        let (id, outcome, digest) = match self.verified(&bytes) {
            Ok((request, _)) if object.as_str() != format!("in/{}", request.id) => {
                let error = KeeperError::failed(reading, "it stands under another name than its own");
                (request.id, outcome_of(error), sha256(&bytes))
            }
            Ok((request, digest)) => {
                let id = request.id.clone();
                let keeper = Arc::clone(self);
                // A task of its own, so that a defect ends this answer alone, and is told.
                let answered = tokio::spawn(async move { keeper.answer(&request).await }).await;
                let outcome = answered.unwrap_or_else(|_| {
                    Outcome::Failed("this keeper met a defect of its own; its log says where".to_owned())
                });
                (id, outcome, digest)
            }
            Err(error) => (String::new(), outcome_of(error), asked(&bytes)),
        };
        if let Outcome::Refused(refusal) = &outcome {
            tracing::warn!(request = %object, rule = %refusal.rule, "refused");
        }
        let reply = Reply {
            id,
            request: digest,
            outcome,
        };
        let payload = to_canonical_json(&reply).while_("writing a reply")?;
        let envelope = dsse::sign(&self.keys.signing, REPLY_PAYLOAD, &payload);
        let body = Bytes::from(dsse::to_bytes(&envelope).while_("writing a reply")?);
        match self.mailbox.put_new(&answer_object(object)?, body).await {
            Ok(()) | Err(StoreError::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(KeeperError::failed("writing a reply", error)),
        }
    }

    /// Opens a request that was signed by the pinned control plane. The first one that introduces
    /// itself is pinned.
    fn verified(&self, bytes: &[u8]) -> Result<(Request, Digest), KeeperError> {
        let reading = "reading a request";
        let envelope = dsse::from_bytes(bytes).while_(reading)?;
        let pinned: Option<String> = self.records.get("pinned", "control")?;
        let key = match pinned {
            Some(key) => key,
            None => {
                let request: Request =
                    serde_json::from_slice(&dsse::peek(&envelope).while_(reading)?).while_(reading)?;
                let RequestBody::Identify { control_key } = request.body else {
                    return Err(refuse(
                        "control-unknown",
                        reading,
                        "this keeper has not met its control plane yet",
                        "let the control plane introduce itself first",
                    )
                    .into());
                };
                control_key
            }
        };
        let key = VerifyingKey::from_base64(&key).while_(reading)?;
        let payload = dsse::open(&envelope, REQUEST_PAYLOAD, &key).map_err(|_| {
            refuse(
                "control-key",
                reading,
                "it is not signed by the control plane that this keeper knows",
                "use the control plane that this site met first, or restore its key",
            )
        })?;
        let request: Request = serde_json::from_slice(&payload).while_(reading)?;
        if request.site != self.site {
            return Err(KeeperError::failed(reading, "it is for another site"));
        }
        let batch = Batch::default().create("pinned", "control", value(&key.to_base64())?);
        self.records.commit_if(&batch)?;
        Ok((request, sha256(&payload)))
    }

    /// The pinned control plane's key, which also signs the ledger.
    pub(crate) fn control_key(&self) -> Result<VerifyingKey, KeeperError> {
        let pinned: Option<String> = self.records.get("pinned", "control")?;
        let text = pinned.ok_or_else(|| KeeperError::failed("reading the control plane's key", "there is none"))?;
        VerifyingKey::from_base64(&text).while_("reading the control plane's key")
    }

    async fn answer(self: &Arc<Self>, request: &Request) -> Outcome {
        let result = self.body(&request.body).await;
        match result {
            Ok(body) => Outcome::Done(Box::new(body)),
            Err(error) => {
                if let (KeeperError::Refused(refusal), Some(run)) = (&error, run_of(&request.body)) {
                    self.record_refusal(run, &refusal.rule);
                }
                outcome_of(error)
            }
        }
    }

    async fn body(self: &Arc<Self>, body: &RequestBody) -> Result<ReplyBody, KeeperError> {
        match body {
            RequestBody::Identify { .. } => Ok(ReplyBody::Identity {
                signing_key: self.keys.signing.public().to_base64(),
                checkpoint: self.records.checkpoint()?.unwrap_or_default(),
            }),
            RequestBody::Leaves { from } => self.leaves(*from),
            RequestBody::Cosign { proof } => Ok(ReplyBody::Cosigned {
                checkpoint: self.witness(proof, None)?,
            }),
            RequestBody::Analyse { pipeline } => self.analyse(pipeline).await,
            RequestBody::Prepare { run, pipeline } => self.prepare(run, pipeline).await,
            RequestBody::SignPermit {
                run,
                task,
                pipeline,
                artifact,
                to,
                worker,
                intent,
            } => {
                let wanted = Wanted {
                    run,
                    task,
                    artifact,
                    to,
                    worker: *worker,
                };
                self.sign_permit(&wanted, pipeline, intent).await
            }
            RequestBody::Send { permit } => self.send(permit).await,
            RequestBody::StartAttempt {
                attempt,
                pipeline,
                site,
                worker,
                permits,
            } => self.start_attempt(attempt, pipeline, site, *worker, permits).await,
            RequestBody::FetchCheckpoint { attempt, site } => self.fetch_checkpoint(attempt, site).await,
            RequestBody::RenewAccess { attempt, sealed } => self.renew_access(attempt, sealed),
            RequestBody::Machine { attempt, machine } => self.note_machine(attempt, machine),
            RequestBody::AwaitAttempt { attempt } => self.await_attempt(attempt).await,
            RequestBody::Fence { attempt, why } => self.fence(attempt, why),
            RequestBody::Evaluate { run, pipeline, model } => self.judge(run, pipeline, model, false).await,
            RequestBody::Refine { run, pipeline, model } => self.judge(run, pipeline, model, true).await,
            RequestBody::Release {
                run,
                pipeline,
                model,
                intent,
            } => self.release(run, pipeline, model, intent).await,
            RequestBody::Deploy {
                run,
                pipeline,
                bundle,
                to,
                permit,
            } => self.deploy(run, pipeline, bundle, to, permit.as_ref()).await,
        }
    }

    /// The pipeline of a text, checked against this site's own files, and its digest.
    pub(crate) fn pipeline(&self, text: &PipelineText) -> Result<(Pipeline, Digest), KeeperError> {
        let reading = "reading the pipeline";
        let pipeline = tidegate_types::files::read_pipeline(&text.file, &text.text).while_(reading)?;
        let refusals = tidegate_types::files::check_refusals(&self.catalog, &self.sites, &pipeline);
        if let Some(refusal) = refusals.into_iter().next() {
            return Err(refusal.into());
        }
        let digest = canonical_digest(text).while_(reading)?;
        Ok((pipeline, digest))
    }

    /// The pipeline that a run prepared.
    pub(crate) fn prepared_pipeline(&self, run: &RunId) -> Result<Pipeline, KeeperError> {
        let text: PipelineText = self
            .records
            .get("pipelines", run.as_str())?
            .ok_or_else(|| KeeperError::failed("reading a run's pipeline", "the run was not prepared"))?;
        Ok(self.pipeline(&text)?.0)
    }

    /// The dataset that a pipeline reads, which must be this site's and allow the purpose.
    pub(crate) fn dataset(&self, pipeline: &Pipeline) -> Result<&Dataset, KeeperError> {
        let name = &pipeline.prepare.from;
        let dataset = self
            .catalog
            .datasets
            .get(name)
            .filter(|dataset| dataset.site == self.site);
        let dataset = dataset.ok_or_else(|| {
            KeeperError::failed(
                "looking for the dataset",
                format!("the catalog of site `{}` has no dataset `{name}`", self.site),
            )
        })?;
        if !dataset.purposes.contains(&pipeline.purpose) {
            return Err(refuse(
                "purpose-not-in-catalog",
                format!("using dataset `{name}` for `{}`", pipeline.purpose),
                "the catalog does not list this purpose",
                "use one of the dataset's purposes, or let its owner add this one to the catalog",
            )
            .into());
        }
        Ok(dataset)
    }

    pub(crate) fn site_definition(&self, site: &SiteName) -> Result<&Site, KeeperError> {
        self.sites
            .sites
            .get(site)
            .ok_or_else(|| KeeperError::failed("looking for a site", format!("the sites file has no site `{site}`")))
    }

    pub(crate) fn store(&self, site: &SiteName) -> Result<&dyn Store, KeeperError> {
        self.stores
            .get(site)
            .map(|store| &**store)
            .ok_or_else(|| KeeperError::failed("opening a store", format!("site `{site}` has none here")))
    }

    pub(crate) fn stage_folder(&self) -> Result<PathBuf, KeeperError> {
        let folder = self.folder.join("work");
        std::fs::create_dir_all(&folder).while_("making the site's work folder")?;
        Ok(folder)
    }

    /// A path below the site's folder, as records keep it, so that the folder can be moved.
    pub(crate) fn relative(&self, path: &Path) -> Result<PathBuf, KeeperError> {
        path.strip_prefix(&self.folder)
            .map(Path::to_path_buf)
            .while_("keeping a path below the site's folder")
    }
}

/// What a reply to a request that cannot be trusted names it by: whoever sent it waits for an answer to
/// what is in the envelope.
fn asked(envelope: &[u8]) -> Digest {
    let payload = dsse::from_bytes(envelope).and_then(|envelope| dsse::peek(&envelope));
    payload.map_or_else(|_| sha256(envelope), |payload| sha256(&payload))
}

fn outcome_of(error: KeeperError) -> Outcome {
    match error {
        KeeperError::Refused(refusal) => Outcome::Refused(refusal),
        KeeperError::Input(why) => Outcome::Input(why),
        failed @ KeeperError::Failed { .. } => Outcome::Failed(failed.to_string()),
    }
}

fn answer_object(request: &ObjectName) -> Result<ObjectName, KeeperError> {
    let id = request.as_str().strip_prefix("in/").unwrap_or_default();
    ObjectName::new(format!("out/{id}")).while_("naming a reply")
}

fn run_of(body: &RequestBody) -> Option<&RunId> {
    match body {
        RequestBody::Prepare { run, .. }
        | RequestBody::SignPermit { run, .. }
        | RequestBody::Evaluate { run, .. }
        | RequestBody::Refine { run, .. }
        | RequestBody::Release { run, .. }
        | RequestBody::Deploy { run, .. } => Some(run),
        RequestBody::FetchCheckpoint { attempt, .. }
        | RequestBody::StartAttempt { attempt, .. }
        | RequestBody::RenewAccess { attempt, .. }
        | RequestBody::Machine { attempt, .. }
        | RequestBody::AwaitAttempt { attempt }
        | RequestBody::Fence { attempt, .. } => Some(&attempt.run),
        RequestBody::Identify { .. }
        | RequestBody::Leaves { .. }
        | RequestBody::Cosign { .. }
        | RequestBody::Analyse { .. }
        | RequestBody::Send { .. } => None,
    }
}
