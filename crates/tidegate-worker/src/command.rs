//! Runs one command in the sandbox while its output is sealed and told, its metrics are followed, and
//! the lease is watched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_seal::envelope::seal_to;
use tidegate_types::message::WorkerMessage;
use tokio::sync::mpsc;

use crate::checkpoint::Checkpoints;
use crate::error::{Failure, Stage};
use crate::mail::Mail;
use crate::nodes::{self, Mesh};
use crate::sandbox::{self, Ended, Policy};

/// One piece of log is not longer than this.
const PIECE_BYTES: usize = 32 << 10;
/// All of a command's log together; what comes after is counted and dropped.
const LOG_BYTES: usize = 4 << 20;
/// One line of metrics.
const METRIC_LINE: usize = 4 << 10;
/// Lines of metrics that are told at once.
const METRIC_LINES: usize = 32;
/// Lines of metrics that are told of one command.
const MOST_METRICS: usize = 4000;
/// The metrics file is looked at, and a short piece of log told, this often.
const FLUSH: Duration = Duration::from_millis(500);
/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_millis(50);

/// What to run, and what it is called when it fails.
pub(crate) struct Task<'a> {
    /// [`Stage::Setup`] or [`Stage::Command`].
    pub(crate) stage: Stage,
    pub(crate) executable: &'a Path,
    pub(crate) policy: Policy,
    /// For `/bin/sh -c`.
    pub(crate) text: &'a str,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) folder: PathBuf,
    /// Whom logs and metrics are sealed to.
    pub(crate) recipient: &'a str,
    pub(crate) metrics: Option<PathBuf>,
    /// Where the command reads that its machine will be taken away.
    pub(crate) notice: PathBuf,
    /// Folders whose files together may have at most so many bytes each.
    pub(crate) limits: Vec<(PathBuf, u64)>,
    /// What its log begins with.
    pub(crate) notes: Vec<String>,
}

/// A command that ended well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) took: Duration,
    /// Whether it saw its folders where every machine shows them.
    pub(crate) in_room: bool,
}

/// Runs the command to its end. When this returns, also with an error, nothing that the command
/// started is running. What it said last to other machines may still be on its way through `mesh`.
pub(crate) async fn run(
    task: &Task<'_>,
    mail: &mut Mail,
    mut checkpoints: Option<Checkpoints>,
    mesh: Option<&mut Mesh>,
) -> Result<Ran, Failure> {
    let command = ["/bin/sh".into(), "-c".into(), task.text.into()];
    let mut running = sandbox::spawn(task.executable, &task.policy, &command, &task.environment, &task.folder)
        .map_err(|error| Failure::new(Stage::Sandbox, error.to_string()))?;
    let mesh = match (mesh, running.take_joined()) {
        (Some(mesh), Some(joined)) => {
            mesh.join(joined)?;
            Some(&*mesh)
        }
        (None, None) => None,
        _ => return Err(nodes::gone()),
    };
    let started = Instant::now();
    let (stdout, stderr) = running
        .take_pipes()
        .ok_or_else(|| Failure::new(Stage::Sandbox, "the command has no output streams"))?;
    let (send, mut pieces) = mpsc::channel(8);
    read_into(stdout, send.clone())?;
    read_into(stderr, send)?;
    let mut report = Report::new(task);
    if task.stage == Stage::Command {
        mail.notices().again();
    }
    if let Some(why) = running.unshared.take() {
        report.note(&format!(
            "this machine gives the command no /dev/shm of its own ({why}): what shares memory by name fails"
        ));
    }
    let watched = watch(
        &mut running,
        &mut pieces,
        &mut report,
        mail,
        (checkpoints.as_mut(), mesh),
    )
    .await;
    running.stop();
    let ended = running.ended().await;
    watched?;
    while let Some(piece) = pieces.recv().await {
        report.keep(&piece);
    }
    report.finish(mail).await?;
    if let Err(failure) = told(ended, task.stage) {
        // Who ends this worker may have ended the command with it, or the command has saved and gone.
        if by_the_machine(ended, mail).await {
            if let Some(checkpoints) = &mut checkpoints
                && let Err(failure) = save(checkpoints, mail).await
            {
                tracing::warn!(why = failure.reason, "unfinished work was not sent");
            }
            return Err(mail.notices().failure());
        }
        return Err(failure);
    }
    check_sizes(&task.limits).await?;
    Ok(Ran {
        took: started.elapsed(),
        in_room: running.in_room,
    })
}

/// Returns when the command has ended, or must end.
async fn watch(
    running: &mut sandbox::Running,
    pieces: &mut mpsc::Receiver<Vec<u8>>,
    report: &mut Report<'_>,
    mail: &mut Mail,
    (mut checkpoints, mesh): (Option<&mut Checkpoints>, Option<&Mesh>),
) -> Result<(), Failure> {
    let task = report.task;
    let mut last_flush = Instant::now();
    let mut open = true;
    loop {
        tokio::select! {
            _ = running.ended() => return Ok(()),
            piece = pieces.recv(), if open && !report.is_full() => match piece {
                Some(piece) => report.keep(&piece),
                None => open = false,
            },
            () = tokio::time::sleep(TICK) => {}
        }
        if mesh.is_some_and(Mesh::is_gone) {
            return Err(nodes::gone());
        }
        if let Some(notice) = mail.notices().news() {
            report.note(&notice.line());
            if let Err(error) = notice.write(&task.notice) {
                tracing::warn!(%error, "the command could not be told that its machine is taken away");
            }
            if let Some(checkpoints) = &mut checkpoints {
                checkpoints.hurry(notice.ends.is_some());
            }
        }
        if mail.notices().work_left().is_some_and(|left| left.is_zero()) {
            running.stop();
            return Err(leave(report, mail, checkpoints).await);
        }
        if report.is_full() || last_flush.elapsed() >= FLUSH {
            last_flush = Instant::now();
            report.flush(mail).await?;
            check_sizes(&task.limits).await?;
        }
        if let Some(checkpoints) = &mut checkpoints {
            let news = checkpoints.look().await?;
            if let Some(note) = news.note {
                report.note(&note);
            }
            if let Some(message) = news.message {
                mail.tell(message).await?;
            }
        }
        if report.looked.elapsed() >= mail.aside() {
            report.looked = Instant::now();
            mail.look_aside().await?;
        }
    }
}

/// What a stopped command has told, and its unfinished work that is under way, go home before the machine ends.
async fn leave(report: &mut Report<'_>, mail: &mut Mail, checkpoints: Option<&mut Checkpoints>) -> Failure {
    let last = async {
        report.flush(mail).await?;
        if let Some(checkpoints) = checkpoints {
            let news = mail.while_leased(checkpoints.last()).await??;
            if let Some(message) = news.message {
                mail.tell(message).await?;
            }
        }
        Ok::<_, Failure>(())
    };
    match last.await {
        Err(failure) if failure.stage != Stage::Machine => {
            tracing::warn!(why = failure.reason, "something was not told")
        }
        _ => {}
    }
    mail.notices().failure()
}

/// Sends what a command left that has ended by itself before its machine: nobody writes there any more.
async fn save(checkpoints: &mut Checkpoints, mail: &mut Mail) -> Result<(), Failure> {
    checkpoints.hurry(true);
    loop {
        let news = mail.while_leased(checkpoints.look()).await??;
        if let Some(message) = news.message {
            mail.tell(message).await?;
        }
        if checkpoints.is_idle() {
            return Ok(());
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Whether a command ended badly because its machine is taken away. The word of that may come a moment after the command heard
/// it.
async fn by_the_machine(ended: Ended, mail: &mut Mail) -> bool {
    if ended == Ended::Signalled(libc::SIGTERM) {
        let heard = async {
            while !mail.notices().is_certain() {
                tokio::time::sleep(TICK).await;
            }
        };
        let _ = tokio::time::timeout(FLUSH, heard).await;
    }
    mail.notices().is_certain() && matches!(ended, Ended::Exited(_) | Ended::Signalled(_))
}

fn told(ended: Ended, stage: Stage) -> Result<(), Failure> {
    let what = if stage == Stage::Setup { "setup" } else { "the command" };
    Err(match ended {
        Ended::Exited(0) => return Ok(()),
        Ended::Exited(code) => Failure {
            exit_code: Some(code),
            ..Failure::new(stage, format!("{what} ended with exit code {code}"))
        },
        Ended::Signalled(signal) => Failure::new(stage, format!("{what} was ended by signal {signal}")),
        Ended::OverFileSize => Failure::new(Stage::Output, format!("{what} wrote a longer file than allowed")),
        Ended::OverMemory => Failure::new(Stage::Memory, format!("{what} took more memory than allowed")),
        Ended::OverTime => Failure::new(Stage::Time, format!("{what} ran longer than allowed")),
        Ended::OverProcesses => Failure::new(Stage::Processes, format!("{what} started more processes than allowed")),
        Ended::Stopped | Ended::Lost => Failure::new(Stage::Sandbox, format!("{what} could not be watched any longer")),
    })
}

async fn check_sizes(limits: &[(PathBuf, u64)]) -> Result<(), Failure> {
    for (folder, limit) in limits {
        if measure(folder.clone()).await? > *limit {
            return Err(Failure::new(
                Stage::Output,
                "the command wrote more output than allowed",
            ));
        }
    }
    Ok(())
}

/// A thread that passes on what a command writes. It stalls with its reader, and so does the command.
fn read_into(mut from: impl Read + Send + 'static, to: mpsc::Sender<Vec<u8>>) -> Result<(), Failure> {
    let pass_on = move || {
        let mut buffer = vec![0; PIECE_BYTES / 4];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let piece = buffer.get(..count).unwrap_or_default().to_vec();
            if to.blocking_send(piece).is_err() {
                // Nobody listens any more, which must not stall the command either.
                let _ = std::io::copy(&mut from, &mut std::io::sink());
            }
        }
    };
    std::thread::Builder::new()
        .name("command-output".to_owned())
        .spawn(pass_on)
        .map(drop)
        .map_err(|error| Failure::new(Stage::Sandbox, format!("no thread for the command's output: {error}")))
}

/// What is told of a command's output and metrics.
struct Report<'a> {
    task: &'a Task<'a>,
    pending: Vec<u8>,
    told: usize,
    dropped: u64,
    metrics: Option<(File, u64)>,
    metrics_told: usize,
    looked: Instant,
}

impl<'a> Report<'a> {
    fn new(task: &'a Task<'a>) -> Self {
        let mut report = Self {
            task,
            pending: Vec::new(),
            told: 0,
            dropped: 0,
            metrics: None,
            metrics_told: 0,
            looked: Instant::now(),
        };
        for note in &task.notes {
            report.note(note);
        }
        report
    }

    /// A line of the worker's own.
    fn note(&mut self, text: &str) {
        self.keep(format!("[tidegate: {text}]\n").as_bytes());
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= PIECE_BYTES
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = LOG_BYTES.saturating_sub(self.told.saturating_add(self.pending.len()));
        let (kept, lost) = piece.split_at(room.min(piece.len()));
        self.pending.extend_from_slice(kept);
        self.dropped = self.dropped.saturating_add(lost.len() as u64);
    }

    /// Tells what is pending, and the next few metrics; gives how many those were.
    async fn flush(&mut self, mail: &mut Mail) -> Result<usize, Failure> {
        let pending = std::mem::take(&mut self.pending);
        for piece in pending.chunks(PIECE_BYTES) {
            self.told = self.told.saturating_add(piece.len());
            mail.tell(WorkerMessage::Log {
                sealed: self.seal(piece)?,
            })
            .await?;
        }
        let lines = self.new_metrics();
        for line in &lines {
            mail.tell(WorkerMessage::Metric {
                sealed: self.seal(line.as_bytes())?,
            })
            .await?;
        }
        Ok(lines.len())
    }

    async fn finish(&mut self, mail: &mut Mail) -> Result<(), Failure> {
        if self.dropped > 0 {
            let note = format!("\n[{} more bytes were not kept]\n", self.dropped);
            self.pending.extend_from_slice(note.as_bytes());
        }
        while self.flush(mail).await? > 0 {}
        Ok(())
    }

    fn seal(&self, plaintext: &[u8]) -> Result<String, Failure> {
        let sealed = seal_to(self.task.recipient, plaintext);
        let sealed = sealed.map_err(|error| Failure::new(Stage::Grant, format!("sealing a log: {error}")))?;
        Ok(STANDARD.encode(sealed))
    }

    /// Whole new lines of the metrics file that are JSON objects; others are left out. The file is the
    /// command's: it may be a link, a pipe or a flood.
    fn new_metrics(&mut self) -> Vec<String> {
        let Some(path) = &self.task.metrics else {
            return Vec::new();
        };
        if self.metrics.is_none() {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
            let file = File::options().read(true).custom_flags(flags).open(path).ok();
            self.metrics = file
                .filter(|file| file.metadata().is_ok_and(|about| about.is_file()))
                .map(|file| (file, 0));
        }
        let Some((file, position)) = &mut self.metrics else {
            return Vec::new();
        };
        let mut text = Vec::new();
        let read = file
            .seek(SeekFrom::Start(*position))
            .and_then(|_| file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut text));
        let room = METRIC_LINES.min(MOST_METRICS.saturating_sub(self.metrics_told));
        let mut lines = Vec::new();
        for line in text
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n") && read.is_ok())
        {
            if lines.len() == room {
                break;
            }
            *position = position.saturating_add(line.len() as u64);
            let is_object = || serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line).is_ok();
            if line.len() <= METRIC_LINE && is_object() {
                lines.extend(std::str::from_utf8(line).map(|line| line.trim_end().to_owned()));
            }
        }
        self.metrics_told = self.metrics_told.saturating_add(lines.len());
        lines
    }
}

/// The bytes of all files below a folder. What vanishes meanwhile counts nothing.
async fn measure(folder: PathBuf) -> Result<u64, Failure> {
    let sum = move || {
        let (mut sum, mut open) = (0_u64, vec![folder]);
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(about) if about.is_dir() => open.push(entry.path()),
                    Ok(about) => sum = sum.saturating_add(about.len()),
                    Err(_) => {}
                }
            }
        }
        sum
    };
    let measured = tokio::task::spawn_blocking(sum).await;
    measured.map_err(|_| Failure::new(Stage::Output, "the output could not be measured"))
}
