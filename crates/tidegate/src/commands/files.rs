//! `init`, `check` and `scan`: the user's files and sources.

use std::collections::BTreeMap;
use std::path::Path;

use tidegate_types::files::catalog::CsvOptions;
use tidegate_types::files::write_catalog;
use tidegate_types::ids::{DatasetName, SiteName};

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::show;
use crate::stores::{self, Trial};

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

/// Writes a first catalog; what is unsure is an identifier until the owner says otherwise.
pub(crate) async fn init(from: &Path, site: &str, out: &Path) -> Result<(), Failure> {
    let writing = "writing the catalog";
    if out.exists() {
        return Err(Failure::Usage(format!(
            "{} is there already; name another file with `--out`",
            out.display()
        )));
    }
    let name = dataset_name(from)?;
    let mut catalog = tidegate_prepare::first_catalog(from, name.clone())
        .await
        .map_err(prepare_failure)?;
    let report = tidegate_prepare::scan(from, &CsvOptions::default())
        .await
        .map_err(prepare_failure)?;
    if let Some(dataset) = catalog.datasets.get_mut(&name) {
        dataset.site = SiteName::new(site).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let comments: BTreeMap<String, String> = report
        .columns
        .into_iter()
        .map(|column| (column.name, column.why))
        .collect();
    let text = write_catalog(&catalog, &comments);
    let temporary = out.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&temporary, text).while_(writing)?;
    let linked = std::fs::hard_link(&temporary, out);
    std::fs::remove_file(&temporary).while_(writing)?;
    linked.while_(writing)?;
    show::line(&format!(
        "Wrote {}. Read every role in it: what is unsure is called an identifier, and only you know better.",
        out.display()
    ))
}

/// Says that the three files fit each other, which opening the project has checked, and tries the stores.
pub(crate) async fn check(project: &Project, format: Format) -> Result<(), Failure> {
    let trials = stores::try_all(project).await?;
    if format == Format::Json {
        show::json(&serde_json::json!({
            "datasets": project.catalog.datasets.len(),
            "sites": project.sites.sites.len(),
            "policies": project.policies.names().len(),
            "stores": trials,
        }))?;
    } else {
        show::line(&format!(
            "{}: the pipeline, {} dataset(s), {} site(s) and {} policies are sound.",
            project.file.display(),
            project.catalog.datasets.len(),
            project.sites.sites.len(),
            project.policies.names().len()
        ))?;
        for trial in &trials {
            describe(trial)?;
        }
    }
    let broken: Vec<&str> = trials
        .iter()
        .filter(|trial| !trial.faults.is_empty())
        .map(|trial| trial.site.as_str())
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(
        "trying the stores",
        format!("what a run does there does not work at {}", broken.join(", ")),
    ))
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

/// Describes the source of the pipeline's dataset, without showing a value.
pub(crate) async fn scan(project: &Project, format: Format) -> Result<(), Failure> {
    let Some(dataset) = project.catalog.datasets.get(&project.pipeline.prepare.from) else {
        return Err(Failure::failed(
            "looking for the dataset",
            "the catalog does not have it",
        ));
    };
    let source = project.catalog_folder.join(&dataset.source);
    let report = tidegate_prepare::scan(&source, &dataset.csv)
        .await
        .map_err(prepare_failure)?;
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
        let differs = catalog.is_none_or(|catalog| catalog.role != column.suggested.role);
        let more = if column.more_distinct { "+" } else { "" };
        show::line(&format!(
            "  {:<16} {:<16} {:>6} missing {:>7}{more} distinct{}",
            column.name,
            role,
            column.missing,
            column.distinct,
            if differs {
                format!("  looks like {}: {}", column.suggested.role, column.why)
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

/// A refusal stays a refusal; what is wrong with a source is a user's file.
pub(crate) fn prepare_failure(error: tidegate_prepare::PrepareError) -> Failure {
    match error {
        tidegate_prepare::PrepareError::Refused(refusal) => Failure::Refused(refusal),
        data @ tidegate_prepare::PrepareError::Data { .. } => Failure::Usage(data.to_string()),
        other => Failure::Failed(other.to_string()),
    }
}
