//! A listener that holds no more connections than it was told to, and none of them for ever.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Accepts a connection only while a slot is free; others wait in the system's own queue.
pub(crate) struct BoundedListener {
    inner: TcpListener,
    slots: Arc<Semaphore>,
    turn: Duration,
}

impl BoundedListener {
    /// `turn` is how long a request may take to come, and its answer to go.
    pub(crate) fn new(inner: TcpListener, connections: usize, turn: Duration) -> Self {
        Self {
            inner,
            slots: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            turn,
        }
    }
}

impl Listener for BoundedListener {
    type Io = Held<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        // The semaphore is never closed; if it were, nothing would be accepted any more.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return std::future::pending().await;
        };
        let (stream, address) = Listener::accept(&mut self.inner).await;
        (Held::new(stream, self.turn, Some(slot)), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection with its slot and a deadline.
///
/// The first byte in the other direction begins a new turn, and only that moves the deadline: a client
/// that sends or reads one byte at a time gains nothing over one that is silent.
pub(crate) struct Held<S> {
    stream: S,
    turn: Duration,
    reading: bool,
    deadline: Pin<Box<Sleep>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl<S: Unpin> Held<S> {
    fn new(stream: S, turn: Duration, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            turn,
            reading: false,
            deadline: Box::pin(sleep(turn)),
            _slot: slot,
        }
    }

    /// Bytes went in one direction.
    fn moved(&mut self, reading: bool) {
        if self.reading != reading {
            self.reading = reading;
            // A turn too long for a clock has no end.
            if let Some(end) = Instant::now().checked_add(self.turn) {
                self.deadline.as_mut().reset(end);
            }
        }
    }

    /// What the stream says, or the end of the connection when it has nothing to say and time is up.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() && self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }

    fn wrote(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(polled, Poll::Ready(Ok(count)) if count > 0) {
            self.moved(false);
        }
        self.in_time(cx, polled)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.moved(true);
        }
        self.in_time(cx, polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    const TURN: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn who_reads_one_byte_at_a_time_is_left() {
        let (ours, mut theirs) = duplex(16);
        let mut held = Held::new(ours, TURN, None);
        let reading = tokio::spawn(async move {
            loop {
                let _ = theirs.read_u8().await;
                tokio::time::sleep(TURN / 10).await;
            }
        });
        let written = timeout(TURN * 20, held.write_all(&[0; 4096])).await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        reading.abort();
    }

    #[tokio::test]
    async fn every_turn_has_its_own_time() {
        let (ours, mut theirs) = duplex(16);
        let mut held = Held::new(ours, TURN, None);
        for _ in 0..4 {
            tokio::time::sleep(TURN / 2).await;
            theirs.write_u8(1).await.unwrap();
            assert_eq!(held.read_u8().await.unwrap(), 1);
            held.write_u8(2).await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), 2);
        }
        let silent = timeout(TURN * 20, held.read_u8()).await.unwrap();
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
