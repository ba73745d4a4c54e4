//! Machines of OpenStack: its own control plane, whose machines are processes here (`tests/peers/openstack`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_cloud::{CloudStore, Environment, OpenStackDriver, OpenStackSettings, ProgramShelf};
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::{Compute, ComputeError, JobState};
use tidegate_types::files::sites::{ComputeOffer, Machine};
use tidegate_types::quantity::ByteSize;

use crate::jobs::{Part, request, until};
use crate::peers::{OpenStack, openstack};

fn environment(peer: &OpenStack) -> Environment {
    peer.login().map(|(name, value)| (name.to_owned(), value)).into()
}

fn offer(peer: &OpenStack, change: impl Fn(&mut ComputeOffer)) -> ComputeOffer {
    let machine = Machine {
        region: "RegionOne".to_owned(),
        image: "debian-13".to_owned(),
        networks: vec!["inside".to_owned()],
        endpoint: Some(peer.keystone.clone()),
        ..Machine::default()
    };
    let mut offer = ComputeOffer {
        driver: "openstack".to_owned(),
        hosts: Vec::new(),
        ssh_config: None,
        folder: None,
        machine: Some(machine),
        cpus: 1,
        memory: ByteSize(256 << 20),
        accelerators: None,
        rows: false,
        price: None,
        spot_price: None,
    };
    change(&mut offer);
    offer
}

fn driver_as(peer: &OpenStack, environment: &Environment, change: impl Fn(&mut ComputeOffer)) -> OpenStackDriver {
    let store = CloudStore::open("s3://nowhere/at-all".parse().unwrap(), &Environment::new()).unwrap();
    let shelf = ProgramShelf::new(store, "/no/program".into(), Err("nobody needs it".to_owned()).into());
    let settings = OpenStackSettings::new(&offer(peer, change), Path::new("/")).unwrap();
    OpenStackDriver::open(settings, shelf, environment).unwrap()
}

fn driver(peer: &OpenStack, change: impl Fn(&mut ComputeOffer)) -> OpenStackDriver {
    driver_as(peer, &environment(peer), change)
}

/// One control plane for all of it: it takes some twenty seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_openstack_are_a_compute() {
    let Some(peer) = openstack() else { return };
    let verdict = conformance::compute(&ComputeSubject {
        open: &|name| -> Arc<dyn Compute> { Arc::new(Part(driver(&peer, |_| {}), name.to_owned())) },
        ends: &|code, ticket| {
            let script =
                format!("test \"$(cat)\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        },
        runs: ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec(),
        patience: Duration::from_secs(60),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));

    // What is there by name is there by its identifier, and the smallest flavor that fits is taken, or the one named.
    driver(&peer, |_| {}).try_out().await.unwrap();
    let by_id = driver(&peer, |one| {
        let machine = one.machine.as_mut().unwrap();
        machine.image.clone_from(&peer.image);
        machine.networks = vec![peer.network.clone()];
        machine.kind = Some("m1.train".to_owned());
    });
    by_id.try_out().await.unwrap();

    // What is not there is told by its name, and nothing is started.
    type Change = fn(&mut ComputeOffer);
    let changes: [(Change, &str); 5] = [
        (
            |one| one.machine.as_mut().unwrap().image = "none".to_owned(),
            "none of its images is named `none`",
        ),
        (
            |one| one.machine.as_mut().unwrap().networks = vec!["a/b".to_owned()],
            "none of its networks is named `a/b`",
        ),
        (
            |one| one.machine.as_mut().unwrap().kind = Some("x".to_owned()),
            "none of its flavors is named `x`",
        ),
        (|one| one.cpus = 5000, "none of its flavors has 5000 processors"),
        (
            |one| one.machine.as_mut().unwrap().region = "Two".to_owned(),
            "no compute service in region `Two`",
        ),
    ];
    for (change, why) in changes {
        match driver(&peer, change).ensure(&request("never", "sleep 1000")).await {
            Err(ComputeError::Invalid { why: told, .. }) => assert!(told.contains(why), "{told}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    let mut stranger = environment(&peer);
    stranger.insert("OS_APPLICATION_CREDENTIAL_SECRET".to_owned(), "SKOTHER".to_owned());
    match driver_as(&peer, &stranger, |_| {})
        .ensure(&request("never", "sleep 1000"))
        .await
    {
        Err(ComputeError::Invalid { why, .. }) => {
            assert!(why.contains("Unauthorized: its credentials do not allow that"), "{why}");
        }
        other => panic!("{other:?}"),
    }

    match driver_as(&peer, &Environment::new(), |_| {})
        .ensure(&request("never", "sleep 1000"))
        .await
    {
        Err(ComputeError::Invalid { why, .. }) => assert!(why.contains("set OS_APPLICATION_CREDENTIAL_ID"), "{why}"),
        other => panic!("{other:?}"),
    }

    // A quota is no room, and so is a kind of machine that no host has.
    let huge = driver(&peer, |one| {
        one.machine.as_mut().unwrap().kind = Some("m1.huge".to_owned())
    });
    match huge.ensure(&request("huge", "sleep 1000")).await {
        Err(ComputeError::Capacity { why, .. }) => assert!(why.contains("Quota exceeded"), "{why}"),
        other => panic!("{other:?}"),
    }

    // Whoever died after asking finds the machine, with new credentials in the ticket too; what is left is swept.
    let first = driver(&peer, |_| {})
        .ensure(&request("once", "sleep 1000"))
        .await
        .unwrap();
    let mut renewed = request("once", "sleep 1000");
    renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
    let again = driver(&peer, |_| {});
    assert_eq!(again.ensure(&renewed).await.unwrap(), first);
    until(&again, &first, |state| *state == JobState::Running).await;
    assert_eq!(again.sweep("owner", &[]).await.unwrap(), ["once"]);
    until(&again, &first, |state| *state == JobState::Gone).await;
}
