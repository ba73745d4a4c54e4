//! Where things are: everything of embedded runs lies under one folder.

use std::path::{Path, PathBuf};

use tidegate_types::ids::{RunId, SiteName};

/// The state folder: `.tidegate/` beside the pipeline file, or `TIDEGATE_HOME`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The state folder of a pipeline file.
    pub(crate) fn of(pipeline: &Path) -> std::io::Result<Self> {
        let root = match std::env::var_os("TIDEGATE_HOME") {
            Some(home) if !home.is_empty() => PathBuf::from(home),
            _ => pipeline
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or_else(|| Path::new("."))
                .join(".tidegate"),
        };
        Ok(Self {
            root: std::path::absolute(root)?,
        })
    }

    /// The state folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What the control plane keeps. No key in it opens data.
    pub(crate) fn control(&self) -> PathBuf {
        self.root.join("control")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.control().join("ledger")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.control().join("journal.sqlite")
    }

    pub(crate) fn control_key(&self) -> PathBuf {
        self.control().join("control.key")
    }

    /// Held by the process that runs something.
    pub(crate) fn control_lock(&self) -> PathBuf {
        self.control().join("control.lock")
    }

    /// The mailbox between the control plane and the keeper of a site.
    pub(crate) fn mailbox(&self, site: &SiteName) -> PathBuf {
        self.control().join("mailbox").join(site.as_str())
    }

    /// A file that asks a run to stop.
    pub(crate) fn cancel(&self, run: &RunId) -> PathBuf {
        self.control().join("cancel").join(run.as_str())
    }

    /// Everything that a site can see.
    pub(crate) fn site(&self, site: &SiteName) -> PathBuf {
        self.root.join("sites").join(site.as_str())
    }
}
