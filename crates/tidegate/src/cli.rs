//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::task::TaskArguments;

/// Hybrid-cloud machine learning: no permit, no bytes.
///
/// Prepare private data where it lives, train in the cloud on what may leave, evaluate at home, and
/// deploy. Every crossing is explained before it happens and provable after it.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:
  tidegate check examples/hospital/tidegate.yaml
  tidegate plan examples/hospital/tidegate.yaml
  tidegate run examples/hospital/tidegate.yaml --yes
  tidegate serve examples/hospital/tidegate.yaml --site ward

State lies in `.tidegate/` beside the pipeline file; TIDEGATE_HOME moves it. TIDEGATE_LOG sets what is
logged on standard error (off, error, warn, info, debug, trace).
Exit codes: 0 done, 1 failed, 2 wrong usage or file, 3 refused by a rule.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What is printed: text for people, or JSON for machines.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON value on standard output; progress, logs and errors as JSON lines on standard error.
    Json,
}

impl Format {
    /// As the command line takes it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Where a pipeline is.
#[derive(Debug, Clone, Args)]
pub(crate) struct PipelineArgument {
    /// The pipeline file.
    #[arg(default_value = "tidegate.yaml")]
    pub(crate) pipeline: PathBuf,
}

/// How far a plan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// Only prepare.
    Prepare,
    /// Up to the model.
    Train,
    /// Up to the figures.
    Evaluate,
    /// Up to the refined figures.
    Refine,
    /// Up to the signed bundle.
    Release,
    /// Everything.
    Deploy,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a first catalog from a scan of a file.
    #[command(after_help = "Example:\n  tidegate init --from admissions.csv --site hospital")]
    Init {
        /// A CSV or Parquet file, or a folder of them.
        #[arg(long)]
        from: PathBuf,
        /// The private site that owns it.
        #[arg(long, default_value = "hospital")]
        site: String,
        /// Where to write the catalog; it must not be there yet.
        #[arg(long, default_value = "catalog.yaml")]
        out: PathBuf,
    },
    /// Check the three files; try the query on every row, and what a run does in every cloud's store.
    #[command(after_help = "Example:\n  tidegate check examples/hospital/tidegate.yaml")]
    Check {
        #[command(flatten)]
        pipeline: PipelineArgument,
        #[command(flatten)]
        task: TaskArguments,
        /// The keeper runs elsewhere, where the source is: leave the source alone.
        #[arg(long)]
        no_keeper: bool,
    },
    /// Look at a source: types, missing values, and columns whose role looks wrong.
    #[command(after_help = "Example:\n  tidegate scan examples/hospital/tidegate.yaml")]
    Scan(PipelineArgument),
    /// Show what would run where, what would cross and why it may, and what it would cost.
    #[command(after_help = "Example:\n  tidegate plan examples/hospital/tidegate.yaml --sql")]
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgument,
        #[command(flatten)]
        task: TaskArguments,
        /// Print the SQL that prepares what leaves, and nothing else.
        #[arg(long)]
        sql: bool,
        /// How far to go.
        #[arg(long, value_enum)]
        until: Option<Until>,
    },
    /// Run a pipeline; interrupted, the same command goes on.
    #[command(after_help = "Examples:
  tidegate run examples/hospital/tidegate.yaml --yes
  tidegate run --until prepare --sample 1000
  tidegate run --task task.yaml --input ~/data=admissions")]
    Run {
        #[command(flatten)]
        pipeline: PipelineArgument,
        #[command(flatten)]
        task: TaskArguments,
        /// Do not ask before starting. Never skips an approval.
        #[arg(long)]
        yes: bool,
        /// How far to go.
        #[arg(long, value_enum)]
        until: Option<Until>,
        /// Read at most so many rows, and go up to the refined figures; nothing is released from such a run.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        sample: Option<u64>,
        /// Use a keeper that runs elsewhere instead of starting one.
        #[arg(long)]
        no_keeper: bool,
    },
    /// Show runs and where they are.
    #[command(after_help = "Example:\n  tidegate status examples/hospital/tidegate.yaml --format json")]
    Status(PipelineArgument),
    /// Show what a run's command wrote; where the private site is, for logs carry the data's label.
    #[command(
        after_help = "Example:\n  tidegate logs heart-20260101-120000-abcdef\n  tidegate logs -f heart-20260101-120000-abcdef"
    )]
    Logs(LogArguments),
    /// Stop a run: its attempts are fenced, and no output of them will be accepted.
    ///
    /// The same `tidegate run` afterwards begins another run, which uses the steps that were finished.
    #[command(
        after_help = "Example:\n  tidegate cancel heart-20260101-120000-abcdef --pipeline examples/hospital/tidegate.yaml"
    )]
    Cancel {
        /// The run.
        run: String,
        /// The pipeline file.
        #[arg(long, default_value = "tidegate.yaml")]
        pipeline: PathBuf,
        /// Use a keeper that runs elsewhere instead of starting one, when no process goes on with the run.
        #[arg(long)]
        no_keeper: bool,
    },
    /// End everything that runs on the sites, interrupted runs too, and prove that nothing is left.
    ///
    /// With a site, what runs there alone: a run that goes on later finds it lost.
    #[command(after_help = "Example:\n  tidegate down examples/hospital/tidegate.yaml")]
    Down {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The site.
        #[arg(long)]
        site: Option<String>,
        /// Use a keeper that runs elsewhere instead of starting one.
        #[arg(long)]
        no_keeper: bool,
    },
    /// Show released models and where they are served.
    #[command(after_help = "Example:\n  tidegate models examples/hospital/tidegate.yaml")]
    Models(PipelineArgument),
    /// Predict for raw rows with the bundle of a site.
    #[command(
        after_help = "Example:\n  tidegate predict --site hospital new.csv --pipeline examples/hospital/tidegate.yaml"
    )]
    Predict {
        /// The site whose bundle is used.
        #[arg(long)]
        site: String,
        /// A CSV file with the raw columns.
        rows: PathBuf,
        /// The pipeline file.
        #[arg(long, default_value = "tidegate.yaml")]
        pipeline: PathBuf,
        /// Where to write predictions; standard output otherwise.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Work with prepared data.
    #[command(after_help = "Example:\n  tidegate data pull train --to train/")]
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Serve a site's models by the Open Inference Protocol; needs no connection to any other site.
    #[command(
        after_help = "Example:\n  tidegate serve examples/hospital/tidegate.yaml --site ward --listen 127.0.0.1:8080"
    )]
    Serve {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The site.
        #[arg(long)]
        site: String,
        /// Address and port.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: std::net::SocketAddr,
    },
    /// Manage the keys of the private site: what they open outside, a new wrapping key, destruction.
    #[command(after_help = "Examples:
  tidegate keys list examples/hospital/tidegate.yaml
  tidegate keys shred 3f9a0c71 examples/hospital/tidegate.yaml")]
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Read and verify the ledger.
    #[command(after_help = "Examples:
  tidegate audit show examples/hospital/tidegate.yaml
  tidegate audit verify examples/hospital/tidegate.yaml")]
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Show what runs cost and what left.
    #[command(after_help = "Example:\n  tidegate cost examples/hospital/tidegate.yaml --format json")]
    Cost(PipelineArgument),
    /// What the private site sends to others: list and explain it, pause it, let it go on, remove what nobody needs.
    #[command(after_help = "Example:\n  tidegate transfers list examples/hospital/tidegate.yaml")]
    Transfers {
        #[command(subcommand)]
        command: TransfersCommand,
    },
    /// Run the keeper of a private site until its standard input ends.
    #[command(after_help = "Example:
  tidegate keeper examples/hospital/tidegate.yaml --site hospital --stay
  tidegate run examples/hospital/tidegate.yaml --no-keeper --yes     # elsewhere, over the same mailbox")]
    Keeper {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The private site.
        #[arg(long)]
        site: String,
        /// Go on when standard input ends; stop by SIGTERM or SIGINT.
        #[arg(long)]
        stay: bool,
    },
    #[command(flatten)]
    Machine(tidegate_machine::Command),
    /// Prepare or score in a keeper's place under the worker's contract.
    #[command(hide = true)]
    Rows,
    /// Predict for a matrix in a sandbox.
    #[command(hide = true)]
    Infer {
        /// A folder with `model.onnx` and `schema.json`.
        model: PathBuf,
        /// The number of columns (u64), then the values (float32) by rows, little-endian.
        matrix: PathBuf,
        /// Where to write little-endian float32 probabilities.
        out: PathBuf,
    },
    /// Publish a serving site's recipient.
    #[command(hide = true)]
    Enrol {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The site.
        #[arg(long)]
        site: String,
        /// The owner keeper's public key.
        #[arg(long)]
        owner: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Copy a prepared dataset out of the private site, on that site.
    #[command(
        after_help = "Example:\n  tidegate data pull train --to train/ --pipeline examples/hospital/tidegate.yaml"
    )]
    Pull {
        /// `train` or `validation`.
        name: String,
        /// A folder that is not there yet.
        #[arg(long)]
        to: PathBuf,
        /// The pipeline file.
        #[arg(long, default_value = "tidegate.yaml")]
        pipeline: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List what crossed under keys of the private site, and who was given them.
    #[command(after_help = "Example:\n  tidegate keys list examples/hospital/tidegate.yaml")]
    List(PipelineArgument),
    /// Make a new key that wraps all others, and destroy the one before. What crossed stays as it is.
    #[command(after_help = "Example:\n  tidegate keys rotate examples/hospital/tidegate.yaml")]
    Rotate {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The control plane is elsewhere: the ledger holds it with the next run.
        #[arg(long)]
        no_keeper: bool,
    },
    /// Write the keys of the site and all data keys into a file that one age identity opens.
    #[command(
        after_help = "Example:\n  tidegate keys backup --to age1… --out keys.age examples/hospital/tidegate.yaml"
    )]
    Backup {
        /// The recipient, as `age-keygen` prints it. Its identity belongs into a safe, not on this machine.
        #[arg(long)]
        to: String,
        /// The file to write; it must not be there yet.
        #[arg(long)]
        out: PathBuf,
        /// The pipeline file.
        #[arg(default_value = "tidegate.yaml")]
        pipeline: PathBuf,
    },
    /// Put back what a backup holds and the site cannot open any more. Destroyed keys stay destroyed.
    #[command(
        after_help = "Example:\n  tidegate keys restore keys.age --identity key.txt examples/hospital/tidegate.yaml"
    )]
    Restore {
        /// The backup.
        backup: PathBuf,
        /// The file with the age identity that opens it.
        #[arg(long)]
        identity: PathBuf,
        /// The pipeline file.
        #[arg(default_value = "tidegate.yaml")]
        pipeline: PathBuf,
    },
    /// Destroy the keys of an artifact: no copy of it can be read any more, but by those who were given its keys.
    #[command(after_help = "Example:\n  tidegate keys shred 3f9a0c71 examples/hospital/tidegate.yaml")]
    Shred {
        /// Its identity as `keys list` shows it, or the beginning of it.
        artifact: String,
        /// The pipeline file.
        #[arg(default_value = "tidegate.yaml")]
        pipeline: PathBuf,
        /// The control plane is elsewhere: the ledger holds it with the next run.
        #[arg(long)]
        no_keeper: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TransfersCommand {
    /// List what the private site sends or has sent, how far it is, and by which permit it may.
    #[command(after_help = "Example:\n  tidegate transfers list examples/hospital/tidegate.yaml")]
    List(PipelineArgument),
    /// Hold back what crosses, until `resume`: what was sent is kept, and the run waits.
    #[command(after_help = "Example:\n  tidegate transfers pause examples/hospital/tidegate.yaml")]
    Pause {
        /// The permit of one crossing; all of them otherwise, those that begin later included.
        #[arg(long)]
        permit: Option<String>,
        #[command(flatten)]
        pipeline: PipelineArgument,
    },
    /// Let go on what was paused.
    #[command(after_help = "Example:\n  tidegate transfers resume examples/hospital/tidegate.yaml")]
    Resume {
        /// The permit of one crossing; all of them otherwise.
        #[arg(long)]
        permit: Option<String>,
        #[command(flatten)]
        pipeline: PipelineArgument,
    },
    /// Find what stands in the sites' stores and nobody needs any more; with `--yes`, remove it.
    #[command(after_help = "Example:\n  tidegate transfers sweep examples/hospital/tidegate.yaml")]
    Sweep {
        /// Remove it.
        #[arg(long)]
        yes: bool,
        /// Also what nothing has named for a day. Others who send into the same stores, and take longer, would lose what
        /// they have put.
        #[arg(long, requires = "yes")]
        unnamed: bool,
        #[command(flatten)]
        pipeline: PipelineArgument,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Print the ledger's entries.
    #[command(
        after_help = "Example:\n  tidegate audit show examples/hospital/tidegate.yaml --run heart-20260101-120000-abcdef"
    )]
    Show {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// Only entries about this run.
        #[arg(long)]
        run: Option<String>,
    },
    /// Verify every leaf, tile and signature.
    #[command(after_help = "Example:\n  tidegate audit verify examples/hospital/tidegate.yaml --since checkpoint.txt")]
    Verify {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// A file with a checkpoint from earlier, as `audit checkpoint` prints it, which the ledger must continue.
        #[arg(long)]
        since: Option<PathBuf>,
        /// A file with the keys to believe, as `audit keys` prints them; those of this folder otherwise.
        #[arg(long)]
        keys: Option<PathBuf>,
    },
    /// Print the ledger's signed checkpoint, to keep elsewhere: `audit verify --since` holds a later ledger against it.
    #[command(after_help = "Example:\n  tidegate audit checkpoint examples/hospital/tidegate.yaml > checkpoint.txt")]
    Checkpoint(PipelineArgument),
    /// Print the keys that verify the ledger, one on a line, as Go's `sumdb/note` reads them.
    #[command(after_help = "Example:\n  tidegate audit keys examples/hospital/tidegate.yaml > keys.txt")]
    Keys(PipelineArgument),
    /// Print a proof (C2SP tlog-proof) that the ledger holds one entry.
    #[command(after_help = "Example:\n  tidegate audit proof examples/hospital/tidegate.yaml --entry 7")]
    Proof {
        #[command(flatten)]
        pipeline: PipelineArgument,
        /// The entry's number, as `audit show` prints it.
        #[arg(long)]
        entry: u64,
    },
}

/// Which log, and how.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// The run.
    pub(crate) run: String,
    /// The pipeline file.
    #[arg(long, default_value = "tidegate.yaml")]
    pub(crate) pipeline: PathBuf,
    /// Show what comes until the run has ended.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Show what the command measured instead: JSON objects, one on each line.
    #[arg(long)]
    pub(crate) metrics: bool,
}
