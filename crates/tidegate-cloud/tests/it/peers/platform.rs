//! Platforms that run containers, each of which is a process here.

use std::path::Path;

use super::{Peer, fetched, peers, published, service_accounts};

/// A platform that runs containers, each of which is a process.
pub(crate) struct Platform {
    pub(crate) peer: Peer,
}

impl Platform {
    /// The workspace of Azure Machine Learning.
    pub(crate) const WORKSPACE: &str = "/subscriptions/00000000-1111-2222-3333-444444444444/resourceGroups/ml/\
                                        providers/Microsoft.MachineLearningServices/workspaces/st-mary";

    /// Where Google's tools find the service account that may do everything.
    pub(crate) fn service_account(&self) -> (&'static str, String) {
        let file = self.peer.folder().join("known.json");
        ("GOOGLE_SERVICE_ACCOUNT", file.display().to_string())
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer.port())
    }

    /// Asks the platform itself, or steers it.
    pub(crate) fn tell(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&fetched(&format!("{}/peer/{path}", self.endpoint()))).unwrap()
    }
}

/// Vertex AI, and the files of its service accounts. None where its published interface is not installed.
pub(crate) fn vertex() -> Option<Platform> {
    vertex_with(Path::new("/nowhere"))
}

/// The same, whose images have the program that is in this folder.
pub(crate) fn vertex_with(programs: &Path) -> Option<Platform> {
    peers()?;
    let folder = service_accounts();
    let arguments = [folder.path(), programs].map(|path| path.display().to_string());
    let peer = published("vertex.py", folder, &[&arguments[0], &arguments[1]])?;
    Some(Platform { peer })
}

/// Azure Machine Learning, and who issues its tokens. None where its published interface is not installed.
pub(crate) fn azureml() -> Option<Platform> {
    azureml_with(Path::new("/nowhere"))
}

/// The same, whose images have the program that is in this folder.
pub(crate) fn azureml_with(programs: &Path) -> Option<Platform> {
    if !peers()?.join("azureml").is_dir() {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none(),
            "TIDEGATE_PEERS has no models of Azure Machine Learning; `tests/run --all` installs them"
        );
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = [folder.path(), programs].map(|path| path.display().to_string());
    let peer = published("azureml.py", folder, &[&arguments[0], &arguments[1]])?;
    Some(Platform { peer })
}
