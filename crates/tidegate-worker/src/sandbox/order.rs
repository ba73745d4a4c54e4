//! What the worker and the sandbox program tell each other, over the socket that is the program's standard input: an order one
//! way; the other way an answer, with what the program opened for the worker.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tidegate_types::message::SandboxEvidence;

use super::joined::Joined;
use super::{Policy, probe};

/// An order is longer than this only by mistake.
const ORDER_BYTES: u64 = 16 << 20;
/// The longest answer that is believed.
const ANSWER_BYTES: usize = 16 << 10;
/// The most that is opened for the worker: shared memory, a device and its network.
const MOST_OPEN: usize = 3;

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The process that must be our parent.
    pub(super) parent: u32,
    pub(super) policy: Policy,
    pub(super) command: Vec<OsString>,
    /// The command's whole environment. It must not be the sandbox program's own: a preloaded library
    /// would run before any limit.
    pub(super) environment: BTreeMap<String, String>,
    /// Tries something in place of running a command.
    pub(super) probe: Option<probe::Probe>,
}

/// Said once, immediately before the command takes over, or when it does not.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) evidence: SandboxEvidence,
    /// Why no command is started.
    pub(super) refused: Option<String>,
    /// Why the command has no memory that its processes share by name, where it was to have some.
    pub(super) unshared: Option<String>,
    /// Whether it sees its folders in the room.
    pub(super) in_room: bool,
    /// The folder of that memory.
    pub(super) shared: Option<OwnedFd>,
    pub(super) joined: Option<Joined>,
}

/// An answer's words, on one line.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    evidence: SandboxEvidence,
    refused: Option<String>,
    unshared: Option<String>,
    in_room: bool,
    /// Whether what was opened begins with the folder of shared memory.
    shared: bool,
}

impl Order {
    /// Reads the order that this program was started for.
    pub(super) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        if args.into_iter().next().is_some() {
            return Err("sandbox-exec takes its order from standard input and no arguments".to_owned());
        }
        let mut text = Vec::new();
        io::stdin()
            .take(ORDER_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| format!("reading the order: {}", error.kind()))?;
        serde_json::from_slice(&text).map_err(|_| "the order on standard input is not one".to_owned())
    }

    pub(super) fn send(&self, mut to: &UnixStream) -> io::Result<()> {
        to.write_all(&serde_json::to_vec(self)?)?;
        to.shutdown(Shutdown::Write)
    }
}

impl Answer {
    /// Answers over standard input, and keeps nothing open.
    pub(super) fn send(self) -> io::Result<()> {
        let words = Words {
            shared: self.shared.is_some(),
            evidence: self.evidence,
            refused: self.refused,
            unshared: self.unshared,
            in_room: self.in_room,
        };
        let mut line = serde_json::to_vec(&words)?;
        line.push(b'\n');
        let joined = self
            .joined
            .iter()
            .flat_map(|joined| [&joined.device, &joined.namespace]);
        let opened: Vec<_> = self.shared.iter().chain(joined).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_OPEN))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !opened.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&opened)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(io::stdin(), &[IoSlice::new(&line)], &mut control, SendFlags::empty())?;
        if sent == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Waits for the answer; `None` when the program ended without one.
    pub(super) fn take(from: &UnixStream) -> Option<Self> {
        let (mut line, mut opened) = (Vec::new(), Vec::new());
        while !line.ends_with(b"\n") && line.len() < ANSWER_BYTES {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_OPEN))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut piece = [0; 4096];
            let into = &mut [IoSliceMut::new(&mut piece)];
            let count = match recvmsg(from, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) if message.bytes > 0 => message.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                _ => return None,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(ends) = message {
                    opened.extend(ends);
                }
            }
            line.extend_from_slice(piece.get(..count)?);
        }
        let words: Words = serde_json::from_slice(&line).ok()?;
        let mut opened = opened.into_iter();
        let shared = if words.shared { Some(opened.next()?) } else { None };
        let joined = match (opened.next(), opened.next()) {
            (Some(device), Some(namespace)) => Some(Joined { device, namespace }),
            _ => None,
        };
        Some(Self {
            evidence: words.evidence,
            refused: words.refused,
            unshared: words.unshared,
            in_room: words.in_room,
            shared,
            joined,
        })
    }
}
