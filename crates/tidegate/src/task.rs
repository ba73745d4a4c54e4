//! Task files of SkyPilot in place of a pipeline's `train:`.
//!
//! What a task brings along (its `workdir`, local `file_mounts`, `secrets`) becomes part of the code, which is labelled
//! `restricted` then, unless the catalog says otherwise: so it is permitted like everything else that crosses.

mod file;
mod left_out;
mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use tidegate_contracts::ObjectName;
use tidegate_types::files::pipeline::Train;
use tidegate_types::files::read::read;
use tidegate_types::files::rules::{MAX_NODES, environment_name_fault};
use tidegate_types::files::sites::Sites;
use tidegate_types::files::{Catalog, SourceText};
use tidegate_types::ids::DatasetName;
use tidegate_types::label::Level;

use self::file::{Mount, Task};
use self::left_out::LeftOut;
use crate::failure::Failure;
use crate::project::{read_bytes, read_text};

/// How many files a task may bring along, and how many bytes.
const FILES: usize = 1000;
const BYTES: usize = 16 << 20;
/// Where files for the home folder wait in the code, and what the secrets' file is called there.
const HOME: &str = ".home";
const SECRETS: &str = ".secrets";
/// Where the task's two commands stand in the code.
const SCRIPTS: &str = ".task";

/// A task file, and what belongs to it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TaskArguments {
    /// A task file of SkyPilot, in place of the pipeline's `train:`.
    #[arg(long, value_name = "FILE")]
    pub(crate) task: Option<PathBuf>,
    /// Where the task finds the prepared dataset: `~/data=admissions`, or `~/valid=admissions:validation`.
    #[arg(long, value_name = "NAME=DATASET", requires = "task")]
    pub(crate) input: Vec<String>,
    /// A variable of the task, where its file leaves the value open.
    #[arg(long, value_name = "NAME=VALUE", requires = "task")]
    pub(crate) env: Vec<String>,
    /// A secret of the task, by the name of a variable that holds it here.
    #[arg(long, value_name = "NAME", requires = "task")]
    pub(crate) secret: Vec<String>,
}

/// What becomes of a task file.
pub(crate) struct Taken {
    pub(crate) train: Train,
    /// Files of the code by path, in base64.
    pub(crate) code: BTreeMap<String, String>,
}

struct Taking<'a> {
    source: SourceText<'a>,
    folder: PathBuf,
    arguments: &'a TaskArguments,
    /// The state folder, which is nobody's code.
    state: PathBuf,
    code: BTreeMap<String, Vec<u8>>,
    bytes: usize,
    /// Files of the code that may be executed.
    programs: Vec<String>,
    /// What comes before both commands.
    before: Vec<String>,
}

/// Reads a task file; `from` is the dataset that the pipeline prepares.
pub(crate) fn take(
    file: &Path,
    arguments: &TaskArguments,
    before: &Train,
    from: &DatasetName,
    (catalog, sites): (&Catalog, &Sites),
    state: &Path,
) -> Result<Taken, Failure> {
    let text = read_text(file)?;
    let shown = file.display().to_string();
    let source = SourceText {
        file: &shown,
        text: &text,
    };
    let task: Task = read(&source).map_err(|error| Failure::File(vec![error]))?;
    let mut taking = Taking {
        source,
        folder: file.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf),
        arguments,
        state: state.canonicalize().unwrap_or_else(|_| state.to_path_buf()),
        code: BTreeMap::new(),
        bytes: 0,
        programs: Vec::new(),
        before: vec!["set -e\nln -sfn \"$PWD\" \"$HOME/sky_workdir\"".to_owned()],
    };
    let num_nodes = task.num_nodes.unwrap_or(1);
    if !(1..=MAX_NODES).contains(&num_nodes) {
        let why = format!("`num_nodes`: from 1 to {MAX_NODES} machines work at a job");
        return Err(taking.wrong_at(&["num_nodes"], why));
    }
    let run = task.run.filter(|run| !run.trim().is_empty());
    let run = run.ok_or_else(|| taking.wrong("`run` is missing: there is nothing to train"))?;
    if let Some(workdir) = &task.workdir {
        let folder = taking.local(workdir)?;
        taking.bring(&["workdir"], &folder, "")?;
    }
    let mut bound = taking.inputs(from)?;
    let shown_at: Vec<String> = bound.keys().cloned().collect();
    for (to, mount) in &task.file_mounts {
        let from = match mount {
            Mount::Path(path) => path.clone(),
            Mount::Bucket(bucket) => bucket.source.clone().ok_or_else(|| {
                let why = "a bucket for what comes out is not made here; write to `$TIDEGATE_OUTPUT`";
                taking.wrong_at(&["file_mounts", to], format!("`file_mounts: {to}`: {why}"))
            })?,
        };
        let place = taking.home(to, &["file_mounts", to])?;
        if from.contains("://") {
            let input = bound.remove(&place).ok_or_else(|| {
                let given: Vec<String> = shown_at.iter().map(|place| format!("`~/{place}`")).collect();
                let given = match given.as_slice() {
                    [] => String::new(),
                    given => format!("; what is given is {}", given.join(", ")),
                };
                let why = format!("a job reads no bucket; say which dataset it is: `--input {to}=DATASET`{given}");
                taking.wrong_at(&["file_mounts", to], format!("`file_mounts: {to}`: {why}"))
            })?;
            taking.show(&place, &input);
        } else {
            let within = |one: &str, other: &str| one == other || one.starts_with(&format!("{other}/"));
            if shown_at
                .iter()
                .any(|other| within(&place, other) || within(other, &place))
            {
                let why = format!("`file_mounts: {to}`: an input stands there");
                return Err(taking.wrong_at(&["file_mounts", to], why));
            }
            let local = taking.local(&from)?;
            taking.bring(&["file_mounts", to], &local, &format!("{HOME}/{place}"))?;
        }
    }
    for (place, input) in bound {
        taking.show(&place, &input);
    }
    let envs = taking.variables(&task.envs)?;
    taking.secrets(&task.secrets)?;
    let resources = taking.resources(&task.resources, sites)?;
    let restricted = !taking.code.is_empty();
    if !taking.programs.is_empty() {
        // They may be somebody else's: copies are the command's own.
        taking.before.push(format!(
            "for program in {}; do\n  cp \"./$program\" \"./$program.new\"\n  chmod u+x \"./$program.new\"\n  \
             mv -f \"./$program.new\" \"./$program\"\ndone",
            taking.programs.join(" ")
        ));
    }
    let prelude = taking.before.join("\n");
    // What the first command finds at home it may change for the second.
    let homely = taking.code.keys().any(|path| path.starts_with(&format!("{HOME}/")));
    let mut first = if homely {
        format!("cp -R {HOME}/. \"$HOME\"/\n")
    } else {
        String::new()
    };
    let mut command = |name: &str, text: String| {
        let file = format!("{SCRIPTS}/{name}.sh");
        taking.put(&file, text.into_bytes())?;
        let first = std::mem::take(&mut first);
        // They are written for bash, and there need not be one.
        let start = format!("if command -v bash >/dev/null; then exec bash {file}; fi\nset +e\n. ./{file}");
        Ok::<_, Failure>(format!("{prelude}\n{first}{start}"))
    };
    let setup = task.setup.filter(|setup| !setup.trim().is_empty());
    let setup = setup.map(|setup| command("setup", setup)).transpose()?;
    let run = command("run", run)?;
    let train = Train {
        resources,
        trainer: None,
        code: taking.code.keys().cloned().collect(),
        code_level: restricted.then(|| catalog.task_files.unwrap_or(Level::Restricted)),
        setup,
        run: Some(run),
        envs,
        retries: before.retries,
        num_nodes,
    };
    let code = taking
        .code
        .into_iter()
        .map(|(path, bytes)| (path, STANDARD.encode(bytes)));
    Ok(Taken {
        train,
        code: code.collect(),
    })
}

impl Taking<'_> {
    fn wrong(&self, why: &str) -> Failure {
        Failure::Usage(format!("{}: {why}", self.source.file))
    }

    /// The same at the place of a key; not for secrets, for what stands there is shown.
    fn wrong_at(&self, path: &[&str], why: impl Into<String>) -> Failure {
        Failure::File(vec![self.source.fault(path, why)])
    }

    /// A path of the file's author.
    fn local(&self, path: &str) -> Result<PathBuf, Failure> {
        match path.strip_prefix("~/") {
            Some(rest) => {
                let home = std::env::home_dir().ok_or_else(|| self.wrong("`~` is nowhere here"))?;
                Ok(home.join(rest))
            }
            None => Ok(self.folder.join(path)),
        }
    }

    /// Where something stands below the home folder of the job, by how the task calls it.
    fn home(&self, place: &str, at: &[&str]) -> Result<String, Failure> {
        let below = place
            .strip_prefix("~/")
            .or_else(|| Some(place).filter(|place| !place.starts_with(['/', '~'])));
        let below = below.map(|below| below.trim_start_matches("./").trim_end_matches('/').to_owned());
        let below = below.filter(|below| ObjectName::new(below.clone()).is_ok());
        below.ok_or_else(|| {
            let why = format!(
                "`{place}`: a job has a home folder and no other place of its own; write `~/NAME`, of letters, digits, `.`, `_`, `-`"
            );
            if at.is_empty() {
                self.wrong(&why)
            } else {
                self.wrong_at(at, why)
            }
        })
    }

    fn put(&mut self, to: &str, bytes: Vec<u8>) -> Result<(), Failure> {
        if self.code.contains_key(to) {
            return Err(self.wrong(&format!("two things stand at `{to}` of the code; rename one")));
        }
        self.bytes += bytes.len();
        self.code.insert(to.to_owned(), bytes);
        if self.code.len() > FILES || self.bytes > BYTES {
            return Err(self.wrong(&format!(
                "it brings more than {FILES} files or {} MiB along; leave some out by a `.skyignore`",
                BYTES >> 20
            )));
        }
        Ok(())
    }

    /// Takes a file, or all of a folder, into the code.
    fn bring(&mut self, at: &[&str], from: &Path, to: &str) -> Result<(), Failure> {
        let wrong = |why: &str| self.wrong_at(at, format!("{}: {why}", from.display()));
        let real = from.canonicalize().map_err(|error| wrong(&error.to_string()))?;
        if real.starts_with(&self.state) {
            return Err(wrong("what is in the state folder is nobody's code"));
        }
        let left_out = if from.is_dir() {
            LeftOut::of(from)?
        } else {
            LeftOut::default()
        };
        self.bring_all(from, to, "", &left_out)
    }

    fn bring_all(&mut self, from: &Path, to: &str, inside: &str, left_out: &LeftOut) -> Result<(), Failure> {
        let within = |to: &str, name: &str| {
            if to.is_empty() {
                name.to_owned()
            } else {
                format!("{to}/{name}")
            }
        };
        let failed = |why: &str| Failure::Usage(format!("{}: {why}", from.display()));
        let meta = std::fs::symlink_metadata(from).map_err(|error| failed(&error.to_string()))?;
        if meta.is_file() {
            if ObjectName::new(to).is_err() {
                return Err(failed(
                    "its name has signs that do not travel; use letters, digits, `.`, `_` and `-`",
                ));
            }
            if meta.permissions().mode() & 0o100 != 0 {
                self.programs.push(to.to_owned());
            }
            return self.put(to, read_bytes(from)?);
        }
        if !meta.is_dir() {
            return Err(failed("neither a file nor a folder; leave it out by a `.skyignore`"));
        }
        if from.canonicalize().is_ok_and(|folder| folder == self.state) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(from).map_err(|error| failed(&error.to_string()))? {
            let name = entry.map_err(|error| failed(&error.to_string()))?.file_name();
            names.push(name.into_string().map_err(|_| failed("a name in it is no text"))?);
        }
        names.sort();
        for name in names {
            let place = within(inside, &name);
            if !left_out.holds(&place, &name) {
                self.bring_all(&from.join(&name), &within(to, &name), &place, left_out)?;
            }
        }
        Ok(())
    }

    /// Which inputs `--input` shows where.
    fn inputs(&self, from: &DatasetName) -> Result<BTreeMap<String, String>, Failure> {
        let mut bound = BTreeMap::new();
        for text in &self.arguments.input {
            let (to, dataset) = text
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("`--input {text}`: write `NAME=DATASET`")))?;
            let (dataset, part) = dataset.split_once(':').unwrap_or((dataset, "train"));
            if dataset != from.as_str() {
                let why = format!("`--input {text}`: the pipeline prepares `{from}`, and a job sees nothing else");
                return Err(Failure::Usage(why));
            }
            if !["train", "validation"].contains(&part) {
                let why = "of a dataset, `train` and `validation` leave; the other parts stay at home";
                return Err(Failure::Usage(format!("`--input {text}`: {why}")));
            }
            // A shell may have put the home folder here in place of `~`.
            let own = std::env::home_dir().map(|home| format!("{}/", home.display()));
            let to = match own.and_then(|own| to.strip_prefix(own.as_str())) {
                Some(below) => format!("~/{below}"),
                None => to.to_owned(),
            };
            bound.insert(self.home(&to, &[])?, format!("TIDEGATE_INPUT_{}", part.to_uppercase()));
        }
        Ok(bound)
    }

    /// Shows an input below the home folder; while the environment is set up there is none yet.
    fn show(&mut self, place: &str, variable: &str) {
        let folder = place.rsplit_once('/').map_or("", |(folder, _)| folder);
        let there = format!("\"$HOME/{place}\"");
        self.before.push(format!("mkdir -p \"$HOME/{folder}\""));
        self.before.push(format!(
            "if [ -n \"${{{variable}:-}}\" ]; then\n  if [ -d {there} ] && [ ! -L {there} ]; then rmdir {there} || exit 1; fi\n  \
             ln -sfn \"${variable}\" {there}\nfi"
        ));
    }

    fn variables(&self, written: &BTreeMap<String, Option<String>>) -> Result<BTreeMap<String, String>, Failure> {
        let mut values: BTreeMap<String, String> = [
            ("SKYPILOT_NUM_NODES", "1"),
            ("SKYPILOT_NODE_RANK", "0"),
            ("SKYPILOT_NODE_IPS", "127.0.0.1"),
            ("SKYPILOT_SETUP_NODE_RANK", "0"),
            ("SKYPILOT_SETUP_NODE_IPS", "127.0.0.1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut open: Vec<&String> = Vec::new();
        for (name, value) in written {
            match value {
                Some(value) => drop(values.insert(name.clone(), value.clone())),
                None => open.push(name),
            }
        }
        for text in &self.arguments.env {
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("`--env {text}`: write `NAME=VALUE`")))?;
            open.retain(|one| *one != name);
            values.insert(name.to_owned(), value.to_owned());
        }
        if let Some((name, why)) = values
            .keys()
            .find_map(|name| Some((name, environment_name_fault(name)?)))
        {
            let why = format!("`envs: {name}`: {why}");
            // One of `--env` stands in no file.
            return Err(if written.contains_key(name) {
                self.wrong_at(&["envs", name], why)
            } else {
                self.wrong(&why)
            });
        }
        match open.first() {
            None => Ok(values),
            Some(name) => {
                let why = format!("`envs: {name}` has no value; give one: `--env {name}=VALUE`");
                Err(self.wrong_at(&["envs", name], why))
            }
        }
    }

    /// Secrets stand in a file of the code, which the commands read: what is in their text crosses with every grant.
    fn secrets(&mut self, written: &BTreeMap<String, Option<String>>) -> Result<(), Failure> {
        let mut lines = String::new();
        if self.arguments.secret.iter().any(|name| name.contains('=')) {
            let why = "`--secret` takes the name of a variable alone: everybody on this machine sees a command's words";
            return Err(Failure::Usage(why.to_owned()));
        }
        let names: BTreeSet<&String> = written.keys().chain(&self.arguments.secret).collect();
        for name in names {
            if let Some(why) = environment_name_fault(name) {
                return Err(self.wrong(&format!("`secrets: {name}`: {why}")));
            }
            let here = std::env::var(name).ok();
            let there = written.get(name).cloned().flatten();
            // What is asked for in the command wins.
            let value = if self.arguments.secret.contains(name) {
                here
            } else {
                there.or(here)
            };
            let value = value.filter(|value| !value.contains('\0')).ok_or_else(|| {
                self.wrong(&format!(
                    "`secrets: {name}` has no value; set the variable {name} for this command"
                ))
            })?;
            lines.push_str(&format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
        }
        if !lines.is_empty() {
            self.put(SECRETS, lines.into_bytes())?;
            self.before.push(format!(". ./{SECRETS}"));
        }
        Ok(())
    }
}
