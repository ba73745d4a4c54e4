//! The `tidegate` program: one file that is the command line, the keeper, the worker and the server.
//!
//! Everything of substance lives in the crates beside this one. Here the command line is read, the
//! pieces are wired together, and what happened is shown:
//!
//! - [`programs`]: what runs jobs, here and elsewhere
//! - [`project`]: the three files of a pipeline, read and checked
//! - [`layout`]: where everything lies
//! - [`stages`]: what a keeper does with rows, wired from preparation, learning and bundles
//! - [`scores`]: what a model says of rows at home
//! - [`catalog_text`]: a catalog as a person would write it
//! - [`keeper_process`]: the keeper as a process of its own
//! - [`commands`]: what the user asks for
//! - [`sources`]: what a dataset is read from, brought to its private site
//! - [`stores`]: the stores of sites, wherever they are
//! - what a worker needs besides is the crate `tidegate_machine`
//! - [`screen`]: progress while it goes on
//! - [`show`]: what the user sees at the end

mod catalog_text;
mod cli;
mod commands;
mod drivers;
mod failure;
mod infer;
mod keeper_process;
mod layout;
mod programs;
mod project;
mod scores;
mod screen;
mod show;
mod sources;
mod stages;
mod stores;
mod task;

use std::process::ExitCode;

use clap::Parser;
use tidegate_keeper::Removal;
use tidegate_types::refusal::ExitCode as Code;

use crate::cli::{AuditCommand, Cli, Command, DataCommand, Format, KeysCommand, TransfersCommand};
use crate::commands::run::Options;
use crate::failure::Failure;
use crate::project::{Project, State};

fn main() -> ExitCode {
    // The sandbox's own entry: it becomes another program and never comes back to this one.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == "sandbox-exec") {
        return tidegate_worker::sandbox::sandbox_exec_main(arguments);
    }
    std::panic::set_hook(Box::new(tidegate_machine::tell_defect));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let format = cli.format;
    let result = log(&cli).and_then(|()| dispatch(cli));
    match result {
        Ok(()) => ExitCode::from(Code::Done as u8),
        Err(failure) => {
            report(&failure, format);
            ExitCode::from(failure.exit_code() as u8)
        }
    }
}

/// Says what is wrong with a command line, or the help that was asked for.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let json = words.iter().any(|word| word == "--format=json")
        || words.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ").to_owned();
        report(&Failure::Usage(text), Format::Json);
    } else {
        // A reader that is gone has seen enough.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8))
}

/// Starts logging on standard error, in the format that was asked for.
fn log(cli: &Cli) -> Result<(), Failure> {
    // A server tells which releases it refuses; everything else has an end at which it says what happened.
    let usual = if matches!(cli.command, Command::Serve { .. }) {
        "warn"
    } else {
        "error"
    };
    tidegate_machine::log(usual, cli.format == Format::Json).map_err(Failure::Usage)
}

/// Says on standard error what stopped a command: a paragraph for people, one object for machines.
fn report(failure: &Failure, format: Format) {
    match (failure, format) {
        (Failure::ReaderGone, _) => {}
        (_, Format::Json) => show::tell(&failure.to_json().to_string()),
        (Failure::Refused(_), Format::Text) => show::tell(&failure.to_string()),
        (_, Format::Text) => show::tell(&format!("error: {failure}")),
    }
}

fn start() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    start().map_err(|error| Failure::failed("starting", error))
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    use commands::{audit, data, files, keys, logs, predict, run, serve, status, transfers};

    let format = cli.format;
    match cli.command {
        Command::Init { from, site, out } => runtime()?.block_on(files::init(&from, &site, &out, format)),
        Command::Check {
            pipeline,
            task,
            no_keeper,
        } => {
            let project = Project::open_with(&pipeline.pipeline, None, &task)?;
            runtime()?.block_on(files::check(&project, !no_keeper, format))
        }
        Command::Scan(at) => runtime()?.block_on(files::scan(&Project::open(&at.pipeline, None)?, format)),
        Command::Plan {
            pipeline,
            task,
            sql,
            until,
        } => {
            let options = Options {
                yes: false,
                until,
                sample: None,
                embedded_keeper: true,
                format,
            };
            runtime()?.block_on(run::plan(
                &Project::open_with(&pipeline.pipeline, None, &task)?,
                sql,
                &options,
            ))
        }
        Command::Run {
            pipeline,
            task,
            yes,
            until,
            sample,
            no_keeper,
        } => {
            let options = Options {
                yes,
                until,
                sample,
                embedded_keeper: !no_keeper,
                format,
            };
            runtime()?.block_on(run::run(
                &Project::open_with(&pipeline.pipeline, sample, &task)?,
                &options,
            ))
        }
        Command::Status(at) => status::status(&State::of(&at.pipeline)?, format),
        Command::Logs(arguments) => logs::logs(&State::of(&arguments.pipeline)?, &arguments, format),
        Command::Cancel {
            run,
            pipeline,
            no_keeper,
        } => {
            let options = Options {
                yes: false,
                until: None,
                sample: None,
                embedded_keeper: !no_keeper,
                format,
            };
            runtime()?.block_on(run::cancel(&State::of(&pipeline)?, &run, &options))
        }
        Command::Down {
            pipeline,
            site,
            no_keeper,
        } => {
            let options = Options {
                yes: false,
                until: None,
                sample: None,
                embedded_keeper: !no_keeper,
                format,
            };
            let project = Project::open(&pipeline.pipeline, None)?;
            runtime()?.block_on(run::down(&project, site.as_deref(), &options))
        }
        Command::Models(at) => status::models(&State::of(&at.pipeline)?, format),
        Command::Cost(at) => status::cost(&State::of(&at.pipeline)?, format),
        Command::Predict {
            site,
            rows,
            pipeline,
            out,
        } => {
            let project = Project::open(&pipeline, None)?;
            runtime()?.block_on(predict::predict(&project, &site, &rows, out.as_deref(), format))
        }
        Command::Data {
            command: DataCommand::Pull { name, to, pipeline },
        } => data::pull(&Project::open(&pipeline, None)?, &name, &to, format),
        Command::Keys { command } => match command {
            KeysCommand::List(at) => runtime()?.block_on(keys::list(&Project::open(&at.pipeline, None)?, format)),
            KeysCommand::Rotate { pipeline, no_keeper } => {
                let project = Project::open(&pipeline.pipeline, None)?;
                runtime()?.block_on(keys::rotate(&project, !no_keeper, format))
            }
            KeysCommand::Backup { to, out, pipeline } => {
                let project = Project::open(&pipeline, None)?;
                runtime()?.block_on(keys::backup(&project, &to, &out, format))
            }
            KeysCommand::Restore {
                backup,
                identity,
                pipeline,
            } => {
                let project = Project::open(&pipeline, None)?;
                runtime()?.block_on(keys::restore(&project, &backup, &identity, format))
            }
            KeysCommand::Shred {
                artifact,
                pipeline,
                no_keeper,
            } => {
                let project = Project::open(&pipeline, None)?;
                runtime()?.block_on(keys::shred(&project, &artifact, !no_keeper, format))
            }
        },
        Command::Serve { pipeline, site, listen } => {
            let project = Project::open(&pipeline.pipeline, None)?;
            runtime()?.block_on(serve::serve(&project, &site, listen, format))
        }
        Command::Enrol { pipeline, site, owner } => {
            runtime()?.block_on(serve::enrol(&Project::open(&pipeline.pipeline, None)?, &site, &owner))
        }
        Command::Audit { command } => match command {
            AuditCommand::Show { pipeline, run } => {
                audit::show(&State::of(&pipeline.pipeline)?, run.as_deref(), format)
            }
            AuditCommand::Verify { pipeline, since, keys } => audit::verify(
                &State::of(&pipeline.pipeline)?,
                since.as_deref(),
                keys.as_deref(),
                format,
            ),
            AuditCommand::Checkpoint(at) => audit::print_checkpoint(&State::of(&at.pipeline)?, format),
            AuditCommand::Keys(at) => audit::keys(&State::of(&at.pipeline)?, format),
            AuditCommand::Proof { pipeline, entry } => audit::proof(&State::of(&pipeline.pipeline)?, entry, format),
        },
        Command::Transfers { command } => match command {
            TransfersCommand::List(at) => transfers::list(&Project::open(&at.pipeline, None)?, format),
            TransfersCommand::Pause { permit, pipeline } => {
                transfers::pause(&Project::open(&pipeline.pipeline, None)?, permit.as_deref(), format)
            }
            TransfersCommand::Resume { permit, pipeline } => {
                transfers::resume(&Project::open(&pipeline.pipeline, None)?, permit.as_deref(), format)
            }
            TransfersCommand::Sweep { yes, unnamed, pipeline } => {
                let project = Project::open(&pipeline.pipeline, None)?;
                let removal = match (yes, unnamed) {
                    (false, _) => Removal::Nothing,
                    (true, false) => Removal::Known,
                    (true, true) => Removal::Unnamed,
                };
                runtime()?.block_on(transfers::sweep(&project, removal, format))
            }
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
        Command::Machine(command) => Ok(command.run(start)?),
        Command::Rows => runtime()?.block_on(stages::rows()),
        Command::Infer { model, matrix, out } => infer::infer(&model, &matrix, &out),
    }
}
