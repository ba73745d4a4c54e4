//! The other machines of a job: how they are reached, and what the command hears of them.
//!
//! Each machine is an end of WireGuard tunnels to the others, with a key that lives as long as its attempt. The owner's
//! keeper passes public keys and addresses on, in the signed data grant, once every machine is set up. Inside the sandbox
//! the command has a network of its own that holds these machines and nothing else (see [`crate::sandbox`]); what it sends
//! there leaves the machine sealed, and only to them.
//!
//! Source: Donenfeld, *WireGuard: Next Generation Kernel Network Tunnel* (NDSS 2017), by the library `boringtun`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::io::Errno;
use tidegate_seal::random::random_bytes;
use tidegate_types::message::Node;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::error::{Failure, Stage};
use crate::sandbox::{INTERFACE, Joined, address};

/// Ports that a machine waits at: the first one that is free there.
const PORTS: std::ops::RangeInclusive<u16> = 51_820..=51_899;
/// How often the tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);
/// Packets of one direction that are passed on before the other has its turn.
const BATCH: usize = 64;
/// Room for a packet, and for what seals it.
const PACKET: usize = 1 << 16;
const SEALED: usize = PACKET + 256;
/// A network in which nothing was said for so long has nothing more to say; and how long that is waited for.
const QUIET: Duration = Duration::from_secs(1);
const SETTLING: Duration = Duration::from_secs(10);
/// Ports that the libraries of training expect, on the first machine and on each.
const MASTER_PORT: u16 = 29_500;
const TENSORFLOW_PORT: u16 = 2222;

/// This machine's end, before the others are known.
pub(crate) struct Own {
    secret: StaticSecret,
    socket: UdpSocket,
    node: Node,
}

impl Own {
    /// Opens it at the address from which this machine reaches `towards`, or else at any that others may reach.
    pub(crate) async fn open(towards: IpAddr) -> Result<Self, Failure> {
        let failed = |why: String| Failure::new(Stage::Sandbox, format!("joining the job's machines: {why}"));
        let bytes = random_bytes::<32>().map_err(|error| failed(error.to_string()))?;
        let secret = StaticSecret::from(*Zeroizing::new(bytes));
        let here = own_address(towards).await;
        for port in PORTS {
            if let Ok(socket) = UdpSocket::bind((here, port)).await {
                let node = Node {
                    key: STANDARD.encode(PublicKey::from(&secret).as_bytes()),
                    endpoint: SocketAddr::new(here, port),
                };
                return Ok(Self { secret, socket, node });
            }
        }
        let (first, last) = (PORTS.start(), PORTS.end());
        Err(failed(format!("no UDP port from {first} to {last} is free at {here}")))
    }

    pub(crate) const fn node(&self) -> &Node {
        &self.node
    }

    /// Knows the others now; `nodes` are all machines by rank.
    pub(crate) fn with(self, nodes: &[Node], rank: u32) -> Result<Ends, Failure> {
        let failed = |why: &str| Failure::new(Stage::Grant, format!("the job's machines in the data grant: {why}"));
        let own = usize::try_from(rank).map_err(|_| failed("this one's rank is out of range"))?;
        if nodes.get(own) != Some(&self.node) {
            return Err(failed("this one is not among them, or elsewhere than it said"));
        }
        let mut peers = Vec::new();
        for (index, (node, place)) in nodes.iter().zip(0_u32..).enumerate() {
            let key = STANDARD.decode(&node.key).ok();
            let key: [u8; 32] = key
                .and_then(|key| key.try_into().ok())
                .ok_or_else(|| failed("a key has not 32 bytes in base64"))?;
            peers.push((index != own).then(|| Peer {
                endpoint: node.endpoint,
                address: address(place),
                tunnel: Tunn::new(self.secret.clone(), PublicKey::from(key), None, None, place, None),
            }));
        }
        Ok(Ends {
            peers,
            socket: self.socket,
        })
    }
}

/// The address by which this machine is reached from where `towards` is. Nothing is sent.
async fn own_address(towards: IpAddr) -> IpAddr {
    let any = match towards {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED),
    };
    if let Ok(socket) = UdpSocket::bind((any, 0)).await
        && socket.connect((towards, 9)).await.is_ok()
        && let Ok(here) = socket.local_addr()
    {
        return here.ip();
    }
    // A network without a way out has addresses all the same.
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses = all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip()));
    let usable = addresses.find(|one| !one.is_loopback() && !one.is_link_local());
    usable.unwrap_or(Ipv4Addr::LOCALHOST).into()
}

/// The tunnels to the other machines, and none to this one; by rank.
pub(crate) struct Ends {
    peers: Vec<Option<Peer>>,
    socket: UdpSocket,
}

struct Peer {
    endpoint: SocketAddr,
    address: Ipv4Addr,
    tunnel: Tunn,
}

/// Passes packets on between the command's network and the other machines until it is dropped.
pub(crate) struct Mesh {
    passing: JoinHandle<()>,
    /// When the command or a machine said something last, in milliseconds since `begun`.
    last: Arc<AtomicU64>,
    begun: Instant,
}

impl Ends {
    pub(crate) fn begin(self, joined: Joined) -> Result<Mesh, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Stage::Sandbox, format!("joining the job's machines: {error}"));
        rustix::io::ioctl_fionbio(&joined.device, true).map_err(|error| failed(error.into()))?;
        let (last, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
        #[expect(
            deprecated,
            reason = "unsound for what may change its descriptor; this owns one that stays"
        )]
        let device = AsyncFd::new(joined.device).map_err(failed)?;
        let passing = Passing {
            device,
            _namespace: joined.namespace,
            peers: self.peers,
            socket: self.socket,
            last: Arc::clone(&last),
            begun,
        };
        Ok(Mesh {
            passing: tokio::spawn(passing.go_on()),
            last,
            begun,
        })
    }
}

impl Mesh {
    /// Waits until what the command sent before it ended has arrived: until nothing is said any more.
    pub(crate) async fn settle(&self) {
        let until = Instant::now() + SETTLING;
        loop {
            let last = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let now = Instant::now();
            let wait = (last + QUIET).min(until).saturating_duration_since(now);
            if wait.is_zero() || self.passing.is_finished() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

struct Passing {
    device: AsyncFd<OwnedFd>,
    _namespace: OwnedFd,
    peers: Vec<Option<Peer>>,
    socket: UdpSocket,
    last: Arc<AtomicU64>,
    begun: Instant,
}

impl Passing {
    async fn go_on(mut self) {
        let (mut packet, mut sealed) = (vec![0; PACKET], vec![0; SEALED]);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                ready = self.device.readable() => {
                    let Ok(mut ready) = ready else { return };
                    for _ in 0..BATCH {
                        match rustix::io::read(&self.device, packet.as_mut_slice()) {
                            Ok(length) => {
                                said(&self.last, self.begun);
                                let packet = packet.get(..length).unwrap_or_default();
                                outward(&mut self.peers, &self.socket, packet, &mut sealed).await;
                            }
                            Err(Errno::INTR) => {}
                            Err(Errno::AGAIN) => {
                                ready.clear_ready();
                                break;
                            }
                            Err(error) => {
                                tracing::warn!(%error, "the command's network is gone");
                                return;
                            }
                        }
                    }
                }
                received = self.socket.recv_from(&mut packet) => {
                    let mut received = received;
                    for _ in 0..BATCH {
                        // What another machine's absence answers says nothing about the next packet.
                        if let Ok((length, from)) = received {
                            let datagram = packet.get(..length).unwrap_or_default();
                            self.inward(datagram, from, &mut sealed).await;
                        }
                        match self.socket.try_recv_from(&mut packet) {
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                            next => received = next,
                        }
                    }
                }
                _ = tick.tick() => self.look_at_clocks(&mut sealed).await,
            }
        }
    }

    /// What came from another machine goes to the command, if it is sealed by that machine and says that it is its own.
    async fn inward(&mut self, datagram: &[u8], from: SocketAddr, room: &mut [u8]) {
        let mut peers = self.peers.iter_mut().flatten();
        let Some(peer) = peers.find(|peer| peer.endpoint == from) else {
            return;
        };
        let mut next = datagram;
        loop {
            match peer.tunnel.decapsulate(Some(from.ip()), next, room) {
                TunnResult::WriteToNetwork(answer) => {
                    let _ = self.socket.send_to(answer, peer.endpoint).await;
                    next = &[];
                }
                TunnResult::WriteToTunnelV4(packet, source) => {
                    if source == peer.address {
                        said(&self.last, self.begun);
                        // A full device loses packets as any network does.
                        let _ = rustix::io::write(&self.device, packet);
                    }
                    return;
                }
                TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV6(..) => return,
            }
        }
    }

    async fn look_at_clocks(&mut self, room: &mut [u8]) {
        for peer in self.peers.iter_mut().flatten() {
            if let TunnResult::WriteToNetwork(message) = peer.tunnel.update_timers(room) {
                let _ = self.socket.send_to(message, peer.endpoint).await;
            }
        }
    }
}

/// What the command sends to a machine goes there; what it sends elsewhere goes nowhere.
async fn outward(peers: &mut [Option<Peer>], socket: &UdpSocket, packet: &[u8], room: &mut [u8]) {
    let Some(IpAddr::V4(to)) = Tunn::dst_address(packet) else {
        return;
    };
    let mut peers = peers.iter_mut().flatten();
    if let Some(peer) = peers.find(|peer| peer.address == to)
        && let TunnResult::WriteToNetwork(sealed) = peer.tunnel.encapsulate(packet, room)
    {
        let _ = socket.send_to(sealed, peer.endpoint).await;
    }
}

fn said(last: &AtomicU64, begun: Instant) {
    let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    last.store(now, Ordering::Relaxed);
}

/// What a command hears of the machines of its job, by the names that the libraries and launchers of training know:
/// `torchrun` (`PET_…`) and PyTorch's `env://`, TensorFlow's `TF_CONFIG`, SageMaker's and SkyPilot's.
pub(crate) fn variables(rank: u32, count: u32, accelerators: u32) -> BTreeMap<String, String> {
    let addresses: Vec<String> = (0..count).map(|one| address(one).to_string()).collect();
    let own = address(rank).to_string();
    let first = address(0).to_string();
    let workers: Vec<String> = addresses.iter().map(|one| format!("{one}:{TENSORFLOW_PORT}")).collect();
    let tensorflow = serde_json::json!({
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": rank},
    });
    let (count, rank, port) = (count.to_string(), rank.to_string(), MASTER_PORT.to_string());
    [
        ("MASTER_ADDR", first.clone()),
        ("MASTER_PORT", port.clone()),
        ("WORLD_SIZE", count.clone()),
        ("RANK", rank.clone()),
        ("PET_NNODES", count.clone()),
        ("PET_NODE_RANK", rank.clone()),
        ("PET_MASTER_ADDR", first),
        ("PET_MASTER_PORT", port),
        ("GLOO_SOCKET_IFNAME", INTERFACE.to_owned()),
        ("NCCL_SOCKET_IFNAME", INTERFACE.to_owned()),
        ("TF_CONFIG", tensorflow.to_string()),
        ("SM_HOSTS", serde_json::json!(addresses).to_string()),
        ("SM_CURRENT_HOST", own),
        ("SM_NETWORK_INTERFACE_NAME", INTERFACE.to_owned()),
        ("SKYPILOT_NUM_NODES", count),
        ("SKYPILOT_NODE_RANK", rank),
        ("SKYPILOT_NODE_IPS", addresses.join("\n")),
        ("SKYPILOT_NUM_GPUS_PER_NODE", accelerators.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
