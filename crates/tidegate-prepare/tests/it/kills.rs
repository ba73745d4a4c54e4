//! A process killed at any moment leaves nothing that the next call does not put right.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::fixture::{Hospital, inputs};

/// Tells the child, which is this test program, which folder to prepare in.
const FOLDER: &str = "TIDEGATE_TEST_PREPARE_FOLDER";

/// The child: does nothing unless it was started as one.
#[test]
fn child_that_prepares() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        Hospital::at(Path::new(&folder)).prepare().unwrap();
    }
}

fn child(folder: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child_that_prepares", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_at_any_moment_and_called_again_gives_the_same() {
    let reference = Hospital::new(3000);
    let expected = reference.prepare().unwrap();
    let (bytes, risk) = (inputs(&expected), expected.risk);

    // How long a whole call takes here, so that kills fall into it.
    let hospital = Hospital::new(3000);
    let started = Instant::now();
    assert!(child(hospital.path()).wait().unwrap().success());
    let whole = started.elapsed();

    for kill in 0..16_u32 {
        let hospital = Hospital::new(3000);
        let mut running = child(hospital.path());
        let deadline = Instant::now() + whole * kill / 16;
        while Instant::now() < deadline && running.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        running.kill().unwrap();
        running.wait().unwrap();
        let prepared = hospital.prepare().unwrap();
        assert_eq!(inputs(&prepared), bytes, "kill {kill}");
        assert_eq!(prepared.risk, risk, "kill {kill}");
        // The register holds a release and its head.
        for (folder, expected) in [("snapshots", 1), ("prepared", 1), ("releases", 2)] {
            let count = std::fs::read_dir(hospital.stage().join(folder)).unwrap().count();
            assert_eq!(count, expected, "kill {kill} left something in {folder}");
        }
    }
}
