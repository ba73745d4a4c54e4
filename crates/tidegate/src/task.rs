//! Task files of SkyPilot in place of a pipeline's `train:`.
//!
//! What a task brings along (its `workdir`, local `file_mounts`, `secrets`) becomes part of the code, which is labelled
//! `restricted` then, unless the catalog says otherwise: so it is permitted like everything else that crosses.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use tidegate_contracts::ObjectName;
use tidegate_types::files::pipeline::{AnyOf, Resources, Train};
use tidegate_types::files::read::read;
use tidegate_types::files::sites::{Site, Sites};
use tidegate_types::files::{Catalog, SourceText};
use tidegate_types::glob;
use tidegate_types::ids::{DatasetName, SiteName};
use tidegate_types::label::Level;
use tidegate_types::quantity::ByteSize;

use self::file::{Asked, Mount, Place, Scalar, Task};
use crate::failure::Failure;
use crate::project::{read_bytes, read_text};

/// How many files a task may bring along, and how many bytes.
const FILES: usize = 1000;
const BYTES: usize = 32 << 20;
/// Where files for the home folder wait in the code, and what the secrets' file is called there.
const HOME: &str = ".home";
const SECRETS: &str = ".secrets";

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
    shown: String,
    folder: PathBuf,
    arguments: &'a TaskArguments,
    code: BTreeMap<String, Vec<u8>>,
    bytes: usize,
    /// What comes before both commands.
    before: Vec<String>,
}

/// Reads a task file; `from` is the dataset that the pipeline prepares.
pub(crate) fn take(
    file: &Path,
    arguments: &TaskArguments,
    before: &Train,
    from: &DatasetName,
    catalog: &Catalog,
    sites: &Sites,
) -> Result<Taken, Failure> {
    let text = read_text(file)?;
    let shown = file.display().to_string();
    let source = SourceText {
        file: &shown,
        text: &text,
    };
    let task: Task = read(&source).map_err(|error| Failure::File(vec![error]))?;
    let mut taking = Taking {
        folder: file.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf),
        shown: shown.clone(),
        arguments,
        code: BTreeMap::new(),
        bytes: 0,
        before: vec!["ln -sfn \"$PWD\" \"$HOME/sky_workdir\"".to_owned()],
    };
    if task.num_nodes.is_some_and(|nodes| nodes != 1) {
        return Err(taking.wrong("`num_nodes`: one node is all that a job has here"));
    }
    let run = task.run.filter(|run| !run.trim().is_empty());
    let run = run.ok_or_else(|| taking.wrong("`run` is missing: there is nothing to train"))?;
    if let Some(workdir) = &task.workdir {
        let folder = taking.local(workdir)?;
        taking.bring(&folder, "")?;
    }
    let mut bound = taking.inputs(from)?;
    for (to, mount) in &task.file_mounts {
        let from = match mount {
            Mount::Path(path) => path.clone(),
            Mount::Bucket(bucket) => bucket.source.clone().ok_or_else(|| {
                taking.wrong(&format!(
                    "`file_mounts: {to}`: a bucket for what comes out is not made here; write to `$TIDEGATE_OUTPUT`"
                ))
            })?,
        };
        if from.contains("://") {
            let input = bound.remove(to.trim_end_matches('/')).ok_or_else(|| {
                taking.wrong(&format!(
                    "`file_mounts: {to}`: a job reads no bucket; say which dataset it is: `--input {to}=DATASET`"
                ))
            })?;
            taking.show(to, &input)?;
        } else {
            let place = taking.home(to)?;
            let local = taking.local(&from)?;
            taking.bring(&local, &format!("{HOME}/{place}"))?;
        }
    }
    for (to, input) in bound {
        taking.show(&to, &input)?;
    }
    let envs = taking.variables(&task.envs)?;
    taking.secrets(&task.secrets)?;
    if taking.code.keys().any(|path| path.starts_with(HOME)) {
        taking.before.push(format!("cp -R {HOME}/. \"$HOME\"/"));
    }
    let resources = taking.resources(&task.resources, sites)?;
    let restricted = !taking.code.is_empty();
    if !restricted {
        // Something crosses first, also where all is in the command.
        taking.code.insert("task.sh".to_owned(), run.clone().into_bytes());
    }
    let prelude = taking.before.join("\n");
    let command = |text: String| format!("{prelude}\n{text}");
    let train = Train {
        resources,
        trainer: None,
        code: taking.code.keys().cloned().collect(),
        code_level: restricted.then(|| catalog.task_files.unwrap_or(Level::Restricted)),
        setup: task.setup.filter(|setup| !setup.trim().is_empty()).map(command),
        run: Some(command(run)),
        envs,
        retries: before.retries,
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
        Failure::Usage(format!("{}: {why}", self.shown))
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
    fn home(&self, place: &str) -> Result<String, Failure> {
        let below = place
            .strip_prefix("~/")
            .or_else(|| Some(place).filter(|place| !place.starts_with(['/', '~'])));
        let below = below.map(|below| below.trim_start_matches("./").trim_end_matches('/').to_owned());
        let below = below.filter(|below| ObjectName::new(below.clone()).is_ok());
        below.ok_or_else(|| {
            self.wrong(&format!(
                "`{place}`: a job has a home folder and no other place of its own; write `~/NAME`, of letters, digits, `.`, `_`, `-`"
            ))
        })
    }

    /// Takes a file, or all of a folder, into the code.
    fn bring(&mut self, from: &Path, to: &str) -> Result<(), Failure> {
        let within = |to: &str, name: &str| {
            if to.is_empty() {
                name.to_owned()
            } else {
                format!("{to}/{name}")
            }
        };
        let failed = |error: std::io::Error| Failure::Usage(format!("{}: {error}", from.display()));
        let meta = std::fs::symlink_metadata(from).map_err(failed)?;
        if meta.is_file() {
            let bytes = read_bytes(from)?;
            self.bytes += bytes.len();
            if ObjectName::new(to).is_err() {
                let why = "its name has signs that do not travel; use letters, digits, `.`, `_` and `-`";
                return Err(Failure::Usage(format!("{}: {why}", from.display())));
            }
            self.code.insert(to.to_owned(), bytes);
            if self.code.len() > FILES || self.bytes > BYTES {
                return Err(self.wrong(&format!(
                    "it brings more than {FILES} files or {} MiB along; leave some out by a `.skyignore`",
                    BYTES >> 20
                )));
            }
            return Ok(());
        }
        if !meta.is_dir() {
            return Err(Failure::Usage(format!(
                "{}: neither a file nor a folder",
                from.display()
            )));
        }
        let ignored = match std::fs::read_to_string(from.join(".skyignore")) {
            Ok(text) => text
                .lines()
                .map(|line| line.trim().trim_matches('/').to_owned())
                .collect(),
            Err(_) => Vec::new(),
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(from).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.push(
                name.into_string()
                    .map_err(|_| self.wrong("a file has a name that is no text"))?,
            );
        }
        names.sort();
        for name in names {
            let left_out = name == ".git" || ignored.iter().any(|line: &String| glob::matches(line, &name));
            if !left_out {
                self.bring(&from.join(&name), &within(to, &name))?;
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
            bound.insert(
                to.trim_end_matches('/').to_owned(),
                format!("TIDEGATE_INPUT_{}", part.to_uppercase()),
            );
        }
        Ok(bound)
    }

    /// Shows an input below the home folder; while the environment is set up there is none yet.
    fn show(&mut self, to: &str, variable: &str) -> Result<(), Failure> {
        let place = self.home(to)?;
        let folder = place.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.before.push(format!("mkdir -p \"$HOME/{folder}\""));
        self.before.push(format!(
            "if [ -n \"${{{variable}:-}}\" ]; then ln -sfn \"${variable}\" \"$HOME/{place}\"; fi"
        ));
        Ok(())
    }

    fn variables(&self, written: &BTreeMap<String, Option<Scalar>>) -> Result<BTreeMap<String, String>, Failure> {
        let mut values: BTreeMap<String, String> = [
            ("SKYPILOT_NUM_NODES", "1"),
            ("SKYPILOT_NODE_RANK", "0"),
            ("SKYPILOT_NODE_IPS", "127.0.0.1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut open: Vec<&String> = Vec::new();
        for (name, value) in written {
            match value {
                Some(value) => drop(values.insert(name.clone(), value.text())),
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
        match open.first() {
            None => Ok(values),
            Some(name) => Err(self.wrong(&format!("`envs: {name}` has no value; give one: `--env {name}=VALUE`"))),
        }
    }

    /// Secrets stand in a file of the code, which the commands read: what is in their text crosses with every grant.
    fn secrets(&mut self, written: &BTreeMap<String, Option<Scalar>>) -> Result<(), Failure> {
        let mut lines = String::new();
        let known = written.keys().chain(self.arguments.secret.iter());
        let names: std::collections::BTreeSet<&String> = known.collect();
        for name in names {
            let here = || std::env::var(name).ok();
            let value = written
                .get(name)
                .and_then(|value| value.as_ref().map(Scalar::text))
                .or_else(here);
            let value = value.ok_or_else(|| {
                self.wrong(&format!(
                    "`secrets: {name}` has no value; set the variable {name} for this command"
                ))
            })?;
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit())
                && !name.is_empty();
            if !plain || value.contains('\0') {
                return Err(self.wrong(&format!("`secrets: {name}` cannot be a variable")));
            }
            lines.push_str(&format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
        }
        if !lines.is_empty() {
            self.code.insert(SECRETS.to_owned(), lines.into_bytes());
            self.before.push(format!(". ./{SECRETS}"));
        }
        Ok(())
    }

    fn resources(&self, asked: &Asked, sites: &Sites) -> Result<Resources, Failure> {
        let mut named: Vec<SiteName> = Vec::new();
        let own = Place {
            infra: asked.infra.clone(),
            cloud: asked.cloud.clone(),
            region: asked.region.clone(),
        };
        let places = if asked.any_of.is_empty() {
            std::slice::from_ref(&own)
        } else {
            &asked.any_of
        };
        for place in places {
            for site in self.sites(place, sites)? {
                if !named.contains(&site) {
                    named.push(site);
                }
            }
        }
        let (infra, any_of) = match named.as_slice() {
            [] => (None, Vec::new()),
            [one] => (Some(one.clone()), Vec::new()),
            several => (
                None,
                several.iter().map(|infra| AnyOf { infra: infra.clone() }).collect(),
            ),
        };
        let gigabytes = asked
            .memory
            .as_ref()
            .map(|memory| memory.text().trim_end_matches('+').to_owned());
        let memory = gigabytes.map(|text| {
            let number: Option<u64> = text.trim_end_matches("GB").trim().parse().ok();
            let bytes = number.and_then(|number| number.checked_mul(1 << 30));
            bytes
                .map(ByteSize)
                .ok_or_else(|| self.wrong("`resources: memory` is a whole number of GB, such as `16` or `16+`"))
        });
        Ok(Resources {
            infra,
            any_of,
            cpus: asked.cpus.as_ref().map(Scalar::text),
            memory: memory.transpose()?,
            accelerators: asked.accelerators.clone(),
            use_spot: asked.use_spot,
        })
    }

    /// The sites that a place of the task means: the one of that name, or those of that cloud; none for anywhere.
    fn sites(&self, place: &Place, sites: &Sites) -> Result<Vec<SiteName>, Failure> {
        let text = place.infra.as_ref().or(place.cloud.as_ref());
        let Some(text) = text.filter(|text| *text != "*") else {
            return Ok(Vec::new());
        };
        if let Ok(name) = SiteName::new(text.clone())
            && sites.sites.contains_key(&name)
        {
            return Ok(vec![name]);
        }
        let mut parts = text.split('/');
        let cloud = parts.next().unwrap_or_default().to_ascii_lowercase();
        let region = parts.next().or(place.region.as_deref()).filter(|region| *region != "*");
        let driver = match cloud.as_str() {
            "aws" => "ec2",
            "gcp" => "vertex",
            "azure" => "azureml",
            other => other,
        };
        let fits = |site: &Site| {
            let Some(compute) = &site.compute else { return false };
            let there = compute.machine.as_ref().map_or("", |machine| machine.region.as_str());
            compute.driver == driver && region.is_none_or(|region| region == there)
        };
        let found = sites.sites.iter().filter(|(_, site)| fits(site));
        let found: Vec<SiteName> = found.map(|(name, _)| name.clone()).collect();
        if found.is_empty() {
            let known: Vec<&str> = sites.sites.keys().map(SiteName::as_str).collect();
            return Err(self.wrong(&format!(
                "`{text}` is neither a site nor a cloud of one; the sites file has {}",
                known.join(", ")
            )));
        }
        Ok(found)
    }
}
