//! Judging, releasing and deploying a model.

use std::sync::atomic::Ordering;

use tidegate_contracts::{Batch, Journal, Store};
use tidegate_seal::envelope::Identity;
use tidegate_types::ids::PermitId;
use tidegate_types::keeper::{ReplyBody, RequestBody};
use tidegate_types::message::WorkerMessage;
use tidegate_types::release::{ENROLMENT_OBJECT, Enrolment};
use tidegate_types::{ArtifactId, TaskName};

use crate::worker::{Output, Worker};
use crate::world::{World, let_pass, object, run, site, text};

/// A world in which a model came home.
async fn trained() -> (World, ArtifactId) {
    trained_under("").await
}

/// The same, whose organisation has a policy of its own.
async fn trained_under(policy: &'static str) -> (World, ArtifactId) {
    let mut world = World::under(policy).await;
    let permits = world.cross().await;
    let mut worker = Worker::new(world.ticket(1, &permits).await, world.store("cloud"));
    worker.granted().await;
    worker.output(Output::default()).await;
    worker.tell(WorkerMessage::Finished { seconds: 1 }).await;
    let model = world.accepted(1).await;
    (world, model)
}

fn release_request(world: &mut World, model: &ArtifactId, intended: &ArtifactId) -> RequestBody {
    RequestBody::Release {
        run: run(),
        pipeline: text(),
        model: *model,
        intent: world.intent("release", intended, None),
    }
}

/// A world in which a bundle was released, permitted for the ward and sent there.
pub(crate) async fn released() -> (World, ArtifactId, PermitId) {
    released_under("").await
}

/// The same, whose organisation has a policy of its own.
async fn released_under(policy: &'static str) -> (World, ArtifactId, PermitId) {
    let (mut world, model) = trained_under(policy).await;
    let body = release_request(&mut world, &model, &model);
    let ReplyBody::Released { bundle, checkpoint, .. } = world.done(body).await else {
        panic!("not released")
    };
    world.seen(&checkpoint);
    let body = RequestBody::SignPermit {
        run: run(),
        task: TaskName::new("deploy-ward").unwrap(),
        pipeline: text(),
        artifact: bundle.artifact,
        to: site("ward"),
        worker: None,
        intent: world.intent("deploy-ward", &bundle.artifact, Some("ward")),
    };
    let permit = world.permit(body).await;
    world.send(&permit).await;
    enrol(&world, &Identity::generate());
    (world, bundle.artifact, permit)
}

fn enrol(world: &World, identity: &Identity) {
    let enrolment = Enrolment {
        site: site("ward"),
        recipient: identity.recipient(),
    };
    let body = serde_json::to_vec(&enrolment).unwrap();
    world.store("ward").overwrite(&object(ENROLMENT_OBJECT), body.into());
}

fn deploy_request(bundle: &ArtifactId, permit: Option<&PermitId>) -> RequestBody {
    RequestBody::Deploy {
        run: run(),
        pipeline: text(),
        bundle: *bundle,
        to: site("ward"),
        permit: permit.cloned(),
    }
}

fn releases(world: &World) -> usize {
    let names = world.objects("ward");
    names.iter().filter(|name| name.starts_with("releases/")).count()
}

#[tokio::test]
async fn no_model_is_released_before_a_checkpoint_covers_its_intent() {
    let (mut world, model) = trained().await;
    let inputs = world.prepare().await;
    let body = release_request(&mut world, &model, &inputs["train"]);
    assert_eq!(world.refused(body).await, "ledger-first");
    assert_eq!(world.rows.bundled.load(Ordering::SeqCst), 0);
    assert_eq!(world.entries("releases"), 0);
}

#[tokio::test]
async fn a_test_part_that_has_judged_enough_judges_no_more() {
    let (mut world, model) = trained().await;
    let evaluate = RequestBody::Evaluate {
        run: run(),
        pipeline: text(),
        model,
    };
    let refine = RequestBody::Refine {
        run: run(),
        pipeline: text(),
        model,
    };
    world.done(evaluate.clone()).await;
    let [(key, spent)] = &world.journal.scan("evaluations", "").unwrap()[..] else {
        panic!("not counted")
    };
    assert_eq!(spent, b"1");
    // As 500 models would have left it.
    world
        .journal
        .commit(&Batch::default().set("evaluations", key, b"500".to_vec()))
        .unwrap();
    assert_eq!(world.refused(refine).await, "evaluation-budget");
    assert!(world.recorded("evaluation-budget"));
    // What was judged before is told again, and costs nothing.
    world.done(evaluate).await;
    assert_eq!(world.rows.judged.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_bundle_is_deployed_to_the_recipient_that_was_seen_first() {
    let (mut world, bundle, permit) = released().await;
    let deploy = deploy_request(&bundle, Some(&permit));
    world.done(deploy.clone()).await;
    assert_eq!(releases(&world), 1);
    // The same again is the same; another recipient is not.
    world.done(deploy.clone()).await;
    enrol(&world, &Identity::generate());
    let record = object("releases/readmission/0000000001.json");
    world.store("ward").delete(&record).await.unwrap();
    assert_eq!(world.refused(deploy).await, "recipient-changed");
    assert_eq!(releases(&world), 0);
}

#[tokio::test]
async fn a_site_is_not_taken_for_another() {
    let (mut world, bundle, permit) = released().await;
    let enrolment = Enrolment {
        site: site("cloud"),
        recipient: Identity::generate().recipient(),
    };
    let body = serde_json::to_vec(&enrolment).unwrap();
    world.store("ward").overwrite(&object(ENROLMENT_OBJECT), body.into());
    let deploy = deploy_request(&bundle, Some(&permit));
    assert_eq!(world.refused(deploy).await, "recipient-changed");
    assert_eq!((releases(&world), world.entries("recipients")), (0, 0));
}

#[tokio::test]
async fn a_bundles_key_needs_a_permit_for_exactly_this() {
    let (mut world, bundle, permit) = released().await;
    let training = world.cross().await;
    let none = deploy_request(&bundle, None);
    assert_eq!(world.refused(none).await, "permit-missing");
    let of_training = deploy_request(&bundle, training.get("train"));
    assert_eq!(world.refused(of_training).await, "permit-other-artifact");
    let_pass(25 * 3600);
    let expired = deploy_request(&bundle, Some(&permit));
    assert_eq!(world.refused(expired).await, "permit-expired");
    assert_eq!((releases(&world), world.entries("recipients")), (0, 0));
}

#[tokio::test]
async fn the_organisations_policy_is_asked_again_before_a_bundles_key_is_released() {
    let (mut world, bundle, permit) = released_under(
        "@id(\"no-bundles-today\") @why(\"the board meets tomorrow\") @fix(\"come back\")
         forbid (principal, action == Action::\"release_key\", resource) when { resource.kind == \"bundle\" };",
    )
    .await;
    let body = deploy_request(&bundle, Some(&permit));
    assert_eq!(world.refused(body).await, "no-bundles-today");
    assert!(world.recorded("no-bundles-today"));
    assert_eq!(releases(&world), 0);
}

/// A keeper that died while it copied a bundle has left a part of it, and the next one removes that.
#[tokio::test]
async fn a_part_of_a_bundle_that_was_left_behind_is_removed() {
    let (mut world, bundle, _) = released().await;
    let models = world.folder.path().join("serve/models/readmission");
    let left = models.join(".new-1-4711");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("bundle.json"), "{").unwrap();
    let mut body = deploy_request(&bundle, None);
    if let RequestBody::Deploy { to, .. } = &mut body {
        *to = site("hospital");
    }
    world.done(body).await;
    let names: Vec<_> = std::fs::read_dir(models)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["1"]);
}
