//! One run, from its plan to its summary.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_contracts::compute::Compute;
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_contracts::later::Later;
use tidegate_contracts::store::{Store, WorkerStores};
use tidegate_plan::PlannedTask;
use tidegate_policy::PolicySet;
use tidegate_types::digest::Digest;
use tidegate_types::event::EventType;
use tidegate_types::files::{Catalog, Pipeline, Sites};
use tidegate_types::ids::{RunId, SiteName};
use tidegate_types::keeper::PipelineText;
use tidegate_types::quantity::Money;
use tidegate_types::refusal::Refusal;

use crate::client::{KeeperClient, Watchdog};
use crate::error::{EngineError, While};
use crate::key::ControlKey;
use crate::ledger::{Fact, LedgerBook};
use crate::planning::Planned;
use crate::progress::Progress;
use crate::state::{RunRecord, RunStatus, TaskState, get, put, scan, value};
use crate::summary::Summary;

/// How often a run that waits looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a cancelled run waits for the keeper's last words.
const CLOSING: Duration = Duration::from_secs(2);

/// The worker program and how it is started.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    /// The program and its arguments; the ticket comes on standard input.
    pub command: Vec<String>,
    /// SHA-256 of the program's file, or why it cannot be read.
    pub digest: Later<Result<Digest, String>>,
}

/// Lets a site publish its recipient, given the owner keeper's public key.
pub type Enrol = dyn Fn(&SiteName, &str) -> Result<(), String> + Send + Sync;

/// What an engine is made of.
pub struct Setup {
    /// The owner's statement about data, as the engineer sees it.
    pub catalog: Catalog,
    /// The platform's statement about places.
    pub sites: Sites,
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The pipeline's texts.
    pub text: PipelineText,
    /// What is asked when planning.
    pub policies: PolicySet,
    /// State that survives a crash.
    pub journal: Arc<dyn Journal>,
    /// Signs requests and the ledger.
    pub key: Arc<ControlKey>,
    /// Where the ledger's files are.
    pub ledger_folder: PathBuf,
    /// The mailbox of the home site's keeper.
    pub mailbox: Arc<dyn Store>,
    /// Drivers by site.
    pub compute: BTreeMap<SiteName, Arc<dyn Compute>>,
    /// Lets workers into the stores of their sites.
    pub stores: Arc<dyn WorkerStores>,
    /// The worker at the site of the data, which prepares and judges there too.
    pub home_worker: WorkerProgram,
    /// The worker at all other sites.
    pub worker: WorkerProgram,
    /// Lets a site that serves publish its recipient; called before a bundle crosses to it.
    pub enrol: Arc<Enrol>,
    /// Says whether waiting for the keeper still makes sense.
    pub watchdog: Watchdog,
    /// Whether somebody asked to cancel the run.
    pub cancelled: Arc<dyn Fn(&RunId) -> bool + Send + Sync>,
    /// Hears what happens.
    pub progress: Arc<dyn Fn(&Progress) + Send + Sync>,
    /// Unix time in seconds.
    pub clock: fn() -> u64,
}

/// The engine over one pipeline.
pub struct Engine {
    pub(crate) catalog: Catalog,
    pub(crate) sites: Sites,
    pub(crate) pipeline: Pipeline,
    pub(crate) text: PipelineText,
    pub(crate) policies: PolicySet,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) ledger: LedgerBook,
    pub(crate) keeper: KeeperClient,
    pub(crate) home: SiteName,
    pub(crate) compute: BTreeMap<SiteName, Arc<dyn Compute>>,
    /// Whose jobs these are: another control plane of the same organisation may use the same machines.
    pub(crate) owner: String,
    pub(crate) stores: Arc<dyn WorkerStores>,
    /// Who may ask a site for a machine at once: clouds count such requests.
    pub(crate) starting: tokio::sync::Semaphore,
    home_worker: WorkerProgram,
    worker: WorkerProgram,
    pub(crate) enrol: Arc<Enrol>,
    pub(crate) cancelled: Arc<dyn Fn(&RunId) -> bool + Send + Sync>,
    pub(crate) progress: Arc<dyn Fn(&Progress) + Send + Sync>,
    pub(crate) clock: fn() -> u64,
}

/// Machines that are asked for at the same time.
const STARTS_AT_ONCE: usize = 4;

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("pipeline", &self.pipeline.name)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Wires an engine.
    ///
    /// # Errors
    /// When the pipeline's dataset is not in the catalog, or the ledger cannot be opened.
    pub fn open(setup: Setup) -> Result<Self, EngineError> {
        let dataset = setup
            .catalog
            .datasets
            .get(&setup.pipeline.prepare.from)
            .ok_or_else(|| {
                EngineError::failed(
                    "looking for the dataset",
                    format!("the catalog has no dataset `{}`", setup.pipeline.prepare.from),
                )
            })?;
        let home = dataset.site.clone();
        let keeper = KeeperClient::new(
            home.clone(),
            setup.mailbox,
            Arc::clone(&setup.key),
            Arc::clone(&setup.journal),
            setup.watchdog,
        );
        let origin = format!("tidegate.dev/{}", setup.sites.organisation);
        let key_id: String = setup.key.public().key_id().chars().take(16).collect();
        let owner = format!("{}/{key_id}", setup.sites.organisation);
        let ledger = LedgerBook::open(
            &origin,
            Arc::clone(&setup.journal),
            setup.key,
            setup.ledger_folder,
            setup.clock,
        )?;
        Ok(Self {
            catalog: setup.catalog,
            sites: setup.sites,
            pipeline: setup.pipeline,
            text: setup.text,
            policies: setup.policies,
            journal: setup.journal,
            ledger,
            keeper,
            home,
            compute: setup.compute,
            owner,
            stores: setup.stores,
            starting: tokio::sync::Semaphore::new(STARTS_AT_ONCE),
            home_worker: setup.home_worker,
            worker: setup.worker,
            enrol: setup.enrol,
            cancelled: setup.cancelled,
            progress: setup.progress,
            clock: setup.clock,
        })
    }

    /// The worker at a site.
    pub(crate) fn worker(&self, site: &SiteName) -> &WorkerProgram {
        if *site == self.home {
            &self.home_worker
        } else {
            &self.worker
        }
    }

    /// What the keeper knows the worker program at a site by.
    pub(crate) fn worker_digest(&self, site: &SiteName) -> Result<Digest, EngineError> {
        let digest = self.worker(site).digest.get();
        digest.clone().while_("reading the worker program")
    }

    /// The ledger.
    #[must_use]
    pub const fn ledger(&self) -> &LedgerBook {
        &self.ledger
    }

    /// Runs a plan, or continues the run of the same plan that was interrupted. A run that ended, well
    /// or not, is never continued: a new one begins, and uses every step's result that is there. A run of
    /// this pipeline that was interrupted under another plan ends with that: nobody can continue it.
    ///
    /// # Errors
    /// What stopped it. The run's record says so too.
    pub async fn run(&self, planned: &Planned) -> Result<Summary, EngineError> {
        let began = Instant::now();
        let (mut record, resumed) = self.begin(planned)?;
        (self.progress)(&Progress::Started {
            run: record.id.clone(),
            resumed,
            tasks: planned.plan.tasks.len() as u64,
        });
        if let Err(error) = self.abandon(None, "lost").await {
            tracing::warn!(run = %record.id, %error, "attempts of earlier runs are fenced by the next run");
        }
        self.supersede(&record).await?;
        let result = self.tasks(&mut record, &planned.plan, began).await;
        self.conclude(&mut record, &result).await?;
        let mut summary = result?;
        let head = self.ledger.render()?;
        summary.ledger.size = head.checkpoint().size;
        summary.ledger.root = head.checkpoint().root.to_hex();
        summary.seconds = began.elapsed().as_secs_f64();
        record.summary = Some(summary.clone());
        put(&*self.journal, "runs", record.id.as_str(), &record)?;
        Ok(summary)
    }

    /// Stops a run that was interrupted and that no process goes on with: its attempts are fenced, what
    /// runs for it is ended, and its record says so.
    ///
    /// # Errors
    /// When there is no such run, it has ended already, or the keeper is out of reach.
    pub async fn cancel(&self, run: &RunId) -> Result<(), EngineError> {
        let cancelling = "cancelling a run";
        let record: Option<RunRecord> = get(&*self.journal, "runs", run.as_str())?;
        let mut record = record.ok_or_else(|| EngineError::failed(cancelling, format!("there is no run `{run}`")))?;
        if record.status != RunStatus::Running {
            let why = format!("run `{run}` is {} already", record.status.as_str());
            return Err(EngineError::failed(cancelling, why));
        }
        self.keeper.sweep().await?;
        self.conclude(&mut record, &Err(EngineError::Cancelled(run.to_string())))
            .await
    }

    /// The runs that were interrupted, and have not ended.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn interrupted(&self) -> Result<Vec<RunId>, EngineError> {
        let runs: Vec<RunRecord> = scan(&*self.journal, "runs", "")?;
        let open = runs.into_iter().filter(|run| run.status == RunStatus::Running);
        Ok(open.map(|run| run.id).collect())
    }

    /// Takes what the keeper recorded since the last run into the ledger, and has the ledger cosigned.
    ///
    /// # Errors
    /// When the keeper is out of reach.
    pub async fn settle(&self) -> Result<(), EngineError> {
        self.keeper.sweep().await?;
        if let Some(entry) = self.collect().await? {
            self.cosign(&entry).await?;
        }
        Ok(())
    }

    /// Ends the interrupted runs whose place `record` takes. Whoever runs holds the state folder alone, so
    /// that no process goes on with any of them.
    async fn supersede(&self, record: &RunRecord) -> Result<(), EngineError> {
        let runs: Vec<RunRecord> = scan(&*self.journal, "runs", "")?;
        let open = runs
            .into_iter()
            .filter(|run| run.status == RunStatus::Running && run.pipeline == record.pipeline && run.id != record.id);
        for mut run in open {
            let why = format!(
                "it was interrupted, then its files were changed; run `{}` took its place",
                record.id
            );
            let ended = EngineError::failed(format!("continuing run `{}`", run.id), why);
            self.conclude(&mut run, &Err(ended)).await?;
        }
        Ok(())
    }

    /// Ends a run in journal and ledger; nothing runs for it afterwards.
    async fn conclude(&self, record: &mut RunRecord, result: &Result<Summary, EngineError>) -> Result<(), EngineError> {
        let (status, why, fence) = match result {
            Ok(_) => (RunStatus::Done, String::new(), "done"),
            Err(EngineError::Refused(refusal)) => (RunStatus::Refused, refusal.to_string(), "refused"),
            Err(EngineError::Cancelled(_)) => (RunStatus::Cancelled, "cancelled".to_owned(), "cancelled"),
            Err(error) => (RunStatus::Failed, error.to_string(), "failed"),
        };
        if let Err(error) = self.close(status, self.abandon(Some(&record.id), fence)).await {
            tracing::warn!(run = %record.id, %error, "attempts of this run are fenced by the next run");
        }
        // An attempt that was stopped may have copied something, too.
        if let Err(error) = self.close(status, self.settle_copies(record, None)).await {
            tracing::warn!(run = %record.id, %error, "what was copied between sites could not be told");
        }
        record.status = status;
        record.why = why;
        record.cost = Some(self.cost(record)?);
        if let Ok(summary) = result {
            record.summary = Some(summary.clone());
        }
        let mut fact = Fact::new(EventType::RunEnded, record.id.as_str()).name("status", status.as_str());
        if let Err(EngineError::Refused(refusal)) = result {
            fact = fact.name("rule", &refusal.rule);
        }
        if let Err(error) = self.close(status, self.collect()).await {
            tracing::warn!(run = %record.id, %error, "the keeper's entries come into the ledger with the next run");
        }
        let batch = Batch::default().set("runs", record.id.as_str(), value(&record)?);
        let (batch, entry) = self.ledger.add(batch, &fact)?;
        self.journal.commit(&batch).while_("ending the run")?;
        if let Err(error) = self.close(status, self.cosign(&entry)).await {
            tracing::warn!(run = %record.id, %error, "the end of the run is not cosigned");
            self.ledger.render()?;
        }
        Ok(())
    }

    /// The unfinished run of this plan, or a new one.
    fn begin(&self, planned: &Planned) -> Result<(RunRecord, bool), EngineError> {
        let runs: Vec<RunRecord> = scan(&*self.journal, "runs", "")?;
        let open = runs
            .into_iter()
            .find(|run| run.key == planned.key && run.status == RunStatus::Running);
        if let Some(record) = open {
            return Ok((record, true));
        }
        let started = (self.clock)();
        let record = RunRecord {
            id: self.new_run_id(started)?,
            key: planned.key,
            pipeline: self.pipeline.name.to_string(),
            started,
            status: RunStatus::Running,
            why: String::new(),
            tasks: BTreeMap::new(),
            cost: None,
            summary: None,
        };
        let fact = Fact::new(EventType::RunStarted, record.id.as_str())
            .digest("plan", planned.key)
            .name("pipeline", &record.pipeline);
        let batch = Batch::default().create("runs", record.id.as_str(), value(&record)?);
        let (batch, _) = self.ledger.add(batch, &fact)?;
        self.journal.commit(&batch).while_("starting a run")?;
        Ok((record, false))
    }

    fn new_run_id(&self, started: u64) -> Result<RunId, EngineError> {
        let naming = "naming the run";
        let time = i64::try_from(started).while_(naming)?;
        let stamp = jiff::Timestamp::from_second(time)
            .while_(naming)?
            .strftime("%Y%m%d-%H%M%S")
            .to_string();
        let name: String = self.pipeline.name.as_str().chars().take(30).collect();
        let random: [u8; 3] = tidegate_seal::random::random_bytes().while_(naming)?;
        RunId::new(format!("{name}-{stamp}-{}", hex::encode(random))).while_(naming)
    }

    /// Does one task: tells that it begins and ends, and records how long it took and what it cost.
    /// Whatever stops the run is noticed while the task goes on; the work is then dropped where it is,
    /// which is what being killed there would do.
    pub(crate) async fn task<T>(
        &self,
        record: &mut RunRecord,
        planned: &PlannedTask,
        work: impl Future<Output = Result<(T, bool), EngineError>>,
    ) -> Result<T, EngineError> {
        let task = &planned.task;
        self.may_go_on(record, Money::ZERO)?;
        let began = Instant::now();
        (self.progress)(&Progress::TaskStarted {
            task: task.clone(),
            site: planned.site.clone(),
        });
        let mut work = std::pin::pin!(work);
        let (result, reused) = loop {
            tokio::select! {
                done = &mut work => break done?,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let running = self.time_cost(planned, began.elapsed());
            self.may_go_on(record, running.unwrap_or_default())?;
        };
        // A model that this run trained before it was interrupted was paid for all the same.
        let cost = if self.is_paid_by_attempt(planned) {
            self.jobs_cost(&record.id, Some(task))?
        } else if reused {
            Some(Money::ZERO)
        } else {
            self.time_cost(planned, began.elapsed())
        };
        let state = TaskState {
            reused,
            milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            cost,
        };
        (self.progress)(&Progress::TaskDone {
            task: task.clone(),
            reused,
            seconds: began.elapsed().as_secs_f64(),
        });
        record.tasks.entry(task.clone()).or_insert(state);
        put(&*self.journal, "runs", record.id.as_str(), record)?;
        Ok(result)
    }

    /// Something that closes a run. A run that was cancelled does not wait for it: whatever is missing
    /// comes into the ledger with the next run.
    pub(crate) async fn close<T>(
        &self,
        status: RunStatus,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        if status != RunStatus::Cancelled {
            return work.await;
        }
        tokio::time::timeout(CLOSING, work)
            .await
            .unwrap_or_else(|_| Err(EngineError::failed("closing a cancelled run", "the keeper is at work")))
    }

    /// Whether a run may begin or go on with something: nobody cancelled it, and neither its deadline
    /// nor its budget has passed. `running` is what the current task has cost that is in no account yet.
    pub(crate) fn may_go_on(&self, record: &RunRecord, running: Money) -> Result<(), EngineError> {
        if (self.cancelled)(&record.id) {
            return Err(EngineError::Cancelled(record.id.to_string()));
        }
        self.check_deadline(record)?;
        self.check_budget(record, running)
    }

    /// Refuses to go on after the pipeline's deadline, counted from the run's start.
    fn check_deadline(&self, record: &RunRecord) -> Result<(), EngineError> {
        let Some(limit) = self.pipeline.deadline else {
            return Ok(());
        };
        let passed = (self.clock)().saturating_sub(record.started);
        if passed <= limit.0 {
            return Ok(());
        }
        Err(Refusal {
            rule: "deadline".to_owned(),
            what: format!("going on with run `{}`", record.id),
            why: format!("it started {passed} s ago, and must have ended after {} s", limit.0),
            fix: "raise `deadline:` and run the pipeline again: finished steps are used".to_owned(),
        }
        .into())
    }

    /// The result of a step with this key, from this or an earlier run.
    pub(crate) fn step<T: serde::de::DeserializeOwned>(&self, key: &Digest) -> Result<Option<T>, EngineError> {
        get(&*self.journal, "steps", &key.to_hex())
    }
}
