//! What a run tells while it goes on. Names, sizes and fixed words; never a value from the data.

use serde::Serialize;
use tidegate_types::ids::{PermitId, RunId, SiteName, TaskName};
use tidegate_types::keeper::{Figure, GateResult, Held};

use crate::summary::SummaryPhase;

/// One step forward, as the terminal shows it and `--format json` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// The run has a name.
    Started {
        /// The run.
        run: RunId,
        /// Whether it continues one that was interrupted.
        resumed: bool,
        /// How many tasks it has.
        tasks: u64,
    },
    /// Rows were prepared and their disclosure risk measured; nothing has left yet.
    Prepared {
        /// Rows that may leave.
        rows: u64,
        /// Rows that were removed to reach k.
        suppressed: u64,
        /// The smallest group of people that share all quasi-identifiers.
        k: u64,
    },
    /// A model was judged on rows that never left; the figures are those of the summary.
    Judged {
        /// The task.
        task: TaskName,
        /// The area under the receiver operating characteristic, with its interval.
        roc_auc: Option<Figure>,
        /// The gates as they stand.
        gates: Vec<GateResult>,
    },
    /// A task begins.
    TaskStarted {
        /// The task.
        task: TaskName,
        /// Where.
        site: SiteName,
    },
    /// A task ended well.
    TaskDone {
        /// The task.
        task: TaskName,
        /// Whether an earlier result was used.
        reused: bool,
        /// Wall-clock seconds.
        seconds: f64,
    },
    /// A permit was signed.
    Permitted {
        /// What will cross.
        artifact: String,
        /// Where to.
        to: SiteName,
        /// The permit.
        permit: PermitId,
        /// Plaintext bytes that will be sealed.
        bytes: u64,
    },
    /// Something crosses that takes a while; told every few seconds.
    Sending {
        /// What crosses.
        artifact: String,
        /// Where to.
        to: SiteName,
        /// The permit.
        permit: PermitId,
        /// Plaintext bytes that stand there, sealed.
        stored: u64,
        /// Plaintext bytes altogether.
        bytes: u64,
        /// Why nothing moves now, where that is so.
        held: Option<Held>,
    },
    /// Sealed bytes stand at the other site.
    Crossed {
        /// What crossed.
        artifact: String,
        /// Where from.
        from: SiteName,
        /// Where to.
        to: SiteName,
        /// Ciphertext bytes.
        bytes: u64,
    },
    /// A worker was asked for.
    AttemptStarted {
        /// The task.
        task: TaskName,
        /// The try.
        attempt: u32,
        /// Where.
        site: SiteName,
        /// On how many machines.
        machines: u32,
    },
    /// Of several machines one ended without having done its work; what becomes of the attempt is told by itself.
    MachineLost {
        /// The task.
        task: TaskName,
        /// The try.
        attempt: u32,
        /// Which machine, from 0.
        rank: u32,
        /// Why.
        reason: String,
    },
    /// An attempt gave a model.
    AttemptDone {
        /// The task.
        task: TaskName,
        /// The try.
        attempt: u32,
        /// What of it took how long.
        phases: Vec<SummaryPhase>,
    },
    /// An attempt ended without an output.
    AttemptLost {
        /// The task.
        task: TaskName,
        /// The try.
        attempt: u32,
        /// Why.
        reason: String,
    },
}
