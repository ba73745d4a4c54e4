//! Runs that somebody or something stops: nothing runs for them afterwards, and nothing of them counts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_contracts::compute::{Compute, ComputeError, Handle, JobState};
use tidegate_contracts::fakes::FakeCompute;
use tidegate_contracts::journal::Journal;
use tidegate_engine::{EngineError, RunRecord, RunStatus};
use tidegate_types::Refusal;
use tidegate_types::keeper::AttemptOutcome;
use tidegate_types::message::Attempt;

use crate::world::{PIPELINE, World, accepted, pass};

fn refused(error: EngineError) -> Refusal {
    match error {
        EngineError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

fn records(world: &World) -> Vec<RunRecord> {
    let entries = world.journal.scan("runs", "").unwrap();
    entries
        .iter()
        .map(|(_, bytes)| serde_json::from_slice(bytes).unwrap())
        .collect()
}

/// No job runs, and every one that was started was fenced for this reason.
fn nothing_runs(world: &World, why: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let started = world.compute.started();
    for job in &started {
        let handle = Handle {
            id: job.id.clone(),
            platform: String::new(),
        };
        assert_eq!(
            runtime.block_on(world.compute.observe(&handle)).unwrap(),
            JobState::Gone
        );
    }
    let fenced = world.keeper.fenced.lock().unwrap().clone();
    assert_eq!(fenced.len(), started.len());
    assert!(fenced.iter().all(|(_, reason)| reason == why), "{fenced:?}");
    let ended = world.ledger();
    let ended = ended.iter().filter(|event| event.event_type.ends_with("attempt-ended"));
    assert_eq!(ended.count(), started.len());
}

/// An attempt that does not end, with so much time gone once it has begun.
fn after(seconds: u64) -> impl FnMut(&Attempt) -> Option<AttemptOutcome> + Send {
    let mut once = Some(seconds);
    move |_| {
        pass(once.take().unwrap_or(0));
        None
    }
}

#[test]
fn a_run_that_has_cost_more_than_its_budget_is_stopped_while_it_goes_on() {
    let world = World::new("budget");
    // The plan expects cents; after three hours of an attempt three dollars are gone.
    world.ends(after(3 * 3600));
    let error = world.run(&format!("{PIPELINE}budget: {{cost: 2 USD}}\n")).unwrap_err();
    let refusal = refused(error);
    assert_eq!(refusal.rule, "budget");
    assert!(refusal.why.contains("the budget is 2.00 USD"), "{refusal}");
    assert!(refusal.fix.contains("budget"), "{refusal}");
    nothing_runs(&world, "refused");
    let record = records(&world).pop().unwrap();
    assert_eq!(record.status, RunStatus::Refused);
    // What it has cost stands in its record, although it gave nothing.
    assert!(
        record.cost.as_deref().is_some_and(|cost| cost.starts_with("3.0")),
        "{record:?}"
    );
    let ended = world.ledger().pop().unwrap();
    assert_eq!(ended.data.names["rule"], "budget");
}

#[test]
fn no_attempt_begins_when_the_budget_is_spent() {
    let world = World::new("spent");
    let retries = PIPELINE.replace("train:\n", "train:\n  retries: 5\n");
    // Each attempt takes an hour and is lost.
    world.ends(|_| {
        pass(3600);
        Some(AttemptOutcome::Fenced { why: "lost".to_owned() })
    });
    let error = world.run(&format!("{retries}budget: {{cost: 2.5 USD}}\n")).unwrap_err();
    assert_eq!(refused(error).rule, "budget");
    assert_eq!(world.compute.started().len(), 3);
}

#[test]
fn attempts_of_before_a_crash_count_too() {
    let world = World::new("crash");
    let budget = format!("{PIPELINE}budget: {{cost: 2 USD}}\n");
    world.ends(|_| None);
    world.with(&budget, async |engine| {
        let planned = engine.plan(None).await.unwrap();
        let run = tokio::time::timeout(Duration::from_millis(600), engine.run(&planned));
        assert!(run.await.is_err());
    });
    // The machine ran on while nobody looked.
    pass(5 * 3600);
    assert_eq!(refused(world.run(&budget).unwrap_err()).rule, "budget");
    nothing_runs(&world, "refused");
}

#[test]
fn a_run_within_its_budget_says_what_it_cost() {
    let world = World::new("within");
    world.ends(|_| {
        pass(1800);
        Some(accepted())
    });
    let summary = world.run(&format!("{PIPELINE}budget: {{cost: 2 USD}}\n")).unwrap();
    let cost = summary.cost.strip_suffix(" USD").unwrap_or(&summary.cost).to_owned();
    // Half an hour of the cloud, a few seconds of the hospital, a few kilobytes.
    let cost: f64 = cost.split(' ').next().unwrap().parse().unwrap();
    assert!((0.5..0.51).contains(&cost), "{}", summary.cost);
}

#[test]
fn a_deadline_stops_a_run_while_it_goes_on() {
    let world = World::new("deadline");
    world.ends(after(2 * 3600));
    let refusal = refused(world.run(&format!("{PIPELINE}deadline: 1h\n")).unwrap_err());
    assert_eq!(refusal.rule, "deadline");
    assert!(refusal.why.contains("3600 s"), "{refusal}");
    nothing_runs(&world, "refused");
}

#[test]
fn more_bytes_than_the_budget_are_refused_before_one_of_them_moves() {
    let world = World::new("egress");
    // The source had a megabyte, and what was made of it has three.
    world.keeper.bytes.store(30 << 20, Ordering::SeqCst);
    let refusal = refused(
        world
            .run(&format!("{PIPELINE}budget: {{egress: 20 MiB}}\n"))
            .unwrap_err(),
    );
    assert_eq!(refusal.rule, "egress-budget");
    assert_eq!(world.asked(), ["prepare"]);
}

#[test]
fn a_cancelled_run_leaves_nothing_running_and_the_same_command_begins_another() {
    let world = World::new("cancel");
    let cancelled = std::sync::Arc::clone(&world.cancelled);
    world.ends(move |_| {
        cancelled.store(true, Ordering::SeqCst);
        None
    });
    let error = world.run(PIPELINE).unwrap_err();
    assert!(matches!(error, EngineError::Cancelled(_)), "{error}");
    nothing_runs(&world, "cancelled");
    assert_eq!(records(&world)[0].status, RunStatus::Cancelled);

    world.cancelled.store(false, Ordering::SeqCst);
    world.ends(|_| Some(accepted()));
    pass(1);
    assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
    let mut runs = records(&world);
    runs.sort_by_key(|run| run.started);
    let statuses: Vec<RunStatus> = runs.iter().map(|run| run.status).collect();
    assert_eq!(statuses, [RunStatus::Cancelled, RunStatus::Done]);
}

#[test]
fn an_interrupted_run_can_be_cancelled_when_nobody_goes_on_with_it() {
    let world = World::new("cancel-interrupted");
    world.ends(|_| None);
    world.with(PIPELINE, async |engine| {
        let planned = engine.plan(None).await.unwrap();
        let run = tokio::time::timeout(Duration::from_millis(600), engine.run(&planned));
        assert!(run.await.is_err());
    });
    let run = records(&world).pop().unwrap();
    assert_eq!(run.status, RunStatus::Running);
    world
        .with(PIPELINE, async |engine| engine.cancel(&run.id).await)
        .unwrap();
    nothing_runs(&world, "cancelled");
    assert_eq!(records(&world)[0].status, RunStatus::Cancelled);
    // Once it has ended, there is nothing to cancel.
    let again = world.with(PIPELINE, async |engine| engine.cancel(&run.id).await);
    assert!(again.unwrap_err().to_string().contains("cancelled already"));
}

#[test]
fn what_could_not_be_fenced_is_fenced_by_the_next_run() {
    let world = World::new("fence-later");
    let cancelled = std::sync::Arc::clone(&world.cancelled);
    world.ends(move |_| {
        cancelled.store(true, Ordering::SeqCst);
        None
    });
    world.keeper.fence_fails.store(true, Ordering::SeqCst);
    assert!(matches!(world.run(PIPELINE), Err(EngineError::Cancelled(_))));
    assert!(world.keeper.fenced.lock().unwrap().is_empty());
    // The machine is not kept waiting for it.
    let job = Handle {
        id: world.compute.started()[0].id.clone(),
        platform: String::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(world.compute.observe(&job)).unwrap(), JobState::Gone);

    world.cancelled.store(false, Ordering::SeqCst);
    world.keeper.fence_fails.store(false, Ordering::SeqCst);
    world.ends(|_| Some(accepted()));
    pass(1);
    world.run(PIPELINE).unwrap();
    let fenced = world.keeper.fenced.lock().unwrap().clone();
    assert_eq!(fenced.len(), 1);
    assert_eq!(fenced[0].1, "lost");
}

fn state(world: &World, id: &str) -> JobState {
    let handle = Handle {
        id: id.to_owned(),
        platform: String::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(world.compute.observe(&handle)).unwrap()
}

#[test]
fn a_machine_out_of_reach_keeps_nobody_from_being_fenced_and_is_tidied_later() {
    let world = World::new("unreachable");
    let (cancelled, compute) = (std::sync::Arc::clone(&world.cancelled), world.compute.clone());
    world.ends(move |_| {
        compute.out_of_reach(true);
        cancelled.store(true, Ordering::SeqCst);
        None
    });
    assert!(matches!(world.run(PIPELINE), Err(EngineError::Cancelled(_))));
    assert_eq!(world.keeper.fenced.lock().unwrap().len(), 1);
    world.compute.out_of_reach(false);
    let job = world.compute.started()[0].id.clone();
    assert_eq!(state(&world, &job), JobState::Running);

    world.cancelled.store(false, Ordering::SeqCst);
    world.ends(|_| Some(accepted()));
    pass(1);
    world.run(PIPELINE).unwrap();
    assert_eq!(state(&world, &job), JobState::Gone);
    assert_eq!(world.keeper.fenced.lock().unwrap().len(), 1);
}

#[test]
fn a_job_whose_machine_cannot_be_reached_at_its_end_does_not_end_the_run_and_is_removed_later() {
    let world = World::new("unremoved");
    let compute = world.compute.clone();
    world.ends(move |_| {
        compute.out_of_reach(true);
        Some(accepted())
    });
    assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
    let job = world.compute.started()[0].id.clone();
    // Still out of reach: the next run does not mind, and does not forget.
    world.run(PIPELINE).unwrap();
    world.compute.out_of_reach(false);
    assert_eq!(state(&world, &job), JobState::Running);
    world.run(PIPELINE).unwrap();
    assert_eq!(state(&world, &job), JobState::Gone);
}

#[test]
fn a_start_that_the_way_to_its_machine_broke_is_tried_again() {
    let mut world = World::new("start-again");
    let broken = std::sync::atomic::AtomicU64::new(2);
    world.compute = FakeCompute::with(move |_| {
        let less = broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match less {
            Ok(_) => Err(ComputeError::Transient {
                what: "starting".to_owned(),
                source: std::io::ErrorKind::ConnectionReset.into(),
            }),
            Err(_) => Ok(JobState::Running),
        }
    });
    assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 1);
    assert!(world.keeper.fenced.lock().unwrap().is_empty());
}

#[test]
fn a_refusal_ends_a_run_with_its_rule_in_the_ledger() {
    let world = World::new("gate");
    world.keeper.gate_fails.store(true, Ordering::SeqCst);
    assert_eq!(refused(world.run(PIPELINE).unwrap_err()).rule, "gate-failed");
    assert!(!world.asked().contains(&"deploy".to_owned()));
    let ended = world.ledger().pop().unwrap();
    assert!(ended.event_type.ends_with("run-ended"));
    assert_eq!(ended.data.names["status"], "refused");
    assert_eq!(ended.data.names["rule"], "gate-failed");
}
