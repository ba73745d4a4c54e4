//! The three files of a pipeline, read and checked, with everything that they name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_policy::PolicySet;
use tidegate_types::files::{
    Catalog, Pipeline, Sites, SourceText, Texts, check, check_refusals, read_catalog, read_pipeline, read_sites,
};
use tidegate_types::ids::SiteName;
use tidegate_types::keeper::PipelineText;

use crate::drivers;
use crate::failure::{Failure, While};
use crate::layout::Layout;
use crate::stores;
use crate::task::{self, TaskArguments};

/// The largest code file or query that is read.
const TEXT_BYTES: u64 = 8 << 20;

/// What lies in the state folder of a pipeline. It can be read while the pipeline's files are wrong: what
/// happened does not depend on what somebody is writing just now.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) file: PathBuf,
    pub(crate) layout: Layout,
}

impl State {
    /// The state folder of a pipeline file, which must be there.
    pub(crate) fn of(file: &Path) -> Result<Self, Failure> {
        std::fs::metadata(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
        Ok(Self {
            file: file.to_path_buf(),
            layout: layout(file)?,
        })
    }

    /// The private site that owns the pipeline's dataset, where the files tell.
    pub(crate) fn home(&self) -> Option<SiteName> {
        Project::open(&self.file, None).ok()?.home().ok()
    }
}

fn layout(file: &Path) -> Result<Layout, Failure> {
    Layout::of(file).while_("finding the state folder")
}

/// A pipeline with its neighbours.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) file: PathBuf,
    pub(crate) pipeline: Pipeline,
    pub(crate) text: PipelineText,
    pub(crate) catalog: Catalog,
    pub(crate) catalog_folder: PathBuf,
    /// What files that the sites file names are relative to.
    pub(crate) sites_folder: PathBuf,
    pub(crate) sites: Sites,
    pub(crate) policies: PolicySet,
    pub(crate) layout: Layout,
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

impl Project {
    /// Reads and checks everything but the files of the training; nothing is written.
    pub(crate) fn open(file: &Path, sample: Option<u64>) -> Result<Self, Failure> {
        Self::read(file, sample, &TaskArguments::default(), false)
    }

    /// As [`Self::open`], with the files of the training, and with a task file in place of the pipeline's `train:`, if there is
    /// one.
    pub(crate) fn open_with(file: &Path, sample: Option<u64>, task: &TaskArguments) -> Result<Self, Failure> {
        Self::read(file, sample, task, true)
    }

    fn read(file: &Path, sample: Option<u64>, task: &TaskArguments, with_code: bool) -> Result<Self, Failure> {
        let name = file.display().to_string();
        let source = read_text(file)?;
        let mut pipeline = read_pipeline(&name, &source).map_err(|error| Failure::File(vec![error]))?;
        let folder = folder_of(file);
        let catalog_file = folder.join(&pipeline.catalog);
        let catalog_source = read_text(&catalog_file)?;
        let catalog_name = catalog_file.display().to_string();
        let catalog = read_catalog(&catalog_name, &catalog_source).map_err(|error| Failure::File(vec![error]))?;
        let sites_file = folder.join(&pipeline.sites);
        let sites_source = read_text(&sites_file)?;
        let sites_name = sites_file.display().to_string();
        let sites = read_sites(&sites_name, &sites_source).map_err(|error| Failure::File(vec![error]))?;
        let mut taken = None;
        if let Some(task_file) = &task.task {
            let (train, from) = (&pipeline.train, &pipeline.prepare.from);
            let task = task::take(task_file, task, train, from, (&catalog, &sites), layout(file)?.root())?;
            pipeline.train = task.train;
            taken = Some(task.code);
        }
        check(
            &catalog,
            &sites,
            &pipeline,
            &Texts {
                catalog: SourceText {
                    file: &catalog_name,
                    text: &catalog_source,
                },
                sites: SourceText {
                    file: &sites_name,
                    text: &sites_source,
                },
                pipeline: SourceText {
                    file: &name,
                    text: &source,
                },
            },
        )
        .map_err(Failure::File)?;
        let mut faults = stores::faults(
            &sites,
            &SourceText {
                file: &sites_name,
                text: &sites_source,
            },
        );
        faults.extend(drivers::faults(
            &sites,
            &SourceText {
                file: &sites_name,
                text: &sites_source,
            },
        ));
        faults.extend(stores::source_faults(
            &catalog,
            &SourceText {
                file: &catalog_name,
                text: &catalog_source,
            },
        ));
        if !faults.is_empty() {
            return Err(Failure::File(faults));
        }
        if let Some(refusal) = check_refusals(&catalog, &sites, &pipeline).into_iter().next() {
            return Err(Failure::Refused(refusal));
        }
        let sql = match &pipeline.prepare.sql_file {
            Some(path) => Some(read_text(&folder.join(path))?),
            None => None,
        };
        let (code, whole) = match taken {
            // Keepers read a pipeline, whatever it was put together from; what JSON says YAML says too.
            Some(code) => (
                code,
                serde_json::to_string(&pipeline).while_("writing the pipeline down")?,
            ),
            None => {
                let mut code = BTreeMap::new();
                for path in pipeline.train.code.iter().filter(|_| with_code) {
                    let bytes = read_bytes(&folder.join(path))?;
                    code.insert(path.clone(), STANDARD.encode(bytes));
                }
                (code, source)
            }
        };
        let text = PipelineText {
            file: name,
            text: whole,
            sql,
            code,
            sample,
        };
        Ok(Self {
            policies: policies(&folder.join("policy"))?,
            layout: layout(file)?,
            catalog_folder: folder_of(&catalog_file),
            sites_folder: folder_of(&sites_file),
            file: file.to_path_buf(),
            pipeline,
            text,
            catalog,
            sites,
        })
    }

    /// The private site that owns the pipeline's dataset.
    pub(crate) fn home(&self) -> Result<SiteName, Failure> {
        self.catalog
            .datasets
            .get(&self.pipeline.prepare.from)
            .map(|dataset| dataset.site.clone())
            .ok_or_else(|| Failure::failed("looking for the dataset", "the catalog does not have it"))
    }

    /// A site by the name that a user gave.
    pub(crate) fn site(&self, name: &str) -> Result<SiteName, Failure> {
        let site = SiteName::new(name).map_err(|error| Failure::Usage(error.to_string()))?;
        if self.sites.sites.contains_key(&site) {
            return Ok(site);
        }
        let known: Vec<&str> = self.sites.sites.keys().map(SiteName::as_str).collect();
        Err(Failure::Usage(format!(
            "there is no site `{name}`; the sites file has {}",
            known.join(", ")
        )))
    }

    /// Where a site's store is, for whoever opens it: a folder with its path, or a cloud's.
    pub(crate) fn store_address(&self, site: &SiteName) -> String {
        let address = self.sites.sites.get(site).map_or("folder:", |site| site.store.as_str());
        match address.strip_prefix("folder:") {
            Some("") => format!("folder:{}", self.layout.site(site).join("store").display()),
            _ => address.to_owned(),
        }
    }
}

/// The organisation's own policies: every `*.cedar` file of the folder, if there is one.
fn policies(folder: &Path) -> Result<PolicySet, Failure> {
    let mut files = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry
                    .map_err(|error| Failure::failed("reading the policies", error))?
                    .path();
                if path.extension().is_some_and(|extension| extension == "cedar") {
                    files.push((path.display().to_string(), read_text(&path)?));
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::failed("reading the policies", error)),
    }
    files.sort();
    PolicySet::load(&files).map_err(|error| Failure::Usage(error.to_string()))
}

pub(crate) fn read_bytes(file: &Path) -> Result<Vec<u8>, Failure> {
    let missing = |error: std::io::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let length = std::fs::metadata(file).map_err(missing)?.len();
    if length > TEXT_BYTES {
        return Err(Failure::Usage(format!(
            "{}: has {length} bytes, more than the {TEXT_BYTES} that such a file may have",
            file.display()
        )));
    }
    std::fs::read(file).map_err(missing)
}

pub(crate) fn read_text(file: &Path) -> Result<String, Failure> {
    String::from_utf8(read_bytes(file)?).map_err(|_| Failure::Usage(format!("{}: is not UTF-8 text", file.display())))
}

/// Unix time in seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
