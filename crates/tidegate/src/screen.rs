//! Progress while a run goes on: bars on a terminal, a line for each step elsewhere, JSON lines for
//! machines.
//!
//! Epochs and losses are not shown: what a command measures carries the label of its data, and stays in
//! the log on the private site, which `tidegate logs` reads there.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use tidegate_engine::Progress;
use tidegate_types::ids::{PermitId, SiteName};
use tidegate_types::keeper::{Figure, GateResult, Held};

use crate::cli::Format;
use crate::show::{self, tell};

const TASKS: &str = "  {spinner} [{bar:24}] {pos}/{len} {msg} {elapsed}";
const BYTES: &str = "    [{bar:24}] {bytes} of {total_bytes} sealed and sent{msg}";
/// Without a terminal, how often it is told how far a crossing is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Shows progress.
#[derive(Debug)]
pub(crate) struct Screen {
    format: Format,
    bars: Option<Bars>,
    /// The crossing that goes on.
    crossing: Mutex<Option<Crossing>>,
}

/// How a crossing goes on.
#[derive(Debug)]
struct Crossing {
    permit: PermitId,
    began: Instant,
    /// Bytes that stood there then.
    stored: u64,
    told: Option<Instant>,
    held: Option<Held>,
}

impl Crossing {
    /// How fast it is, and what is left, as far as that can be told.
    fn rate(&self, stored: u64, bytes: u64) -> String {
        let moved = stored.saturating_sub(self.stored);
        let seconds = self.began.elapsed().as_secs_f64();
        if moved == 0 || seconds < 1.0 {
            return String::new();
        }
        let rate = moved as f64 / seconds;
        let left = Duration::from_secs_f64((bytes.saturating_sub(stored) as f64 / rate).min(1e9));
        format!(", {}/s, {} left", HumanBytes(rate as u64), HumanDuration(left))
    }
}

/// What moves on a terminal.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    tasks: ProgressBar,
    /// There once something was permitted to cross.
    bytes: ProgressBar,
    /// Plaintext bytes that were permitted and have not crossed yet, and how many of them stand there.
    permitted: Mutex<BTreeMap<(String, SiteName), (u64, u64)>>,
}

fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Bars {
    fn new(all: MultiProgress) -> Self {
        Self {
            all,
            tasks: bar(TASKS),
            bytes: bar(BYTES),
            permitted: Mutex::default(),
        }
    }
}

impl Screen {
    pub(crate) fn new(format: Format) -> Self {
        let live = format == Format::Text && std::io::stderr().is_terminal();
        let bars = live.then(|| Bars::new(MultiProgress::new()));
        Self {
            format,
            bars,
            crossing: Mutex::default(),
        }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        if self.format == Format::Json {
            if let Ok(line) = serde_json::to_string(progress) {
                tell(&line);
            }
            return;
        }
        let line = match progress {
            Progress::Sending { .. } => self.sending(progress),
            _ => line(progress),
        };
        match &self.bars {
            None => {
                if let Some(line) = line {
                    tell(&line);
                }
            }
            Some(bars) => {
                if let Some(line) = line {
                    let _ = bars.all.println(line);
                }
                bars.show(progress);
            }
        }
    }

    /// How far a crossing is: beside its bar, or as a line now and then. That it is held is always said.
    fn sending(&self, progress: &Progress) -> Option<String> {
        let Progress::Sending {
            artifact,
            to,
            permit,
            stored,
            bytes,
            held,
        } = progress
        else {
            return None;
        };
        let mut crossing = self.crossing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = crossing.take().filter(|crossing| crossing.permit == *permit);
        let mut known = known.unwrap_or_else(|| Crossing {
            permit: permit.clone(),
            began: Instant::now(),
            stored: *stored,
            told: None,
            held: None,
        });
        let changed = known.held != *held;
        if changed {
            // What it waited for is no part of how fast it is.
            (known.began, known.stored, known.held) = (Instant::now(), *stored, *held);
        }
        let rate = known.rate(*stored, *bytes);
        let line = if let (true, Some(held)) = (changed, held) {
            Some(format!("    {artifact} to {to} waits: {}", reason(*held)))
        } else if let Some(bars) = &self.bars {
            bars.bytes.set_message(rate);
            None
        } else if held.is_none() && known.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            known.told = Some(Instant::now());
            let (stored, bytes) = (HumanBytes(*stored), HumanBytes(*bytes));
            Some(format!(
                "    {artifact} to {to}: {stored} of {bytes} sealed and sent{rate}"
            ))
        } else {
            None
        };
        *crossing = Some(known);
        line
    }

    pub(crate) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.tasks.finish_and_clear();
            bars.bytes.finish_and_clear();
        }
    }
}

impl Bars {
    fn show(&self, progress: &Progress) {
        match progress {
            Progress::Started { tasks, .. } => {
                self.tasks.set_length(*tasks);
                self.all.add(self.tasks.clone());
                self.tasks.enable_steady_tick(Duration::from_millis(120));
            }
            Progress::TaskStarted { task, site } => self.tasks.set_message(format!("{task} on {site}")),
            Progress::AttemptStarted {
                task,
                attempt,
                site,
                machines,
            } => {
                let on = match machines {
                    1 => String::new(),
                    machines => format!(", {machines} machines"),
                };
                self.tasks
                    .set_message(format!("{task} on {site}, attempt {attempt}{on}"));
            }
            Progress::TaskDone { .. } => self.tasks.inc(1),
            Progress::Permitted {
                artifact, to, bytes, ..
            } => {
                if self.bytes.length().unwrap_or(0) == 0 {
                    self.all.add(self.bytes.clone());
                }
                let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
                if permitted.insert((artifact.clone(), to.clone()), (*bytes, 0)).is_none() {
                    self.bytes.inc_length(*bytes);
                }
            }
            Progress::Sending {
                artifact, to, stored, ..
            } => {
                let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, before)) = permitted.get_mut(&(artifact.clone(), to.clone())) {
                    self.bytes.inc(stored.saturating_sub(*before));
                    *before = (*before).max(*stored);
                }
            }
            Progress::Crossed { artifact, to, .. } => {
                let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((bytes, before)) = permitted.remove(&(artifact.clone(), to.clone())) {
                    self.bytes.inc(bytes.saturating_sub(before));
                    self.bytes.set_message("");
                }
            }
            Progress::Prepared { .. }
            | Progress::Judged { .. }
            | Progress::MachineLost { .. }
            | Progress::AttemptDone { .. }
            | Progress::AttemptLost { .. } => {}
        }
    }
}

/// The line that stays when a step is done.
fn line(progress: &Progress) -> Option<String> {
    Some(match progress {
        Progress::Started {
            run, resumed: false, ..
        } => format!("Run {run}"),
        Progress::Started { run, resumed: true, .. } => format!("Run {run} goes on where it was interrupted"),
        Progress::Prepared { rows, suppressed, k } => {
            format!("    {rows} rows prepared, {suppressed} suppressed, k = {k}")
        }
        Progress::TaskDone { task, reused: true, .. } => format!("  = {task}: unchanged, reused"),
        Progress::TaskDone { task, seconds, .. } => format!("  \u{2713} {task} ({seconds:.1} s)"),
        Progress::Permitted {
            artifact, to, permit, ..
        } => format!("    permit {permit}: {artifact} to {to}"),
        Progress::Crossed {
            artifact,
            from,
            to,
            bytes,
            ..
        } => format!("    {artifact}: {bytes} bytes sealed, {from} to {to}"),
        Progress::AttemptDone { task, phases, .. } => {
            let parts = phases.iter().map(|one| format!("{} {:.1} s", one.phase, one.seconds));
            format!("    {task}: {}", parts.collect::<Vec<_>>().join(", "))
        }
        Progress::MachineLost {
            task,
            attempt,
            rank,
            reason,
        } => {
            format!("    {task}: attempt {attempt}, machine of rank {rank} ended: {reason}")
        }
        Progress::AttemptLost { task, attempt, reason } => {
            format!("    {task}: attempt {attempt} ended without a result: {reason}")
        }
        Progress::Judged { roc_auc, gates, .. } => judged(*roc_auc, gates)?,
        Progress::TaskStarted { .. } | Progress::AttemptStarted { .. } | Progress::Sending { .. } => return None,
    })
}

/// Why nothing moves, and what can be done.
pub(crate) fn reason(held: Held) -> String {
    match held {
        Held::Paused => "it is paused on its private site; `tidegate transfers resume` there lets it go on".to_owned(),
        Held::Window { opens } => format!("the `window` of the sites file opens at {}", show::time(opens)),
    }
}

/// The figure that most people look at, and what does not pass.
fn judged(roc_auc: Option<Figure>, gates: &[GateResult]) -> Option<String> {
    let figure = roc_auc.map(|figure| {
        format!(
            "    ROC-AUC at home {:.3} ({:.3} to {:.3})",
            figure.value, figure.low, figure.high
        )
    });
    let failed = gates.iter().filter(|gate| !gate.passed).map(|gate| {
        format!(
            "    gate {} {} FAILED: {:.3} at the unfavourable end",
            gate.metric, gate.condition, gate.judged
        )
    });
    let lines: Vec<String> = figure.into_iter().chain(failed).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use tidegate_types::ids::{RunId, TaskName};

    use super::*;

    #[test]
    fn bars_follow_tasks_and_bytes() {
        let bars = Bars::new(MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden()));
        let (task, site) = (TaskName::new("train").unwrap(), SiteName::new("cloud").unwrap());
        let permit = PermitId::new("permit-1").unwrap();
        let run = RunId::new("run-1").unwrap();
        bars.show(&Progress::Started {
            run,
            resumed: false,
            tasks: 7,
        });
        bars.show(&Progress::TaskStarted {
            task: task.clone(),
            site: site.clone(),
        });
        for (artifact, bytes) in [("train", 100), ("validation", 50)] {
            bars.show(&Progress::Permitted {
                artifact: artifact.to_owned(),
                to: site.clone(),
                permit: permit.clone(),
                bytes,
            });
        }
        bars.show(&Progress::Sending {
            artifact: "train".to_owned(),
            to: site.clone(),
            permit,
            stored: 60,
            bytes: 100,
            held: None,
        });
        assert_eq!(bars.bytes.position(), 60);
        bars.show(&Progress::Crossed {
            artifact: "train".to_owned(),
            from: site.clone(),
            to: site,
            bytes: 140,
        });
        bars.show(&Progress::TaskDone {
            task,
            reused: false,
            seconds: 1.0,
        });
        assert_eq!((bars.tasks.position(), bars.tasks.length()), (1, Some(7)));
        assert_eq!(bars.tasks.message(), "train on cloud");
        assert_eq!((bars.bytes.position(), bars.bytes.length()), (100, Some(150)));
    }

    #[test]
    fn that_a_crossing_waits_is_said_once_and_how_far_it_is_now_and_then() {
        let screen = Screen {
            format: Format::Text,
            bars: None,
            crossing: Mutex::default(),
        };
        let told = |stored: u64, held: Option<Held>| {
            screen.sending(&Progress::Sending {
                artifact: "train".to_owned(),
                to: SiteName::new("cloud").unwrap(),
                permit: PermitId::new("permit-1").unwrap(),
                stored,
                bytes: 3 << 20,
                held,
            })
        };
        let first = told(1 << 20, None).unwrap();
        assert_eq!(first, "    train to cloud: 1.00 MiB of 3.00 MiB sealed and sent");
        assert_eq!(told(2 << 20, None), None, "not again at once");
        let opens = Held::Window { opens: 1_700_000_000 };
        assert_eq!(
            told(2 << 20, Some(opens)).unwrap(),
            "    train to cloud waits: the `window` of the sites file opens at 2023-11-14T22:13:20Z"
        );
        assert_eq!(told(2 << 20, Some(opens)), None);
        assert!(
            told(2 << 20, Some(Held::Paused))
                .unwrap()
                .contains("`tidegate transfers resume`")
        );
    }
}
