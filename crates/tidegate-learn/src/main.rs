//! `tidegate-learn`: the built-in trainer as a command. All it needs comes from its environment; see
//! the module `environment` of the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tidegate_learn::train_from_environment() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-learn: {error}");
            ExitCode::FAILURE
        }
    }
}
