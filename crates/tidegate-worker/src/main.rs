//! The sandbox program by itself: everything that [`tidegate_worker::sandbox`] needs in the file that
//! it starts again. The whole worker is the command `worker` of `tidegate-machine`, which opens the store.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == tidegate_worker::sandbox::SUBCOMMAND => tidegate_worker::sandbox::sandbox_exec_main(args),
        _ => {
            eprintln!("usage: tidegate-worker sandbox-exec < ORDER");
            ExitCode::from(2)
        }
    }
}
