//! The same work on a machine of the site: what it needs, what it does there, and what comes back.
//!
//! A machine is given two folders, `code` with `request.json` and `rows`, and leaves one. It works as the keeper's own process
//! does, in a folder of its own; what it made has the same names there and here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_contracts::stage::{HomeStages, ModelAtHome, RowsWork, StageContext, StageError, StageKeys};
use tidegate_prepare::{Part, PrepareInput, SourceFile, home_folders, look, take_over};
use tidegate_types::files::{Catalog, read_pipeline};
use tidegate_types::keeper::PipelineText;
use tidegate_types::refusal::Refusal;

use super::{Rows, brought, failed, input, keys, raw_file, stage_error};
use crate::failure::{Failure, While};
use crate::scores::{self, Scores};

/// In `code`: what is to be done.
const REQUEST: &str = "request.json";
/// In what comes back: why it was not done.
const ANSWER: &str = "answer.json";
/// In `rows`: the files of the source, or the model.
const SOURCE: &str = "source";
const MODEL: &str = "model";
const RELEASES: &str = "releases";
/// In what comes back.
const PREPARED: &str = "prepared";
const PACKING: &str = "packing what a machine needs";
const TAKING: &str = "taking what a machine made";

/// What a machine is asked to do. It holds the site's keys for rows, and is sealed like everything else.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    catalog: Catalog,
    text: PipelineText,
    split: String,
    values: String,
    work: Work,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Work {
    /// With the names of the source's files, in order.
    Prepare { sources: Vec<String> },
    /// With the folder of the home parts, below `rows`.
    Judge { home: PathBuf },
}

/// Why it was not done.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Refused(Refusal),
    Wrong(String),
}

/// As [`HomeStages::pack`].
pub(super) async fn pack(
    stages: &Rows,
    context: &StageContext<'_>,
    work: RowsWork<'_>,
    into: &Path,
) -> Result<bool, StageError> {
    let rows = into.join("rows");
    let work = match work {
        RowsWork::Prepare => {
            let (keys, brought) = (keys(context), brought(context).await?);
            let needed = look(&input(context, &keys, brought.as_ref()))
                .await
                .map_err(stage_error)?;
            let Some(needed) = needed else { return Ok(false) };
            std::fs::create_dir_all(&rows).map_err(packing)?;
            lay(&needed.releases, &rows.join(RELEASES)).map_err(packing)?;
            let source = rows.join(SOURCE);
            std::fs::create_dir_all(&source).map_err(packing)?;
            let mut sources = Vec::new();
            for (number, file) in needed.files.into_iter().enumerate() {
                lay(&file.path, &source.join(number.to_string())).map_err(packing)?;
                sources.push(file.name);
            }
            Work::Prepare { sources }
        }
        RowsWork::Judge(model) => {
            if is_scored(stages, context, model)? {
                return Ok(false);
            }
            for folder in home_folders(model.home).map_err(stage_error)? {
                let below = folder.strip_prefix(context.folder).map_err(packing)?;
                lay(&folder, &rows.join(below)).map_err(packing)?;
            }
            lay(model.folder, &rows.join(MODEL)).map_err(packing)?;
            let home = model.home.strip_prefix(context.folder).map_err(packing)?;
            Work::Judge { home: home.to_owned() }
        }
    };
    let request = Request {
        catalog: context.catalog.clone(),
        text: context.text.clone(),
        split: hex::encode(context.keys.split),
        values: hex::encode(context.keys.values),
        work,
    };
    let code = into.join("code");
    std::fs::create_dir_all(&code).map_err(packing)?;
    let request = serde_json::to_vec(&request).map_err(packing)?;
    let mut file = private(&code.join(REQUEST)).map_err(packing)?;
    file.write_all(&request).map_err(packing)?;
    Ok(true)
}

/// Whether everything is there that judging, refining and releasing a model ask of the rows.
fn is_scored(stages: &Rows, context: &StageContext<'_>, model: &ModelAtHome<'_>) -> Result<bool, StageError> {
    let opened = stages.open(context, model)?;
    let refine = context.pipeline.refine.is_some().then_some((Part::Refine, &[][..]));
    let by = context.pipeline.evaluate.by.as_slice();
    let parts = [(Part::Test, by), (Part::Train, &[][..])].into_iter().chain(refine);
    let mut keys = parts.map(|(part, by)| Scores::key(opened.digest, part, by));
    let raw = raw_file(context, &opened);
    let compared = context.pipeline.train.trainer.is_none() || raw.is_none_or(|file| file.exists());
    Ok(compared && keys.all(|key| stages.scores.has(context.folder, &key)))
}

/// As [`HomeStages::unpack`].
pub(super) async fn unpack(context: &StageContext<'_>, from: &Path) -> Result<(), StageError> {
    match scores::read::<Answer>(&from.join(ANSWER)) {
        Some(Answer::Refused(refusal)) => return Err(StageError::Refused(refusal)),
        Some(Answer::Wrong(why)) => return Err(StageError::Input(why)),
        None => {}
    }
    if from.join(PREPARED).is_dir() {
        take_over(context.folder, from, &keys(context))
            .await
            .map_err(stage_error)?;
    }
    let scored = from.join(scores::FOLDER);
    if scored.is_dir() {
        let folder = context.folder.join(scores::FOLDER);
        // Those of other models are not asked for any more.
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|error| failed(TAKING, error))?;
        }
        std::fs::rename(&scored, &folder).map_err(|error| failed(TAKING, error))?;
    }
    Ok(())
}

/// `tidegate rows`: does what `request.json` in this folder asks for, as a worker's command.
pub(crate) async fn rows() -> Result<(), Failure> {
    let working = "working on rows in a keeper's place";
    let variable = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.ok_or_else(|| Failure::failed(working, format!("{name} is not set: it is a worker's command")))
    };
    let (rows, output) = (variable("TIDEGATE_INPUT_ROWS")?, variable("TIDEGATE_OUTPUT")?);
    let folder = variable("TMPDIR")?.join("rows");
    let request = std::fs::read(REQUEST).while_(working)?;
    let request: Request = serde_json::from_slice(&request).while_(working)?;
    let pipeline = read_pipeline(&request.text.file, &request.text.text).while_(working)?;
    let mut site_keys = StageKeys {
        split: [0; 32],
        values: [0; 32],
    };
    hex::decode_to_slice(&request.split, &mut site_keys.split).while_(working)?;
    hex::decode_to_slice(&request.values, &mut site_keys.values).while_(working)?;
    std::fs::create_dir_all(&folder).while_(working)?;
    let context = StageContext {
        catalog: &request.catalog,
        catalog_folder: &rows,
        pipeline: &pipeline,
        text: &request.text,
        folder: &folder,
        keys: &site_keys,
    };
    let stages = Rows::for_keeper(std::env::current_exe().while_(working)?);
    let done = match &request.work {
        Work::Prepare { sources } => prepare(&context, &rows, sources).await,
        Work::Judge { home } => judge(&stages, &context, &rows, home).await,
    };
    let answer = match done {
        Ok(()) => None,
        Err(StageError::Refused(refusal)) => Some(Answer::Refused(refusal)),
        Err(StageError::Input(why)) => Some(Answer::Wrong(why)),
        Err(StageError::Failed(why)) => return Err(Failure::failed(working, why)),
    };
    if let Some(answer) = answer {
        let answer = serde_json::to_vec(&answer).while_(working)?;
        return std::fs::write(output.join(ANSWER), answer).while_(working);
    }
    for made in [PREPARED, RELEASES, scores::FOLDER] {
        if folder.join(made).is_dir() {
            std::fs::rename(folder.join(made), output.join(made)).while_(working)?;
        }
    }
    Ok(())
}

async fn prepare(context: &StageContext<'_>, rows: &Path, names: &[String]) -> Result<(), StageError> {
    let releases = rows.join(RELEASES);
    copy(&releases, &context.folder.join(RELEASES))
        .map_err(|error| failed("copying the register of releases", error))?;
    let files: Vec<SourceFile> = names
        .iter()
        .enumerate()
        .map(|(number, name)| SourceFile {
            path: rows.join(SOURCE).join(number.to_string()),
            name: name.clone(),
        })
        .collect();
    let keys = keys(context);
    let input = PrepareInput {
        brought: Some(&files),
        ..input(context, &keys, None)
    };
    let prepared = tidegate_prepare::prepare(&input).await.map_err(stage_error)?;
    match prepared.labels.refusals.first() {
        Some(refusal) => Err(StageError::Refused(refusal.clone())),
        None => Ok(()),
    }
}

async fn judge(stages: &Rows, context: &StageContext<'_>, rows: &Path, home: &Path) -> Result<(), StageError> {
    let (folder, home) = (rows.join(MODEL), rows.join(home));
    let model = ModelAtHome {
        folder: &folder,
        home: &home,
    };
    stages.evaluate(context, &model).await?;
    if context.pipeline.refine.is_some() {
        stages.refine(context, &model).await?;
    }
    Ok(())
}

fn packing(error: impl std::fmt::Display) -> StageError {
    failed(PACKING, error)
}

/// Lays files where somebody else reads them, by another name for each where the file system has that, and their folders.
/// What is not there is left out.
fn lay(from: &Path, to: &Path) -> io::Result<()> {
    each(from, to, &|from, to| {
        // Over a name that is there, a copy would be written into what it names.
        match std::fs::hard_link(from, to) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => std::fs::copy(from, to).map(drop),
            linked => linked,
        }
    })
}

/// A file of its owner alone.
fn private(path: &Path) -> io::Result<std::fs::File> {
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Copies, so that the copy can be changed.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    each(from, to, &|from, to| std::fs::copy(from, to).map(drop))
}

fn each(from: &Path, to: &Path, put: &dyn Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let mut open = BTreeMap::from([(from.to_owned(), to.to_owned())]);
    while let Some((from, to)) = open.pop_first() {
        if from.is_dir() {
            std::fs::create_dir_all(&to)?;
            for entry in std::fs::read_dir(&from)? {
                let entry = entry?;
                open.insert(entry.path(), to.join(entry.file_name()));
            }
        } else {
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder)?;
            }
            put(&from, &to)?;
        }
    }
    Ok(())
}
