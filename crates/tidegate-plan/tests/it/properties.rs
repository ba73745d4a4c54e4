//! What holds for every world.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tidegate_plan::{Step, check, plan};
use tidegate_types::files::sites::{ComputeOffer, NetworkRule, Site, SiteKind};
use tidegate_types::label::{Clearance, Level, Residency};
use tidegate_types::quantity::{BytePrice, ByteSize, HourPrice, Money, Seconds};

use crate::world::{World, labels};

const LEVELS: [Level; 4] = [Level::Public, Level::Internal, Level::Confidential, Level::Restricted];
const TAGS: [&str; 2] = ["phi", "pci"];
const PLACES: [&str; 3] = ["US", "DE", "CA"];

fn level() -> impl Strategy<Value = Level> {
    proptest::sample::select(LEVELS.to_vec())
}

fn some(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set(
        proptest::sample::select(of.to_vec()).prop_map(str::to_owned),
        0..=of.len(),
    )
}

fn money(most: u64) -> impl Strategy<Value = Money> {
    (0..most).prop_map(|micro_usd| Money { micro_usd })
}

/// What a site offers, or a job asks for; mostly nothing.
fn accelerators() -> impl Strategy<Value = Option<String>> {
    proptest::sample::select(vec![None, None, None, Some("T4"), Some("t4:2"), Some("A100:1")])
        .prop_map(|text| text.map(str::to_owned))
}

fn site() -> impl Strategy<Value = Site> {
    let offer = (
        1..9_u32,
        1..17_u64,
        proptest::option::of(money(500_000)),
        proptest::option::of(money(500_000)),
    );
    let offer = (offer, accelerators());
    let offer = offer.prop_map(|((cpus, gib, price, spot), accelerators)| ComputeOffer {
        driver: "process".to_owned(),
        hosts: Vec::new(),
        ssh_config: None,
        folder: None,
        machine: None,
        cpus,
        memory: ByteSize(gib << 30),
        accelerators,
        rows: false,
        price: price.map(HourPrice),
        spot_price: spot.map(HourPrice),
    });
    let parts = (
        level(),
        some(&TAGS),
        proptest::sample::select(PLACES.to_vec()),
        proptest::option::of(offer),
        proptest::option::of(money(1_000_000)),
        any::<(bool, bool)>(),
    );
    parts.prop_map(|(level, tags, place, compute, egress, (setup, nodes))| {
        let rule = |allowed| if allowed { NetworkRule::Allow } else { NetworkRule::Deny };
        let network = tidegate_types::files::sites::NetworkRules {
            setup: rule(setup),
            nodes: rule(nodes),
            ..Default::default()
        };
        Site {
            kind: SiteKind::Public,
            jurisdiction: place.to_owned(),
            clearance: Clearance { level, tags },
            store: "folder:".to_owned(),
            custody: None,
            compute,
            egress: egress
                .into_iter()
                .map(|price| ("*".to_owned(), BytePrice(price)))
                .collect(),
            network,
            transfer: None,
        }
    })
}

fn world() -> impl Strategy<Value = World> {
    let sites = proptest::collection::vec(site(), 0..5);
    let choice = (
        level(),
        level(),
        some(&TAGS),
        proptest::option::of(some(&PLACES)),
        proptest::option::of(0..4_usize),
        (any::<(bool, bool, u32)>(), accelerators(), 1..4_u32),
        proptest::option::of(money(1_000_000)),
        proptest::option::of(1..100_000_u64),
        proptest::sample::select(vec![
            None,
            Some(Step::Prepare),
            Some(Step::Train),
            Some(Step::Release),
            Some(Step::Deploy),
        ]),
    );
    (sites, choice).prop_map(
        |(
            sites,
            (to, model, tags, places, infra, ((spot, deploy, bytes), asked, num_nodes), cost, deadline, until),
        )| {
            let mut world = World::with(&[]);
            let home = world.sites.sites.remove(&"hospital".parse().unwrap()).unwrap();
            world.sites.sites = [("hospital".parse().unwrap(), home)].into();
            for (number, site) in sites.into_iter().enumerate() {
                world
                    .sites
                    .sites
                    .insert(format!("site-{number}").parse().unwrap(), site);
            }
            world.pipeline.deploy = BTreeSet::new();
            if deploy {
                world.pipeline.deploy = world.sites.sites.keys().cloned().collect();
            }
            world.pipeline.prepare.disclosure.to = to;
            world.pipeline.release_model.to = model;
            world.labels = labels(to);
            world.labels.release.tags.clone_from(&tags);
            for column in &mut world.labels.columns {
                column.label.tags.clone_from(&tags);
            }
            let residency = places.map_or(Residency::Anywhere, Residency::Only);
            world
                .catalog
                .datasets
                .values_mut()
                .for_each(|dataset| dataset.residency = residency.clone());
            world.pipeline.train.resources.infra = infra.map(|number| format!("site-{number}").parse().unwrap());
            world.pipeline.train.resources.use_spot = spot;
            world.pipeline.train.num_nodes = num_nodes;
            world.pipeline.train.resources.accelerators = asked;
            world.pipeline.budget.cost = cost;
            world.pipeline.deadline = deadline.map(Seconds);
            world.source_bytes = u64::from(bytes);
            world.until = until;
            world
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_passes_the_checker_and_every_refusal_has_a_rule(world in world()) {
        let input = world.input(&|_| Ok(()));
        match plan(&input) {
            Ok((plan, report)) => {
                prop_assert_eq!(check(&input, &plan), Ok(()));
                let text = report.render(&plan);
                for crossing in &plan.crossings {
                    let to = crossing.to.as_str();
                    prop_assert!(text.contains(to) && text.contains(&crossing.artifact), "{} is not told", crossing.artifact);
                }
            }
            Err(refusal) => {
                let words = [&refusal.rule, &refusal.what, &refusal.why, &refusal.fix];
                prop_assert!(words.iter().all(|word| !word.is_empty()), "{refusal:?}");
            }
        }
    }

    /// Said once more without checker and lattice: no level, tag or place that the site has not.
    #[test]
    fn nothing_crosses_above_a_clearance(world in world()) {
        if let Ok((plan, _)) = plan(&world.input(&|_| Ok(()))) {
            for crossing in &plan.crossings {
                let site = &world.sites.sites[&crossing.to];
                prop_assert!(crossing.label.level <= site.clearance.level);
                prop_assert!(crossing.label.tags.is_subset(&site.clearance.tags));
                if let Residency::Only(places) = &crossing.label.residency {
                    prop_assert!(places.contains(&site.jurisdiction));
                }
                if crossing.artifact != "code" {
                    for dataset in world.catalog.datasets.values() {
                        prop_assert!(dataset.residency.allows(&site.jurisdiction));
                    }
                }
            }
        }
    }

    /// A policy that says no to a site keeps everything from it.
    #[test]
    fn what_policy_forbids_is_in_no_plan(world in world(), forbidden in 0..4_usize) {
        let forbidden = format!("site-{forbidden}");
        let policy = |crossing: &tidegate_plan::PlannedCrossing| match crossing.to.as_str() == forbidden {
            true => Err(tidegate_types::Refusal {
                rule: "test".to_owned(),
                what: "crossing".to_owned(),
                why: "no".to_owned(),
                fix: "none".to_owned(),
            }),
            false => Ok(()),
        };
        if let Ok((plan, _)) = plan(&world.input(&policy)) {
            prop_assert!(plan.crossings.iter().all(|crossing| crossing.to.as_str() != forbidden));
        }
    }
}
