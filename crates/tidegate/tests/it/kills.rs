//! Killing control plane, keeper or worker at any moment, then the same command: the same result,
//! nothing lost, doubled or half-written.
//!
//! `TIDEGATE_KILLS` sets how many random moments are tried; every recorded step is tried besides when
//! it is at least 50.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixture::{Hospital, files, nobody_works, processes};

/// Tasks of the fixture's pipeline.
const TASKS: usize = 7;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Control,
    Keeper,
    Worker,
}

/// A hospital with the same site keys as another: splits and shuffles come out the same.
fn twin(of: &Hospital) -> Hospital {
    let twin = Hospital::new();
    for file in files(&of.state().join("sites/hospital/keys")) {
        let to = twin.state().join(file.strip_prefix(of.state()).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, &to).unwrap();
    }
    twin
}

pub(crate) fn kill(pid: u32) {
    // A process that ended by itself in the meantime is no failure of the test.
    let _ = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn start(hospital: &Hospital) -> Child {
    hospital
        .command(&["run", "--yes", "--format", "json"])
        .env("TIDEGATE_LOG", "off")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads what a run tells to its end; gives its answer, and whether it went well. Nobody waits for a reader.
fn ended(mut child: Child) -> (bool, Vec<u8>) {
    let mut told = child.stderr.take().unwrap();
    std::io::copy(&mut told, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), output.stdout)
}

fn strike(hospital: &Hospital, child: &mut Child, victim: Victim) {
    match victim {
        Victim::Control => {
            let _ = child.kill();
        }
        Victim::Keeper => processes(hospital, "keeper").into_iter().for_each(kill),
        Victim::Worker => processes(hospital, "worker").into_iter().for_each(kill),
    }
}

/// Runs until the end, whatever was killed before, and checks that nothing is out of order.
fn finish(hospital: &Hospital, expected: &Value, what: &str) {
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    assert!(
        output.status.success(),
        "{what}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let summary = done(&output.stdout, expected, what);
    // Killed after its last entry, the run was done, and this one finds that everything is there.
    let was_done = summary["reused"].as_array().unwrap().len() == TASKS;
    assert_eq!(
        ways(&summary),
        if was_done { Vec::new() } else { ways(expected) },
        "{what}"
    );
    whole(hospital, what);
}

/// The answer of a run that came to the same end.
fn done(answer: &[u8], expected: &Value, what: &str) -> Value {
    let summary: Value = serde_json::from_slice(answer).unwrap();
    assert_eq!(summary["status"], "done", "{what}");
    assert_eq!(summary["metrics"], expected["metrics"], "{what}");
    assert_eq!(summary["risk"], expected["risk"], "{what}");
    summary
}

/// The ledger verifies, nothing is half-written, one version is served, and nobody was left running.
fn whole(hospital: &Hospital, what: &str) {
    hospital.succeed(&["audit", "verify"]);
    for site in ["cloud", "ward", "hospital"] {
        let store = hospital.state().join("sites").join(site).join("store");
        for file in files(&store) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let digest = file.strip_prefix(&store).unwrap().starts_with("sealed");
            assert!(
                !digest || is_whole(&file, &name),
                "{what}: {} is half-written",
                file.display()
            );
        }
    }
    let versions = files(&hospital.state().join("sites/hospital/serve/models"));
    assert!(!versions.is_empty(), "{what}");
    assert!(
        versions.iter().all(|file| file.parent().unwrap().ends_with("1")),
        "{what}: {versions:?}"
    );
    assert!(nobody_works(hospital), "{what}");
}

/// What crossed from where to where: nothing is missing, and nothing is there twice.
fn ways(summary: &Value) -> Vec<String> {
    let crossings = summary["crossings"].as_array().unwrap();
    let mut ways: Vec<String> = crossings
        .iter()
        .map(|it| format!("{} {} {}", it["artifact"], it["from"], it["to"]))
        .collect();
    ways.sort();
    ways
}

/// Whoever else than the control plane was killed is started again by the same command, which does everything
/// once; the next one finds it done.
fn survived(hospital: &Hospital, child: Child, expected: &Value, what: &str) {
    let (well, answer) = ended(child);
    assert!(well, "{what}");
    assert_eq!(ways(&done(&answer, expected, what)), ways(expected), "{what}");
    let summary = hospital.run();
    assert_eq!(summary["metrics"], expected["metrics"], "{what}");
    assert_eq!(summary["crossings"], serde_json::json!([]), "{what}");
    whole(hospital, what);
}

/// Sealed objects are named by the SHA-256 of their bytes.
fn is_whole(file: &Path, name: &str) -> bool {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8_lossy(&output.stdout).starts_with(name)
}

fn moments() -> u64 {
    match std::env::var("TIDEGATE_KILLS") {
        Ok(kills) => kills.parse().expect("TIDEGATE_KILLS is a number of moments"),
        Err(_) => 6,
    }
}

#[test]
fn whoever_is_killed_whenever_the_same_command_ends_in_the_same_place() {
    let reference = Hospital::new();
    let began = Instant::now();
    let expected = reference.run();
    let length = began.elapsed();
    for moment in 0..moments() {
        let victim = [Victim::Control, Victim::Keeper, Victim::Worker][(moment % 3) as usize];
        let hospital = twin(&reference);
        let mut child = start(&hospital);
        // Spread over the whole run, never twice at the same place.
        let share = (moment as f64 * 0.618_033_988_749_895).fract();
        let mut deadline = Instant::now() + Duration::from_secs_f64(length.as_secs_f64() * share);
        let mut waiting = victim == Victim::Worker;
        while (waiting || Instant::now() < deadline) && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
            if waiting && !processes(&hospital, "worker").is_empty() {
                waiting = false;
                deadline = Instant::now() + Duration::from_secs_f64(0.4 * share);
            }
        }
        strike(&hospital, &mut child, victim);
        let what = format!("{victim:?} killed at {share:.2} of a run");
        if victim == Victim::Control {
            ended(child);
            finish(&hospital, &expected, &what);
        } else {
            survived(&hospital, child, &expected, &what);
        }
    }
}

/// Kills `victim` once after each line that a run tells.
fn dies_at_every_step(victim: Victim) {
    let all = moments() >= 50;
    let reference = Hospital::new();
    let expected = reference.run();
    for line in 1.. {
        if !all && line % 5 != 0 {
            continue;
        }
        let hospital = twin(&reference);
        let mut child = start(&hospital);
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let seen = told.by_ref().lines().map_while(Result::ok).take(line).count();
        strike(&hospital, &mut child, victim);
        child.stderr = Some(told.into_inner());
        if seen < line {
            ended(child);
            assert!(line > 10, "the run showed only {seen} steps");
            break;
        }
        let what = format!("{victim:?} killed after step {line}");
        if victim == Victim::Control {
            ended(child);
            finish(&hospital, &expected, &what);
        } else {
            survived(&hospital, child, &expected, &what);
        }
    }
}

#[test]
fn the_control_plane_may_die_at_every_recorded_step() {
    dies_at_every_step(Victim::Control);
}

#[test]
fn the_keeper_may_die_at_every_recorded_step() {
    dies_at_every_step(Victim::Keeper);
}

/// Where a worker works, which is while the job is being done.
#[test]
fn the_worker_may_die_at_every_recorded_step() {
    dies_at_every_step(Victim::Worker);
}
