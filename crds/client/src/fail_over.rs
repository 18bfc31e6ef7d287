//! Several servers of one cluster as one client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame};
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::access::{Access, AccessError, one};

/// A request that its caller gives up sooner says nothing about the server. Shorter than any caller's own limit.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is asked of a server that left a request without an answer, and how long it has for that: it is given up only if it
/// answers nothing at all or says that it does not live, not because it is slow with one thing.
const QUESTION: &str = "/livez";
const ANSWER: Duration = Duration::from_secs(3);

/// The API servers, and what is known about reaching them.
#[derive(Clone)]
pub struct ApiServers {
    client: Client,
    servers: Arc<Servers>,
}

impl ApiServers {
    /// Makes the client. Nothing is connected yet. Must be called within a runtime.
    ///
    /// # Errors
    /// What of `access` cannot be used.
    pub async fn new(access: &Access) -> Result<Self, AccessError> {
        let configs = access.configs().await?;
        let namespace = configs.first().map(|config| config.default_namespace.clone()).unwrap_or_default();
        let mut list = Vec::new();
        for config in configs {
            let uri = config.cluster_url.clone();
            let (client, asked) = (one(config)?, AtomicBool::new(false));
            list.push(Server { name: name(&uri), client, asked, given_up: watch::channel(0).0 });
        }
        let servers = Arc::new(Servers { list, current: AtomicUsize::new(0), requests: AtomicU64::new(0) });
        let client = Client::new(FailOver { servers: servers.clone() }, namespace);
        Ok(Self { client, servers })
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The endpoint in use, for people to read.
    pub fn in_use(&self) -> &str {
        self.servers.at(self.servers.current()).map_or("none", |server| &server.name)
    }

    /// The endpoint in use is not to be trusted any more: requests to it fail, streams from it end, the next one is
    /// used. Where there is only one, it is reached by new connections.
    pub fn give_up(&self) {
        let current = self.servers.current();
        if let Some(server) = self.servers.at(current) {
            let seen = *server.given_up.borrow();
            self.servers.give_up(current, seen);
        }
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.servers.requests.load(Ordering::Relaxed)
    }
}

/// Whether no API server answered: the request, not its content, failed.
pub fn unanswered(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_))
}

struct Server {
    name: String,
    client: Client,
    /// It is being asked whether it lives.
    asked: AtomicBool,
    /// How often it was given up. What streams from it ends when this changes: a watch on a dead server must not wait
    /// for its idle timeout.
    given_up: watch::Sender<u64>,
}

struct Servers {
    list: Vec<Server>,
    current: AtomicUsize,
    requests: AtomicU64,
}

impl Servers {
    fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    fn at(&self, index: usize) -> Option<&Server> {
        self.list.get(index)
    }

    /// Makes the server after `failed` the current one, unless somebody was faster.
    fn advance(&self, failed: usize) {
        let next = (failed + 1) % self.list.len().max(1);
        let swapped = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        if swapped.is_ok()
            && next != failed
            && let (Some(from), Some(to)) = (self.at(failed), self.at(next))
        {
            warn!("API server {} does not answer: going on with {}", from.name, to.name);
        }
    }

    /// Many requests to one server fail together: only the first of those that saw it given up `seen` times counts.
    fn give_up(&self, failed: usize, seen: u64) {
        let Some(server) = self.at(failed) else { return };
        let first = server.given_up.send_if_modified(|times| {
            let first = *times == seen;
            *times += u64::from(first);
            first
        });
        if first {
            self.advance(failed);
        }
    }

    /// A request was left without an answer: the next ones go elsewhere, and what else waits for this server goes on
    /// unless it does not answer the simplest question either.
    fn doubt(self: &Arc<Self>, at: usize, seen: u64) {
        self.advance(at);
        let Some(server) = self.at(at) else { return };
        // Where the runtime ends, so do the requests.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if server.asked.swap(true, Ordering::Relaxed) {
            return;
        }
        let servers = Arc::clone(self);
        runtime.spawn(async move {
            let Some(server) = servers.at(at) else { return };
            let question = Request::get(QUESTION).body(Body::empty());
            let answered = match question {
                Ok(question) => tokio::time::timeout(ANSWER, server.client.send(question)).await,
                // It is a constant.
                Err(_) => return,
            };
            server.asked.store(false, Ordering::Relaxed);
            // One that refuses the question speaks. One that says it does not live would leave the next request, too.
            let lives = |answer: &Response<_>| !answer.status().is_server_error();
            if !matches!(&answered, Ok(Ok(answer)) if lives(answer)) {
                servers.give_up(at, seen);
            }
        });
    }

    async fn send(self: Arc<Self>, request: Request<Body>) -> Result<Response<Severable>, kube::Error> {
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let mut left = self.list.len();
        loop {
            left = left.saturating_sub(1);
            let at = self.current();
            // Bodies of requests are in memory, so they can be sent again; a stream goes out once.
            let copy = body.as_ref().and_then(Body::try_clone);
            let (Some(now), Some(server)) = (body.take(), self.at(at)) else {
                return Err(kube::Error::Service(NotSent.into()));
            };
            let mut given_up = server.given_up.subscribe();
            let seen = *given_up.borrow_and_update();
            self.requests.fetch_add(1, Ordering::Relaxed);
            let mut patience = Patience { servers: &self, at, seen, since: Some(Instant::now()) };
            let answer = tokio::select! {
                answer = server.client.send(Request::from_parts(parts.clone(), now)) => answer,
                // The sender lives as long as this service does.
                Ok(()) = given_up.changed() => Err(kube::Error::Service(GivenUp.into())),
            };
            patience.since = None;
            let error = match answer {
                Ok(response) => {
                    // 500 is about the request; these are about the server. The answer is the caller's, and streams
                    // that work go on: a server with too much to do is not helped by new connections.
                    if matches!(response.status().as_u16(), 502..=504) {
                        self.advance(at);
                    }
                    let severed = Box::pin(async move {
                        // The sender lives as long as the client; should it go, nothing is severed.
                        if given_up.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    });
                    return Ok(response.map(|body| Severable { body, severed }));
                }
                Err(error) => error,
            };
            if unanswered(&error) {
                self.give_up(at, seen);
            }
            body = copy;
            if left == 0 || body.is_none() || !unsent(&error) {
                return Err(error);
            }
        }
    }
}

/// Notices that the caller gave a request up for lack of an answer: it is dropped then. A server that takes connections
/// and answers nothing would be used for ever otherwise.
struct Patience<'a> {
    servers: &'a Arc<Servers>,
    at: usize,
    seen: u64,
    /// When the request went out, until there is an answer.
    since: Option<Instant>,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= PATIENCE) {
            self.servers.doubt(self.at, self.seen);
        }
    }
}

/// A request body that cannot be sent a second time.
#[derive(Debug, thiserror::Error)]
#[error("the request's body was sent already")]
struct NotSent;

/// The server did not answer others either.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the API server was given up")]
struct GivenUp;

/// Whether nothing of the request reached the server: only then may another one get it.
fn unsent(error: &kube::Error) -> bool {
    let kube::Error::Service(source) = error else { return false };
    source.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect())
}

fn name(uri: &Uri) -> String {
    uri.authority().map_or_else(|| uri.to_string(), ToString::to_string)
}

#[derive(Clone)]
struct FailOver {
    servers: Arc<Servers>,
}

impl tower::Service<Request<Body>> for FailOver {
    type Response = Response<Severable>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.servers.clone().send(request))
    }
}

/// A response body that ends with an error when its server is given up.
struct Severable {
    body: Body,
    severed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Severable {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // What is there is read first: the answer of a server that was given up meanwhile is as good as any.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.severed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Box::new(GivenUp))));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
