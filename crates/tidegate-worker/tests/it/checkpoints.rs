//! Unfinished work: sent while the command goes on, and there when the next attempt begins.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidegate_contracts::StoreExt;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_types::message::KeeperMessage;
use tidegate_worker::{Notice, Notices, Stage, WorkerError};
use tokio::sync::watch;

use crate::keeper::{Checkpoint, Keeper};

/// Counts to where it is told to wait, and on from what it finds.
const COUNTING: &str = "
    at=0
    if [ -f \"$TIDEGATE_CHECKPOINT/count\" ]; then at=$(cat \"$TIDEGATE_CHECKPOINT/count\"); fi
    echo \"begins at $at\"
    at=$((at + 7))
    echo half > \"$TIDEGATE_CHECKPOINT/count.tmp\"
    printf %s $at > \"$TIDEGATE_CHECKPOINT/.count\" && mv \"$TIDEGATE_CHECKPOINT/.count\" \"$TIDEGATE_CHECKPOINT/count\"
    if [ $at -lt 14 ]; then sleep 600; fi
    echo $at > \"$TIDEGATE_OUTPUT/model\"";

async fn keeper(run: &str) -> Keeper {
    Keeper::new(Arc::new(MemoryStore::default()), run).await
}

/// Drives an attempt until it has told of unfinished work, and ends it there.
async fn cut_off(mut keeper: Keeper) -> Keeper {
    let worker = keeper.start();
    keeper.admit().await;
    let checkpoint = keeper.until_checkpoint().await;
    keeper
        .send(KeeperMessage::Cancel {
            reason: "the machine is gone".to_owned(),
        })
        .await;
    assert_eq!(keeper.ending().await.stage(), "cancelled");
    worker.await.unwrap().unwrap_err();
    assert_eq!(
        std::fs::read_dir(keeper.work()).unwrap().count(),
        0,
        "something is left"
    );
    keeper.next_attempt(Some(checkpoint))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_goes_on_where_the_last_one_was() {
    let mut keeper = cut_off(keeper(COUNTING).await).await;
    let store = Arc::clone(&keeper.store);
    for object in store.list_all("sealed/", 1000).await.unwrap() {
        let body = store.get(&object.name, 1 << 20).await.unwrap();
        assert!(!body.windows(4).any(|window| window == b"half"), "{}", object.name);
    }
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    assert_eq!(ending.failed, None, "{}", ending.text());
    worker.await.unwrap().unwrap();
    let told = ending.text();
    assert!(
        told.contains("[tidegate: it goes on from the checkpoint of attempt 1]"),
        "{told}"
    );
    assert!(told.contains("begins at 7"), "{told}");
    let (_, folder) = keeper.receive(&ending).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("model")).unwrap(), "14\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_its_machine_is_taken_away_unfinished_work_goes_home_and_the_command_knows() {
    let run = "
        if [ -f \"$TIDEGATE_CHECKPOINT/last\" ]; then cp \"$TIDEGATE_CHECKPOINT/last\" \"$TIDEGATE_OUTPUT/model\"; exit; fi
        echo waits
        until [ -f \"$TIDEGATE_NOTICE\" ]; do sleep 0.05; done
        cat \"$TIDEGATE_NOTICE\"
        (echo x > \"$TIDEGATE_NOTICE\") || echo 'it is not the command that writes it'
        echo saved > \"$TIDEGATE_CHECKPOINT/.last\"
        mv \"$TIDEGATE_CHECKPOINT/.last\" \"$TIDEGATE_CHECKPOINT/last\"
        sleep 600";
    let mut keeper = keeper(run).await;
    let (tell, heard) = watch::channel(None);
    keeper.notices = Notices::new(heard);
    let worker = keeper.start();
    keeper.admit().await;
    keeper.until_log().await;
    tell.send_replace(Some(Notice {
        why: "is taken back".to_owned(),
        ends: Some(SystemTime::now() + Duration::from_secs(25)),
    }));
    let mut ending = keeper.ending().await;
    assert!(!ending.checkpoints.is_empty(), "{}", ending.text());
    assert_eq!(ending.stage(), "machine", "{:?} {}", ending.failed, ending.text());
    let (_, reason, _) = ending.failed.clone().unwrap();
    assert_eq!(reason, "its machine is taken back");
    let told = ending.text();
    for line in [
        "\"stops\":",
        "it is not the command that writes it",
        "[tidegate: this machine is taken back, and",
    ] {
        assert!(told.contains(line), "{line} {told}");
    }
    let failed = worker.await.unwrap().unwrap_err();
    assert!(
        matches!(
            failed,
            WorkerError::Failed {
                stage: Stage::Machine,
                ..
            }
        ),
        "{failed}"
    );
    assert_eq!(std::fs::read_dir(keeper.work()).unwrap().count(), 0);

    let mut keeper = keeper.next_attempt(ending.checkpoints.pop());
    keeper.notices = Notices::default();
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    worker.await.unwrap().unwrap();
    let (_, folder) = keeper.receive(&ending).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("model")).unwrap(), "saved\n");
}

/// Who ends a worker may end its command with it: that is no failure of the command.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_with_its_machine_has_not_failed() {
    for end in [
        "kill -TERM $$",
        "until [ -f \"$TIDEGATE_NOTICE\" ]; do sleep 0.05; done; exit 7",
        // What it saves at its very end goes home, too.
        "until [ -f \"$TIDEGATE_NOTICE\" ]; do sleep 0.05; done; cd \"$TIDEGATE_CHECKPOINT\"; echo x > .x; mv .x x; exit 7",
    ] {
        let mut keeper = keeper(&format!("echo waits; sleep 0.2; {end}")).await;
        let (tell, heard) = watch::channel(None);
        keeper.notices = Notices::new(heard);
        let worker = keeper.start();
        keeper.admit().await;
        keeper.until_log().await;
        tell.send_replace(Some(Notice {
            why: "ends".to_owned(),
            ends: Some(SystemTime::now() + Duration::from_secs(600)),
        }));
        let ending = keeper.ending().await;
        assert_eq!(
            ending.stage(),
            "machine",
            "{end}: {:?} {}",
            ending.failed,
            ending.text()
        );
        assert_eq!(ending.checkpoints.len(), usize::from(end.contains("mv")), "{end}");
        worker.await.unwrap().unwrap_err();
    }
    // Without a word of that it is its own.
    let mut keeper = keeper("kill -TERM $$").await;
    let worker = keeper.start();
    keeper.admit().await;
    assert_eq!(keeper.ending().await.stage(), "command");
    worker.await.unwrap().unwrap_err();
}

/// The objects of a packing list's shards.
async fn shards(keeper: &Keeper, checkpoint: &Checkpoint) -> Vec<String> {
    let list = keeper.store.get(&checkpoint.packing_list, 1 << 20).await.unwrap();
    let list = tidegate_seal::dsse::peek(&tidegate_seal::dsse::from_bytes(&list).unwrap()).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let shards = list["shards"].as_array().unwrap().iter();
    shards
        .map(|shard| shard["digest"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_as_it_was_is_not_sent_again_and_the_next_attempt_has_all_of_it() {
    // What never changes fills a shard; beside it stands what grows, with a name before it.
    let run = "
        if [ -f \"$TIDEGATE_CHECKPOINT/base\" ]; then
            cksum < \"$TIDEGATE_CHECKPOINT/base\" > \"$TIDEGATE_OUTPUT/model\"
            cat \"$TIDEGATE_CHECKPOINT/a-step\"
            exit
        fi
        head -c 67108864 /dev/zero > \"$TIDEGATE_CHECKPOINT/.base\"
        mv \"$TIDEGATE_CHECKPOINT/.base\" \"$TIDEGATE_CHECKPOINT/base\"
        step=step
        while true; do
            step=$step+
            echo $step > \"$TIDEGATE_CHECKPOINT/.a-step\"
            mv \"$TIDEGATE_CHECKPOINT/.a-step\" \"$TIDEGATE_CHECKPOINT/a-step\"
            sleep 2
        done";
    let mut keeper = keeper(run).await.with_room(256 << 20).await;
    let worker = keeper.start();
    keeper.admit().await;
    let mut told = Vec::new();
    // The first one lays the files as they are named, the second one begins with what stayed.
    for _ in 0..3 {
        let checkpoint = keeper.until_checkpoint().await;
        told.push((shards(&keeper, &checkpoint).await, checkpoint));
    }
    let cancel = KeeperMessage::Cancel {
        reason: "the machine is gone".to_owned(),
    };
    keeper.send(cancel).await;
    keeper.ending().await;
    worker.await.unwrap().unwrap_err();
    let (second, third) = (&told[1].0, &told[2].0);
    assert_eq!((second.len(), third.len()), (2, 2));
    assert_eq!(second[0], third[0], "{told:?}");
    assert_ne!(second[1], third[1]);

    let (_, newest) = told.pop().unwrap();
    let mut keeper = keeper.next_attempt(Some(newest));
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    assert_eq!(ending.failed, None, "{}", ending.text());
    worker.await.unwrap().unwrap();
    assert!(ending.text().contains("step++"), "{}", ending.text());
    let (_, folder) = keeper.receive(&ending).await.unwrap();
    // All of it was there, by its length.
    let model = std::fs::read_to_string(folder.join("model")).unwrap();
    assert!(model.ends_with(" 67108864\n"), "{model}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_left_out_and_told() {
    for gone in [true, false] {
        let mut keeper = cut_off(keeper(COUNTING).await).await;
        // Nothing that crossed for the inputs was sent by that worker.
        let checkpoint = keeper.checkpoint.clone().unwrap();
        let list = checkpoint.packing_list;
        let old = keeper.store.get(&list, 1 << 20).await.unwrap();
        keeper.store.delete(&list).await.unwrap();
        if !gone {
            let mut other = old.to_vec();
            let last = other.len() / 2;
            other[last] ^= 1;
            keeper.store.put_new(&list, other.into()).await.unwrap();
        }
        // It begins anew, and so has to be told to end.
        keeper.job.run = COUNTING.replace("-lt 14", "-lt 7");
        let worker = keeper.start();
        keeper.admit().await;
        let ending = keeper.ending().await;
        assert_eq!(ending.failed, None, "{}", ending.text());
        worker.await.unwrap().unwrap();
        let told = ending.text();
        assert!(
            told.contains("it begins anew, because the checkpoint of attempt 1"),
            "{told}"
        );
        assert!(told.contains("begins at 0"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_keeps_nothing_and_ends_nothing() {
    let run = "ln -s /etc/passwd \"$TIDEGATE_CHECKPOINT/link\" && echo 1 > \"$TIDEGATE_CHECKPOINT/count\" && sleep 2 && \
               echo x > \"$TIDEGATE_OUTPUT/model\"";
    let mut keeper = keeper(run).await;
    let worker = keeper.start();
    keeper.admit().await;
    let ending = keeper.ending().await;
    worker.await.unwrap().unwrap();
    assert!(ending.checkpoints.is_empty());
    let told = ending.text();
    assert!(
        told.contains("no checkpoint is kept while `link` is among them"),
        "{told}"
    );
}
