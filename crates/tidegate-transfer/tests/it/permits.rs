use proptest::prelude::*;
use tidegate_seal::sign::SigningKey;
use tidegate_transfer::{PermitCheck, Permitted, permit_missing};
use tidegate_types::ids::SiteName;
use tidegate_types::permit::Permit;
use tidegate_types::{Label, Level, Manifest, Refusal, RunId};

use crate::fixture::{NOW, World, site};

fn rule(result: Result<Permitted<Manifest>, Refusal>) -> String {
    let refusal = result.expect_err("it is refused");
    assert!(!refusal.what.is_empty() && !refusal.why.is_empty() && !refusal.fix.is_empty());
    refusal.rule
}

#[test]
fn a_good_permit_passes() {
    let world = World::small();
    let permitted = world.permitted();
    assert_eq!(permitted.manifest(), &world.manifest());
    assert_eq!(permitted.permit(), &world.permit());
    assert_eq!(permitted.artifact(), permitted.permit_artifact());
    assert_eq!(
        permit_missing(&permitted.artifact(), &world.to.site).rule,
        "permit-missing"
    );
}

#[test]
fn every_field_of_a_permit_counts() {
    type Change = fn(&mut Permit);
    let cases: [(Change, &str); 12] = [
        (|p| p.organisation = "other".to_owned(), "permit-other-organisation"),
        (|p| p.from = site("clinic"), "permit-other-owner"),
        (|p| p.from.definition = site("x").definition, "permit-other-site"),
        (|p| p.to = site("elsewhere"), "permit-other-site"),
        (|p| p.to.definition = site("x").definition, "permit-other-site"),
        (|p| p.run = RunId::new("run-2").unwrap(), "permit-other-run"),
        (|p| p.label = Label::of(Level::Public), "permit-other-label"),
        (|p| p.label = Label::of(Level::Restricted), "permit-other-label"),
        (|p| p.not_before = NOW + 1, "permit-not-yet-valid"),
        (|p| p.expires = NOW, "permit-expired"),
        (|p| p.expires = 0, "permit-expired"),
        (|p| p.revocation_epoch = 3, "permit-revoked"),
    ];
    let world = World::small();
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        let mut permit = world.permit();
        change(&mut permit);
        assert_eq!(rule(world.verify(&permit)), expected, "case {number}");
    }
}

#[test]
fn a_permit_is_for_one_artifact_and_by_one_key() {
    let world = World::small();
    let envelope = world.sign(&world.permit(), &world.manifest());
    world.write("train.csv", b"other rows");
    assert_eq!(
        rule(Permitted::verify(&world.check(), &envelope, world.manifest())),
        "permit-other-artifact"
    );

    let manifest = world.manifest();
    let mut forged = world.sign(&world.permit(), &manifest);
    let stranger = SigningKey::from_seed(&[77; 32]).unwrap();
    let public = stranger.public();
    let check = PermitCheck {
        owner: &public,
        ..world.check()
    };
    assert_eq!(
        rule(Permitted::verify(&check, &forged, manifest.clone())),
        "permit-signature"
    );
    forged.signatures.clear();
    assert_eq!(
        rule(Permitted::verify(&world.check(), &forged, manifest)),
        "permit-signature"
    );
}

#[test]
fn a_manifest_that_could_write_elsewhere_is_refused() {
    let world = World::small();
    for path in ["../outside", "/etc/passwd", "a//b", "deep/notes.bin"] {
        let mut manifest = world.manifest();
        manifest.files[0].path = path.to_owned();
        let envelope = world.sign(&world.permit(), &manifest);
        assert_eq!(
            rule(Permitted::verify(&world.check(), &envelope, manifest)),
            "manifest-malformed",
            "{path}"
        );
    }
    let mut manifest = world.manifest();
    manifest.owner = SiteName::new("cloud").unwrap();
    let envelope = world.sign(&world.permit(), &manifest);
    assert_eq!(
        rule(Permitted::verify(&world.check(), &envelope, manifest)),
        "permit-other-owner"
    );
}

#[test]
fn an_output_crosses_only_through_its_slot() {
    let world = World::small();
    let input = world.manifest();
    let mut output = input.clone();
    output.name = "model".to_owned();
    let back = PermitCheck {
        from: &world.to,
        to: &world.from,
        ..world.check()
    };
    let try_with = |change: fn(&mut Permit), check: &PermitCheck<'_>, slot: &str, output: &Manifest| {
        let mut permit = world.permit();
        change(&mut permit);
        Permitted::standing(check, &world.sign(&permit, &input), slot, output.clone())
    };
    let good = try_with(|_| {}, &back, "output", &output).unwrap();
    assert_eq!(
        (good.from().as_str(), good.to().as_str(), good.byte_limit()),
        ("cloud", "hospital", 1 << 20)
    );
    assert_ne!(good.artifact(), good.permit_artifact());

    assert_eq!(rule(try_with(|_| {}, &back, "log", &output)), "permit-no-slot");
    assert_eq!(
        rule(try_with(|_| {}, &world.check(), "output", &output)),
        "permit-no-slot"
    );
    assert_eq!(
        rule(try_with(|p| p.standing.clear(), &back, "output", &output)),
        "permit-no-slot"
    );
    let twice: fn(&mut Permit) = |p| p.standing.push(p.standing[0].clone());
    assert_eq!(rule(try_with(twice, &back, "output", &output)), "permit-no-slot");
    assert_eq!(
        rule(try_with(|p| p.expires = NOW, &back, "output", &output)),
        "permit-expired"
    );
    assert_eq!(
        rule(try_with(|p| p.revocation_epoch = 0, &back, "output", &output)),
        "permit-revoked"
    );
    assert_eq!(
        rule(try_with(
            |p| p.to.definition = site("x").definition,
            &back,
            "output",
            &output
        )),
        "permit-other-site"
    );
    let mut secret = output.clone();
    secret.label = Label::of(Level::Restricted);
    assert_eq!(rule(try_with(|_| {}, &back, "output", &secret)), "permit-label-ceiling");
    secret.label = Label::of(Level::Internal);
    secret.label.tags.insert("phi".to_owned());
    assert_eq!(rule(try_with(|_| {}, &back, "output", &secret)), "permit-label-ceiling");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_permit_is_valid_exactly_between_its_times(before in 0_u64..20, lives in 0_u64..20, now in 0_u64..50) {
        let world = World::new();
        let mut permit = world.permit();
        permit.not_before = before;
        permit.expires = before + lives;
        let manifest = world.manifest();
        let check = PermitCheck { now, ..world.check() };
        let verdict = Permitted::verify(&check, &world.sign(&permit, &manifest), manifest);
        prop_assert_eq!(verdict.is_ok(), (before..before + lives).contains(&now));
    }
}
