//! `data pull`: a prepared dataset as files, on the private site.

use std::path::Path;
use std::sync::Arc;

use tidegate_local::SqliteJournal;

use crate::cli::Format;
use crate::failure::{Failure, While};
use crate::project::Project;
use crate::show;

/// Copies what would cross under `name` into a new folder. Nothing leaves the site by this.
pub(crate) fn pull(project: &Project, name: &str, to: &Path, format: Format) -> Result<(), Failure> {
    let pulling = "copying a prepared dataset";
    let folder = project.layout.site(&project.home()?);
    let file = folder.join("journal.sqlite");
    if !file.exists() {
        return Err(Failure::Usage(
            "nothing was prepared yet: run the pipeline first".to_owned(),
        ));
    }
    let journal = Arc::new(SqliteJournal::open(&file).while_(pulling)?);
    let inputs = tidegate_keeper::newest_inputs(journal, &folder).while_(pulling)?;
    let Some(source) = inputs.get(name) else {
        let known: Vec<&str> = inputs.keys().map(String::as_str).collect();
        return Err(Failure::Usage(format!(
            "there is no `{name}`; prepared were {}",
            known.join(", ")
        )));
    };
    if to.exists() {
        return Err(Failure::Usage(format!(
            "{} is there already; name a folder that is not",
            to.display()
        )));
    }
    let parent = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let temporary = parent.join(format!(".tidegate-pull-{}", std::process::id()));
    std::fs::create_dir_all(&temporary).while_(pulling)?;
    for entry in std::fs::read_dir(source).while_(pulling)? {
        let path = entry.while_(pulling)?.path();
        if let Some(file) = path.file_name().filter(|_| path.is_file()) {
            std::fs::copy(&path, temporary.join(file)).while_(pulling)?;
        }
    }
    std::fs::rename(&temporary, to).while_(pulling)?;
    match format {
        Format::Text => show::line(&format!("Copied `{name}` to {}.", to.display())),
        Format::Json => show::json(&serde_json::json!({"name": name, "to": to})),
    }
}
