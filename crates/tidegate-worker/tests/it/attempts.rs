//! Whole attempts.

use std::sync::Arc;

use tidegate_contracts::StoreExt;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_transfer::mailbox::is_contested;
use tidegate_types::Level;
use tidegate_types::message::KeeperMessage;
use tidegate_worker::{Stage, WorkerError};

use crate::crossing::now;
use crate::keeper::Keeper;

async fn keeper(run: &str) -> Keeper {
    Keeper::new(Arc::new(MemoryStore::default()), run).await
}

fn is_wiped(keeper: &Keeper) -> bool {
    std::fs::read_dir(keeper.work()).unwrap().next().is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_attempt_brings_the_output_home() {
    let mut keeper = keeper(
        "sh train.sh && echo trained && echo warned >&2 && echo '{\"loss\": 0.5}' >> \"$TIDEGATE_METRICS\" && \
         echo \"$TIDEGATE_TARGET $EPOCHS $(basename \"$SM_CHANNEL_TRAIN\")\"",
    )
    .await;
    keeper.job.environment = [("EPOCHS".to_owned(), "3".to_owned())].into();
    let worker = keeper.start();
    let evidence = keeper.hello().await;
    assert!(
        [
            "network-namespace+root",
            "network-namespace",
            "network-namespace+seccomp",
            "seccomp"
        ]
        .contains(&evidence.network.as_str())
            && evidence.files.starts_with("landlock-v"),
        "{evidence:?}"
    );
    assert_eq!(evidence.limits, ["file-size", "memory", "processes", "time"]);
    keeper.grant_code().await;
    assert_eq!(keeper.until_setup_is_done().await.unwrap(), evidence);
    keeper.grant_data().await;
    let ending = keeper.ending().await;
    assert_eq!(ending.failed, None, "{}", ending.text());
    worker.await.unwrap().unwrap();
    for line in ["trained", "warned", "died 3 train"] {
        assert!(ending.text().contains(line), "{}", ending.text());
    }
    assert_eq!(ending.metrics, ["{\"loss\": 0.5}"]);
    assert!(ending.finished.is_some());

    let (received, folder) = keeper.receive(&ending).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.join("model")).unwrap(),
        "age,died\n61,0\n70,1\n"
    );
    assert_eq!(received.manifest.label.level, Level::Internal);
    assert_eq!(
        received.manifest.lineage,
        [keeper.code.artifact, keeper.train.artifact].into()
    );
    assert!(is_wiped(&keeper));
    // Rows, log lines and measured values lie in the store only sealed.
    for object in keeper.store.list_all("", 1000).await.unwrap() {
        let body = keeper.store.get(&object.name, 1 << 30).await.unwrap();
        for secret in ["61,0", "trained", "0.5"] {
            assert!(
                !body.windows(secret.len()).any(|window| window == secret.as_bytes()),
                "{}",
                object.name
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_prepares_the_code_folder_and_leaves_nothing_running() {
    let mut keeper = keeper(
        "cat prepared > \"$TIDEGATE_OUTPUT/model\"; test -d /proc/$(cat pid) && echo daemon-lives; cat \"$TIDEGATE_TARGET\"",
    )
    .await;
    keeper.job.run = "cat prepared > \"$TIDEGATE_OUTPUT/model\"; \
                      if grep -q sleep /proc/$(cat pid)/cmdline; then echo daemon-lives; else echo daemon-gone; fi"
        .to_owned();
    keeper.job.setup =
        "echo ready > prepared; ls \"$HOME/../input\" 2>&1; setsid sleep 300 >/dev/null 2>&1 & echo $! > pid"
            .to_owned();
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    worker.await.unwrap().unwrap();
    assert!(ending.text().contains("daemon-gone"), "{}", ending.text());
    let (_, folder) = keeper.receive(&ending).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("model")).unwrap(), "ready\n");
}

/// Whether somebody else than the worker that the keeper heard has said a hello with its ticket.
async fn contested(keeper: &Keeper) -> bool {
    is_contested(&keeper.ticket.attempt, &*keeper.store, &[5; 32], &keeper.accepted())
        .await
        .unwrap()
}

async fn start_again(keeper: &Keeper, work: std::path::PathBuf) -> Result<(), WorkerError> {
    let options = crate::options(work);
    tidegate_worker::run(keeper.ticket.clone(), keeper.opener(), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_with_the_same_ticket_tells_the_keeper_and_ends() {
    let mut keeper = keeper("sh train.sh").await;
    let first = keeper.start();
    keeper.hello().await;
    assert!(!contested(&keeper).await);
    let second = start_again(&keeper, keeper.folder.path().join("other")).await;
    assert!(matches!(second, Err(WorkerError::TicketUsed)), "{second:?}");
    assert!(contested(&keeper).await);
    // What becomes of the first is for the keeper to decide.
    keeper
        .send(KeeperMessage::Refused {
            reason: "second-hello".to_owned(),
        })
        .await;
    assert!(first.await.unwrap().is_err() && is_wiped(&keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_killed_and_started_again_accuses_nobody() {
    let mut keeper = keeper("sh train.sh").await;
    let first = keeper.start();
    keeper.hello().await;
    // What a kill leaves: the folder with the note of the hello, and nobody who uses it.
    let copy = keeper.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(keeper.work()).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let again = start_again(&keeper, copy).await;
    assert!(matches!(again, Err(WorkerError::TicketUsed)), "{again:?}");
    assert!(!contested(&keeper).await);
    keeper.grant_code().await;
    keeper.until_setup_is_done().await.unwrap();
    keeper.grant_data().await;
    assert!(keeper.ending().await.finished.is_some(), "the first was not disturbed");
    first.await.unwrap().unwrap();
    assert!(is_wiped(&keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_program_or_ticket_says_no_hello() {
    let mut keeper = keeper("true").await;
    let right = keeper.ticket.clone();
    keeper.ticket.worker = tidegate_seal::digest::sha256(b"another program");
    assert!(matches!(
        keeper.start().await.unwrap(),
        Err(WorkerError::OtherProgram { .. })
    ));
    type Spoil = fn(&mut tidegate_types::message::Ticket);
    let spoils: [Spoil; 3] = [
        |ticket| ticket.secret = "00".to_owned(),
        |ticket| ticket.owner_key = "x".to_owned(),
        |ticket| ticket.expires = now(),
    ];
    for spoil in spoils {
        keeper.ticket = right.clone();
        spoil(&mut keeper.ticket);
        assert!(matches!(keeper.start().await.unwrap(), Err(WorkerError::Ticket(_))));
    }
    assert!(keeper.store.list_all("mailbox/", 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_command_is_told_by_its_stage_and_exit_code_alone() {
    for (setup, run, stage, code) in [
        ("echo secret-value; exit 3", "true", "setup", 3),
        ("", "echo secret-value >&2; exit 7", "command", 7),
    ] {
        let mut keeper = keeper(run).await;
        keeper.job.setup = setup.to_owned();
        let worker = keeper.start();
        keeper.hello().await;
        keeper.grant_code().await;
        let ending = match keeper.until_setup_is_done().await {
            Err(ending) => ending,
            Ok(_) => {
                keeper.grant_data().await;
                keeper.ending().await
            }
        };
        let (told, reason, exit_code) = ending.failed.clone().unwrap();
        assert_eq!((told.as_str(), exit_code), (stage, Some(code)), "{reason}");
        assert!(!reason.contains("secret-value") && ending.text().contains("secret-value"));
        let error = worker.await.unwrap().unwrap_err();
        assert!(
            matches!(error, WorkerError::Failed { exit_code: Some(found), .. } if found == code),
            "{error}"
        );
        assert!(is_wiped(&keeper));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_not_renewed_ends_the_command() {
    let mut keeper = keeper("echo started; sleep 300").await;
    let worker = keeper.start();
    keeper.hello().await;
    keeper.grant_code().await;
    keeper.until_setup_is_done().await.unwrap();
    let mut grant = keeper.grant("train", &keeper.train.clone());
    let begun = std::time::Instant::now();
    grant.lease = now() + 2;
    // The code grant's lease is longer and would hold; a keeper that wants to end early cancels.
    keeper.send(KeeperMessage::DataGrant(grant)).await;
    keeper
        .send(KeeperMessage::Cancel {
            reason: "enough".to_owned(),
        })
        .await;
    let ending = keeper.ending().await;
    assert_eq!(ending.stage(), "cancelled", "{ending:?}");
    assert!(matches!(
        worker.await.unwrap(),
        Err(WorkerError::Failed {
            stage: Stage::Cancelled,
            ..
        })
    ));
    assert!(begun.elapsed().as_secs() < 60 && is_wiped(&keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_fresh_lease_stops_by_itself() {
    let mut keeper = keeper("sleep 300").await;
    let worker = keeper.start();
    keeper.hello().await;
    let mut grant = keeper.grant("code", &keeper.code.clone());
    grant.lease = now() + 4;
    keeper.send(KeeperMessage::CodeGrant(grant)).await;
    keeper.until_setup_is_done().await.unwrap();
    let mut grant = keeper.grant("train", &keeper.train.clone());
    grant.lease = now() + 4;
    keeper.send(KeeperMessage::DataGrant(grant)).await;
    // Renewed once, and then not again.
    let last = now() + 6;
    keeper.send(KeeperMessage::Lease { expires: last }).await;
    let ending = keeper.ending().await;
    assert_eq!(ending.stage(), "lease", "{ending:?}");
    assert!(
        (last..last + 20).contains(&now()),
        "not before the renewed lease, and soon after"
    );
    assert!(worker.await.unwrap().is_err() && is_wiped(&keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_keeper_is_not_waited_for_longer_than_the_ticket_holds() {
    let mut keeper = keeper("true").await;
    keeper.ticket.expires = now() + 3;
    let worker = keeper.start();
    keeper.hello().await;
    assert_eq!(keeper.ending().await.stage(), "lease");
    assert!(worker.await.unwrap().is_err() && is_wiped(&keeper));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_passed_on() {
    let mut keeper = keeper("true").await;
    let worker = keeper.start();
    keeper.hello().await;
    keeper
        .send(KeeperMessage::Refused {
            reason: "no sandbox".to_owned(),
        })
        .await;
    let error = worker.await.unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::Failed { stage: Stage::Grant, reason, .. } if reason.contains("no sandbox")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_misbehave_has_its_own_word() {
    let cases = [
        ("head -c 2000000 /dev/zero > \"$TIDEGATE_OUTPUT/model\"", "output"),
        (
            "while :; do head -c 100000 /dev/zero >> \"$TIDEGATE_OUTPUT/model\"; done",
            "output",
        ),
        ("ln -s /etc/passwd \"$TIDEGATE_OUTPUT/model\"", "output"),
        ("sleep 300", "time"),
        ("head -c 300000000 /dev/zero | tail -n 1", "memory"),
        ("for i in $(seq 900); do sleep 60 & done; sleep 300", "processes"),
    ];
    for (run, stage) in cases {
        let mut keeper = keeper(run).await;
        keeper.job.seconds = if stage == "time" { 1 } else { 120 };
        keeper.job.memory_bytes = if stage == "processes" { 2 << 30 } else { 64 << 20 };
        let worker = keeper.start();
        keeper.admit().await;
        let ending = keeper.ending().await;
        assert_eq!(ending.stage(), stage, "{run}: {:?} {}", ending.failed, ending.text());
        assert!(ending.output.is_none(), "{run}");
        assert!(worker.await.unwrap().is_err() && is_wiped(&keeper), "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_cut_and_does_not_stall() {
    let mut keeper = keeper("yes flood | head -c 9000000; sh train.sh").await;
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    worker.await.unwrap().unwrap();
    assert!(
        ending.log.len() < 5 << 20 && ending.text().contains("more bytes were not kept"),
        "{}",
        ending.log.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_are_no_metrics_are_left_out() {
    let mut keeper = keeper(
        "printf '{\"a\":1}\\nnot json\\n[1]\\n{\"b\":2}\\n{\"unfinished\":' > \"$TIDEGATE_METRICS\"; sh train.sh",
    )
    .await;
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    worker.await.unwrap().unwrap();
    assert_eq!(ending.metrics, ["{\"a\":1}", "{\"b\":2}"]);

    let mut keeper = self::keeper("ln -s /etc/passwd \"$TIDEGATE_METRICS\"; sh train.sh").await;
    let worker = keeper.start();
    keeper.admit().await;
    assert!(keeper.ending().await.metrics.is_empty());
    worker.await.unwrap().unwrap();
}
