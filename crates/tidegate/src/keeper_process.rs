//! The keeper as a process: how it is run, and how an embedded one is started and kept alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_contracts::later::Later;
use tidegate_contracts::store::Store;
use tidegate_keeper::{Keeper, Setup};
use tidegate_local::{FolderStore, SqliteJournal};
use tidegate_types::digest::Digest;
use tidegate_types::ids::SiteName;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::programs::Programs;
use crate::project::{Project, now};
use crate::stages::Rows;
use crate::{drivers, stores};

/// How long a keeper waits for the one before it to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// How often a keeper that ended by itself is started again.
const RESTARTS: u32 = 5;

/// Runs the keeper of `site` until its standard input ends, or with `stay` until a signal.
pub(crate) async fn run(project: &Project, site: &SiteName, stay: bool) -> Result<(), Failure> {
    let starting = "starting the keeper";
    let folder = project.layout.site(site);
    std::fs::create_dir_all(&folder).while_(starting)?;
    let _lock = lock(&folder.join("keeper.lock")).await?;
    let mut opened: BTreeMap<SiteName, Arc<dyn Store>> = BTreeMap::new();
    let environment = stores::environment();
    for (name, site) in &project.sites.sites {
        let store = stores::open_paced(&project.store_address(name), &environment, site.transfer.as_ref())?;
        opened.insert(name.clone(), store);
    }
    let definition = project.sites.sites.get(site);
    let definition = definition.ok_or_else(|| Failure::failed(starting, "the sites file does not have this site"))?;
    let verifiers = drivers::verifiers(project)?;
    let custody = stores::custody(definition, &folder, &environment).await?;
    let programs = Programs::of(&folder)?;
    let keeper = Keeper::open(Setup {
        site: site.clone(),
        sites: project.sites.clone(),
        catalog: project.catalog.clone(),
        catalog_folder: project.catalog_folder.clone(),
        policies: project.policies.clone(),
        journal: Arc::new(SqliteJournal::open(folder.join("journal.sqlite")).while_(starting)?),
        custody,
        stages: Arc::new(Rows::new(std::env::current_exe().while_(starting)?)),
        stores: opened,
        verifiers,
        mailbox: Arc::new(FolderStore::open_mailbox(project.layout.mailbox(site)).while_(starting)?),
        folder: folder.clone(),
        workers: Later::begin(move || known_workers(&programs)),
        clock: now,
        unasked: Setup::UNASKED,
    })
    .await
    .while_(starting)?;
    let public = keeper.verifying_key().to_base64();
    replace(&public_key_file(&folder), public.as_bytes()).while_("writing the keeper's public key")?;
    keeper.run(ended(stay)).await.while_("keeping")
}

/// Where a private site keeps its keeper's public key, for those who only verify.
pub(crate) fn public_key_file(folder: &Path) -> PathBuf {
    folder.join("keys").join("keeper.pub")
}

/// Replaces a file whole or not at all.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if std::fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, file)
}

/// The programs that may open what leaves. One that cannot be read may not.
fn known_workers(programs: &Programs) -> BTreeSet<Digest> {
    let mut known = BTreeSet::new();
    for program in [&programs.home, &programs.elsewhere] {
        match program.digest.get() {
            Ok(digest) => {
                known.insert(*digest);
            }
            Err(error) => tracing::warn!(error, "a worker's program is not known"),
        }
    }
    known
}

/// Ready when the keeper shall stop.
async fn ended(stay: bool) {
    let input = async {
        if stay {
            std::future::pending::<()>().await;
        }
        // A thread of its own: a read that never returns would keep the runtime from ending.
        let (ending, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = ending.send(());
        });
        let _ = ended.await;
    };
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = input => {}
        () = terminated => {}
        _ = tokio::signal::ctrl_c(), if stay => {}
    }
}

/// Takes a lock file, waiting for a process that is just ending.
pub(crate) async fn lock(file: &Path) -> Result<std::fs::File, Failure> {
    let began = std::time::Instant::now();
    loop {
        if let Some(handle) = try_lock(file)? {
            return Ok(handle);
        }
        if began.elapsed() > LOCK_PATIENCE {
            return Err(Failure::failed(
                LOCKING,
                format!("another process holds {}; wait for it, or end it", file.display()),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const LOCKING: &str = "taking the state folder's lock";

/// Takes a lock file, unless another process holds it.
pub(crate) fn try_lock(file: &Path) -> Result<Option<std::fs::File>, Failure> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::failed(LOCKING, format!("{}: {error}", folder.display())))?;
    }
    let handle = std::fs::File::create(file)
        .map_err(|error| Failure::failed(LOCKING, format!("{}: {error}", file.display())))?;
    match handle.try_lock() {
        Ok(()) => Ok(Some(handle)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Failure::failed(LOCKING, error)),
    }
}

/// An embedded keeper: a child process that is started again when it ends by itself, and that ends
/// when this value is dropped, or when this process ends in whatever way.
#[derive(Debug)]
pub(crate) struct EmbeddedKeeper {
    lost: Arc<Mutex<Option<String>>>,
    stopping: Arc<AtomicBool>,
    supervisor: tokio::task::JoinHandle<()>,
}

impl EmbeddedKeeper {
    pub(crate) fn start(project: &Project, site: &SiteName, format: Format) -> Result<Self, Failure> {
        let program = std::env::current_exe().while_("finding this program")?;
        let arguments = vec![
            "keeper".to_owned(),
            project.file.display().to_string(),
            "--site".to_owned(),
            site.to_string(),
            "--format".to_owned(),
            format.as_str().to_owned(),
        ];
        let home = project.layout.root().to_path_buf();
        let lost = Arc::new(Mutex::new(None));
        let stopping = Arc::new(AtomicBool::new(false));
        let supervisor = tokio::spawn(supervise(
            program,
            arguments,
            home,
            Arc::clone(&lost),
            Arc::clone(&stopping),
        ));
        Ok(Self {
            lost,
            stopping,
            supervisor,
        })
    }

    /// Why the keeper cannot be kept alive, once that is so.
    pub(crate) fn watch(&self) -> impl Fn() -> Option<String> + Send + Sync + 'static {
        let lost = Arc::clone(&self.lost);
        move || lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the keeper and waits for it.
    pub(crate) async fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = self.supervisor.await;
    }
}

async fn supervise(
    program: PathBuf,
    arguments: Vec<String>,
    home: PathBuf,
    lost: Arc<Mutex<Option<String>>>,
    stopping: Arc<AtomicBool>,
) {
    let say = |why: String| *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    for _ in 0..=RESTARTS {
        let child = tokio::process::Command::new(&program)
            .args(&arguments)
            .env("TIDEGATE_HOME", &home)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => return say(format!("the keeper cannot be started: {error}")),
        };
        // Held so that the keeper sees the end of its input when this process ends.
        let input = child.stdin.take();
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    if stopping.load(Ordering::SeqCst) {
                        drop(input);
                        let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
                        return;
                    }
                }
            }
        };
        match status {
            // A usage error does not pass by itself.
            Ok(status) if status.code() == Some(2) => {
                return say("the keeper does not start with these files and variables, and has said why".to_owned());
            }
            Ok(status) => tracing::warn!(%status, "the keeper ended and is started again"),
            Err(error) => tracing::warn!(%error, "the keeper was lost and is started again"),
        }
    }
    say(format!(
        "the keeper ended {} times; its own messages say why",
        RESTARTS + 1
    ));
}
