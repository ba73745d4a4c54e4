//! `plan` and `run`.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use tidegate_engine::{ControlKey, Engine, EngineError, Progress, Setup, WorkerProgram};
use tidegate_local::{FolderStore, SqliteJournal};
use tidegate_plan::Step;
use tidegate_types::ids::{RunId, SiteName};
use tidegate_types::refusal::Refusal;

use crate::cli::{Format, Until};
use crate::drivers;
use crate::failure::{Failure, While};
use crate::keeper_process::{EmbeddedKeeper, lock, try_lock};
use crate::programs::{Program, Programs};
use crate::project::{Project, State, now};
use crate::screen::Screen;
use crate::show;
use crate::stores::SiteStores;

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
    /// At most so many rows are read.
    pub(crate) sample: Option<u64>,
    pub(crate) embedded_keeper: bool,
    pub(crate) format: Format,
}

impl Options {
    /// How far to go. A model of a sample is judged, and goes nowhere.
    fn last_step(&self) -> Result<Option<Step>, Failure> {
        let last = self.until.map(Step::from);
        match (self.sample, last) {
            (None, last) => Ok(last),
            (Some(_), None) => Ok(Some(Step::Refine)),
            (Some(_), Some(last)) if last <= Step::Refine => Ok(Some(last)),
            (Some(rows), Some(last)) => Err(Failure::Refused(Refusal {
                rule: "sample".to_owned(),
                what: format!("running up to `{}` with a sample of {rows} rows", last.as_str()),
                why: "what a sample taught is for trying things out, and its figures hold for nobody else".to_owned(),
                fix: "leave out `--sample`, or stop at `--until refine`".to_owned(),
            })),
        }
    }
}

/// Plans, and prints the plan or its SQL.
pub(crate) async fn plan(project: &Project, sql: bool, options: &Options) -> Result<(), Failure> {
    let last = options.last_step()?;
    let session = Session::open(project, options).await?;
    let planned = session.engine.plan(last).await;
    session.close().await;
    let planned = planned?;
    match (sql, options.format) {
        (true, Format::Text) => show::line(&planned.labels.sql),
        (true, Format::Json) => show::json(&serde_json::json!({"sql": planned.labels.sql})),
        (false, Format::Text) => show::print(&planned.report.render(&planned.plan)),
        (false, Format::Json) => show::json(&serde_json::json!({"plan": planned.plan, "report": planned.report})),
    }
}

/// Plans, asks, runs, and prints the summary.
pub(crate) async fn run(project: &Project, options: &Options) -> Result<(), Failure> {
    let last = options.last_step()?;
    let session = Session::open(project, options).await?;
    let result = run_in(&session, last, options).await;
    session.close().await;
    result
}

/// Ends what runs on one site, or on all of them, with the runs that were interrupted.
pub(crate) async fn down(project: &Project, site: Option<&str>, options: &Options) -> Result<(), Failure> {
    let Some(lock) = try_lock(&project.layout.control_lock())? else {
        let why = "a process goes on with a run: end that with `tidegate cancel` first";
        return Err(Failure::Usage(why.to_owned()));
    };
    let sites: Vec<SiteName> = match site {
        Some(name) => {
            let name = SiteName::new(name).map_err(|error| Failure::Usage(error.to_string()))?;
            let offers = project
                .sites
                .sites
                .get(&name)
                .is_some_and(|site| site.compute.is_some());
            if !offers {
                return Err(Failure::Usage(format!(
                    "the sites file has no site `{name}` with `compute:`"
                )));
            }
            vec![name]
        }
        None => {
            let sites = project.sites.sites.iter().filter(|(_, site)| site.compute.is_some());
            sites.map(|(name, _)| name.clone()).collect()
        }
    };
    let session = Session::with(project, options, lock)?;
    let ended = end(&session.engine, &sites, site.is_none()).await;
    session.close().await;
    let (cancelled, ended) = ended?;
    if options.format == Format::Json {
        return show::json(&serde_json::json!({"cancelled": cancelled, "ended": ended}));
    }
    for run in &cancelled {
        show::line(&format!("Run {run} is cancelled."))?;
    }
    for (site, jobs) in &ended {
        match jobs.as_slice() {
            [] => show::line(&format!("Site {site}: nothing runs."))?,
            jobs => show::line(&format!("Site {site}: ended {}. Nothing is left.", jobs.join(", ")))?,
        }
    }
    Ok(())
}

/// The runs that were cancelled, and the jobs that were ended, by site. One that is out of reach keeps nobody from ending
/// what runs at the others.
async fn end(
    engine: &Engine,
    sites: &[SiteName],
    runs_too: bool,
) -> Result<(Vec<RunId>, BTreeMap<SiteName, Vec<String>>), Failure> {
    let mut ended = BTreeMap::new();
    let mut failure = None;
    // What costs is ended first: that needs no keeper.
    for site in sites {
        match engine.end_all(site).await {
            Ok(jobs) => _ = ended.insert(site.clone(), jobs),
            Err(error) => failure = Some(error),
        }
    }
    let runs = if runs_too { engine.interrupted()? } else { Vec::new() };
    for run in &runs {
        engine.cancel(run).await?;
    }
    match failure {
        None => Ok((runs, ended)),
        Some(error) => Err(error.into()),
    }
}

/// Asks a run to stop. The process that goes on with it notices; where there is none, the run is stopped
/// here.
pub(crate) async fn cancel(state: &State, name: &str, options: &Options) -> Result<(), Failure> {
    let asking = "asking the run to stop";
    let run = super::status::running(state, name)?;
    let file = state.layout.cancel(&run);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).while_(asking)?;
    }
    std::fs::write(&file, b"").while_(asking)?;
    let say = |status: &str, text: String| match options.format {
        Format::Text => show::line(&text),
        Format::Json => show::json(&serde_json::json!({"run": name, "status": status})),
    };
    let Some(lock) = try_lock(&state.layout.control_lock())? else {
        return say(
            "asked",
            format!("Run {name} was asked to stop: the process that runs it says when it has."),
        );
    };
    // It may have ended in the meantime.
    if super::status::running(state, name).is_err() {
        return say("ended", format!("Run {name} has ended."));
    }
    let session = Session::with(&Project::open(&state.file, None)?, options, lock)?;
    let cancelled = session.engine.cancel(&run).await;
    session.close().await;
    cancelled?;
    say(
        "cancelled",
        format!("Run {name} is cancelled: its attempts are fenced, and no output of them will be accepted."),
    )
}

async fn run_in(session: &Session, last: Option<Step>, options: &Options) -> Result<(), Failure> {
    let planned = session.engine.plan(last).await?;
    if options.format == Format::Text {
        let mut text = planned.report.render(&planned.plan);
        if let Some(rows) = options.sample {
            text.push_str(&format!(
                "A sample of at most {rows} rows: nothing is released from this run.\n"
            ));
        }
        match show::print(&text) {
            // Whoever does not read the plan may still want the run.
            Ok(()) | Err(Failure::ReaderGone) => {}
            Err(failure) => return Err(failure),
        }
    }
    if !options.yes {
        confirm()?;
    }
    let summary = session.engine.run(&planned).await?;
    session.screen.finish();
    match options.format {
        Format::Text => show::print(&show::summary(
            &summary,
            session.project_file.as_str(),
            Some(&session.home),
        )),
        Format::Json => show::json(&summary),
    }
}

/// Takes what the keeper recorded since the last run into the ledger.
pub(crate) async fn settle(project: &Project, format: Format) -> Result<(), Failure> {
    let options = Options {
        yes: false,
        until: None,
        sample: None,
        embedded_keeper: true,
        format,
    };
    let session = Session::open(project, &options).await?;
    let settled = session.engine.settle().await;
    session.close().await;
    Ok(settled?)
}

fn confirm() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "this run would move data, and nobody can be asked here; add `--yes` once you have read the plan"
                .to_owned(),
        ));
    }
    let mut asked = std::io::stderr();
    asked
        .write_all(b"Run this plan? [y/N] ")
        .and_then(|()| asked.flush())
        .while_("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).while_("asking")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::Stopped("nothing was run".to_owned()))
    }
}

/// How a program works. Where it is on this machine it remembers its digest beside the folder of the site's driver, as its
/// jobs see it.
fn worker(program: Program) -> WorkerProgram {
    let name = program.path.file_name().unwrap_or_default().to_string_lossy();
    let memory = format!("../../{name}.json");
    let words = ["worker", "--memory", &memory].map(str::to_owned);
    WorkerProgram {
        command: std::iter::once(program.path.display().to_string())
            .chain(words)
            .collect(),
        digest: program.digest,
    }
}

/// An engine with everything around it.
struct Session {
    engine: Engine,
    keeper: Option<EmbeddedKeeper>,
    screen: Arc<Screen>,
    project_file: String,
    home: SiteName,
    _lock: std::fs::File,
}

impl Session {
    async fn open(project: &Project, options: &Options) -> Result<Self, Failure> {
        let lock = lock(&project.layout.control_lock()).await?;
        Self::with(project, options, lock)
    }

    fn with(project: &Project, options: &Options, lock: std::fs::File) -> Result<Self, Failure> {
        let opening = "opening the control plane";
        let layout = &project.layout;
        let home = project.home()?;
        let format = options.format;
        let keeper = if options.embedded_keeper {
            Some(EmbeddedKeeper::start(project, &home, format)?)
        } else {
            None
        };
        let lost = keeper.as_ref().map(EmbeddedKeeper::watch);
        let program = std::env::current_exe().while_(opening)?;
        let programs = Programs::of(&layout.control())?;
        let screen = Arc::new(Screen::new(format));
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
            mailbox: Arc::new(FolderStore::open_mailbox(layout.mailbox(&home)).while_(opening)?),
            compute: drivers::open(project, &programs)?,
            stores: Arc::new(SiteStores::of(project)),
            home_worker: worker(programs.home),
            worker: worker(programs.elsewhere),
            // The site publishes its own recipient: its keys never pass through this process.
            enrol: Arc::new(move |site, owner| {
                let status = std::process::Command::new(&enrol_program)
                    .arg("enrol")
                    .arg(&enrolling)
                    .args(["--site", site.as_str(), "--owner", owner])
                    .args(["--format", format.as_str()])
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
