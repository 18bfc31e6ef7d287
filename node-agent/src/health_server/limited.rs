//! Few connections at once, and none for long: whoever reaches the node may ask, on the runtime that also renews the node's
//! Lease.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Connections that are answered at once; more wait in the kernel's queue.
const PLACES: usize = 64;
/// What a question and its answer may take. Load balancers give up earlier.
const LIFE: Duration = Duration::from_secs(5);

/// Room for connections, shared by several sockets.
#[derive(Clone)]
pub(super) struct Places(Arc<Semaphore>);

impl Places {
    /// Room for 64 of them.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }
}

/// A socket that takes a connection when there is room for it.
pub(super) struct Limited {
    listener: TcpListener,
    places: Places,
}

impl Limited {
    /// Takes the connections of `listener`.
    pub fn new(listener: TcpListener, places: Places) -> Self {
        Self { listener, places }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Nobody closes the semaphore.
        let place = self.places.0.clone().acquire_owned().await.ok();
        // It waits a little where the process has no more files.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection { stream, end: Box::pin(sleep(LIFE)), _place: place }, address)
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends by itself.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// The other end had its time.
    fn over(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        ready!(self.end.as_mut().poll(context));
        Poll::Ready(ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if let Poll::Ready(error) = self.over(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        if let Poll::Ready(error) = self.over(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::Router;
    use axum::routing::get;

    use super::*;

    /// One that asks nothing, and one that asks and gets its answer.
    fn connect(address: SocketAddr) -> std::net::TcpStream {
        std::net::TcpStream::connect(address).unwrap()
    }

    fn ask(mut stream: std::net::TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_others_waiting_for_a_moment_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = Places::new();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(axum::serve(Limited::new(listener, places.clone()), router).into_future());
        let mut silent: Vec<_> = (0..PLACES).map(|_| connect(address)).collect();
        while places.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // Its question waits until the others had their time, and is answered then.
        let answer = tokio::task::spawn_blocking(move || ask(connect(address))).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        let ended = tokio::task::spawn_blocking(move || silent[0].read(&mut [0; 1])).await.unwrap();
        assert!(!matches!(ended, Ok(1..)), "it was closed: {ended:?}");
    }
}
