//! Attempts on several machines.

use std::sync::{Arc, Mutex};

use tidegate_engine::{EngineError, Progress, RunStatus};
use tidegate_types::Refusal;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;

use crate::world::{PIPELINE, World, accepted, pass};

fn three_machines() -> String {
    PIPELINE.replace("train:\n", "train:\n  num_nodes: 3\n  retries: 1\n")
}

fn lost() -> AttemptOutcome {
    AttemptOutcome::Fenced { why: "lost".to_owned() }
}

fn failed(reason: &str) -> AttemptOutcome {
    AttemptOutcome::Failed {
        stage: "command".to_owned(),
        reason: reason.to_owned(),
    }
}

fn refused(rule: &str) -> AttemptOutcome {
    AttemptOutcome::Refused {
        refusal: Refusal {
            rule: rule.to_owned(),
            what: "admitting a worker".to_owned(),
            why: "two workers have said hello".to_owned(),
            fix: "start another attempt".to_owned(),
        },
    }
}

fn worked() -> AttemptOutcome {
    AttemptOutcome::Worked { seconds: 1 }
}

/// Attempt and rank of what was fenced, with the reason.
fn fenced(world: &World) -> Vec<(u32, u32, String)> {
    let fenced = world.keeper.fenced.lock().unwrap();
    let mut all: Vec<_> = fenced
        .iter()
        .map(|(attempt, why)| (attempt.attempt, attempt.rank, why.clone()))
        .collect();
    all.sort();
    all
}

#[test]
fn every_machine_is_started_paid_and_removed_and_the_first_ones_model_is_the_runs() {
    let world = World::new("together");
    let begun = Arc::new(Mutex::new(Vec::<Attempt>::new()));
    // Nobody ends before all of them were asked about.
    world.ends(move |attempt| {
        let mut begun = begun.lock().unwrap();
        if !begun.contains(attempt) {
            begun.push(attempt.clone());
        }
        if begun.len() < 3 {
            return None;
        }
        if begun.len() == 3 {
            // Once: a machine-hour of each.
            begun.push(Attempt {
                rank: 9,
                ..attempt.clone()
            });
            pass(3600);
        }
        Some(if attempt.rank == 0 { accepted() } else { worked() })
    });
    let summary = world.run(&three_machines()).unwrap();
    assert_eq!(summary.status, RunStatus::Done);
    let started = world.compute.started();
    let mut ranks: Vec<_> = started.iter().map(|job| job.attempt.rank).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1, 2]);
    assert!(fenced(&world).is_empty());
    assert!(summary.cost.to_string().starts_with("3."), "{}", summary.cost);
}

#[test]
fn one_lost_machine_ends_the_attempt_of_all_and_the_next_one_has_all_again() {
    let world = World::new("together-lost");
    world.ends(|attempt| match (attempt.attempt, attempt.rank) {
        (1, 2) => Some(lost()),
        (1, _) => None,
        (_, 0) => Some(accepted()),
        _ => Some(worked()),
    });
    assert_eq!(world.run(&three_machines()).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 6);
    let why = "another machine of the attempt was lost, or its command failed".to_owned();
    assert_eq!(fenced(&world), [(1, 0, why.clone()), (1, 1, why)]);
}

#[test]
fn a_command_that_fails_on_one_machine_is_the_reason_of_all() {
    let world = World::new("together-fails");
    world.ends(|attempt| {
        Some(failed(if attempt.rank == 1 {
            "exit code 7"
        } else {
            "exit code 7, too"
        }))
    });
    let error = world.run(&three_machines()).unwrap_err();
    assert!(matches!(error, EngineError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("exit code 7"), "{error}");
    assert_eq!(world.compute.started().len(), 3, "it would fail again");
}

/// A command sees its peers go before anybody sees the machine gone.
#[test]
fn a_command_that_fails_because_a_machine_was_lost_is_tried_again() {
    let world = World::new("together-why");
    let mut looks = 0;
    world.ends(move |attempt| match (attempt.attempt, attempt.rank) {
        (1, 0) => Some(failed("connection reset by peer")),
        (1, 1) => {
            looks += 1;
            (looks > 50).then(lost)
        }
        (1, _) => None,
        (_, 0) => Some(accepted()),
        _ => Some(worked()),
    });
    assert_eq!(world.run(&three_machines()).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 6);
}

#[test]
fn a_command_that_fails_on_one_machine_fails_the_run_also_where_the_first_one_gave_a_model() {
    let world = World::new("together-despite");
    let mut looks = 0;
    world.ends(move |attempt| match attempt.rank {
        0 => {
            looks += 1;
            (looks > 50).then(accepted)
        }
        1 => Some(failed("the command ended with exit code 7")),
        _ => Some(worked()),
    });
    let error = world.run(&three_machines()).unwrap_err().to_string();
    assert!(
        error.contains("on the machine of rank 1, the command ended with exit code 7"),
        "{error}"
    );
    let told = world.told.lock().unwrap();
    let lost = told.iter().find_map(|progress| match progress {
        Progress::MachineLost { rank, reason, .. } => Some((*rank, reason.clone())),
        _ => None,
    });
    let (rank, reason) = lost.unwrap();
    assert!(rank == 1 && reason.contains("exit code 7"), "{reason}");
}

#[test]
fn a_ticket_in_two_hands_counts_more_than_a_model() {
    let world = World::new("together-twice");
    let mut given = false;
    world.ends(move |attempt| match attempt.rank {
        0 => {
            given = true;
            Some(accepted())
        }
        1 => given.then(|| refused("second-hello")),
        _ => Some(worked()),
    });
    let EngineError::Refused(refusal) = world.run(&three_machines()).unwrap_err() else {
        panic!("not refused")
    };
    assert_eq!(refusal.rule, "second-hello");
}

#[test]
fn a_model_is_kept_whatever_becomes_of_the_other_machines() {
    let world = World::new("together-kept");
    let fails = Arc::clone(&world.keeper);
    world.ends(move |attempt| match attempt.rank {
        0 => {
            fails.fence_fails.store(true, std::sync::atomic::Ordering::SeqCst);
            Some(accepted())
        }
        _ => None,
    });
    // Its end fences what is open, which goes wrong too: the model is there, and the next run uses it.
    let _ = world.run(&three_machines());
    world
        .keeper
        .fence_fails
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let started = world.compute.started().len();
    assert_eq!(world.run(&three_machines()).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), started, "nothing was trained again");
}

#[test]
fn a_machine_that_does_not_end_is_fenced_once_there_is_a_model() {
    let world = World::new("together-late");
    world.ends(|attempt| match attempt.rank {
        0 => Some(accepted()),
        1 => Some(worked()),
        _ => None,
    });
    assert_eq!(world.run(&three_machines()).unwrap().status, RunStatus::Done);
    let why = "the output of the attempt was accepted".to_owned();
    assert_eq!(fenced(&world), [(1, 2, why)]);
}
