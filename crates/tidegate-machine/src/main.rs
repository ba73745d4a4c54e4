//! The `tidegate-machine` program: what a driver starts on a machine.

use std::process::ExitCode;

use clap::Parser;
use tidegate_machine::{BUILD, Command, log, tell_defect};
use tidegate_types::refusal::ExitCode as Code;

/// Works for a site of Tidegate. Started by `tidegate`, and not by people.
#[derive(Debug, Parser)]
#[command(name = "tidegate-machine", version = BUILD)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    // The sandbox's own entry: it becomes another program and never comes back to this one.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == "sandbox-exec") {
        return tidegate_worker::sandbox::sandbox_exec_main(arguments);
    }
    std::panic::set_hook(Box::new(tell_defect));
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A reader that is gone has seen enough.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8));
        }
    };
    if let Err(why) = log("error", false) {
        eprintln!("error: {why}");
        return ExitCode::from(Code::Usage as u8);
    }
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_stack_size(8 << 20)
            .enable_all()
            .build()
    };
    match arguments.command.run(runtime) {
        Ok(()) => ExitCode::from(Code::Done as u8),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(Code::Failed as u8)
        }
    }
}
