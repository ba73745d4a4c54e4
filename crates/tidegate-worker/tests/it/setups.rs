//! What a setup leaves: sealed once, and taken by later attempts in place of running it again.

use std::sync::Arc;

use tidegate_contracts::StoreExt;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_worker::sandbox::{Policy, ROOM, spawn};

use crate::keeper::{Ending, Keeper};
use crate::sandbox::{environment, policy, shell};

/// Makes a program that knows where it stands, as environments of Python do, and a link beside the code.
const SETUP: &str = "
    echo 'it is set up'
    mkdir -p \"$HOME/env/bin\"
    printf '#!/bin/sh\\ncat \"%s/env/answer\"\\n' \"$HOME\" > \"$HOME/env/bin/answer\"
    chmod 755 \"$HOME/env/bin/answer\"
    date +%s%N > \"$HOME/env/answer\"
    ln -s \"$HOME/env/bin/answer\" tool
    echo made > \"$TMPDIR/gone\"
";
const RUN: &str = "
    ls \"$TMPDIR\"
    cat train.sh > /dev/null
    ./tool > \"$TIDEGATE_OUTPUT/model\"
";

async fn keeper() -> Keeper {
    let mut keeper = Keeper::new(Arc::new(MemoryStore::default()), RUN).await;
    keeper.job.setup = SETUP.to_owned();
    keeper
}

/// One attempt; gives what was told before the data was there, at its end, and its model.
async fn work(keeper: &mut Keeper) -> (Ending, Ending, String) {
    let worker = keeper.start();
    let before = keeper.set_up().await;
    let ending = keeper.ending().await;
    assert_eq!(ending.failed, None, "{}", ending.text());
    worker.await.unwrap().unwrap();
    let (_, folder) = keeper.receive(&ending).await.unwrap();
    let model = std::fs::read_to_string(folder.join("model")).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(
        std::fs::read_dir(keeper.work()).unwrap().count(),
        0,
        "something is left"
    );
    (before, ending, model)
}

/// Whether this machine shows commands a room; where it does not, it says so.
fn has_rooms() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy {
        room: Some(folder.path().to_owned()),
        ..policy(folder.path())
    };
    let text = format!("pwd; [ \"$(pwd)\" = {ROOM} ]");
    let running = spawn(
        crate::executable(),
        &policy,
        &shell(&text),
        &environment(),
        folder.path(),
    )
    .unwrap();
    if !running.in_room {
        let checked = std::env::var_os("TIDEGATE_INTEROP").is_some_and(|value| value == "1");
        assert!(!checked, "this machine is to show commands a room");
        eprintln!("left out: this machine shows commands no room");
    }
    running.in_room
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_runs_once_and_what_it_left_works_on_the_next_machine() {
    if !has_rooms() {
        return;
    }
    let mut keeper = keeper().await;
    let (before, ending, first) = work(&mut keeper).await;
    assert!(before.text().contains("it is set up"), "{}", before.text());
    let left = before.setup.clone().unwrap();
    assert!(
        ending.text().lines().next().is_some_and(|line| line == "gone"),
        "{}",
        ending.text()
    );
    // Nobody reads in the store what it left.
    for object in keeper.store.list_all("sealed/", 1000).await.unwrap() {
        let body = keeper.store.get(&object.name, 1 << 20).await.unwrap();
        assert!(!body.windows(6).any(|window| window == b"answer"), "{}", object.name);
    }

    let mut keeper = keeper.next_attempt(None);
    keeper.setup = Some(left.clone());
    let (before, ending, second) = work(&mut keeper).await;
    assert_eq!(
        before.text(),
        "[tidegate: setup is not run again: what it left before is taken]\n"
    );
    assert!(before.setup.is_none(), "it is not sent again");
    assert_eq!(second, first, "{}", ending.text());
    assert!(!ending.text().contains("gone"), "what is temporary is not kept");

    // Another setup, or another machine, is set up anew.
    let mut keeper = keeper.next_attempt(None);
    keeper.job.setup.push_str("echo more\n");
    let (before, _, third) = work(&mut keeper).await;
    let (machine, _) = before.setup.clone().unwrap();
    assert!(before.text().contains("more") && machine != left.0, "{}", before.text());
    assert_ne!(third, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_set_up_anew() {
    if !has_rooms() {
        return;
    }
    let mut keeper = keeper().await;
    let (before, _, first) = work(&mut keeper).await;
    let (machine, left) = before.setup.unwrap();
    // It is gone from the store.
    let store = Arc::clone(&keeper.store);
    let names = store.list_all("packing/", 1000).await.unwrap();
    assert!(names.iter().any(|object| object.name == left.packing_list));
    store.delete(&left.packing_list).await.unwrap();
    let mut keeper = keeper.next_attempt(None);
    keeper.setup = Some((machine, left));
    let (before, _, second) = work(&mut keeper).await;
    assert!(
        before.text().contains("it is set up") && before.setup.is_some(),
        "{}",
        before.text()
    );
    assert_ne!(second, first);
}

/// Whoever set up before may be hostile: what comes back is opened inside the sandbox, and is no way out.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_points_outside_gives_nothing_away() {
    if !has_rooms() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let at = outside.path().display();
    std::fs::write(outside.path().join("secret"), "patient 4711").unwrap();
    let mut keeper = keeper().await;
    keeper.job.run = format!(
        "cat \"$HOME/secret\" \"$HOME/out/secret\" {at}/secret; echo x > \"$HOME/new\"; echo x > \"$HOME/out/new\"; \
         echo done > \"$TIDEGATE_OUTPUT/model\""
    );
    let (before, _, _) = work(&mut keeper).await;
    let (machine, _) = before.setup.unwrap();
    // A home folder that is a link, one that holds a link, and names that lead elsewhere.
    for (made, taken) in [
        (
            format!("mkdir code; ln -s {at} home; tar -cf setup.tar code home"),
            false,
        ),
        (
            format!("mkdir code home; ln -s {at} home/out; tar -cf setup.tar code home"),
            true,
        ),
        (
            format!("mkdir code home; cp /dev/null x; tar -cPf setup.tar --transform 's,^x,{at}/new,' code home x"),
            true,
        ),
        ("echo 'no archive' > setup.tar".to_owned(), false),
        ("mkdir code; tar -cf setup.tar code".to_owned(), false),
    ] {
        let source = tempfile::tempdir().unwrap();
        let done = std::process::Command::new("/bin/sh")
            .args(["-c", &format!("{made} && rm -rf code home x")])
            .current_dir(source.path())
            .status();
        assert!(done.unwrap().success(), "{made}");
        let mut next = keeper.next_attempt(None);
        next.setup = Some((machine, next.set_up_by_another(source.path()).await));
        let (before, ending, model) = work(&mut next).await;
        let told = format!("{}{}", before.text(), ending.text());
        assert_eq!(before.setup.is_none(), taken, "{made} {told}");
        assert_eq!(before.text().contains("it is set up"), !taken, "{made} {told}");
        assert!(!told.contains("4711") && model == "done\n", "{told}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{made}");
        keeper = next;
    }
}
