//! The tunnels to the other machines of a job, and what is passed on between them and the command's own network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::io::Errno;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::failed;
use crate::error::Failure;
use crate::sandbox::{Joined, address};

/// How often the tunnels look at their clocks.
const TICK: Duration = Duration::from_millis(250);
/// How long the other machines may take to answer, and how long one waits for those before it to speak first.
const MEETING: Duration = Duration::from_secs(30);
const POLITE: Duration = Duration::from_secs(3);
/// Where nothing else is said, something is said this often, in seconds: what is between the machines forgets who may talk.
const KEEP_ALIVE: u16 = 20;
/// Packets of one direction that are passed on before the other has its turn.
const BATCH: usize = 64;
/// Room for a packet, and for what seals it.
const PACKET: usize = 1 << 16;
const SEALED: usize = PACKET + 256;
/// A network in which nothing was said for so long has nothing more to say, unless one packet was lost three times; and how
/// long that is waited for.
const QUIET: Duration = Duration::from_secs(2);
const SETTLING: Duration = Duration::from_secs(15);

/// The end of a tunnel to another machine.
pub(super) struct Peer {
    rank: u32,
    endpoint: SocketAddr,
    address: Ipv4Addr,
    tunnel: Tunn,
    /// Why the last packet to it was not sent.
    unsent: Option<std::io::Error>,
}

/// Passes packets on between the command's network and the other machines until it is dropped.
pub(crate) struct Mesh {
    passing: JoinHandle<std::io::Error>,
    joining: Option<oneshot::Sender<Joined>>,
    /// The machines that have not answered yet, each with where it is and what is known of it.
    missing: watch::Receiver<Vec<String>>,
    /// When the command or a machine said something last, in milliseconds since `begun`.
    last: Arc<AtomicU64>,
    begun: Instant,
}

impl Mesh {
    pub(super) fn begin(peers: Vec<Peer>, socket: UdpSocket, rank: u32) -> Self {
        let (last, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let (joining, coming) = oneshot::channel();
        let (met, missing) = watch::channel(peers.iter().map(Peer::describe).collect());
        let passing = Passing {
            network: None,
            coming: Some(coming),
            peers,
            socket,
            rank,
            met,
            last: Arc::clone(&last),
            begun,
        };
        Self {
            passing: tokio::spawn(passing.go_on()),
            joining: Some(joining),
            missing,
            last,
            begun,
        }
    }

    /// Waits until every other machine has answered.
    pub(crate) async fn meet(&mut self) -> Result<(), Failure> {
        let met = tokio::time::timeout(MEETING, self.missing.wait_for(Vec::is_empty));
        if matches!(met.await, Ok(Ok(_))) {
            return Ok(());
        }
        let missing = self.missing.borrow().join(", ");
        let seconds = MEETING.as_secs();
        Err(failed(format!(
            "no answer within {seconds} seconds from {missing}; does the site's network let UDP through between its machines?"
        )))
    }

    /// Gives it the command's network.
    pub(crate) fn join(&mut self, joined: Joined) -> Result<(), Failure> {
        rustix::io::ioctl_fionbio(&joined.device, true).map_err(failed)?;
        let taken = self.joining.take().map(|joining| joining.send(joined));
        match taken {
            Some(Ok(())) => Ok(()),
            _ => Err(failed("there is nobody to pass packets on")),
        }
    }

    /// Whether nothing is passed on any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.passing.is_finished()
    }

    /// Waits until what the command sent before it ended has arrived: until nothing is said any more.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        let until = Instant::now() + SETTLING;
        loop {
            let last = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let wait = (last + QUIET).min(until).saturating_duration_since(Instant::now());
            if self.is_gone() {
                return Err(gone());
            }
            if wait.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// Why a command cannot go on without its network.
pub(crate) fn gone() -> Failure {
    failed("the network between them is gone on this machine")
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

impl Peer {
    /// The machine of `rank`, which waits at `endpoint`; with our secret key and its public one.
    pub(super) fn new(rank: u32, endpoint: SocketAddr, (secret, key): (StaticSecret, PublicKey)) -> Self {
        Self {
            rank,
            endpoint,
            address: address(rank),
            tunnel: Tunn::new(secret, key, None, Some(KEEP_ALIVE), rank, None),
            unsent: None,
        }
    }

    fn describe(&self) -> String {
        let why = self
            .unsent
            .as_ref()
            .map_or_else(String::new, |error| format!(" ({error})"));
        format!("rank {} at {}{why}", self.rank, self.endpoint)
    }

    /// Sends what the tunnel gave; what is lost is lost as in any network.
    async fn send(unsent: &mut Option<std::io::Error>, socket: &UdpSocket, endpoint: SocketAddr, sealed: &[u8]) {
        *unsent = socket.send_to(sealed, endpoint).await.err();
    }

    fn has_answered(&self) -> bool {
        self.tunnel.time_since_last_handshake().is_some()
    }
}

struct Network {
    device: AsyncFd<OwnedFd>,
    _namespace: OwnedFd,
}

struct Passing {
    network: Option<Network>,
    coming: Option<oneshot::Receiver<Joined>>,
    peers: Vec<Peer>,
    socket: UdpSocket,
    rank: u32,
    met: watch::Sender<Vec<String>>,
    last: Arc<AtomicU64>,
    begun: Instant,
}

impl Passing {
    /// Gives why it cannot go on.
    async fn go_on(mut self) -> std::io::Error {
        let (mut packet, mut sealed) = (vec![0; PACKET], vec![0; SEALED]);
        let mut tick = tokio::time::interval(TICK);
        // What the tunnels do depends on their clocks; after that each direction has its turn, however busy the other one is.
        self.look_at_clocks(&mut sealed).await;
        loop {
            tokio::select! {
                _ = tick.tick() => self.look_at_clocks(&mut sealed).await,
                joined = coming(&mut self.coming) => match joined.map(Network::new) {
                    Some(Ok(network)) => self.network = Some(network),
                    Some(Err(error)) => return error,
                    None => {}
                },
                received = self.socket.recv_from(&mut packet) => {
                    let mut next = Some(received);
                    for _ in 0..BATCH {
                        // What another machine's absence answers says nothing about the next packet.
                        if let Some(Ok((length, from))) = next.take() {
                            let datagram = packet.get(..length).unwrap_or_default();
                            self.inward(datagram, from, &mut sealed).await;
                        }
                        match self.socket.try_recv_from(&mut packet) {
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                            received => next = Some(received),
                        }
                    }
                    if let Some(Ok((length, from))) = next {
                        let datagram = packet.get(..length).unwrap_or_default();
                        self.inward(datagram, from, &mut sealed).await;
                    }
                }
                ready = readable(self.network.as_ref()) => {
                    let mut ready = match ready {
                        Ok(ready) => ready,
                        Err(error) => return error,
                    };
                    for _ in 0..BATCH {
                        match rustix::io::read(ready.get_inner(), packet.as_mut_slice()) {
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
                            Err(error) => return error.into(),
                        }
                    }
                }
            }
        }
    }

    /// What came from another machine goes to the command, if it is sealed by that machine and says that it is its own.
    async fn inward(&mut self, datagram: &[u8], from: SocketAddr, room: &mut [u8]) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.endpoint == from) else {
            return;
        };
        let mut next = datagram;
        loop {
            match peer.tunnel.decapsulate(Some(from.ip()), next, room) {
                TunnResult::WriteToNetwork(answer) => {
                    Peer::send(&mut peer.unsent, &self.socket, peer.endpoint, answer).await;
                    next = &[];
                }
                TunnResult::WriteToTunnelV4(packet, source) => {
                    if let Some(network) = self.network.as_ref().filter(|_| source == peer.address) {
                        said(&self.last, self.begun);
                        // A full device loses packets as any network does.
                        let _ = rustix::io::write(&network.device, packet);
                    }
                    break;
                }
                TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV6(..) => break,
            }
        }
        self.look_who_is_missing();
    }

    async fn look_at_clocks(&mut self, room: &mut [u8]) {
        let polite = self.begun.elapsed() < POLITE;
        for peer in &mut self.peers {
            if let TunnResult::WriteToNetwork(message) = peer.tunnel.update_timers(room) {
                Peer::send(&mut peer.unsent, &self.socket, peer.endpoint, message).await;
            }
            // One of two speaks first: what both begin at once takes seconds to sort out.
            let first = self.rank < peer.rank || !polite;
            if first
                && !peer.has_answered()
                && let TunnResult::WriteToNetwork(message) = peer.tunnel.format_handshake_initiation(room, false)
            {
                Peer::send(&mut peer.unsent, &self.socket, peer.endpoint, message).await;
            }
        }
        self.look_who_is_missing();
    }

    fn look_who_is_missing(&self) {
        if self.met.borrow().is_empty() {
            return;
        }
        let missing = self.peers.iter().filter(|peer| !peer.has_answered());
        let _ = self.met.send(missing.map(Peer::describe).collect());
    }
}

impl Network {
    fn new(joined: Joined) -> std::io::Result<Self> {
        #[expect(
            deprecated,
            reason = "unsound for what may change its descriptor; this owns one that stays"
        )]
        let device = AsyncFd::new(joined.device)?;
        Ok(Self {
            device,
            _namespace: joined.namespace,
        })
    }
}

/// The command's network, once there is one.
async fn coming(receiver: &mut Option<oneshot::Receiver<Joined>>) -> Option<Joined> {
    let Some(waiting) = receiver else {
        return std::future::pending().await;
    };
    let joined = waiting.await;
    *receiver = None;
    joined.ok()
}

async fn readable(network: Option<&Network>) -> std::io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match network {
        Some(network) => network.device.readable().await,
        None => std::future::pending().await,
    }
}

/// What the command sends to a machine goes there; what it sends elsewhere goes nowhere.
async fn outward(peers: &mut [Peer], socket: &UdpSocket, packet: &[u8], room: &mut [u8]) {
    let Some(IpAddr::V4(to)) = Tunn::dst_address(packet) else {
        return;
    };
    if let Some(peer) = peers.iter_mut().find(|peer| peer.address == to)
        && let TunnResult::WriteToNetwork(sealed) = peer.tunnel.encapsulate(packet, room)
    {
        Peer::send(&mut peer.unsent, socket, peer.endpoint, sealed).await;
    }
}

fn said(last: &AtomicU64, begun: Instant) {
    let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    last.store(now, Ordering::Relaxed);
}
