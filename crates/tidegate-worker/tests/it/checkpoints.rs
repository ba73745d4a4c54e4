//! Unfinished work: sent while the command goes on, and there when the next attempt begins.

use std::sync::Arc;

use tidegate_contracts::StoreExt;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_types::message::KeeperMessage;

use crate::keeper::Keeper;

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
