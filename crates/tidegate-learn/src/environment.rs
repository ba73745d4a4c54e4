//! The trainer as a command: what it reads from its environment and what it leaves behind.
//!
//! It keeps the contract that every training command has, so the worker treats it as it treats the
//! user's own:
//!
//! | variable | meaning |
//! |---|---|
//! | `TIDEGATE_INPUT_TRAIN` | folder of CSV files to learn from |
//! | `TIDEGATE_INPUT_VALIDATION` | folder of CSV files to judge epochs by; may be absent |
//! | `TIDEGATE_TARGET` | the column to be learned |
//! | `TIDEGATE_OUTPUT` | folder that gets `model.onnx` and `schema.json` |
//! | `TIDEGATE_CHECKPOINT` | folder that gets the unfinished training after each epoch, and is looked into before the first; may be absent |
//! | `TIDEGATE_METRICS` | file that gets a JSON object on a line of its own for each epoch; may be absent |
//!
//! The settings are `trainer.json` in the current folder: the pipeline's `trainer:` as JSON.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tidegate_types::files::pipeline::Trainer;

use crate::error::LearnError;
use crate::table::Table;
use crate::train::{Epoch, Observer, train_observed};

/// Name of the settings file, in the current folder.
pub const SETTINGS_FILE: &str = "trainer.json";
/// Name of the model in the output folder.
pub const MODEL_FILE: &str = "model.onnx";
/// Name of the schema in the output folder.
pub const SCHEMA_FILE: &str = "schema.json";

/// Name of the unfinished training in its folder.
pub const CHECKPOINT_FILE: &str = "training";
/// The longest one that is read: networks have a bound, and each of its numbers two moments.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// Where the trainer reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Folder of CSV files to learn from.
    pub train: PathBuf,
    /// Folder of CSV files to judge epochs by.
    pub validation: Option<PathBuf>,
    /// The column to be learned.
    pub target: String,
    /// Folder that gets model and schema; made when it is not there.
    pub output: PathBuf,
    /// Folder of the unfinished training.
    pub checkpoint: Option<PathBuf>,
    /// File that gets a line for each epoch.
    pub metrics: Option<PathBuf>,
    /// The settings.
    pub settings: PathBuf,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// When one that is needed is not set or empty, or the target is not UTF-8.
    pub fn from_process() -> Result<Self, LearnError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(read: impl Fn(&str) -> Option<OsString>) -> Result<Self, LearnError> {
        let optional = |name| read(name).filter(|value| !value.is_empty());
        let needed = |name| optional(name).ok_or(LearnError::Variable(name));
        Ok(Self {
            train: needed("TIDEGATE_INPUT_TRAIN")?.into(),
            validation: optional("TIDEGATE_INPUT_VALIDATION").map(PathBuf::from),
            target: needed("TIDEGATE_TARGET")?
                .into_string()
                .map_err(|_| LearnError::Variable("TIDEGATE_TARGET"))?,
            output: needed("TIDEGATE_OUTPUT")?.into(),
            checkpoint: optional("TIDEGATE_CHECKPOINT").map(PathBuf::from),
            metrics: optional("TIDEGATE_METRICS").map(PathBuf::from),
            settings: SETTINGS_FILE.into(),
        })
    }
}

/// Trains as the environment of this process says; see the module's table.
///
/// # Errors
/// When a variable is missing, a file cannot be read or written, or training fails.
pub fn train_from_environment() -> Result<(), LearnError> {
    run(&Environment::from_process()?)
}

/// Trains as `environment` says. Model and schema appear whole or not at all, the schema first.
///
/// # Errors
/// As [`train_from_environment`].
pub fn run(environment: &Environment) -> Result<(), LearnError> {
    let settings = read_settings(&environment.settings)?;
    let train = Table::read_folder(&environment.train)?;
    let validation = environment.validation.as_deref().map(Table::read_folder).transpose()?;
    say(&format!(
        "{} training rows, {} validation rows, {} columns",
        train.rows(),
        validation.as_ref().map_or(0, Table::rows),
        train.header().len()
    ));
    let mut reporter = Reporter {
        epochs: settings.epochs,
        metrics: environment.metrics.as_deref().map(Metrics::open).transpose()?,
        unfinished: environment
            .checkpoint
            .as_ref()
            .map(|folder| folder.join(CHECKPOINT_FILE)),
    };
    let target = &environment.target;
    let trained = train_observed(&settings, &train, validation.as_ref(), target, &mut reporter)?;

    let output = &environment.output;
    std::fs::create_dir_all(output).map_err(LearnError::io("creating the folder", output))?;
    let schema =
        serde_json::to_vec(&trained.schema).map_err(|error| LearnError::io("writing", output)(error.into()))?;
    write_whole(&output.join(SCHEMA_FILE), &schema)?;
    write_whole(&output.join(MODEL_FILE), &trained.model)?;
    say(&format!(
        "wrote {MODEL_FILE} ({} bytes) and {SCHEMA_FILE}",
        trained.model.len()
    ));
    Ok(())
}

fn read_settings(path: &Path) -> Result<Trainer, LearnError> {
    let text = std::fs::read(path).map_err(LearnError::io("reading the trainer's settings", path))?;
    serde_json::from_slice(&text).map_err(|error| LearnError::Settings {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn progress(epoch: &Epoch, epochs: u32) -> String {
    let validation = epoch
        .validation_loss
        .map_or_else(String::new, |loss| format!(", validation loss {loss:.4}"));
    format!("epoch {} of {epochs}: loss {:.4}{validation}", epoch.epoch, epoch.loss)
}

/// Progress is a courtesy: a closed standard output must not end a training.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Tells epochs, and keeps what is unfinished.
struct Reporter {
    epochs: u32,
    metrics: Option<Metrics>,
    unfinished: Option<PathBuf>,
}

impl Observer for Reporter {
    fn epoch(&mut self, epoch: &Epoch) -> Result<(), LearnError> {
        say(&progress(epoch, self.epochs));
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.append(epoch))
    }

    fn unfinished(&mut self, file: &dyn Fn() -> Result<Vec<u8>, LearnError>) -> Result<(), LearnError> {
        let Some(path) = &self.unfinished else { return Ok(()) };
        // Not flushed: it goes with the machine, and who copies it reads what the system has.
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, file()?).and_then(|()| std::fs::rename(&partial, path));
        if let Err(error) = written {
            // No reason to end a training.
            say(&format!("what is unfinished cannot be kept: {error}"));
            self.unfinished = None;
        }
        Ok(())
    }

    fn begun(&mut self) -> Result<Option<Vec<u8>>, LearnError> {
        let Some(path) = &self.unfinished else { return Ok(None) };
        let read = File::open(path).and_then(|file| {
            let mut text = Vec::new();
            file.take(CHECKPOINT_BYTES).read_to_end(&mut text)?;
            Ok(text)
        });
        Ok(match read {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                say(&format!("what was unfinished cannot be read: {error}"));
                None
            }
        })
    }

    fn goes_on(&mut self, epochs: usize) {
        say(&format!("goes on after epoch {epochs}"));
    }
}

struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    fn open(path: &Path) -> Result<Self, LearnError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(LearnError::io("opening", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// One write for one line, so that a reader never sees half of one.
    fn append(&mut self, epoch: &Epoch) -> Result<(), LearnError> {
        let mut line =
            serde_json::to_vec(epoch).map_err(|error| LearnError::io("writing", &self.path)(error.into()))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(LearnError::io("writing", &self.path))
    }
}

/// Writes a file beside its name, flushes it and renames it.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LearnError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(partial, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(LearnError::io("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_missing_or_empty_is_named() {
        let all = |name: &str| match name {
            "TIDEGATE_INPUT_VALIDATION" | "TIDEGATE_CHECKPOINT" | "TIDEGATE_METRICS" => None,
            _ => Some(OsString::from("x")),
        };
        let environment = Environment::from_variables(all).unwrap();
        assert_eq!((environment.validation, environment.metrics), (None, None));
        assert_eq!(environment.checkpoint, None);
        for missing in ["TIDEGATE_INPUT_TRAIN", "TIDEGATE_TARGET", "TIDEGATE_OUTPUT"] {
            let error = Environment::from_variables(|name| {
                if name == missing {
                    Some(OsString::new())
                } else {
                    all(name)
                }
            });
            assert!(error.unwrap_err().to_string().contains(missing));
        }
    }
}
