use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::tempdir;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_local::ProcessDriver;
use tidegate_types::message::Attempt;
use tidegate_types::{RunId, TaskName};

use crate::child;

fn request(id: &str, script: &str) -> JobRequest {
    JobRequest {
        id: id.to_owned(),
        attempt: Attempt {
            run: RunId::new("run").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        },
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ticket: "{\"secret\":\"c0ffee-ticket\"}".to_owned(),
        environment: BTreeMap::from([("GREETING".to_owned(), "a 'b' \"c\" $d".to_owned())]),
        owner: "owner".to_owned(),
        spot: false,
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ended(driver: &ProcessDriver, handle: &Handle) -> Option<i32> {
    until("the job ends", async || match driver.observe(handle).await.unwrap() {
        JobState::Ended(code) => Some(code),
        JobState::Lost(_) => Some(None),
        JobState::Gone => panic!("the job is gone"),
        _ => None,
    })
    .await
}

/// The process id that a job wrote into a file.
async fn pid_in(path: PathBuf) -> i32 {
    until("the job writes its process id", async || {
        let text = std::fs::read_to_string(&path).ok()?;
        text.ends_with('\n').then(|| text.trim().parse().unwrap())
    })
    .await
}

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

#[tokio::test]
async fn a_job_gets_ticket_environment_and_nothing_else() {
    let folder = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let request = request("job/1", "cat; env | sort; echo to-stderr >&2; exit 3");
    let handle = driver.ensure(&request).await.unwrap();
    assert_eq!(ended(&driver, &handle).await, Some(3));
    let output = std::fs::read_to_string(driver.stdout("job/1").unwrap()).unwrap();
    assert!(output.starts_with(&request.ticket), "{output}");
    let names: Vec<&str> = output[request.ticket.len()..]
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    // A shell adds where it is; nothing of this test's environment may get through.
    let expected = ["GREETING", "PATH", "OLDPWD", "PWD", "SHLVL", "_"];
    assert!(
        names.contains(&"PATH") && names.iter().all(|name| expected.contains(name)),
        "{names:?}"
    );
    assert!(output.contains("GREETING=a 'b' \"c\" $d\n"), "{output}");
    let errors = std::fs::read_to_string(driver.stderr("job/1").unwrap()).unwrap();
    assert_eq!(errors, "to-stderr\n");
}

#[tokio::test]
async fn the_ticket_is_in_no_file_and_no_command_line() {
    let folder = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let handle = driver.ensure(&request("job", "sleep 1000")).await.unwrap();
    let mut looked_at = 0;
    let mut waiting = vec![folder.path().to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let content = std::fs::read(&path).unwrap();
            assert!(
                !String::from_utf8_lossy(&content).contains("c0ffee"),
                "{}",
                path.display()
            );
            looked_at += 1;
        }
    }
    assert!(looked_at >= 4, "{looked_at}");
    for process in std::fs::read_dir("/proc").unwrap() {
        let command = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains("c0ffee"));
    }
    driver.delete(&handle).await.unwrap();
}

#[tokio::test]
async fn signals_and_missing_commands_are_told_apart() {
    let folder = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let killed = driver.ensure(&request("killed", "kill -KILL $$")).await.unwrap();
    assert_eq!(ended(&driver, &killed).await, None);
    let mut missing = request("missing", "");
    missing.command = vec!["/nowhere/worker".to_owned()];
    let missing = driver.ensure(&missing).await.unwrap();
    assert_eq!(ended(&driver, &missing).await, Some(127));
    for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y")] {
        let mut bad = request("bad", "true");
        bad.environment = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(matches!(driver.ensure(&bad).await, Err(ComputeError::Invalid { .. })));
    }
}

#[tokio::test]
async fn delete_ends_the_whole_family() {
    let folder = tempdir().unwrap();
    let files = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    // A child in the group, one that lost its parent, and one with a session of its own.
    let script = format!(
        "cd '{}'; sh -c 'echo $$ > child; exec sleep 1000' & \
         (sh -c 'echo $$ > orphan; exec sleep 1000' &) ; \
         setsid sh -c 'echo $$ > session; exec sleep 1000' & \
         echo $$ > own; trap '' TERM INT HUP; wait; wait",
        files.path().display()
    );
    let handle = driver.ensure(&request("family", &script)).await.unwrap();
    let mut pids = Vec::new();
    for name in ["own", "child", "orphan", "session"] {
        pids.push(pid_in(files.path().join(name)).await);
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    driver.delete(&handle).await.unwrap();
    assert!(
        pids.iter().all(|pid| !is_alive(*pid)),
        "something outlived its job: {pids:?}"
    );
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Gone);
}

#[tokio::test]
async fn what_a_command_leaves_running_ends_with_it() {
    let folder = tempdir().unwrap();
    let files = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let script = format!(
        "cd '{}'; sh -c 'echo $$ > left; exec sleep 1000' & exit 4",
        files.path().display()
    );
    let handle = driver.ensure(&request("leaves", &script)).await.unwrap();
    assert_eq!(ended(&driver, &handle).await, Some(4));
    let path = files.path().join("left");
    if path.exists() && std::fs::read_to_string(&path).unwrap().ends_with('\n') {
        assert!(!is_alive(pid_in(path).await));
    }
}

#[tokio::test]
async fn a_process_that_got_the_number_of_a_job_is_never_killed() {
    let folder = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let handle = driver.ensure(&request("job", "sleep 1000")).await.unwrap();
    let pid_file = folder.path().join("job/pid");
    let record = std::fs::read_to_string(&pid_file).unwrap();
    let words: Vec<&str> = record.split_whitespace().collect();
    let real: i32 = words[0].parse().unwrap();
    let start: u64 = words[1].parse().unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    for altered in [
        // The stranger began after this.
        format!("{} {} {}\n", stranger.id(), start - 1, words[2]),
        format!("{} {} {}\n", words[0], start + 1, words[2]),
        format!("{} {} 00000000-0000-0000-0000-000000000000\n", words[0], words[1]),
    ] {
        let copy = tempdir().unwrap();
        let job = copy.path().join("job");
        std::fs::create_dir(&job).unwrap();
        std::fs::copy(folder.path().join("job/request.json"), job.join("request.json")).unwrap();
        std::fs::write(job.join("pid"), altered).unwrap();
        ProcessDriver::open(copy.path()).unwrap().delete(&handle).await.unwrap();
        assert!(is_alive(real) && stranger.try_wait().unwrap().is_none());
    }
    driver.delete(&handle).await.unwrap();
    assert!(!is_alive(real));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_supervisor_that_was_killed_is_an_end_without_a_code() {
    let folder = tempdir().unwrap();
    let driver = ProcessDriver::open(folder.path()).unwrap();
    let request = request("job", "sleep 1000");
    let handle = driver.ensure(&request).await.unwrap();
    let record = std::fs::read_to_string(folder.path().join("job/pid")).unwrap();
    let pid: i32 = record.split_whitespace().next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(ended(&driver, &handle).await, None);
    driver.ensure(&request).await.unwrap();
    let state = driver.observe(&handle).await.unwrap();
    assert!(matches!(state, JobState::Lost(_)), "it never runs again: {state:?}");
}

/// What the killed starters start: a job that counts its own starts.
fn counted(folder: &Path, number: u64) -> JobRequest {
    request(
        &format!("job-{number}"),
        &format!("echo started >> '{}/starts-{number}'; sleep 1000", folder.display()),
    )
}

#[test]
#[ignore = "a child of `a_killed_starter_never_starts_a_job_twice`"]
fn child_starts() {
    let Some(folder) = child::folder() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let driver = ProcessDriver::open(folder.join("jobs")).unwrap();
        println!("\nready");
        for number in 0..1000 {
            driver.ensure(&counted(&folder, number)).await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_killed_starter_never_starts_a_job_twice() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let jobs = folder.join("jobs");
    for pause in child::pauses(15) {
        let (mut process, _output) = child::start("process::child_starts", folder);
        std::thread::sleep(pause);
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let driver = ProcessDriver::open(&jobs).unwrap();
    let known = std::fs::read_dir(&jobs).unwrap().count() as u64;
    assert!(known > 0);
    for number in 0..known {
        let handle = driver.ensure(&counted(folder, number)).await.unwrap();
        until("the job runs", async || {
            (driver.observe(&handle).await.unwrap() == JobState::Running).then_some(())
        })
        .await;
        let starts = folder.join(format!("starts-{number}"));
        until("the job has begun", async || starts.exists().then_some(())).await;
    }
    let ended = driver.sweep("owner", &[]).await.unwrap();
    assert_eq!(ended.len() as u64, known);
    for number in 0..known {
        let starts = std::fs::read_to_string(folder.join(format!("starts-{number}"))).unwrap();
        assert_eq!(starts, "started\n", "job {number}");
    }
}
