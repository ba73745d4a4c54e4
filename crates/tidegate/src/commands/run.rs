//! `plan` and `run`.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use tidegate_contracts::compute::Compute;
use tidegate_engine::{ControlKey, Engine, EngineError, Progress, Setup, WorkerProgram};
use tidegate_local::{FolderStore, ProcessDriver, SqliteJournal};
use tidegate_plan::Step;
use tidegate_types::files::sites::SiteKind;
use tidegate_types::ids::SiteName;

use crate::cli::{Format, Until};
use crate::failure::{Failure, While};
use crate::keeper_process::{EmbeddedKeeper, lock, program_digest};
use crate::project::{Project, now};
use crate::show;

impl From<Until> for Step {
    fn from(until: Until) -> Self {
        match until {
            Until::Prepare => Self::Prepare,
            Until::Train => Self::Train,
            Until::Evaluate => Self::Evaluate,
            Until::Refine => Self::Refine,
            Until::Release => Self::Release,
            Until::Deploy => Self::Deploy,
        }
    }
}

/// How a run is asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) yes: bool,
    pub(crate) until: Option<Until>,
    pub(crate) embedded_keeper: bool,
    pub(crate) format: Format,
}

/// Plans, and prints the plan or its SQL.
pub(crate) async fn plan(project: &Project, sql: bool, options: &Options) -> Result<(), Failure> {
    let session = Session::open(project, options).await?;
    let planned = session.engine.plan(options.until.map(Step::from)).await;
    let result = planned.map(|planned| match (sql, options.format) {
        (true, _) => println!("{}", planned.labels.sql),
        (false, Format::Text) => print!("{}", planned.report.render(&planned.plan)),
        (false, Format::Json) => show::json(&serde_json::json!({"plan": planned.plan, "report": planned.report})),
    });
    session.close().await;
    Ok(result?)
}

/// Plans, asks, runs, and prints the summary.
pub(crate) async fn run(project: &Project, options: &Options) -> Result<(), Failure> {
    let session = Session::open(project, options).await?;
    let result = run_in(&session, options).await;
    session.close().await;
    result
}

async fn run_in(session: &Session, options: &Options) -> Result<(), Failure> {
    let planned = session.engine.plan(options.until.map(Step::from)).await?;
    if options.format == Format::Text {
        print!("{}", planned.report.render(&planned.plan));
    }
    if !options.yes {
        confirm()?;
    }
    let summary = session.engine.run(&planned).await?;
    session.screen.finish();
    match options.format {
        Format::Text => print!(
            "{}",
            show::summary(&summary, session.project_file.as_str(), Some(&session.home))
        ),
        Format::Json => show::json(&summary),
    }
    Ok(())
}

fn confirm() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "this run would move data, and nobody can be asked here; add `--yes` once you have read the plan"
                .to_owned(),
        ));
    }
    eprint!("Run this plan? [y/N] ");
    std::io::stderr().flush().while_("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).while_("asking")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::Stopped("nothing was run".to_owned()))
    }
}

/// An engine with everything around it.
struct Session {
    engine: Engine,
    keeper: Option<EmbeddedKeeper>,
    screen: Arc<show::Screen>,
    project_file: String,
    home: SiteName,
    _lock: std::fs::File,
}

impl Session {
    async fn open(project: &Project, options: &Options) -> Result<Self, Failure> {
        let opening = "opening the control plane";
        let layout = &project.layout;
        let lock = lock(&layout.control().join("control.lock")).await?;
        let home = project.home()?;
        let keeper = if options.embedded_keeper {
            Some(EmbeddedKeeper::start(project, &home)?)
        } else {
            None
        };
        let lost = keeper.as_ref().map(EmbeddedKeeper::watch);
        let program = std::env::current_exe().while_(opening)?;
        let digest = program_digest()?;
        let screen = Arc::new(show::Screen::new(options.format));
        let shown = Arc::clone(&screen);
        let cancel = layout.clone();
        let (enrolling, enrol_program) = (project.file.clone(), program.clone());
        let enrol_home = layout.root().to_path_buf();
        let engine = Engine::open(Setup {
            catalog: project.catalog.clone(),
            sites: project.sites.clone(),
            pipeline: project.pipeline.clone(),
            text: project.text.clone(),
            policies: project.policies.clone(),
            journal: Arc::new(SqliteJournal::open(layout.journal()).while_(opening)?),
            key: Arc::new(ControlKey::open(&layout.control_key())?),
            ledger_folder: layout.ledger(),
            mailbox: Arc::new(FolderStore::open(layout.mailbox(&home)).while_(opening)?),
            compute: drivers(project)?,
            addresses: project
                .sites
                .sites
                .keys()
                .map(|site| (site.clone(), format!("folder:{}", project.store_folder(site).display())))
                .collect(),
            worker: WorkerProgram {
                command: vec![program.display().to_string(), "worker".to_owned()],
                digest,
            },
            // The site publishes its own recipient: its keys never pass through this process.
            enrol: Arc::new(move |site, owner| {
                let status = std::process::Command::new(&enrol_program)
                    .arg("enrol")
                    .arg(&enrolling)
                    .args(["--site", site.as_str(), "--owner", owner])
                    .env("TIDEGATE_HOME", &enrol_home)
                    .status()
                    .map_err(|error| error.to_string())?;
                if status.success() {
                    Ok(())
                } else {
                    Err(format!("site `{site}` could not publish its recipient"))
                }
            }),
            watchdog: Arc::new(move || match lost.as_ref().and_then(|lost| lost()) {
                Some(why) => Err(EngineError::Failed {
                    what: "waiting for the keeper".to_owned(),
                    why,
                }),
                None => Ok(()),
            }),
            cancelled: Arc::new(move |run| cancel.cancel(run).exists()),
            progress: Arc::new(move |progress: &Progress| shown.show(progress)),
            clock: now,
        })?;
        Ok(Self {
            engine,
            keeper,
            screen,
            project_file: project.file.display().to_string(),
            home,
            _lock: lock,
        })
    }

    async fn close(self) {
        self.screen.finish();
        if let Some(keeper) = self.keeper {
            keeper.stop().await;
        }
    }
}

/// A driver for every site that has compute. Jobs on a private site are driven from the control
/// plane's own folder, so that the private folder stays the keeper's alone.
fn drivers(project: &Project) -> Result<BTreeMap<SiteName, Arc<dyn Compute>>, Failure> {
    let mut drivers: BTreeMap<SiteName, Arc<dyn Compute>> = BTreeMap::new();
    for (name, site) in &project.sites.sites {
        if site.compute.is_none() {
            continue;
        }
        let folder = if site.kind == SiteKind::Private {
            project.layout.control().join("compute").join(name.as_str())
        } else {
            project.layout.site(name).join("compute")
        };
        let driver = ProcessDriver::open(folder).while_("opening a driver")?;
        drivers.insert(name.clone(), Arc::new(driver));
    }
    Ok(drivers)
}
