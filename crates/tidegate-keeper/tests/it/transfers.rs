//! Crossings that a person pauses, that wait for their hours, and that nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use tidegate_keeper::{KeeperError, Transfer, TransferState, Transfers};
use tidegate_types::files::read_sites;
use tidegate_types::ids::PermitId;
use tidegate_types::keeper::{Held, ReplyBody, RequestBody};

use crate::world::{World, clock, let_pass, site};

pub(crate) fn transfers(world: &World) -> Transfers {
    let sites = read_sites("sites.yaml", &world.sites).unwrap();
    let folder = world.folder.path().to_owned();
    Transfers::new(site("hospital"), sites, folder, Arc::new(world.journal.clone()), clock)
}

fn only(world: &World) -> Transfer {
    let all = transfers(world).all().unwrap();
    let [transfer] = &all[..] else { panic!("{all:?}") };
    transfer.clone()
}

/// Asks for a crossing once; gives why it is held.
async fn held(world: &mut World, permit: &PermitId) -> Held {
    match world.done(RequestBody::Send { permit: permit.clone() }).await {
        ReplyBody::Sending {
            held: Some(held),
            stored: 0,
            ..
        } => held,
        other => panic!("{other:?}"),
    }
}

async fn is_sent(world: &mut World, permit: &PermitId) {
    world.send(permit).await;
    let TransferState::Sent { sealed, objects, at } = only(world).state else {
        panic!("{:?}", only(world).state)
    };
    let put = world.objects("cloud");
    assert_eq!((objects as usize, at), (put.len(), clock()), "{put:?}");
    assert!(sealed > 0);
}

fn rule(error: KeeperError) -> String {
    match error {
        KeeperError::Refused(refusal) => refusal.rule,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_paused_moves_on_only_when_a_person_lets_it() {
    let mut world = World::new().await;
    let permit = world.permit_to_train().await;
    let transfer = only(&world);
    assert_eq!(transfer.state, TransferState::Waiting { stored: 0 });
    assert_eq!(
        (transfer.permit, transfer.to, transfer.purpose.as_str()),
        (permit.clone(), site("cloud"), "quality-of-care")
    );
    for one in [Some(&permit), None] {
        transfers(&world).pause(one).unwrap();
        assert_eq!(held(&mut world, &permit).await, Held::Paused);
        let by = Held::Paused;
        assert_eq!(only(&world).state, TransferState::Held { stored: 0, by });
        // Whoever starts the keeper again has not let it go on.
        world.restart().await;
        assert_eq!(held(&mut world, &permit).await, Held::Paused);
        assert_eq!(world.objects("cloud"), Vec::<String>::new());
        if one.is_some() {
            transfers(&world).resume(one).unwrap();
        }
    }
    // One of many that are all paused.
    let error = transfers(&world).resume(Some(&permit)).unwrap_err();
    assert_eq!(rule(error), "transfers-paused");
    assert_eq!(transfers(&world).paused().unwrap(), Some(clock()));
    transfers(&world).resume(None).unwrap();
    is_sent(&mut world, &permit).await;
    assert_eq!(
        rule(transfers(&world).pause(Some(&permit)).unwrap_err()),
        "transfer-sent"
    );
    let unknown = PermitId::new("another").unwrap();
    assert_eq!(
        rule(transfers(&world).pause(Some(&unknown)).unwrap_err()),
        "permit-missing"
    );
    assert_eq!(
        rule(transfers(&world).resume(Some(&unknown)).unwrap_err()),
        "permit-missing"
    );
}

#[tokio::test]
async fn outside_of_its_hours_nothing_is_sent_and_a_permit_that_ends_meanwhile_is_spent() {
    let mut world = World::new().await;
    let first = world.permit_to_train().await;
    // It opens in an hour, for an hour. The permits from before are still good: it is the same site.
    let minute = |minutes: u64| {
        let minutes = (clock() / 60 + minutes) % 1440;
        format!("{:02}:{:02}", minutes / 60, minutes % 60)
    };
    let opens = (clock() / 60 + 60) * 60;
    let rules = format!("    transfer: {{window: \"{}-{}\"}}\n", minute(60), minute(120));
    world.sites = world.sites.replace("  ward:\n", &format!("{rules}  ward:\n"));
    world.restart().await;
    assert_eq!(held(&mut world, &first).await, Held::Window { opens });
    let by = Held::Window { opens };
    assert_eq!(only(&world).state, TransferState::Held { stored: 0, by });
    assert_eq!(world.objects("cloud"), Vec::<String>::new());
    let_pass(opens - clock());
    is_sent(&mut world, &first).await;
    // Closed again, until after the permit ends.
    let artifacts = world.prepare().await;
    let body = world.permit_request(&artifacts["validation"], "cloud");
    let second = world.permit(body).await;
    let_pass(3600);
    let opens = opens + 24 * 3600;
    assert_eq!(held(&mut world, &second).await, Held::Window { opens });
    world.restart().await;
    let_pass(opens - clock());
    let refused = world.refused(RequestBody::Send { permit: second.clone() }).await;
    assert_eq!(refused, "permit-expired");
    let all = transfers(&world).all().unwrap();
    let state = &all.iter().find(|transfer| transfer.permit == second).unwrap().state;
    assert_eq!(*state, TransferState::Expired { stored: 0 });
}

#[tokio::test]
async fn a_crossing_that_nobody_waits_for_ends_and_goes_on_when_it_is_asked_for() {
    let mut world = World::new().await;
    // Longer than a question takes that is answered with how far the crossing is.
    world.unasked = Duration::from_secs(4);
    world.restart().await;
    let permit = world.permit_to_train().await;
    transfers(&world).pause(None).unwrap();
    assert_eq!(held(&mut world, &permit).await, Held::Paused);
    let notes = world.folder.path().join("transfers").join(permit.as_str());
    assert!(tidegate_transfer::is_sending(&notes).unwrap());
    let ended = async {
        while tidegate_transfer::is_sending(&notes).unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
    assert!(ended.is_ok(), "somebody still sends");
    transfers(&world).resume(None).unwrap();
    assert_eq!(only(&world).state, TransferState::Waiting { stored: 0 });
    is_sent(&mut world, &permit).await;
}
