//! Labels by their laws.

use proptest::prelude::*;
use tidegate_types::label::{Clearance, Label, Level, Residency};

fn label() -> impl Strategy<Value = Label> {
    let set = || proptest::collection::btree_set(proptest::sample::select(vec!["a", "b", "c"]), 0..3);
    (0..4_u8, set(), proptest::option::of(set())).prop_map(|(level, tags, places)| Label {
        level: [Level::Public, Level::Internal, Level::Confidential, Level::Restricted][usize::from(level)],
        tags: tags.into_iter().map(str::to_owned).collect(),
        residency: places.map_or(Residency::Anywhere, Residency::only),
    })
}

proptest! {
    #[test]
    fn join_is_the_least_upper_bound(a in label(), b in label(), c in label()) {
        let joined = a.join(&b);
        prop_assert!(a.flows_to(&joined) && b.flows_to(&joined));
        prop_assert_eq!(&joined, &b.join(&a));
        prop_assert_eq!(a.join(&a), a.clone());
        prop_assert_eq!(joined.join(&c), a.join(&b.join(&c)));
        prop_assert_eq!(a.flows_to(&c) && b.flows_to(&c), joined.flows_to(&c));
    }

    #[test]
    fn what_may_be_held_shrinks_with_the_label(a in label(), b in label(), level in 0..4_u8) {
        let clearance = Clearance {
            level: [Level::Public, Level::Internal, Level::Confidential, Level::Restricted][usize::from(level)],
            tags: ["a".to_owned()].into(),
        };
        if a.join(&b).may_be_held(&clearance, "a") {
            prop_assert!(a.may_be_held(&clearance, "a") && b.may_be_held(&clearance, "a"));
        }
    }
}
