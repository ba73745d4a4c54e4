//! The control plane needs nothing of what a private site has.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::fixture::Hospital;

/// Whether this machine lets a process have mounts of its own.
fn has_namespaces() -> bool {
    let tried = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "mount",
            "-t",
            "tmpfs",
            "none",
            "/mnt",
        ])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn the_control_plane_runs_where_every_private_folder_is_hidden() {
    if !has_namespaces() {
        let demanded = std::env::var_os("TIDEGATE_INTEROP").is_some_and(|value| value == "1");
        assert!(
            !demanded,
            "TIDEGATE_INTEROP=1, and this machine gives no mount namespaces"
        );
        println!("skipped: this machine gives no mount namespaces");
        return;
    }
    let hospital = Hospital::new();
    let keeper = hospital
        .command(&["keeper", "--site", "hospital"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut keeper = keeper.unwrap();
    // An empty folder over the private site's, and nothing in place of the records.
    let script = "mount -t tmpfs none .tidegate/sites/hospital && mount --bind /dev/null admissions.csv && \
                  exec \"$0\" run --yes --no-keeper --format json";
    std::fs::create_dir_all(hospital.state().join("sites/hospital")).unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_tidegate"))
        .current_dir(hospital.folder.path())
        .env_remove("TIDEGATE_HOME")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // The keeper ends when its input does.
    drop(keeper.stdin.take());
    keeper.wait().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    assert_eq!(summary["model"]["version"], 1);
}
