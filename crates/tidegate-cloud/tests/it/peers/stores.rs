//! Stores of Google and Azure, with what narrows credentials for them.

use std::path::Path;

use super::{Peer, certificates, entra, peers, published, service_accounts};

/// The storage account that the tests have, and its key.
pub(crate) const ACCOUNT: &str = "marystore";
pub(crate) const ACCOUNT_KEY: &str =
    "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2traw==";
/// The service account that workers are given.
pub(crate) const WORKER_ACCOUNT: &str = "tidegate-worker@st-mary.iam.gserviceaccount.com";

/// Azurite as a storage account with a hierarchical namespace over TLS, with its container `stores`, and who issues its
/// tokens. None where it is not installed.
pub(crate) fn azure_storage(more: &[&str]) -> Option<Peer> {
    peers()?;
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    published(
        "azure_storage.py",
        folder,
        &[&[ACCOUNT, ACCOUNT_KEY, "stores"][..], more].concat(),
    )
}

/// Google Cloud Storage with its bucket `stores`, and who gives tokens for it. None where it is not installed.
pub(crate) fn google_storage(more: &[&str]) -> Option<Peer> {
    peers()?;
    google_storage_in(service_accounts(), more)
}

/// The same, for whoever has this file of a service account.
pub(crate) fn google_storage_for(known: &Path, more: &[&str]) -> Option<Peer> {
    peers()?;
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(known, folder.path().join("known.json")).unwrap();
    google_storage_in(folder, more)
}

fn google_storage_in(folder: tempfile::TempDir, more: &[&str]) -> Option<Peer> {
    let arguments = [&["stores", WORKER_ACCOUNT][..], more].concat();
    published("gcs.py", folder, &arguments)
}

/// Addresses of these stores.
impl Peer {
    pub(crate) fn azure(&self, prefix: &str) -> String {
        let (port, certificates) = (self.port(), self.folder().join("ca.pem"));
        format!(
            "az://{ACCOUNT}/stores/{prefix}?endpoint=https://127.0.0.1:{port}/{ACCOUNT}&certificates={}",
            certificates.display()
        )
    }

    pub(crate) fn google(&self, prefix: &str) -> String {
        format!("gs://stores/{prefix}?endpoint=http://127.0.0.1:{}", self.port())
    }

    /// What Entra ID knows of a keeper at this store.
    pub(crate) fn entra_identity(&self) -> [(&'static str, String); 4] {
        let mut known = entra(self, "SKEEPER");
        known[3].1 = format!("https://127.0.0.1:{}", self.port());
        known
    }
}
