//! The other machines of a job: how they are reached, and what the command hears of them.
//!
//! Each machine is an end of WireGuard tunnels to the others, with a key that lives as long as its attempt. The owner's
//! keeper passes public keys and addresses on, in the signed data grant, once every machine is set up. Inside the sandbox
//! the command has a network of its own that holds these machines and nothing else (see [`crate::sandbox`]); what it sends
//! there leaves the machine sealed, and only to them.
//!
//! Source: Donenfeld, *WireGuard: Next Generation Kernel Network Tunnel* (NDSS 2017), by the library `boringtun`.

mod mesh;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tidegate_seal::random::random_bytes;
use tidegate_types::message::Node;
use tokio::net::UdpSocket;
use zeroize::Zeroizing;

use crate::error::{Failure, Stage};
use crate::sandbox::{INTERFACE, address};

use self::mesh::Peer;
pub(crate) use self::mesh::{Mesh, gone};

/// Ports that a machine waits at: the first one that is free there.
const PORTS: std::ops::RangeInclusive<u16> = 51_820..=51_899;
/// What the system keeps of packets that were not taken yet, each way.
const WAITING_BYTES: usize = 4 << 20;
/// Ports that the libraries of training expect, on the first machine and on each.
const MASTER_PORT: u16 = 29_500;
const TENSORFLOW_PORT: u16 = 2222;
/// Addresses that nobody has (RFC 5737, RFC 3849): the way to them is the way out.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Sandbox, format!("joining the job's machines: {why}"))
}

/// This machine's end, before the others are known.
pub(crate) struct Own {
    secret: StaticSecret,
    socket: UdpSocket,
    node: Node,
}

impl Own {
    /// Opens it at the address from which this machine reaches `towards`, or else the outside.
    pub(crate) async fn open(towards: Option<IpAddr>) -> Result<Self, Failure> {
        let bytes = random_bytes::<32>().map_err(failed)?;
        let secret = StaticSecret::from(*Zeroizing::new(bytes));
        let here = own_address(towards)
            .await
            .ok_or_else(|| failed("this machine has no address at which others could reach it"))?;
        let mut last = None;
        for port in PORTS {
            match UdpSocket::bind((here, port)).await {
                Ok(socket) => {
                    // As much as the system allows.
                    let _ = set_socket_recv_buffer_size(&socket, WAITING_BYTES);
                    let _ = set_socket_send_buffer_size(&socket, WAITING_BYTES);
                    let node = Node {
                        key: STANDARD.encode(PublicKey::from(&secret).as_bytes()),
                        endpoint: SocketAddr::new(here, port),
                    };
                    return Ok(Self { secret, socket, node });
                }
                Err(error) => last = Some(error),
            }
        }
        let (first, end, why) = (
            PORTS.start(),
            PORTS.end(),
            last.map_or_else(String::new, |error| error.to_string()),
        );
        Err(failed(format!(
            "none of the UDP ports {first} to {end} can be had at {here}: {why}"
        )))
    }

    pub(crate) const fn node(&self) -> &Node {
        &self.node
    }

    /// Knows the others now, `nodes` are all machines by rank, and begins to talk to them.
    pub(crate) fn with(self, nodes: &[Node], rank: u32) -> Result<Mesh, Failure> {
        let failed = |why: String| Failure::new(Stage::Grant, format!("the job's machines in the data grant: {why}"));
        let own = usize::try_from(rank).map_err(|_| failed("this one's rank is out of range".to_owned()))?;
        if nodes.get(own) != Some(&self.node) {
            return Err(failed(
                "this one is not among them, or elsewhere than it said".to_owned(),
            ));
        }
        let mut peers = Vec::new();
        for (node, place) in nodes.iter().zip(0_u32..) {
            let same = |other: &&Node| other.endpoint == node.endpoint || other.key == node.key;
            if nodes.iter().filter(same).count() > 1 {
                return Err(failed(format!(
                    "that of rank {place} says that it is where another one is, at {}",
                    node.endpoint
                )));
            }
            if place == rank {
                continue;
            }
            let key = STANDARD.decode(&node.key).ok();
            let key: [u8; 32] = key
                .and_then(|key| key.try_into().ok())
                .ok_or_else(|| failed(format!("the key of rank {place} has not 32 bytes in base64")))?;
            let tunnel = (self.secret.clone(), PublicKey::from(key));
            peers.push(Peer::new(place, node.endpoint, tunnel));
        }
        Ok(Mesh::begin(peers, self.socket, rank))
    }
}

/// The address by which this machine is reached from where `towards` is. Nothing is sent.
async fn own_address(towards: Option<IpAddr>) -> Option<IpAddr> {
    for towards in towards.into_iter().chain(OUTSIDE) {
        let any = match towards {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        if let Ok(socket) = UdpSocket::bind((any, 0)).await
            && socket.connect((towards, 9)).await.is_ok()
            && let Ok(here) = socket.local_addr()
        {
            return Some(here.ip());
        }
    }
    // A network without a way out has addresses all the same.
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses = all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip()));
    addresses
        .find(|one| !one.is_loopback() && !one.is_link_local())
        .map(IpAddr::from)
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
        ("LOCAL_RANK", "0".to_owned()),
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
        ("SKYPILOT_NODE_RANK", rank.clone()),
        ("SKYPILOT_NODE_IPS", addresses.join("\n")),
        ("SKYPILOT_SETUP_NODE_RANK", rank),
        ("SKYPILOT_SETUP_NODE_IPS", addresses.join("\n")),
        ("SKYPILOT_NUM_GPUS_PER_NODE", accelerators.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
