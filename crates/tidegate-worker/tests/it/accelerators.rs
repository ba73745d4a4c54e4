//! Accelerators, which a command reaches where its job asks for them. The machine of these tests shows one that is really
//! the device of zeros: what opens it opens any other.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tidegate_contracts::fakes::MemoryStore;

use crate::keeper::Keeper;

/// Shows an accelerator below `root`; false for a user who may make no devices.
fn accelerator(root: &Path) -> bool {
    let texts = root.join("proc/driver/nvidia/gpus/0000:00:04.0");
    std::fs::create_dir_all(&texts).unwrap();
    std::fs::create_dir_all(root.join("dev")).unwrap();
    let text = "Model: \t\t Tesla T4\nDevice Minor: \t 0\n";
    std::fs::write(texts.join("information"), text).unwrap();
    let node = root.join("dev/nvidia0");
    std::fs::write(root.join("dev/nvidia-uvm"), "").unwrap();
    let made = Command::new("mknod").arg(&node).args(["c", "1", "5"]).output().unwrap();
    let there = made.status.success() && std::fs::File::open(&node).is_ok();
    assert!(
        there || std::env::var_os("TIDEGATE_INTEROP").is_none(),
        "this user may make no devices"
    );
    there
}

/// What came of a command on such a machine, for a job that asks for `asked`: how it failed, and its log.
async fn attempt(asked: u32, run: &str) -> Option<(Option<String>, String)> {
    let machine = tempfile::tempdir().unwrap();
    if !accelerator(machine.path()) {
        return None;
    }
    let mut keeper = Keeper::new(Arc::new(MemoryStore::default()), run).await;
    machine.path().clone_into(&mut keeper.machine);
    keeper.job.accelerators = asked;
    let device = machine.path().join("dev/nvidia0").display().to_string();
    keeper.job.environment = [("DEVICE".to_owned(), device)].into();
    let worker = keeper.start();
    keeper.hello().await;
    keeper.grant_code().await;
    let ending = match keeper.until_setup_is_done().await {
        Ok(_) => {
            keeper.grant_data().await;
            keeper.ending().await
        }
        Err(ending) => ending,
    };
    let _ = worker.await.unwrap();
    let failed = ending
        .failed
        .as_ref()
        .map(|(stage, reason, _)| format!("{stage}: {reason}"));
    Some((failed, ending.text()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_the_accelerators_that_its_job_asks_for() {
    let run = "test \"$(head -c 4 \"$DEVICE\" | wc -c)\" = 4 && printf x >\"$DEVICE\" && cp train.sh \"$TIDEGATE_OUTPUT/model\"";
    let Some((failed, log)) = attempt(1, run).await else {
        return;
    };
    assert_eq!(failed, None, "{log}");
    assert!(
        log.contains("[tidegate: the machine's accelerators: 1 Tesla T4]"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn accelerators_that_nobody_asked_for_stay_closed() {
    let run =
        "if head -c 4 \"$DEVICE\" || printf x >\"$DEVICE\"; then exit 9; fi; cp train.sh \"$TIDEGATE_OUTPUT/model\"";
    let Some((failed, log)) = attempt(0, run).await else {
        return;
    };
    assert_eq!(failed, None, "{log}");
    assert!(
        log.contains("cannot open") && log.contains("cannot create") && log.contains("they stay closed]"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_too_few_accelerators_sets_nothing_up() {
    let Some((failed, _)) = attempt(2, "exit 9").await else {
        return;
    };
    let failed = failed.unwrap();
    assert!(
        failed.starts_with("sandbox: ") && failed.contains("asks for 2") && failed.contains("shows 1"),
        "{failed}"
    );
}
