//! Why a server did not start or ended.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A server that cannot run. What is wrong with one release or one request ends no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error(
        "listening on {address}: {source}; choose another address or port with `--listen`, or end what uses this one"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The record of what was served is there and cannot be trusted.
    #[error(
        "reading `{}`, which says what versions were served: {reason}; without it an older release could come back, \
         so remove the file only if you know that the newest releases are in the folder", path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A limit that would let nothing through.
    #[error("the limit `{0}` must be at least 1")]
    Limit(&'static str),
    /// The server ended by itself.
    #[error("serving on {address}: {source}")]
    Ended {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}
