//! Workers that are the small program, linked statically, as machines of another make need it.

use std::path::PathBuf;

use serde_json::Value;
use tidegate_cloud::Ec2Settings;
use tidegate_local::program_digest;

use crate::clouds::ADMIN;
use crate::fixture::Hospital;
use crate::machines::{hospital_with, trained};
use crate::peers::{ec2, open_seaweed};

#[test]
fn a_machine_needs_nothing_but_the_small_program() {
    let Some(small) = std::env::var_os("TIDEGATE_STATIC").map(PathBuf::from) else {
        assert!(
            std::env::var_os("TIDEGATE_INTEROP").is_none(),
            "TIDEGATE_STATIC must name the program that `cargo xtask machine` builds; `tests/run --all` does that"
        );
        return;
    };
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    // An installation: both programs in one folder.
    let installed = tempfile::tempdir().unwrap();
    let program = installed.path().join("tidegate");
    std::fs::copy(env!("CARGO_BIN_EXE_tidegate"), &program).unwrap();
    let beside = installed.path().join(tidegate_machine::PROGRAM);
    std::fs::copy(&small, &beside).unwrap();
    let hospital = hospital_with(&store, &machines);
    let run = || {
        let mut command = hospital.command_of(&program, &["run", "--yes", "--format", "json"]);
        let output = command.envs(ADMIN).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, summary, told) = run();
    assert_eq!(code, Some(0), "{told}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    // It is the one that the machine fetched and held against its digest, and that the permits name.
    let digest = program_digest(&small, None).unwrap().to_hex();
    let machine = trained(&machines)[0]["id"].as_str().unwrap().to_owned();
    let script = machines.peer.folder().join(machine).join("user-data");
    assert!(std::fs::read_to_string(script).unwrap().contains(&digest));

    // One that does not belong here is not believed.
    let stale = std::fs::read(&small).unwrap();
    let at = memchr::memmem::find(&stale, tidegate_machine::BUILD.as_bytes()).unwrap();
    let stale = [&stale[..at], b"9", &stale[at + 1..]].concat();
    std::fs::write(&beside, stale).unwrap();
    hospital.edit("tidegate.yaml", "seed: 1", "seed: 2");
    let before = prepared(&hospital);
    let (code, _, told) = run();
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("put the tidegate-machine that was built with `tidegate` there, or remove it"),
        "{told}"
    );
    assert_eq!(trained(&machines).len(), 1);
    assert_eq!(prepared(&hospital), before, "nothing was prepared for it");
}

/// How often something was prepared.
fn prepared(hospital: &Hospital) -> usize {
    let told = hospital.tidegate(&["audit", "show", "--format", "json"]);
    assert!(told.status.success());
    String::from_utf8_lossy(&told.stdout).matches("\"prepared\"").count()
}
