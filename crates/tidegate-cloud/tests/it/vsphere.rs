//! Machines of vSphere: the simulator of govmomi with what it leaves out, whose machines are processes here
//! (`tests/peers/vsphere`), read back by VMware's own client.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_cloud::{CloudStore, Environment, ProgramShelf, VsphereDriver, VsphereSettings};
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::{Compute, ComputeError, Handle, JobState};
use tidegate_types::files::sites::{ComputeOffer, Machine};
use tidegate_types::quantity::ByteSize;

use crate::jobs::{Part, request, until};
use crate::peers::vcenter::{Vsphere, vsphere};

fn environment(peer: &Vsphere) -> Environment {
    peer.login().map(|(name, value)| (name.to_owned(), value)).into()
}

fn offer(peer: &Vsphere, change: impl Fn(&mut ComputeOffer)) -> ComputeOffer {
    let machine = Machine {
        region: "DC0".to_owned(),
        image: "debian-13".to_owned(),
        networks: vec!["DC0_DVPG0".to_owned()],
        pool: Some("DC0_C0_RP1".to_owned()),
        datastore: Some("LocalDS_0".to_owned()),
        folder: Some("vm/tidegate".to_owned()),
        endpoint: Some(peer.endpoint.clone()),
        certificates: Some(peer.authority().display().to_string()),
        ..Machine::default()
    };
    let mut offer = ComputeOffer {
        driver: "vsphere".to_owned(),
        hosts: Vec::new(),
        ssh_config: None,
        folder: None,
        machine: Some(machine),
        cpus: 3,
        memory: ByteSize(900 << 20),
        accelerators: None,
        rows: false,
        price: None,
        spot_price: None,
    };
    change(&mut offer);
    offer
}

fn driver_as(peer: &Vsphere, environment: &Environment, change: impl Fn(&mut Machine)) -> VsphereDriver {
    let store = CloudStore::open("s3://nowhere/at-all".parse().unwrap(), &Environment::new()).unwrap();
    let shelf = ProgramShelf::new(store, "/no/program".into(), Err("nobody needs it".to_owned()).into());
    let offer = offer(peer, |one| change(one.machine.as_mut().unwrap()));
    let settings = VsphereSettings::new(&offer, Path::new("/")).unwrap();
    VsphereDriver::open(settings, shelf, environment).unwrap()
}

fn driver(peer: &Vsphere) -> VsphereDriver {
    driver_as(peer, &environment(peer), |_| {})
}

fn machine_of(handle: &Handle) -> &str {
    handle.platform.strip_prefix("vsphere:").unwrap()
}

/// The machines of a job, as VMware's own client sees them: identifier and state of each.
fn machines(peer: &Vsphere, job: &str) -> Vec<(String, String)> {
    let told = peer.client(&format!(
        "print(json.dumps([[one._moId, one.runtime.powerState] for one in all(vim.VirtualMachine)\n    \
         if settings(one).get('tidegate.job') == '{job}']))"
    ));
    serde_json::from_str(&told).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_vsphere_are_a_compute() {
    let Some(peer) = vsphere() else { return };
    let verdict = conformance::compute(&ComputeSubject {
        open: &|name| -> Arc<dyn Compute> { Arc::new(Part(driver(&peer), name.to_owned())) },
        ends: &|code, ticket| {
            let script =
                format!("test \"$(cat)\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        },
        runs: ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec(),
        patience: Duration::from_secs(30),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_what_was_asked_for_and_what_it_was_told_is_taken_back() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    driver.try_out().await.unwrap();
    assert_eq!(machines(&peer, "job"), [], "a check starts nothing");
    let handle = driver.ensure(&request("job", "sleep 1000")).await.unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    let script = format!(
        "one = vim.VirtualMachine('{}', vcenter._stub)\nhardware, told = one.config.hardware, settings(one)\n\
         cards = [card for card in hardware.device if isinstance(card, vim.vm.device.VirtualEthernetCard)]\n\
         group = [group for group in all(vim.dvs.DistributedVirtualPortgroup) if group.name == 'DC0_DVPG0'][0]\n\
         print(json.dumps([hardware.numCPU, hardware.memoryMB, one.parent.name, one.resourcePool.name,\n    \
         [store.name for store in one.datastore], [card.backing.port.portgroupKey == group.key for card in cards],\n    \
         told['guestinfo.userdata'], told['guestinfo.metadata.encoding'], sorted(key for key in told if 'tidegate' in key)]))",
        machine_of(&handle)
    );
    let taken_back = async {
        loop {
            let told: serde_json::Value = serde_json::from_str(&peer.client(&script)).unwrap();
            if told[6] == "---" {
                return told;
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), taken_back).await.unwrap();
    let wanted = serde_json::json!([
        3,
        900,
        "tidegate",
        "DC0_C0_RP1",
        ["LocalDS_0"],
        [true],
        "---",
        "base64",
        ["tidegate.job", "tidegate.owner", "tidegate.request"]
    ]);
    assert_eq!(told, wanted);
    driver.delete(&handle).await.unwrap();
    assert_eq!(machines(&peer, "job"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sites_file_names_is_found_or_told() {
    let Some(peer) = vsphere() else { return };
    let with = |change: fn(&mut Machine)| driver_as(&peer, &environment(&peer), change);
    let text = |text: &str| Some(text.to_owned());
    let by_path = driver_as(&peer, &environment(&peer), |one| {
        one.region = "/DC0".to_owned();
        one.image = "/DC0/vm/debian-13".to_owned();
        // The pool of the whole cluster; folder, datastore and network of the template.
        one.pool = text("DC0_C0");
        (one.folder, one.datastore) = (None, None);
        one.networks = Vec::new();
    });
    by_path.try_out().await.unwrap();
    type Change = fn(&mut Machine);
    let changes: [(Change, &str); 9] = [
        (
            |one| one.region = "DC9".to_owned(),
            "none of its datacenters is named `DC9`",
        ),
        (
            |one| one.image = "none".to_owned(),
            "none of its templates is named `none`",
        ),
        (
            |one| one.folder = Some("none".to_owned()),
            "none of its folders is named `none`",
        ),
        (
            |one| one.pool = Some("none".to_owned()),
            "none of its resource pools is named `none`",
        ),
        (
            |one| one.datastore = Some("none".to_owned()),
            "none of its datastores is named `none`",
        ),
        (
            |one| one.networks = vec!["none".to_owned()],
            "none of its networks is named `none`",
        ),
        (
            |one| one.pool = None,
            "more than one resource pool: name one by `pool:`",
        ),
        (
            |one| one.networks = vec!["VM Network".to_owned(), "DC0_DVPG0".to_owned()],
            "its template has 1 network cards, and 2 networks are named",
        ),
        (|one| one.endpoint = None, "set VSPHERE_SERVER"),
    ];
    for (change, why) in changes {
        match with(change).ensure(&request("never", "exit 0")).await {
            Err(ComputeError::Invalid { why: told, .. }) => assert!(told.contains(why), "{told}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    let mut stranger = environment(&peer);
    stranger.insert("VSPHERE_PASSWORD".to_owned(), "another".to_owned());
    match driver_as(&peer, &stranger, |_| {})
        .ensure(&request("never", "exit 0"))
        .await
    {
        Err(ComputeError::Invalid { why, .. }) => {
            assert!(
                why.contains("vsphere in DC0 refused it: InvalidLogin: its credentials are not accepted"),
                "{why}"
            );
            assert!(!why.contains("another") && !why.contains("trainer"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let nobody = driver_as(&peer, &Environment::new(), |_| {});
    match nobody.ensure(&request("never", "exit 0")).await {
        Err(ComputeError::Invalid { why, .. }) => assert!(why.contains("set VSPHERE_USER"), "{why}"),
        other => panic!("{other:?}"),
    }
    // Nobody else vouches for it.
    match with(|one| one.certificates = None)
        .ensure(&request("never", "exit 0"))
        .await
    {
        Err(ComputeError::Transient { what, .. }) => assert!(what.contains("by vsphere in DC0"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(machines(&peer, "never"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privilege_that_is_not_granted_is_told_before_anything_is_started() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    for privilege in [
        "VirtualMachine.Provisioning.DeployTemplate",
        "VirtualMachine.Config.AdvancedConfig",
        "Resource.AssignVMToPool",
        "Datastore.AllocateSpace",
        "Network.Assign",
    ] {
        let mut granted = VsphereSettings::needed_grant().split_whitespace();
        assert!(granted.any(|one| one == privilege), "{privilege}");
        peer.tell(&format!("lack?privilege={privilege}"));
        match driver.try_out().await {
            Err(ComputeError::Invalid { why, .. }) => {
                let wanted = format!("NoPermission: its credentials lack the privileges {privilege}");
                assert!(why.ends_with(&wanted), "{why}");
            }
            other => panic!("{privilege}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_chooses_no_host_is_given_one() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    peer.tell("drs?is=off");
    let handle = driver.ensure(&request("placed", "sleep 1000")).await.unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    // Hosts that nobody may use are no room.
    peer.client("for host in all(vim.HostSystem):\n    WaitForTask(host.EnterMaintenanceMode(0))");
    match driver.ensure(&request("nowhere", "sleep 1000")).await {
        Err(ComputeError::Capacity { why, .. }) => assert!(why.contains("no host of the cluster works"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// Whoever died at any step is followed by somebody who finds how far it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_made_and_never_switched_on_is_taken_further() {
    let Some(peer) = vsphere() else { return };
    let first = driver(&peer);
    for (step, there) in [("ReconfigVM_Task", 1), ("PowerOnVM_Task", 1), ("CloneVM_Task", 0)] {
        let job = request(step, "sleep 1000");
        peer.tell(&format!("fault?method={step}&is=SystemError"));
        match first.ensure(&job).await {
            Err(ComputeError::Transient { what, .. }) => assert!(what.starts_with("starting job"), "{what}"),
            other => panic!("{step}: {other:?}"),
        }
        let left = machines(&peer, step);
        assert_eq!(left.len(), there, "{step}");
        if let Some((machine, state)) = left.first() {
            assert_eq!(state, "poweredOff");
            let handle = Handle {
                id: step.to_owned(),
                platform: format!("vsphere:{machine}"),
            };
            assert_eq!(first.observe(&handle).await.unwrap(), JobState::Pending, "{step}");
        }
        let mut renewed = job.clone();
        renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
        let again = driver(&peer);
        let handle = again.ensure(&renewed).await.unwrap();
        assert!(left.iter().all(|(machine, _)| machine == machine_of(&handle)), "{step}");
        until(&again, &handle, |state| *state == JobState::Running).await;
        assert_eq!(
            machines(&peer, step),
            [(machine_of(&handle).to_owned(), "poweredOn".to_owned())]
        );
    }
    // Or it is swept.
    peer.tell("fault?method=PowerOnVM_Task&is=SystemError");
    first.ensure(&request("left", "sleep 1000")).await.unwrap_err();
    let mut swept = first.sweep("owner", &["PowerOnVM_Task".to_owned()]).await.unwrap();
    swept.sort();
    assert_eq!(swept, ["CloneVM_Task", "ReconfigVM_Task", "left"]);
    assert_eq!(
        (machines(&peer, "left").len(), machines(&peer, "PowerOnVM_Task").len()),
        (0, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_was_told_of_is_looked_for_before_it_is_asked_for_again() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    for method in ["CloneVM_Task", "ReconfigVM_Task", "PowerOnVM_Task"] {
        let job = request(method, "sleep 1000");
        peer.tell(&format!("deaf?method={method}"));
        let handle = match driver.ensure(&job).await {
            Ok(handle) => handle,
            Err(ComputeError::Transient { .. }) => driver.ensure(&job).await.unwrap(),
            Err(error) => panic!("{method}: {error}"),
        };
        until(&driver, &handle, |state| *state == JobState::Running).await;
        assert_eq!(machines(&peer, method).len(), 1, "{method}");
    }
    for method in ["PowerOffVM_Task", "Destroy_Task"] {
        let handle = driver.ensure(&request(method, "sleep 1000")).await.unwrap();
        peer.tell(&format!("deaf?method={method}"));
        driver.delete(&handle).await.unwrap_err();
        driver.delete(&handle).await.unwrap();
        assert_eq!(machines(&peer, method), [], "{method}");
    }
}

/// Somebody else was heard before, or is at work with the same machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_second_looks_again() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    for (method, fault) in [
        ("CloneVM_Task", "DuplicateName"),
        ("ReconfigVM_Task", "ConcurrentAccess"),
        ("ReconfigVM_Task", "ManagedObjectNotFound"),
        ("PowerOnVM_Task", "InvalidPowerState"),
    ] {
        let job = request(fault, "sleep 1000");
        peer.tell(&format!("fault?method={method}&is={fault}"));
        match driver.ensure(&job).await {
            Err(ComputeError::Transient { .. }) => {}
            other => panic!("{fault}: {other:?}"),
        }
        let handle = driver.ensure(&job).await.unwrap();
        until(&driver, &handle, |state| *state == JobState::Running).await;
        assert_eq!(machines(&peer, fault).len(), 1, "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_room_is_told_apart_from_mistakes() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    for (method, fault) in [
        ("PowerOnVM_Task", "InsufficientMemoryResourcesFault"),
        ("PowerOnVM_Task", "NoCompatibleHost"),
        ("CloneVM_Task", "NoDiskSpace"),
        ("CloneVM_Task", "InsufficientStorageSpace"),
    ] {
        peer.tell(&format!("fault?method={method}&is={fault}"));
        match driver.ensure(&request(fault, "sleep 1000")).await {
            Err(ComputeError::Capacity { id, why }) => assert!(id == fault && why.starts_with(fault), "{why}"),
            other => panic!("{fault}: {other:?}"),
        }
    }
    for (fault, why) in [
        ("NoPermission", "NoPermission: its credentials lack the privilege"),
        ("InvalidArgument", "refused it: InvalidArgument"),
        ("RestrictedVersion", "lets nobody change anything"),
    ] {
        peer.tell(&format!("fault?method=CloneVM_Task&is={fault}"));
        match driver.ensure(&request(fault, "sleep 1000")).await {
            Err(ComputeError::Invalid { why: told, .. }) => assert!(told.contains(why), "{told}"),
            other => panic!("{fault}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_has_ended_is_followed_by_another() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    let handle = driver.ensure(&request("long", "sleep 1000")).await.unwrap();
    peer.tell("requests");
    peer.client(
        "for one in content.sessionManager.sessionList:\n    \
                 if one.key != content.sessionManager.currentSession.key:\n        \
                 content.sessionManager.TerminateSession([one.key])",
    );
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Running);
    peer.tell("forget");
    driver.delete(&handle).await.unwrap();
    let asked = peer.tell("requests");
    let logins = asked.as_array().unwrap().iter().filter(|one| *one == "Login").count();
    assert_eq!(logins, 3, "two of the driver, and one of VMware's own client");
    assert_eq!(machines(&peer, "long"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twins_the_first_counts_and_the_others_are_ended() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    let job = request("twins", "sleep 1000");
    let handle = driver.ensure(&job).await.unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    // Another folder holds a machine of the same name, as it is where somebody has changed the sites file.
    let twin = || {
        peer.client(&format!(
            "one = vim.VirtualMachine('{}', vcenter._stub)\nplace = one.parent.parent\nsaid = settings(one)\n\
             keys = ['tidegate.owner', 'tidegate.job', 'tidegate.request']\n\
             said = [vim.option.OptionValue(key=key, value=said[key]) for key in keys]\n\
             template = [one for one in all(vim.VirtualMachine) if one.name == 'debian-13'][0]\n\
             spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(pool=one.resourcePool), powerOn=False, template=False,\n    \
             config=vim.vm.ConfigSpec(extraConfig=said))\n\
             task = template.CloneVM_Task(folder=place, name=one.name, spec=spec)\nWaitForTask(task)\n\
             WaitForTask(task.info.result.PowerOn())",
            machine_of(&handle)
        ))
    };
    twin();
    assert_eq!(machines(&peer, "twins").len(), 2);
    assert_eq!(driver.ensure(&job).await.unwrap(), handle);
    assert_eq!(driver.sweep("owner", &["twins".to_owned()]).await.unwrap(), [""; 0]);
    assert_eq!(
        machines(&peer, "twins"),
        [(machine_of(&handle).to_owned(), "poweredOn".to_owned())]
    );
    twin();
    driver.delete(&handle).await.unwrap();
    assert_eq!(machines(&peer, "twins"), []);
    // What is nobody's of ours is left alone, whatever a handle says, and so is what somebody has made a template of.
    let kept = driver.ensure(&job).await.unwrap();
    peer.client(&format!(
        "one = vim.VirtualMachine('{}', vcenter._stub)\nWaitForTask(one.PowerOff())\none.MarkAsTemplate()",
        machine_of(&kept)
    ));
    assert_eq!(driver.sweep("owner", &[]).await.unwrap(), [""; 0]);
    assert_eq!(machines(&peer, "twins").len(), 1);
    let template = peer.client("print([one for one in all(vim.VirtualMachine) if one.name == 'debian-13'][0]._moId)");
    let strange = Handle {
        id: "twins".to_owned(),
        platform: format!("vsphere:{}", template.trim()),
    };
    assert_eq!(driver.observe(&strange).await.unwrap(), JobState::Gone);
    driver.delete(&strange).await.unwrap();
    driver.try_out().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_somebody_switches_off_has_ended_and_does_not_run_again() {
    let Some(peer) = vsphere() else { return };
    let driver = driver(&peer);
    let job = request("off", "sleep 1000");
    let handle = driver.ensure(&job).await.unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    peer.client(&format!(
        "WaitForTask(vim.VirtualMachine('{}', vcenter._stub).PowerOff())",
        machine_of(&handle)
    ));
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Ended(None));
    assert_eq!(driver.ensure(&job).await.unwrap(), handle);
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Ended(None));
    assert_eq!(
        machines(&peer, "off"),
        [(machine_of(&handle).to_owned(), "poweredOff".to_owned())]
    );
}
