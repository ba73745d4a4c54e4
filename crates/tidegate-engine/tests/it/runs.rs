//! Runs that go well, go on after a crash, and use what is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate_contracts::fakes::FakeCompute;
use tidegate_contracts::journal::Batch;
use tidegate_contracts::{ComputeError, JobState, Journal};
use tidegate_engine::{EngineError, Progress, RunRecord, RunStatus};
use tidegate_types::Refusal;
use tidegate_types::keeper::AttemptOutcome;

use crate::world::{PIPELINE, World, accepted, pass};

#[test]
fn every_step_is_asked_for_once_and_in_order() {
    let world = World::new("order");
    let summary = world.run(PIPELINE).unwrap();
    assert_eq!(summary.status, RunStatus::Done);
    assert_eq!(
        world.asked(),
        [
            "prepare",
            "sign_permit",
            "sign_permit",
            "sign_permit",
            "send",
            "send",
            "send",
            "start_attempt",
            "await_attempt",
            "evaluate",
            "refine",
            "release",
            "deploy",
            "sign_permit",
            "send",
            "deploy",
        ]
    );
    assert_eq!(summary.crossings.len(), 5);
    assert_eq!(summary.reused, Vec::<String>::new());
    assert_eq!(summary.deployed.len(), 2);
    assert_eq!(summary.model.unwrap().version, 1);
    // Nothing is left in the mailbox, and nothing runs.
    assert_eq!(world.compute.started().len(), 1);
}

#[test]
fn what_was_copied_is_accounted_once_and_no_training_hangs_on_it() {
    let world = World::new("copies");
    // Three inputs, of which a part of the last stood there before; after the training the store is out of reach; then the
    // bundle, which is copied from nowhere; at the end it is told.
    let told = [
        Ok(Some(0)),
        Ok(Some(0)),
        Ok(Some(40)),
        Err("the store is out of reach"),
        Err("the store is out of reach"),
        Err("the store is out of reach"),
        Ok(None),
        Ok(Some(500)),
        Ok(Some(600)),
        Ok(Some(100)),
    ];
    world.keeper.copies.lock().unwrap().extend(told);
    let summary = world.run(PIPELINE).unwrap();
    assert_eq!(summary.status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 1, "it trained once");
    let events = world.ledger().into_iter();
    let copied = events.filter(|event| event.data.names.get("from").map(String::as_str) == Some("elsewhere"));
    let copied: Vec<u64> = copied.map(|event| event.data.numbers["bytes"]).collect();
    assert_eq!(copied, [500, 600, 60]);
    assert!(world.keeper.copies.lock().unwrap().is_empty());
}

#[test]
fn an_intent_stands_in_the_ledger_before_a_permit_or_a_release_is_signed() {
    let world = World::new("intent");
    world.run(PIPELINE).unwrap();
    let intents = world.keeper.intents.lock().unwrap().clone();
    assert_eq!(intents.len(), 5);
    assert!(
        intents.iter().all(|intent| intent == "dev.tidegate.permit-requested"),
        "{intents:?}"
    );
    let words: Vec<String> = world.ledger().into_iter().map(|event| event.event_type).collect();
    let first = |word: &str| words.iter().position(|it| it.ends_with(word)).unwrap();
    assert!(first("permit-requested") < first("permit-signed"));
    assert!(first("permit-signed") < first("crossed"));
    assert!(first("crossed") < first("attempt-started"));
    assert!(words.last().unwrap().ends_with("run-ended"), "{words:?}");
}

#[test]
fn the_same_again_asks_for_nothing_that_is_there() {
    let world = World::new("again");
    world.run(PIPELINE).unwrap();
    let before = world.asked().len();
    let summary = world.run(PIPELINE).unwrap();
    // Preparation is the keeper's to reuse.
    assert_eq!(world.asked().split_off(before), ["prepare"]);
    assert_eq!(summary.crossings, Vec::new());
    assert_eq!(
        summary.reused,
        [
            "deploy-hospital",
            "deploy-ward",
            "evaluate",
            "refine",
            "release",
            "train"
        ]
    );
}

#[test]
fn what_only_evaluation_depends_on_trains_nothing_anew() {
    let world = World::new("partial");
    world.run(PIPELINE).unwrap();
    let before = world.asked().len();
    let changed = format!("{PIPELINE}evaluate: {{gates: {{roc_auc: \">= 0.5\"}}}}\n");
    let summary = world.run(&changed).unwrap();
    assert!(summary.reused.contains(&"train".to_owned()), "{:?}", summary.reused);
    let asked = world.asked().split_off(before);
    assert!(asked.contains(&"evaluate".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"start_attempt".to_owned()), "{asked:?}");
}

/// A run whose process dies while the attempt goes on: nothing after that is executed.
fn interrupt(world: &World) {
    world.ends(|_| None);
    world.with(PIPELINE, async |engine| {
        let planned = engine.plan(None).await.unwrap();
        let run = tokio::time::timeout(Duration::from_millis(600), engine.run(&planned));
        assert!(run.await.is_err());
    });
    world.ends(|_| Some(accepted()));
}

#[test]
fn an_interrupted_run_goes_on_with_the_attempt_that_it_began() {
    let world = World::new("interrupted");
    interrupt(&world);
    let summary = world.run(PIPELINE).unwrap();
    assert_eq!(summary.status, RunStatus::Done);
    assert_eq!(summary.crossings.len(), 5);
    assert_eq!(world.compute.started().len(), 1);
    let told = world.told.lock().unwrap().clone();
    let started: Vec<bool> = told
        .iter()
        .filter_map(|progress| match progress {
            Progress::Started { resumed, .. } => Some(*resumed),
            _ => None,
        })
        .collect();
    assert_eq!(started, [false, true]);
    let ids: std::collections::BTreeSet<String> = world.ledger().into_iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), world.ledger().len(), "a fact stands in the ledger twice");
}

#[test]
fn an_interrupted_run_whose_files_were_changed_ends_when_the_next_begins() {
    let world = World::new("superseded");
    interrupt(&world);
    let changed = PIPELINE.replace("train:\n", "train:\n  retries: 2\n");
    world.run(&changed).unwrap();
    let runs = world.journal.scan("runs", "").unwrap();
    let mut runs: Vec<RunRecord> = runs
        .iter()
        .map(|(_, run)| serde_json::from_slice(run).unwrap())
        .collect();
    runs.sort_by_key(|run| run.status == RunStatus::Done);
    let statuses: Vec<_> = runs.iter().map(|run| run.status).collect();
    assert_eq!(statuses, [RunStatus::Failed, RunStatus::Done]);
    assert!(runs[0].why.contains(runs[1].id.as_str()), "{}", runs[0].why);
    // The attempt that was under way is no longer anybody's.
    let fenced = world.keeper.fenced.lock().unwrap().clone();
    assert_eq!(fenced.len(), 1);
    assert_eq!(fenced[0].0.run, runs[0].id);
    let ended = world
        .ledger()
        .into_iter()
        .filter(|event| event.event_type.ends_with("run-ended"));
    assert_eq!(ended.count(), 2);
}

#[test]
fn a_lost_attempt_is_followed_by_another_and_a_failing_command_is_not() {
    let retries = PIPELINE.replace("train:\n", "train:\n  retries: 2\n");
    let world = World::new("lost");
    world.ends(|attempt| {
        Some(if attempt.attempt < 3 {
            AttemptOutcome::Fenced { why: "lost".to_owned() }
        } else {
            accepted()
        })
    });
    assert_eq!(world.run(&retries).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 3);

    let world = World::new("fails");
    world.ends(|_| {
        Some(AttemptOutcome::Failed {
            stage: "command".to_owned(),
            reason: "exit code 7".to_owned(),
        })
    });
    let error = world.run(&retries).unwrap_err();
    assert!(matches!(error, EngineError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("exit code 7"), "{error}");
    assert_eq!(world.compute.started().len(), 1);
}

#[test]
fn a_job_that_is_gone_is_fenced_before_the_next_attempt() {
    let retries = PIPELINE.replace("train:\n", "train:\n  retries: 1\n");
    let world = World::new("gone");
    let compute = world.compute.clone();
    // The keeper never hears of the first one, whose machine the platform took away.
    world.ends(move |attempt| {
        if attempt.attempt == 1 {
            let job = format!("{}-train-1-0", attempt.run);
            let handle = tidegate_contracts::compute::Handle {
                id: job.clone(),
                platform: job,
            };
            let compute = compute.clone();
            tokio::spawn(async move { tidegate_contracts::compute::Compute::delete(&compute, &handle).await });
            return None;
        }
        Some(accepted())
    });
    assert_eq!(world.run(&retries).unwrap().status, RunStatus::Done);
    let fenced = world.keeper.fenced.lock().unwrap().clone();
    assert_eq!(fenced.len(), 1);
    assert_eq!((fenced[0].0.attempt, fenced[0].1.as_str()), (1, "lost"));
}

/// Which credentials workers were given after their tickets, by attempt.
fn renewed(world: &World) -> Vec<(u32, String)> {
    let renewed = world.keeper.renewed.lock().unwrap();
    renewed
        .iter()
        .map(|(attempt, credentials)| (attempt.attempt, credentials["TOKEN"].clone()))
        .collect()
}

/// Lets an attempt end once its worker was given so many other credentials.
fn end_after(world: &World, times: usize) {
    let keeper = Arc::clone(&world.keeper);
    world.ends(move |_| (keeper.renewed.lock().unwrap().len() >= times).then(accepted));
}

#[test]
fn a_worker_is_given_other_credentials_before_its_own_end() {
    let world = World::new("renewed");
    *world.stores.lasts.lock().unwrap() = Some(Duration::from_millis(300));
    end_after(&world, 2);
    assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
    assert_eq!(renewed(&world), [(1, "2".to_owned()), (1, "3".to_owned())]);
    // Its ticket held the first ones, and no others were asked for.
    assert_eq!(world.stores.given.load(Ordering::SeqCst), 3);
}

#[test]
fn a_worker_of_before_a_restart_is_given_other_credentials_at_once() {
    for heard in [true, false] {
        let world = World::new(&format!("renewed-again-{heard}"));
        *world.stores.lasts.lock().unwrap() = Some(Duration::from_secs(3600));
        interrupt(&world);
        assert_eq!(renewed(&world), []);
        if !heard {
            forget_handles(&world);
        }
        end_after(&world, 1);
        assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
        // Where nobody had heard of its start, the job is asked for once more, with credentials that it never sees.
        let given = if heard { "2" } else { "3" };
        assert_eq!(renewed(&world), [(1, given.to_owned())]);
    }
}

/// As if the process had been killed between the start of a job and the note of it.
fn forget_handles(world: &World) {
    let jobs = world.journal.scan("jobs", "").unwrap();
    assert_eq!(jobs.len(), 1);
    for (key, text) in jobs {
        let mut job: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(!job["handle"].is_null());
        job["handle"] = serde_json::Value::Null;
        let batch = Batch::default().set("jobs", &key, serde_json::to_vec(&job).unwrap());
        world.journal.commit(&batch).unwrap();
    }
}

#[test]
fn the_keeper_is_told_on_which_machine_a_worker_was_started() {
    let mut world = World::new("machine");
    let asked = Arc::new(AtomicUsize::new(0));
    world.compute = FakeCompute::new().proving(move |handle| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(ComputeError::Transient {
            what: "asking".to_owned(),
            source: std::io::ErrorKind::TimedOut.into(),
        }),
        _ => Ok(Some(format!("the machine of {}", handle.platform))),
    });
    let keeper = Arc::clone(&world.keeper);
    world.ends(move |_| (!keeper.machines.lock().unwrap().is_empty()).then(accepted));
    assert_eq!(world.run(PIPELINE).unwrap().status, RunStatus::Done);
    let told = world.keeper.machines.lock().unwrap().clone();
    let [(1, machine)] = &told[..] else { panic!("{told:?}") };
    assert!(machine.starts_with("the machine of "), "{machine}");
}

#[test]
fn a_machine_that_nobody_may_know_ends_its_attempt_with_the_reason() {
    let mut world = World::new("unknown-machine");
    world.compute = FakeCompute::new().proving(|handle| {
        Err(ComputeError::Invalid {
            id: handle.id.clone(),
            why: "the right to ask is missing".to_owned(),
        })
    });
    world.ends(|_| None);
    let error = world.run(PIPELINE).unwrap_err().to_string();
    assert!(error.contains("the right to ask is missing"), "{error}");
    assert_eq!(*world.keeper.machines.lock().unwrap(), []);
}

#[test]
fn the_program_of_a_job_is_that_of_its_site() {
    for (site, program) in [("hospital", "at home"), ("cloud", "elsewhere")] {
        let world = World::new(&format!("program-{site}"));
        world.ends(|_| Some(accepted()));
        let pipeline = PIPELINE.replace("infra: cloud", &format!("infra: {site}"));
        assert_eq!(world.run(&pipeline).unwrap().status, RunStatus::Done);
        let started = world.compute.started();
        assert!(
            started.iter().all(|request| request.command == [program]),
            "{started:?}"
        );
        let ticket: serde_json::Value = serde_json::from_str(&started[0].ticket).unwrap();
        let expected = tidegate_seal::digest::sha256(program.as_bytes());
        assert_eq!(ticket["worker"], serde_json::to_value(expected).unwrap());
    }
}

#[test]
fn a_ticket_that_ran_out_is_another_try() {
    let retries = PIPELINE.replace("train:\n", "train:\n  retries: 1\n");
    let world = World::new("late");
    world.ends(|attempt| {
        Some(if attempt.attempt == 1 {
            AttemptOutcome::Refused {
                refusal: Refusal {
                    rule: "ticket-expired".to_owned(),
                    what: "waiting for a worker".to_owned(),
                    why: "no hello came".to_owned(),
                    fix: "wait".to_owned(),
                },
            }
        } else {
            accepted()
        })
    });
    assert_eq!(world.run(&retries).unwrap().status, RunStatus::Done);
    assert_eq!(world.compute.started().len(), 2);
}

#[test]
fn a_site_without_room_is_given_time_and_asked_again() {
    let retries = PIPELINE.replace("train:\n", "train:\n  retries: 1\n");
    let mut world = World::new("crowded");
    world.compute = FakeCompute::with(|request| {
        if request.attempt.attempt == 1 {
            return Err(ComputeError::Capacity {
                id: request.id.clone(),
                why: "every machine is taken".to_owned(),
            });
        }
        Ok(JobState::Running)
    });
    let began = std::time::Instant::now();
    assert_eq!(world.run(&retries).unwrap().status, RunStatus::Done);
    assert!(began.elapsed() >= Duration::from_secs(15), "it was asked again at once");
    let told = world.told.lock().unwrap().clone();
    let lost = told.iter().find_map(|one| match one {
        Progress::AttemptLost { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    let lost = lost.unwrap();
    assert!(
        lost.contains("not-started") && lost.contains("every machine is taken"),
        "{lost}"
    );
}

/// Where the attempts of a world's runs were, in their order.
fn tried(world: &World) -> Vec<String> {
    let told = world.told.lock().unwrap().clone();
    let sites = told.into_iter().filter_map(|one| match one {
        Progress::AttemptStarted { site, .. } => Some(site.to_string()),
        _ => None,
    });
    sites.collect()
}

#[test]
fn a_site_without_room_gives_way_to_the_next_one() {
    let anywhere = PIPELINE.replace("infra: cloud", "any_of: [{infra: cloud}, {infra: hospital}]");
    let mut world = World::new("elsewhere");
    // Home is the cheaper one, and full.
    world.compute = FakeCompute::with(|request| {
        if request.ticket.contains("\"site\":\"hospital\"") {
            return Err(ComputeError::Capacity {
                id: request.id.clone(),
                why: "every machine is taken".to_owned(),
            });
        }
        Ok(JobState::Running)
    });
    let summary = world.run(&anywhere).unwrap();
    assert_eq!(summary.status, RunStatus::Done);
    assert_eq!(tried(&world), ["hospital", "cloud"]);
    let crossed: Vec<_> = summary
        .crossings
        .iter()
        .filter(|one| one.to.as_str() == "cloud")
        .collect();
    assert!(
        crossed.iter().any(|one| one.artifact == "train"),
        "{:?}",
        summary.crossings
    );
    // What was trained there is used again, though home would be asked first.
    pass(1);
    assert!(world.run(&anywhere).unwrap().reused.contains(&"train".to_owned()));
    assert_eq!(tried(&world).len(), 2);
}

#[test]
fn a_site_that_loses_its_attempts_gives_way_to_the_next_one() {
    let anywhere = PIPELINE.replace("infra: cloud", "any_of: [{infra: cloud}, {infra: hospital}]");
    let world = World::new("unlucky");
    // What they had done cannot be brought along: that is no reason to end the run.
    world.keeper.fetch_fails.store(true, Ordering::SeqCst);
    world.ends(|attempt| {
        Some(if attempt.attempt < 3 {
            AttemptOutcome::Fenced { why: "lost".to_owned() }
        } else {
            accepted()
        })
    });
    assert_eq!(world.run(&anywhere).unwrap().status, RunStatus::Done);
    assert_eq!(tried(&world), ["hospital", "hospital", "cloud"]);
}

#[test]
fn a_run_tells_what_of_its_training_took_how_long() {
    let world = World::new("phases");
    world.ends(|_| {
        let AttemptOutcome::Accepted {
            model, seconds, bytes, ..
        } = accepted()
        else {
            unreachable!()
        };
        let phases = [("hello", 2_000_000), ("accepted", 2_500_000)];
        Some(AttemptOutcome::Accepted {
            model,
            seconds,
            bytes,
            phases: phases.map(|(phase, at)| (phase.to_owned(), at)).into(),
        })
    });
    let first = world.run(PIPELINE).unwrap();
    let phases: Vec<_> = first.training.iter().map(|one| one.phase.as_str()).collect();
    assert_eq!(phases, ["asked", "hello", "accepted"]);
    let last = first.training.last().unwrap().seconds;
    assert!((last - 500.0).abs() < 1e-9, "{last}");
    // Where nothing was trained, nothing took any time.
    pass(1);
    assert!(world.run(PIPELINE).unwrap().training.is_empty());
}

#[test]
fn another_keeper_than_the_first_is_not_believed() {
    let world = World::new("pinned");
    world.run(PIPELINE).unwrap();
    let stranger = World::new("stranger");
    let impostor = World {
        journal: world.journal.clone(),
        folder: world.folder.clone(),
        ..stranger
    };
    let error = impostor.run(PIPELINE).unwrap_err();
    assert!(matches!(error, EngineError::Failed { .. }), "{error}");
    assert_eq!(impostor.asked(), Vec::<String>::new());
}

#[test]
fn the_public_key_lies_beside_the_secret_one() {
    let world = World::new("key");
    let file = world.folder.join("control.key");
    let key = tidegate_engine::ControlKey::open(&file).unwrap();
    let public = tidegate_engine::ControlKey::read_public(&file).unwrap();
    assert_eq!(public.to_base64(), key.public().to_base64());
    let text = std::fs::read_to_string(file.with_extension("pub")).unwrap();
    assert!(!text.contains(std::fs::read_to_string(&file).unwrap().trim()));
}
