//! The `tidegate` program: one file that is the command line, the keeper, the worker and the server.
//!
//! Everything of substance lives in the crates beside this one. Here the command line is read, the
//! pieces are wired together, and what happened is shown:
//!
//! - [`project`]: the three files of a pipeline, read and checked
//! - [`layout`]: where everything lies
//! - [`stages`]: what a keeper does with rows, wired from preparation, learning and bundles
//! - [`keeper_process`]: the keeper as a process of its own
//! - [`commands`]: what the user asks for
//! - [`show`]: what the user sees

mod cli;
mod commands;
mod failure;
mod infer;
mod keeper_process;
mod layout;
mod project;
mod show;
mod stages;

use std::process::ExitCode;

use clap::Parser;
use tidegate_types::refusal::ExitCode as Code;

use crate::cli::{AuditCommand, Cli, Command, DataCommand, Format};
use crate::commands::run::Options;
use crate::failure::Failure;
use crate::project::Project;

fn main() -> ExitCode {
    // The sandbox's own entry: it becomes another program and never comes back to this one.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == "sandbox-exec") {
        return tidegate_worker::sandbox::sandbox_exec_main(arguments);
    }
    let cli = Cli::parse();
    // A server tells which releases it refuses; everything else has an end at which it says what happened.
    let usual = if matches!(cli.command, Command::Serve { .. }) {
        "warn"
    } else {
        "error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEGATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let format = cli.format;
    match dispatch(cli) {
        Ok(()) => ExitCode::from(Code::Done as u8),
        Err(failure) => {
            report(&failure, format);
            ExitCode::from(failure.exit_code() as u8)
        }
    }
}

/// Says on standard error what stopped a command; for machines also as one object on standard output.
fn report(failure: &Failure, format: Format) {
    match failure {
        Failure::Refused(_) => eprintln!("{failure}"),
        Failure::File(_) | Failure::Usage(_) | Failure::Stopped(_) | Failure::Failed(_) => {
            eprintln!("error: {failure}")
        }
    }
    if format == Format::Json {
        let status = match failure {
            Failure::Refused(_) => "refused",
            Failure::Stopped(_) => "cancelled",
            Failure::File(_) | Failure::Usage(_) | Failure::Failed(_) => "failed",
        };
        let rule = match failure {
            Failure::Refused(refusal) => Some(refusal.rule.as_str()),
            _ => None,
        };
        show::json(&serde_json::json!({"status": status, "rule": rule, "error": failure.to_string()}));
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting", error))
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    use commands::{audit, data, files, predict, run, serve, status};

    let format = cli.format;
    match cli.command {
        Command::Init { from, site, out } => runtime()?.block_on(files::init(&from, &site, &out)),
        Command::Check(at) => files::check(&Project::open(&at.pipeline, None)?),
        Command::Scan(at) => runtime()?.block_on(files::scan(&Project::open(&at.pipeline, None)?, format)),
        Command::Plan { pipeline, sql, until } => {
            let options = Options {
                yes: false,
                until,
                embedded_keeper: true,
                format,
            };
            runtime()?.block_on(run::plan(&Project::open(&pipeline.pipeline, None)?, sql, &options))
        }
        Command::Run {
            pipeline,
            yes,
            until,
            sample,
            no_keeper,
        } => {
            let options = Options {
                yes,
                until,
                embedded_keeper: !no_keeper,
                format,
            };
            runtime()?.block_on(run::run(&Project::open(&pipeline.pipeline, sample)?, &options))
        }
        Command::Status(at) => status::status(&Project::open(&at.pipeline, None)?, format),
        Command::Logs { run, pipeline } => status::logs(&Project::open(&pipeline, None)?, &run),
        Command::Cancel { run, pipeline } => status::cancel(&Project::open(&pipeline, None)?, &run),
        Command::Models(at) => status::models(&Project::open(&at.pipeline, None)?, format),
        Command::Cost(at) => status::cost(&Project::open(&at.pipeline, None)?, format),
        Command::Predict {
            site,
            rows,
            pipeline,
            out,
        } => {
            let project = Project::open(&pipeline, None)?;
            runtime()?.block_on(predict::predict(&project, &site, &rows, out.as_deref()))
        }
        Command::Data {
            command: DataCommand::Pull { name, to, pipeline },
        } => data::pull(&Project::open(&pipeline, None)?, &name, &to),
        Command::Serve { pipeline, site, listen } => {
            runtime()?.block_on(serve::serve(&Project::open(&pipeline.pipeline, None)?, &site, listen))
        }
        Command::Enrol { pipeline, site, owner } => {
            runtime()?.block_on(serve::enrol(&Project::open(&pipeline.pipeline, None)?, &site, &owner))
        }
        Command::Audit { command } => match command {
            AuditCommand::Show { pipeline, run } => {
                audit::show(&Project::open(&pipeline.pipeline, None)?, run.as_deref(), format)
            }
            AuditCommand::Verify { pipeline, since } => {
                audit::verify(&Project::open(&pipeline.pipeline, None)?, since.as_deref(), format)
            }
            AuditCommand::Proof { pipeline, entry } => audit::proof(&Project::open(&pipeline.pipeline, None)?, entry),
        },
        Command::Keeper { pipeline, site, stay } => {
            let project = Project::open(&pipeline.pipeline, None)?;
            let site = project.site(&site)?;
            let runtime = runtime()?;
            let result = runtime.block_on(keeper_process::run(&project, &site, stay));
            // Work on rows that nobody waits for any more must not keep the site's lock.
            runtime.shutdown_background();
            result
        }
        Command::Worker { work } => runtime()?.block_on(infer::worker(work)),
        Command::Trainer => infer::trainer(),
        Command::Infer { model, matrix, out } => infer::infer(&model, &matrix, &out),
    }
}
