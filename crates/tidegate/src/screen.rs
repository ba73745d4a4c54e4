//! Progress while a run goes on: bars on a terminal, a line for each step elsewhere, JSON lines for
//! machines.
//!
//! Epochs and losses are not shown: what a command measures carries the label of its data, and stays in
//! the log on the private site, which `tidegate logs` reads there.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tidegate_engine::Progress;
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::{Figure, GateResult};

use crate::cli::Format;
use crate::show::tell;

const TASKS: &str = "  {spinner} [{bar:24}] {pos}/{len} {msg} {elapsed}";
const BYTES: &str = "    [{bar:24}] {bytes} of {total_bytes} sealed and sent";

/// Shows progress.
#[derive(Debug)]
pub(crate) struct Screen {
    format: Format,
    bars: Option<Bars>,
}

/// What moves on a terminal.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    tasks: ProgressBar,
    /// There once something was permitted to cross.
    bytes: ProgressBar,
    /// Plaintext bytes that were permitted and have not crossed yet.
    permitted: Mutex<BTreeMap<(String, SiteName), u64>>,
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
        Self { format, bars }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        if self.format == Format::Json {
            if let Ok(line) = serde_json::to_string(progress) {
                tell(&line);
            }
            return;
        }
        let line = line(progress);
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
            Progress::AttemptStarted { task, attempt, site } => {
                self.tasks.set_message(format!("{task} on {site}, attempt {attempt}"));
            }
            Progress::TaskDone { .. } => self.tasks.inc(1),
            Progress::Permitted {
                artifact, to, bytes, ..
            } => {
                if self.bytes.length().unwrap_or(0) == 0 {
                    self.all.add(self.bytes.clone());
                }
                let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
                if permitted.insert((artifact.clone(), to.clone()), *bytes).is_none() {
                    self.bytes.inc_length(*bytes);
                }
            }
            Progress::Crossed { artifact, to, .. } => {
                let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(bytes) = permitted.remove(&(artifact.clone(), to.clone())) {
                    self.bytes.inc(bytes);
                }
            }
            Progress::Prepared { .. } | Progress::Judged { .. } | Progress::AttemptLost { .. } => {}
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
        Progress::AttemptLost { task, attempt, reason } => {
            format!("    {task}: attempt {attempt} ended without a model: {reason}")
        }
        Progress::Judged { roc_auc, gates, .. } => judged(*roc_auc, gates)?,
        Progress::TaskStarted { .. } | Progress::AttemptStarted { .. } => return None,
    })
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
    use tidegate_types::ids::{PermitId, RunId, TaskName};

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
}
