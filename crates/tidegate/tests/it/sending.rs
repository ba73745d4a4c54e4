//! `kill -9` of senders to a store of a cloud at many moments; then the same call again.
//!
//! `TIDEGATE_KILLS` says how many senders are killed: a quarter of that.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_cloud::{CloudStore, Environment};
use tidegate_contracts::{ObjectName, Store, StoreExt};
use tidegate_transfer::{Sent, named_by, remove};

use crate::peers::{Peer, make_bucket, seaweed};

#[path = "../../../tidegate-transfer/tests/it/fixture.rs"]
#[allow(dead_code, reason = "some of it serves other tests alone")]
mod fixture;

use fixture::{World, files};

const FOLDER: &str = "TIDEGATE_TEST_FOLDER";
const STORE: &str = "TIDEGATE_TEST_STORE";
/// Five shards of noise, which nothing shrinks.
const BYTES: usize = 320 << 20;
/// As many senders may be killed in one crossing. Its permit carries sixteen shards: the five of the crossing, two
/// again for each sender, and five for a server that is busy, since every try counts.
const KILLS: u32 = 3;

fn open(address: &str) -> CloudStore {
    let environment = [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")];
    let environment: Environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    CloudStore::open(address.parse().unwrap(), &environment).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
#[ignore = "a child of `senders_that_are_killed_leave_nothing_doubled_or_half_written`"]
fn child_sends() {
    let (Some(folder), Ok(address)) = (std::env::var_os(FOLDER), std::env::var(STORE)) else {
        return;
    };
    println!("\nready");
    runtime().block_on(async { World::at(Path::new(&folder)).send(&open(&address)).await.unwrap() });
    println!("\ncomplete");
}

/// Lets another process send for a while, and kills it. Says whether it came to its end before.
fn send_and_kill(folder: &Path, address: &str, pause: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "sending::child_sends",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, folder)
        .env(STORE, address)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(
            output.read_line(&mut line).unwrap(),
            0,
            "the child ended before it was ready"
        );
    }
    // A moment, not a synchronisation: whatever stands there then, it is killed.
    std::thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    rest.contains("complete")
}

fn wanted() -> u32 {
    match std::env::var("TIDEGATE_KILLS") {
        Ok(kills) => kills.parse::<u32>().expect("TIDEGATE_KILLS is a number of moments") / 4,
        Err(_) => 3,
    }
}

/// What stands in a store, with its length.
async fn stored(store: &CloudStore) -> Vec<(String, u64)> {
    let infos = store.list_all("", 1000).await.unwrap();
    infos
        .into_iter()
        .map(|info| (info.name.to_string(), info.bytes))
        .collect()
}

/// What a crossing says that it put.
fn put(sent: &Sent) -> Vec<(String, u64)> {
    let mut put: Vec<(String, u64)> = sent
        .objects
        .iter()
        .map(|object| match object.digest == sent.packing_list_digest {
            true => (sent.packing_list.to_string(), object.bytes),
            false => (format!("sealed/{}", object.digest.to_hex()), object.bytes),
        })
        .collect();
    put.sort();
    put
}

#[test]
fn senders_that_are_killed_leave_nothing_doubled_or_half_written() {
    let Some(mut peer) = seaweed() else { return };
    make_bucket(&peer, "tidegate");
    let root = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0_u64..BYTES as u64 / 8)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(root.path().join("noise"), noise).unwrap();
    let world = |number: u32, peer: &Peer| {
        let folder = root.path().join(number.to_string());
        let world = World::at(&folder);
        std::fs::hard_link(root.path().join("noise"), world.source().join("noise")).unwrap();
        (folder, world, peer.s3("tidegate", &format!("st-mary/{number}")))
    };
    let runtime = runtime();
    let (_, first, address) = world(0, &peer);
    let began = Instant::now();
    runtime.block_on(first.send(&open(&address))).unwrap();
    let mut length = began.elapsed().as_secs_f64();

    let (mut killed, mut number) = (0, 0);
    while killed < wanted() {
        number += 1;
        assert!(
            number <= 2 * wanted(),
            "only {killed} senders were killed before they were done"
        );
        if number % 4 == 0 {
            // What was removed takes room in this server until it tidies up.
            peer = seaweed().unwrap();
            make_bucket(&peer, "tidegate");
        }
        let (folder, world, address) = world(number, &peer);
        let store = open(&address);
        for _ in 0..KILLS.min(wanted() - killed) {
            let share = (f64::from(killed + number) * 0.618_033_988_749_895).fract();
            if send_and_kill(&folder, &address, Duration::from_secs_f64(length * share)) {
                // How long a crossing takes depends on what else this machine does.
                length *= 0.85;
                break;
            }
            length *= 1.03;
            killed += 1;
        }
        runtime.block_on(async {
            // Had much more been sent again than what was under way, the permit would be spent.
            let sent = world.send(&store).await.unwrap();
            let (stands, put) = (stored(&store).await, put(&sent));
            assert!(
                put.iter().all(|object| stands.contains(object)),
                "world {number}: {stands:?} {put:?}"
            );
            // A server may finish what it was sent after its sender is dead and has been asked for it. No more than
            // was under way, and whoever removes what no list names takes exactly that away.
            let named = named_by(&store, &BTreeSet::from([sent.packing_list.clone()]))
                .await
                .unwrap();
            let there = tidegate_transfer::stored(&store).await.unwrap();
            let orphans: Vec<ObjectName> = there
                .into_iter()
                .map(|info| info.name)
                .filter(|name| !named.contains(name))
                .collect();
            assert!(orphans.len() <= 2 * KILLS as usize, "world {number}: {orphans:?}");
            remove(&store, &orphans).await.unwrap();
            assert_eq!(stored(&store).await, put, "world {number}");
            if number % 4 == 1 {
                world.receive(&sent, &store).await.unwrap();
                assert!(
                    files(&world.destination()) == files(&world.source()),
                    "world {number}: the files differ"
                );
            }
            if number == 1 {
                altered(&world, &sent, &store).await;
            }
            let all: Vec<ObjectName> = named.into_iter().collect();
            remove(&store, &all).await.unwrap();
            assert_eq!(stored(&store).await, []);
        });
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// One bit of any object is enough, wherever it is: nothing of the artifact appears.
async fn altered(world: &World, sent: &Sent, store: &CloudStore) {
    for (number, (name, bytes)) in (1_u64..).zip(put(sent)) {
        let name = ObjectName::new(name).unwrap();
        let whole = store.get(&name, bytes).await.unwrap();
        let mut altered = whole.to_vec();
        let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % bytes;
        altered[at as usize] ^= 1 << (number % 8);
        std::fs::remove_dir_all(world.destination()).unwrap_or_default();
        for (body, is_whole) in [(Bytes::from(altered), false), (whole, true)] {
            store.delete(&name).await.unwrap();
            store.put_new(&name, body).await.unwrap();
            let received = world.receive(sent, store).await;
            assert_eq!(received.is_ok(), is_whole, "bit {} of byte {at} of {name}", number % 8);
            assert_eq!(world.destination().exists(), is_whole, "{name}");
        }
    }
}
