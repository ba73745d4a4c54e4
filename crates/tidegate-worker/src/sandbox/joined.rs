//! A network of the command's own, in which the other machines of its job are reached and nobody else.
//!
//! The sandbox program makes it before it limits itself: a network namespace that holds the loopback interface and one
//! tunnel device, whose other end it passes to the worker with its answer. What the command sends there, the worker gets, and
//! seals for the machine that it is meant for (see [`crate::nodes`]).

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use rtnetlink::LinkUnspec;
use tun_rs::DeviceBuilder;

/// What the tunnel device is called inside.
pub const INTERFACE: &str = "tidegate0";
/// The longest packet inside: with WireGuard's and UDP's headers it fits into 1,460 bytes, the least of the large clouds.
const LONGEST_PACKET: u16 = 1380;
/// The network inside; the first machine has the first address.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 0);
const PREFIX: u8 = 24;

/// The address that the machine of a rank has inside.
#[must_use]
pub fn address(rank: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(NETWORK.to_bits() | (rank.saturating_add(1) & 0xff))
}

/// The worker's end of a command's own network.
#[derive(Debug)]
pub struct Joined {
    /// The tunnel device: one packet for each read or write.
    pub(crate) device: OwnedFd,
    /// Keeps the network while connections of a command that has ended are being closed.
    pub(crate) namespace: OwnedFd,
}

/// Makes the device inside the namespace that this process has just moved into.
pub(super) fn join(rank: u32) -> Result<Joined, String> {
    // Where there is none, the library would make one that stays.
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err("a tunnel device: this machine has no `/dev/net/tun`".to_owned());
    }
    let device = DeviceBuilder::new()
        .name(INTERFACE)
        .ipv4(address(rank), PREFIX, None)
        .mtu(LONGEST_PACKET)
        .build_sync()
        .map_err(|error| format!("a tunnel device (`/dev/net/tun`): {error}"))?;
    loopback().map_err(|error| format!("the loopback interface: {error}"))?;
    let namespace = File::open("/proc/self/ns/net").map_err(|error| format!("its own network: {error}"))?;
    let device = device.as_fd().try_clone_to_owned();
    Ok(Joined {
        device: device.map_err(|error| format!("passing the tunnel device on: {error}"))?,
        namespace: namespace.into(),
    })
}

/// Opens the loopback interface, through which a machine also reaches its own address.
pub(super) fn loopback() -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    // On this thread alone: the limits that follow hold for one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        let connection = tokio::spawn(connection);
        let index = nix::net::if_::if_nametoindex("lo").map_err(|error| error.to_string())?;
        let up = handle.link().set(LinkUnspec::new_with_index(index).up().build());
        let done = up.execute().await.map_err(|error| error.to_string());
        connection.abort();
        done
    })
}
