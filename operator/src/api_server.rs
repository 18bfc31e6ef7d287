//! The client: a kubeconfig or the pod's ServiceAccount, and a list of API servers.
//!
//! The list exists because of what nodenet is: the `kubernetes` Service's ClusterIP is programmed by nodenet itself,
//! so its operator must not depend on it. Requests go to one server until it cannot be reached, then to the next.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request, Response, Uri};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::Instant;
use tracing::warn;

use crate::publish::unanswered;

/// Longest wait for a connection: the next server of the list is tried after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence after which a connection is asked whether it lives, and how often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Name that every API server's certificate holds, whatever addresses it lists.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// Not in a pod, and no kubeconfig given.
    #[error("no --kubeconfig was given and this is not a pod with a ServiceAccount: {0}")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// An entry of the list of API servers is none.
    #[error("--api-server {value:?} is not HOST:PORT ({source}); write for example 192.168.0.10:6443")]
    Address {
        /// The entry.
        value: String,
        /// Why not.
        source: axum::http::Error,
    },
    /// The certificates or credentials cannot be used.
    #[error("client for {server}: {source}")]
    Client {
        /// The API server.
        server: Uri,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// Makes the client. Nothing is sent yet. Must be called within a runtime.
pub async fn connect(kubeconfig: Option<&Path>, servers: &[String]) -> Result<Client, Error> {
    let (config, in_cluster) = match kubeconfig {
        Some(path) => (from_file(path).await?, false),
        None => (Config::incluster().map_err(|e| Error::InCluster(Box::new(e)))?, true),
    };
    let mut configs = Vec::new();
    for server in servers {
        configs.push(for_server(&config, server, in_cluster)?);
    }
    if configs.is_empty() {
        configs.push(config);
    }
    client(configs)
}

/// One client for several servers of one cluster.
fn client(configs: Vec<Config>) -> Result<Client, Error> {
    let namespace = configs.first().map(|c| c.default_namespace.clone()).unwrap_or_default();
    let mut clients = Vec::new();
    for config in configs {
        let server = config.cluster_url.clone();
        let client = one(config)
            .map_err(|source| Error::Client { server: server.clone(), source: Box::new(source) })?;
        clients.push((server, client));
    }
    Ok(Client::new(Servers { clients: clients.into(), current: Arc::default() }, namespace))
}

/// A client for one server. Made by hand for two settings of the socket that the library's own way does not offer:
/// * no delay: with Nagle's algorithm the last segment of a request waits for the acknowledgement of the one before,
///   which the other side may withhold for 40 ms;
/// * keepalive: a watch on a connection that died without a word ends within [`KEEPALIVE`] × 4.
///
/// Nothing is retried here: the caller knows whether the request still makes sense.
fn one(config: Config) -> Result<Client, kube::Error> {
    let namespace = config.default_namespace.clone();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(3));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, namespace))
}

async fn from_file(path: &Path) -> Result<Config, Error> {
    let error = |source| Error::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(error)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)
}

fn for_server(config: &Config, server: &str, in_cluster: bool) -> Result<Config, Error> {
    let scheme = config.cluster_url.scheme_str().unwrap_or("https");
    let url = Uri::builder()
        .scheme(scheme)
        .authority(server)
        .path_and_query("/")
        .build()
        .map_err(|source| Error::Address { value: server.to_owned(), source })?;
    let mut config = config.clone();
    if config.tls_server_name.is_none() {
        // The certificate is checked for the name it was made for, not for the address of this list.
        config.tls_server_name = if in_cluster {
            Some(IN_CLUSTER_NAME.to_owned())
        } else {
            config.cluster_url.host().map(|h| h.trim_matches(['[', ']']).to_owned())
        };
    }
    config.cluster_url = url;
    Ok(config)
}

/// A service that sends each request to the current server, and to the next one where no connection came about.
#[derive(Clone)]
struct Servers {
    clients: Arc<[(Uri, Client)]>,
    current: Arc<AtomicUsize>,
}

impl Servers {
    /// Makes the server after `failed` the current one, unless somebody was faster.
    fn advance(&self, failed: usize) {
        let next = (failed + 1) % self.clients.len();
        let swapped = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        if swapped.is_ok()
            && next != failed
            && let (Some((from, _)), Some((to, _))) = (self.clients.get(failed), self.clients.get(next))
        {
            warn!("API server {from} does not answer: going on with {to}");
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let mut left = self.clients.len();
        loop {
            left -= 1;
            let at = self.current.load(Ordering::Relaxed);
            // Bodies of requests are in memory, so they can be sent again; a stream goes out once.
            let copy = body.as_ref().and_then(Body::try_clone);
            let Some(now) = body.take() else { return Err(kube::Error::Service(NoBody.into())) };
            let Some((_, client)) = self.clients.get(at) else {
                return Err(kube::Error::Service(NoBody.into()));
            };
            let patience = Patience { servers: &self, at, since: Instant::now() };
            let result = client.send(Request::from_parts(parts.clone(), now)).await;
            std::mem::forget(patience);
            let error = match result {
                Ok(response) => {
                    if (502..=504).contains(&response.status().as_u16()) {
                        // The answer is the caller's; the next request is somebody else's.
                        self.advance(at);
                    }
                    return Ok(response);
                }
                Err(error) => error,
            };
            if unanswered(&error) {
                self.advance(at);
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
    servers: &'a Servers,
    at: usize,
    since: Instant,
}

/// A request that is given up sooner says nothing about the server.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= PATIENCE {
            self.servers.advance(self.at);
        }
    }
}

/// A request body that cannot be sent a second time.
#[derive(Debug, thiserror::Error)]
#[error("the request's body was sent already")]
struct NoBody;

/// Whether nothing of the request reached the server: only then may another one get it.
fn unsent(error: &kube::Error) -> bool {
    let kube::Error::Service(source) = error else { return false };
    source.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect())
}

impl tower::Service<Request<Body>> for Servers {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_checked_for_the_name_it_was_made_for() {
        let config = Config::new("https://api.example.org:6443".parse().unwrap());
        let one = for_server(&config, "192.168.0.10:6443", false).unwrap();
        assert_eq!(one.cluster_url, "https://192.168.0.10:6443/");
        assert_eq!(one.tls_server_name.as_deref(), Some("api.example.org"));
        let one = for_server(&config, "[2001:db8::1]:6443", true).unwrap();
        assert_eq!(one.cluster_url, "https://[2001:db8::1]:6443/");
        assert_eq!(one.tls_server_name.as_deref(), Some("kubernetes.default.svc"));
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_passed_over_and_stays_so() {
        use axum::routing::post;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let up = listener.local_addr().unwrap();
        let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let echo = axum::Router::new().route("/", post(async |body: String| body));
        tokio::spawn(async move { axum::serve(listener, echo).await });
        let config = |address| Config::new(format!("http://{address}/").parse().unwrap());
        let client = client(vec![config(down), config(up)]).unwrap();
        for _ in 0..3 {
            // A body too must arrive whole at the second server.
            let request = Request::post("/").body(b"hello".to_vec()).unwrap();
            assert_eq!(client.request_text(request).await.unwrap(), "hello");
        }
    }

    #[tokio::test]
    async fn a_server_that_takes_connections_and_answers_nothing_is_left() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (first, second) = (silent.local_addr().unwrap(), listener.local_addr().unwrap());
        let good = axum::Router::new().route("/", axum::routing::get(async || "here"));
        tokio::spawn(async move { axum::serve(listener, good).await });
        let config = |address| Config::new(format!("http://{address}/").parse().unwrap());
        let client = client(vec![config(first), config(second)]).unwrap();
        let get = || Request::get("/").body(Vec::new()).unwrap();
        let given_up =
            tokio::time::timeout(PATIENCE + Duration::from_millis(100), client.request_text(get()));
        assert!(given_up.await.is_err());
        assert_eq!(client.request_text(get()).await.unwrap(), "here");
    }

    #[test]
    fn an_address_that_is_none_is_refused_in_words() {
        let config = Config::new("https://a:1".parse().unwrap());
        let error = for_server(&config, "https://192.168.0.10:6443", false).unwrap_err().to_string();
        assert!(error.contains("HOST:PORT"), "{error}");
    }
}
