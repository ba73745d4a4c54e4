//! What a person reads before saying yes.

use crate::world::World;

#[test]
fn a_plan_that_bursts_explains_itself() {
    let (plan, report) = World::with(&[]).plan().unwrap();
    insta::assert_snapshot!(report.render(&plan));
    insta::assert_json_snapshot!(plan);
}

#[test]
fn a_refusal_says_what_every_site_lacks() {
    let refusal = World::with(&[("cpus: 2+", "cpus: 64")]).plan().unwrap_err();
    insta::assert_snapshot!(refusal.to_string());
}

#[test]
fn what_decides_the_rows_what_is_doubtful_and_what_has_no_price_is_said() {
    let mut world = World::with(&[
        ("    egress: {\"*\": 0.09 USD/GiB}\n", ""),
        ("use_spot: true", "infra: cloud"),
    ]);
    world.labels.row_reads = vec!["admissions.lactate".to_owned()];
    world.labels.warnings = vec!["`lactate` leaves as it is, and looks like something else.".to_owned()];
    let (plan, report) = world.plan().unwrap();
    insta::assert_snapshot!(report.render(&plan));
}

#[test]
fn equal_input_gives_an_equal_plan_with_one_canonical_form() {
    let canonical = || tidegate_types::to_canonical_json(&World::with(&[]).plan().unwrap().0).unwrap();
    assert_eq!(canonical(), canonical());
    let back: tidegate_plan::Plan = serde_json::from_slice(&canonical()).unwrap();
    assert_eq!(back, World::with(&[]).plan().unwrap().0);
}
