//! `init`, `check` and `scan`: the user's files and sources.

use std::collections::BTreeMap;
use std::path::Path;

use tidegate_contracts::stage::StageError;
use tidegate_prepare::{Keys, PrepareError, PrepareInput, Rehearsal, ScanReport};
use tidegate_types::IdentifierKind;
use tidegate_types::files::catalog::Column;
use tidegate_types::ids::{DatasetName, SiteName};

use crate::catalog_text::write_catalog;
use crate::cli::Format;
use crate::drivers::{self, MachineTrial};
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::show;
use crate::sources::{self, Brought};
use crate::stores::{self, CustodyTrial, Trial};

/// A name for a dataset from a file's name.
fn dataset_name(from: &Path) -> Result<DatasetName, Failure> {
    let stem = from
        .file_stem()
        .map(|stem| stem.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect::<String>()
        .trim_matches('_')
        .chars()
        .take(63)
        .collect();
    DatasetName::new(name).map_err(|error| Failure::Usage(error.to_string()))
}

/// What stands above a first catalog.
const FIRST_WORDS: &str = "Written from a scan: read every line, and correct it.
`purposes` says what the data may be used for; nothing is allowed until you write it.
`tags`, such as `tags: [phi]`, name kinds of regulated data: only sites that are cleared for them may hold it.
`residency`, such as `residency: {only: [US]}`, says where it must stay.";

/// Writes a first catalog; what is unsure is an identifier until the owner says otherwise.
pub(crate) async fn init(from: &Path, site: &str, out: &Path, format: Format) -> Result<(), Failure> {
    let writing = "writing the catalog";
    if out.exists() {
        return Err(Failure::Usage(format!(
            "{} is there already; name another file with `--out`",
            out.display()
        )));
    }
    std::fs::metadata(from).map_err(|error| Failure::Usage(format!("{}: {error}", from.display())))?;
    let name = dataset_name(from)?;
    let (mut catalog, report) = tidegate_prepare::first_catalog(from, name.clone())
        .await
        .map_err(prepare_failure)?;
    let mut subject = None;
    if let Some(dataset) = catalog.datasets.get_mut(&name) {
        dataset.site = SiteName::new(site).map_err(|error| Failure::Usage(error.to_string()))?;
        dataset.source = source_from(out, from).while_(writing)?;
        subject.clone_from(&dataset.subject);
    }
    let mut comments: BTreeMap<String, String> = report
        .columns
        .iter()
        .map(|column| (format!("{name}.{}", column.name), column.why.clone()))
        .collect();
    comments.insert(name.to_string(), FIRST_WORDS.to_owned());
    let text = write_catalog(&catalog, &comments);
    let temporary = out.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&temporary, text).while_(writing)?;
    let linked = std::fs::hard_link(&temporary, out);
    std::fs::remove_file(&temporary).while_(writing)?;
    linked.while_(writing)?;
    if format == Format::Json {
        return show::json(&serde_json::json!({"catalog": out, "dataset": name, "subject": subject}));
    }
    show::line(&format!(
        "Wrote {}. Read every role in it: what is unsure is called an identifier, and only you know better.",
        out.display()
    ))?;
    show::line(&told_subject(subject.as_deref(), &report))
}

/// What the catalog takes for the person behind a row, and how sure that is.
fn told_subject(subject: Option<&str>, report: &ScanReport) -> String {
    let column = report
        .columns
        .iter()
        .find(|column| Some(column.name.as_str()) == subject);
    let Some(column) = column else {
        return "No column was found that tells people apart: write it under `subject:`.".to_owned();
    };
    let more = if column.more_distinct { "at least " } else { "" };
    format!(
        "Rows with the same `{}` count as one person: {} rows, {more}{} different values. If another column tells \
         people apart, name it under `subject:`.",
        column.name, report.rows, column.distinct
    )
}

/// The path of a source as a catalog at `out` names it: relative to the catalog's folder.
fn source_from(out: &Path, from: &Path) -> std::io::Result<String> {
    let beside = out.parent().is_none_or(|folder| folder.as_os_str().is_empty());
    let source = if beside || from.is_absolute() {
        from.to_path_buf()
    } else {
        std::path::absolute(from)?
    };
    Ok(source.to_string_lossy().into_owned())
}

/// Says that the three files fit each other, which opening the project has checked; tries the query on every
/// row of the source and the custody of keys, unless the keeper and the source are elsewhere; and tries the stores.
pub(crate) async fn check(project: &Project, source_is_here: bool, format: Format) -> Result<(), Failure> {
    let (rehearsal, custody) = if source_is_here {
        (Some(rehearse(project).await?), stores::try_custody(project).await?)
    } else {
        (None, None)
    };
    let trials = stores::try_all(project).await?;
    let machines = drivers::try_all(project).await?;
    if format == Format::Json {
        show::json(&serde_json::json!({
            "datasets": project.catalog.datasets.len(),
            "sites": project.sites.sites.len(),
            "policies": project.policies.names().len(),
            "rows": rehearsal.as_ref().map(|rehearsal| rehearsal.rows),
            "with_outcome": rehearsal.as_ref().map(|rehearsal| rehearsal.with_outcome),
            "warnings": rehearsal.as_ref().map(|rehearsal| &rehearsal.labels.warnings),
            "custody": custody,
            "stores": trials,
            "machines": machines,
        }))?;
    } else {
        show::line(&format!(
            "{}: the pipeline, {} dataset(s), {} site(s) and {} policies are sound.",
            project.file.display(),
            project.catalog.datasets.len(),
            project.sites.sites.len(),
            project.policies.names().len()
        ))?;
        if let Some(rehearsal) = &rehearsal {
            show::line(&format!(
                "Dataset {}: the query gives {} rows, {} of them with the outcome, and fits every one.",
                project.pipeline.prepare.from, rehearsal.rows, rehearsal.with_outcome
            ))?;
            for warning in &rehearsal.labels.warnings {
                show::line(&format!("  {warning}"))?;
            }
        }
        match &custody {
            Some(CustodyTrial { site, fault: None, .. }) => {
                show::line(&format!("Site {site}: its custody wraps and opens keys."))?;
            }
            Some(CustodyTrial {
                site,
                fault: Some(fault),
                ..
            }) => show::line(&format!("Site {site}: its custody does not work:\n  {fault}"))?,
            None => {}
        }
        for trial in &trials {
            describe(trial)?;
        }
        for trial in &machines {
            describe_machines(trial)?;
        }
    }
    if let Some(trial) = custody.filter(|trial| trial.fault.is_some()) {
        let why = format!(
            "that of site {} does not wrap and open keys; see docs/custody.md",
            trial.site
        );
        return Err(Failure::failed("trying the custody of keys", why));
    }
    let broken: Vec<&str> = trials
        .iter()
        .filter(|trial| !trial.faults.is_empty())
        .map(|trial| trial.site.as_str())
        .collect();
    if !broken.is_empty() {
        return Err(Failure::failed(
            "trying the stores",
            format!("what a run does there does not work at {}", broken.join(", ")),
        ));
    }
    match machines.iter().find(|trial| trial.fault.is_some()) {
        None => Ok(()),
        Some(trial) => Err(Failure::failed(
            "trying to start machines",
            format!("site {} would start none; see docs/clouds.md", trial.site),
        )),
    }
}

/// The query on every row, under keys that are forgotten afterwards.
async fn rehearse(project: &Project) -> Result<Rehearsal, Failure> {
    let key = || tidegate_seal::random::random_bytes::<32>().while_("rehearsing the query");
    let keys = Keys {
        split: key()?,
        values: key()?,
    };
    let brought = brought(project).await?;
    let input = PrepareInput {
        catalog: &project.catalog,
        catalog_folder: &project.catalog_folder,
        brought: brought.as_ref().map(|brought| brought.files.as_slice()),
        pipeline: &project.pipeline,
        sql: project.text.sql.as_deref(),
        sample: None,
        folder: project.layout.root(),
        keys: &keys,
    };
    let rehearsal = tidegate_prepare::rehearse(&input).await.map_err(prepare_failure)?;
    match rehearsal.labels.refusals.first() {
        Some(refusal) => Err(Failure::Refused(refusal.clone())),
        None => Ok(rehearsal),
    }
}

fn describe(trial: &Trial) -> Result<(), Failure> {
    if trial.faults.is_empty() {
        return show::line(&format!(
            "Site {}: the store {} does what a run needs.",
            trial.site, trial.store
        ));
    }
    show::line(&format!("Site {}: the store {} does not:", trial.site, trial.store))?;
    for fault in &trial.faults {
        show::line(&format!("  {fault}"))?;
    }
    match &trial.grant {
        Some(grant) => show::line(&format!("What its credentials need, and no more:\n{grant}")),
        None => Ok(()),
    }
}

fn describe_machines(trial: &MachineTrial) -> Result<(), Failure> {
    let site = &trial.site;
    match &trial.fault {
        None => show::line(&format!("Site {site}: its machines can be started."))?,
        Some(fault) => show::line(&format!("Site {site}: its machines cannot be started:\n  {fault}"))?,
    }
    match &trial.grant {
        Some(grant) => show::line(&format!("What its credentials need, and no more:\n{grant}")),
        None => Ok(()),
    }
}

/// The files of the dataset's source where it lies in a store of a cloud, on the private site like the keeper's.
async fn brought(project: &Project) -> Result<Option<Brought>, Failure> {
    let Some(dataset) = project.catalog.datasets.get(&project.pipeline.prepare.from) else {
        return Ok(None);
    };
    let folder = project.layout.site(&dataset.site).join("work").join("sources");
    let brought = sources::bring(&dataset.source, &project.catalog, &folder, &stores::environment()).await;
    brought.map_err(|error| match error {
        StageError::Refused(refusal) => Failure::Refused(refusal),
        StageError::Input(why) => Failure::Usage(why),
        StageError::Failed(why) => Failure::Failed(why),
    })
}

/// Describes the source of the pipeline's dataset, without showing a value.
pub(crate) async fn scan(project: &Project, format: Format) -> Result<(), Failure> {
    let Some(dataset) = project.catalog.datasets.get(&project.pipeline.prepare.from) else {
        return Err(Failure::failed(
            "looking for the dataset",
            "the catalog does not have it",
        ));
    };
    let report = match brought(project).await? {
        Some(brought) => tidegate_prepare::scan_brought(&dataset.source, &brought.files, &dataset.csv).await,
        None => tidegate_prepare::scan(&project.catalog_folder.join(&dataset.source), &dataset.csv).await,
    };
    let report = report.map_err(prepare_failure)?;
    if format == Format::Json {
        return show::json(&report);
    }
    show::line(&format!(
        "{} rows, {} bytes in {}",
        report.rows,
        report.bytes,
        report.files.join(", ")
    ))?;
    for column in &report.columns {
        let catalog = dataset.column(&column.name);
        let role = catalog.map_or_else(
            || "identifier (not in the catalog)".to_owned(),
            |column| column.role.to_string(),
        );
        let more = if column.more_distinct { "+" } else { "" };
        let value_type = column
            .value_type
            .map_or_else(|| "unclear".to_owned(), |found| found.to_string());
        let exceeds = column.exceeds(catalog);
        show::line(&format!(
            "  {:<16} {:<16} {:<8} {:>6} missing {:>7}{more} distinct{}",
            column.name,
            role,
            value_type,
            column.missing,
            column.distinct,
            if exceeds {
                format!("  looks like {}: {}", looks_like(&column.suggested), column.why)
            } else {
                String::new()
            }
        ))?;
        if let Some(problem) = &column.problem {
            show::line(&format!("      {problem}"))?;
        }
    }
    Ok(())
}

fn looks_like(suggested: &Column) -> String {
    match suggested.kind {
        IdentifierKind::Value => suggested.role.to_string(),
        kind => format!("{} of kind {kind}", suggested.role),
    }
}

/// A refusal stays a refusal; what is wrong with a source is a user's file.
pub(crate) fn prepare_failure(error: PrepareError) -> Failure {
    match error {
        PrepareError::Refused(refusal) => Failure::Refused(refusal),
        wrong @ (PrepareError::Input { .. } | PrepareError::Data { .. }) => Failure::Usage(wrong.to_string()),
        other => Failure::Failed(other.to_string()),
    }
}
