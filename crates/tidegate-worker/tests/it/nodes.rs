//! Several machines that work at one job.

use std::net::TcpListener;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_types::message::Node;

use crate::keeper::{Ending, Keeper};

/// The first machine waits for eight mebibytes of the second, and answers with their digest.
const TOGETHER: &str = r#"cat > job.py <<'END'
import hashlib, json, os, socket, sys, time

rank, first = int(os.environ["RANK"]), os.environ["MASTER_ADDR"]
cluster = json.loads(os.environ["TF_CONFIG"])
assert cluster["task"] == {"type": "worker", "index": rank}, cluster
assert len(cluster["cluster"]["worker"]) == int(os.environ["WORLD_SIZE"]) == 2
assert os.environ["SKYPILOT_NODE_IPS"].split("\n")[0] == first
own = json.loads(os.environ["SM_HOSTS"])[rank]
port = int(os.environ["MASTER_PORT"])
bytes_sent = bytes(range(256)) * (1 << 15)

def refused(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return
    sys.exit(f"{address}:{port} was reached")

refused("127.0.0.1", int(os.environ["OUTSIDE"]))
for address in json.loads(os.environ["OUTSIDE_TOO"]):
    refused(address, int(os.environ["OUTSIDE"]))
if rank == 1:
    # More datagrams than anybody takes at once, each of them counted.
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((own, 4000))
    udp.settimeout(20)
    ready = udp.recv(10)
    assert ready == b"ready", ready
    for number in range(300):
        udp.sendto(number.to_bytes(4, "big"), (first, 4000))
else:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    udp.bind((own, 4000))
    udp.settimeout(0.2)
    other = json.loads(os.environ["SM_HOSTS"])[1]
    got = set()
    while not got:
        udp.sendto(b"ready", (other, 4000))
        try:
            got.add(udp.recv(4))
        except OSError:
            pass
    udp.settimeout(5)
    while len(got) < 300:
        got.add(udp.recv(4))
if rank == 0:
    server = socket.create_server((own, port))
    other, _ = server.accept()
    digest = hashlib.sha256()
    while piece := other.recv(1 << 16):
        digest.update(piece)
    other.sendall(digest.hexdigest().encode())
    open(os.environ["TIDEGATE_OUTPUT"] + "/model", "w").write(digest.hexdigest())
else:
    while True:
        try:
            server = socket.create_connection((first, port), timeout=20)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    server.sendall(bytes_sent)
    server.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := server.recv(100):
        answer += piece
    assert answer.decode() == hashlib.sha256(bytes_sent).hexdigest(), answer
    print("heard the first machine")
END
python3 job.py"#;

async fn machine(rank: u32, others: u32, run: &str) -> Keeper {
    Keeper::new(std::sync::Arc::new(MemoryStore::default()), run)
        .await
        .of_several(rank, others)
}

/// To where the worker waits for the others.
async fn until_set_up(keeper: &mut Keeper) -> Result<(), Ending> {
    keeper.hello().await;
    keeper.grant_code().await;
    keeper.until_setup_is_done().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_one_job_reach_one_another_and_nobody_else() {
    // What listens on the machine itself is out of reach for what runs there.
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    // Nor do others reach it by any address that this machine has.
    let addresses = nix::ifaddrs::getifaddrs().unwrap();
    let addresses = addresses.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip().to_string()));
    let addresses = serde_json::json!(addresses.collect::<Vec<_>>()).to_string();
    let (mut first, mut second) = (machine(0, 1, TOGETHER).await, machine(1, 1, TOGETHER).await);
    let mut working = Vec::new();
    for keeper in [&mut first, &mut second] {
        keeper.job.environment.insert("OUTSIDE".to_owned(), port.clone());
        keeper
            .job
            .environment
            .insert("OUTSIDE_TOO".to_owned(), addresses.clone());
        working.push(keeper.start());
        until_set_up(keeper).await.unwrap();
    }
    let nodes = [&first, &second].map(|keeper| keeper.node.clone().unwrap());
    assert_ne!(nodes[0].key, nodes[1].key);
    for keeper in [&mut first, &mut second] {
        keeper.grant_data_with(&nodes).await;
    }
    let (of_first, of_second) = tokio::join!(first.ending(), second.ending());
    assert!(of_first.failed.is_none(), "{:?} {}", of_first.failed, of_first.text());
    assert!(
        of_second.failed.is_none(),
        "{:?} {}",
        of_second.failed,
        of_second.text()
    );
    assert_eq!(of_second.text(), "heard the first machine\n");
    // The first one's output is the job's.
    assert!(of_first.output.is_some() && of_second.output.is_none());
    for worker in working {
        worker.await.unwrap().unwrap();
    }
}

/// A stranger who knows where a machine waits, and one that never answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_is_named_before_anything_is_opened() {
    let mut first = machine(0, 1, "exit 7").await;
    let working = first.start();
    until_set_up(&mut first).await.unwrap();
    let own = first.node.clone().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = Node {
        key: STANDARD.encode([9; 32]),
        endpoint: silent.local_addr().unwrap(),
    };
    first.grant_data_with(&[own.clone(), other.clone()]).await;
    // It speaks, and what answers is nothing that the other one's key has made.
    let mut room = [0; 2048];
    let (length, from) = silent.recv_from(&mut room).unwrap();
    assert_eq!((length, from), (148, own.endpoint), "WireGuard's first message");
    silent.send_to(&room[..length], own.endpoint).unwrap();
    silent.send_to(b"anything", own.endpoint).unwrap();
    let (stage, reason, _) = first.ending().await.failed.unwrap();
    assert_eq!(stage, "sandbox");
    assert!(reason.contains(&format!("rank 1 at {}", other.endpoint)), "{reason}");
    working.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_where_it_said_does_not_begin() {
    let (mut first, mut second) = (machine(0, 1, "exit 7").await, machine(1, 1, "exit 7").await);
    for keeper in [&mut first, &mut second] {
        let _working = keeper.start();
        until_set_up(keeper).await.unwrap();
    }
    let (own, other) = (first.node.clone().unwrap(), second.node.clone().unwrap());
    assert_ne!(own.endpoint, other.endpoint);
    // The keeper names somebody else in its place, and then too few.
    first.grant_data_with(&[other.clone(), own]).await;
    second.grant_data_with(&[other]).await;
    for (keeper, why) in [(first, "elsewhere"), (second, "another number of machines")] {
        let mut keeper = keeper;
        let (stage, reason, _) = keeper.ending().await.failed.unwrap();
        assert_eq!(stage, "grant");
        assert!(reason.contains(why), "{reason}");
    }
}

/// One end sends a quarter of a gibibyte, the other one says how many megabytes came in a second.
const SPEED: &str = r#"cat > speed.py <<'END'
import os, socket, sys, threading, time

TOTAL, piece = 1 << 28, bytes(1 << 20)

def receive(server):
    other, _ = server.accept()
    got, begun, room = 0, None, bytearray(1 << 20)
    while got < TOTAL:
        got += other.recv_into(room)
        begun = begun or time.monotonic()
    print(f"{got / (time.monotonic() - begun) / 1e6:.0f}", flush=True)
    other.close()

def send(address):
    while True:
        try:
            other = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    for _ in range(TOTAL // len(piece)):
        other.sendall(piece)
    other.recv(1)

if os.environ["RANK"] == "0":
    receive(socket.create_server((os.environ["MASTER_ADDR"], 29500)))
    server = socket.create_server(("127.0.0.1", 0))
    sender = threading.Thread(target=send, args=(server.getsockname(),))
    sender.start()
    receive(server)
    sender.join()
    open(os.environ["TIDEGATE_OUTPUT"] + "/model", "w").write("none")
else:
    send((os.environ["MASTER_ADDR"], 29500))
END
python3 speed.py"#;

/// Not a test but a measurement: `cargo test --release -p tidegate-worker --test it -- --ignored --nocapture how_fast`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn how_fast_machines_of_one_job_talk() {
    for round in 1..=5 {
        let (mut first, mut second) = (machine(0, 1, SPEED).await, machine(1, 1, SPEED).await);
        let mut working = Vec::new();
        for keeper in [&mut first, &mut second] {
            working.push(keeper.start());
            until_set_up(keeper).await.unwrap();
        }
        let nodes = [&first, &second].map(|keeper| keeper.node.clone().unwrap());
        for keeper in [&mut first, &mut second] {
            keeper.grant_data_with(&nodes).await;
        }
        let (of_first, of_second) = tokio::join!(first.ending(), second.ending());
        assert!(of_first.failed.is_none(), "{:?} {}", of_first.failed, of_first.text());
        assert!(of_second.failed.is_none(), "{:?}", of_second.failed);
        let told = of_first.text();
        let [tunnel, loopback] = [0, 1].map(|line| told.lines().nth(line).unwrap().parse::<f64>().unwrap());
        println!(
            "round {round}: {tunnel} MB/s through the tunnel, {loopback} on the loopback interface, {:.3} of it",
            tunnel / loopback
        );
        for worker in working {
            worker.await.unwrap().unwrap();
        }
    }
}
