//! What is not permitted does not move, and nothing is signed before the ledger holds its intent.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tidegate_seal::digest::sha256;
use tidegate_seal::sign::SigningKey;
use tidegate_types::ids::PermitId;
use tidegate_types::keeper::{LedgerProof, Outcome, RequestBody};

use crate::world::{World, let_pass, program, run, site, text};

/// Nothing was signed, and nothing stands outside.
fn nothing_moved(world: &World, what: &str) {
    assert_eq!(world.entries("permits"), 0, "{what}");
    assert_eq!(world.entries("attempts"), 0, "{what}");
    for site in ["cloud", "ward"] {
        assert_eq!(world.store(site).names(), [], "{what}");
    }
}

fn with_intent(body: RequestBody, spoil: impl FnOnce(&mut LedgerProof)) -> RequestBody {
    match body {
        RequestBody::SignPermit {
            run,
            task,
            pipeline,
            artifact,
            to,
            worker,
            mut intent,
        } => {
            spoil(&mut intent);
            RequestBody::SignPermit {
                run,
                task,
                pipeline,
                artifact,
                to,
                worker,
                intent,
            }
        }
        other => other,
    }
}

#[tokio::test]
async fn a_defect_ends_one_answer_and_is_told_without_what_it_met() {
    let mut world = World::new().await;
    world.rows.defective.store(true, Ordering::SeqCst);
    let body = RequestBody::Prepare {
        run: run(),
        pipeline: text(),
    };
    match world.ask(body).await {
        Outcome::Failed(why) => assert!(why.contains("defect") && !why.contains("Ann Smith"), "{why}"),
        other => panic!("{other:?}"),
    }
    world.rows.defective.store(false, Ordering::SeqCst);
    world.prepare().await;
}

#[tokio::test]
async fn no_permit_is_signed_before_a_checkpoint_covers_its_intent() {
    let mut world = World::new().await;
    let inputs = world.prepare().await;
    let (train, validation) = (inputs["train"], inputs["validation"]);
    let of_another = world.intent("train", &validation, Some("cloud"));
    let to_another = world.intent("train", &train, Some("ward"));
    let before = world.permit_request(&train, "cloud");
    let stranger = world.checkpoint(&SigningKey::generate().unwrap());
    type Spoil = Box<dyn FnOnce(&mut LedgerProof)>;
    let cases: [(&str, Spoil); 6] = [
        (
            "the intent of another artifact",
            Box::new(|intent| *intent = of_another),
        ),
        ("the intent for another site", Box::new(|intent| *intent = to_another)),
        (
            "an intent that no leaf holds",
            Box::new(|intent| intent.leaf = intent.leaf.replace("/control", "/elsewhere")),
        ),
        ("another place in the ledger", Box::new(|intent| intent.index = 0)),
        (
            "a checkpoint by somebody else",
            Box::new(|intent| intent.checkpoint = stranger),
        ),
        ("no checkpoint", Box::new(|intent| intent.checkpoint.clear())),
    ];
    for (what, spoil) in cases {
        let spoiled = with_intent(before.clone(), spoil);
        assert_eq!(world.refused(spoiled).await, "ledger-first", "{what}");
        nothing_moved(&world, what);
    }
    assert!(world.recorded("ledger-first"));
    world.permit(before).await;
}

#[tokio::test]
async fn a_ledger_that_forgot_something_is_not_continued() {
    let mut world = World::new().await;
    let inputs = world.prepare().await;
    let first = world.permit_request(&inputs["code"], "cloud");
    world.permit(first).await;
    world.rewrite_ledger();
    world.intent("train", &inputs["code"], Some("ward"));
    world.intent("train", &inputs["code"], Some("hospital"));
    let body = RequestBody::Cosign {
        proof: world.intent("train", &inputs["train"], Some("cloud")),
    };
    assert_eq!(world.refused(body).await, "ledger-first");
    let next = world.permit_request(&inputs["train"], "cloud");
    assert_eq!(world.refused(next).await, "ledger-first");
    assert_eq!(world.entries("permits"), 1);
}

#[tokio::test]
async fn only_the_control_plane_that_the_keeper_met_is_heard() {
    let mut world = World::new().await;
    let inputs = world.prepare().await;
    let stranger = SigningKey::generate().unwrap();
    let body = world.permit_request(&inputs["train"], "cloud");
    let Outcome::Refused(refusal) = world.ask_as(&stranger, body).await else {
        panic!("not refused")
    };
    assert_eq!(refusal.rule, "control-key");
    let control_key = stranger.public().to_base64();
    let Outcome::Refused(refusal) = world.ask_as(&stranger, RequestBody::Identify { control_key }).await else {
        panic!("not refused")
    };
    assert_eq!(refusal.rule, "control-key");
    nothing_moved(&world, "a stranger");
}

#[tokio::test]
async fn a_permit_names_what_this_site_knows_and_policy_allows() {
    let mut world = World::new().await;
    let inputs = world.prepare().await;
    let other = sha256(b"no artifact of this site");
    let unknown = world.permit_request(&other, "cloud");
    assert_eq!(world.refused(unknown).await, "unknown-artifact");
    // An edge site takes bundles alone.
    let edge = world.permit_request(&inputs["train"], "ward");
    assert_eq!(world.refused(edge).await, "edge-takes-bundles");
    let mut another = world.permit_request(&inputs["train"], "cloud");
    if let RequestBody::SignPermit { worker, .. } = &mut another {
        *worker = Some(sha256(b"another program"));
    }
    assert_eq!(world.refused(another).await, "worker-not-known");
    let mut changed = world.permit_request(&inputs["train"], "cloud");
    if let RequestBody::SignPermit { pipeline, .. } = &mut changed {
        pipeline.text.push_str("deadline: 2h\n");
    }
    assert_eq!(world.refused(changed).await, "pipeline-changed");
    let body = RequestBody::Send {
        permit: PermitId::new("p-0").unwrap(),
    };
    assert_eq!(world.refused(body).await, "permit-missing");
    nothing_moved(&world, "policy");
}

#[tokio::test]
async fn the_organisations_policy_is_asked_before_a_permit_is_signed() {
    let mut world = World::under(
        "@id(\"no-permits-today\") @why(\"the office is closed\") @fix(\"come back\")
         forbid (principal, action == Action::\"permit\", resource);",
    )
    .await;
    let inputs = world.prepare().await;
    let body = world.permit_request(&inputs["train"], "cloud");
    assert_eq!(world.refused(body).await, "no-permits-today");
    assert!(world.recorded("no-permits-today"));
    nothing_moved(&world, "own policy");
}

#[tokio::test]
async fn no_ticket_is_made_on_a_permit_for_something_else() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    let sent = world.objects("cloud");
    let right = world.start_request(1, &permits);
    let with = |change: &dyn Fn(&mut BTreeMap<String, PermitId>)| {
        let mut permits = permits.clone();
        change(&mut permits);
        world.start_request(1, &permits)
    };
    let swapped = with(&|permits| {
        let train = permits["train"].clone();
        let validation = permits.insert("validation".to_owned(), train).unwrap();
        permits.insert("train".to_owned(), validation);
    });
    let missing = with(&|permits| drop(permits.remove("train")));
    let (mut elsewhere, mut program, mut task) = (right.clone(), right.clone(), right.clone());
    if let RequestBody::StartAttempt { site: to, .. } = &mut elsewhere {
        *to = site("ward");
    }
    if let RequestBody::StartAttempt { worker, .. } = &mut program {
        *worker = sha256(b"another program");
    }
    if let RequestBody::StartAttempt { attempt, .. } = &mut task {
        attempt.task = tidegate_types::TaskName::new("other").unwrap();
    }
    let mut command = right.clone();
    if let RequestBody::StartAttempt { pipeline, .. } = &mut command {
        pipeline.text = pipeline.text.replace("epochs: 1", "epochs: 2");
    }
    let too_many = world.start_request(4, &permits);
    for (what, body, rule) in [
        ("another manifest", swapped, "permit-other-artifact"),
        ("another site", elsewhere, "permit-other-artifact"),
        ("another program", program, "permit-other-artifact"),
        ("another task", task, "permit-other-artifact"),
        ("another command", command, "pipeline-changed"),
        ("more attempts than permitted", too_many, "permit-other-artifact"),
        ("none", missing, "permit-missing"),
    ] {
        assert_eq!(world.refused(body).await, rule, "{what}");
        assert_eq!(world.entries("attempts"), 0, "{what}");
    }
    assert_eq!(world.objects("cloud"), sent);
    let_pass(25 * 3600);
    assert_eq!(world.refused(right).await, "permit-other-artifact", "expired");
    assert_eq!(world.entries("attempts"), 0);
}

#[tokio::test]
async fn an_expired_permit_sends_nothing() {
    let mut world = World::new().await;
    let inputs = world.prepare().await;
    let body = world.permit_request(&inputs["train"], "cloud");
    let permit = world.permit(body).await;
    let_pass(25 * 3600);
    assert_eq!(world.refused(RequestBody::Send { permit }).await, "permit-expired");
    assert_eq!(world.objects("cloud"), [""; 0]);
}

#[tokio::test]
async fn a_permit_is_spent_by_every_try_to_send() {
    let mut world = World::new().await;
    world.rows.ballast.store(4 << 20, Ordering::SeqCst);
    let inputs = world.prepare().await;
    let body = world.permit_request(&inputs["train"], "cloud");
    let permit = world.permit(body).await;
    world.full.store(true, Ordering::SeqCst);
    let mut failed = 0;
    let rule = loop {
        match world.ask(RequestBody::Send { permit: permit.clone() }).await {
            Outcome::Failed(_) => failed += 1,
            Outcome::Refused(refusal) => break refusal.rule,
            Outcome::Done(_) | Outcome::Input(_) => panic!("the disk is full"),
        }
        assert!(failed < 4, "the permit is spent");
        world.restart().await;
    };
    // Three times the artifact and a little more are permitted.
    assert_eq!((failed, rule.as_str()), (3, "permit-byte-limit"));
    world.full.store(false, Ordering::SeqCst);
    let body = RequestBody::Send { permit };
    assert_eq!(world.refused(body).await, "permit-byte-limit", "for good");
    assert_eq!(world.objects("cloud"), [""; 0]);
}

#[tokio::test]
async fn a_fenced_attempt_does_not_begin_and_one_at_a_time_does() {
    let mut world = World::new().await;
    let permits = world.cross().await;
    world.fence(1).await;
    let first = world.start_request(1, &permits);
    assert_eq!(world.refused(first).await, "fenced");
    world.ticket(2, &permits).await;
    let third = world.start_request(3, &permits);
    assert_eq!(world.refused(third).await, "fenced", "the second has not ended");
    assert_eq!(world.entries("attempts"), 1);
    assert_eq!(world.store("cloud").names().len(), world.objects("cloud").len());
}

#[tokio::test]
async fn what_was_not_prepared_is_not_worked_on() {
    let mut world = World::new().await;
    let mut body = world.start_request(1, &BTreeMap::new());
    if let RequestBody::StartAttempt { attempt: it, .. } = &mut body {
        it.run = tidegate_types::RunId::new("r2").unwrap();
    }
    assert_eq!(world.refused(body).await, "not-prepared");
    let body = RequestBody::Evaluate {
        run: run(),
        pipeline: text(),
        model: program(),
    };
    assert_eq!(world.refused(body).await, "unknown-artifact");
    nothing_moved(&world, "not prepared");
}
