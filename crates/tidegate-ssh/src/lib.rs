//! Compute on machines of the user's own, reached by the system's `ssh`.
//!
//! ```text
//!  control plane                          a host
//!  SshDriver ──ssh: one request (JSON)──▶ tidegate jobs ──serve──▶ the host's own driver
//!      │     ◀───────one answer (JSON)───      │                        │
//!      └─ssh: the program, once───────────▶ bin/DIGEST/tidegate       jobs/…, processes
//! ```
//!
//! [`SshDriver`] holds nothing of its own: a host keeps its jobs itself, by the driver that keeps jobs on this machine,
//! and what that promises holds there too: a job outlives every connection, is found again by its id, and never runs
//! twice. Each call is one connection. Which host a job goes to follows from its id alone, so that a request that is
//! sent again after a crash finds the job of the first.
//!
//! The program comes to a host under the name of its SHA-256, which the host verifies before it is run there. Requests,
//! the ticket in them too, are in the connection and in no command line. Whom to believe to be a host is `ssh`'s own
//! matter: a host whose key it does not know is not spoken to.

mod driver;
mod exchange;

pub use driver::{Hosts, InvalidHosts, SshDriver};
pub use exchange::{HostRequest, serve};
