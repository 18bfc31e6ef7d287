//! The API servers as one client: requests go to one of them until it fails, then to the next.
//!
//! The list is of real endpoints, never the ClusterIP: that one is programmed by this agent.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;

/// Where Kubernetes puts the token and the certificate of a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Longest wait for a connection: the next server of the list is tried after it.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest time in which nothing of a request can be written.
const WRITE: Duration = Duration::from_secs(10);
/// Silence after which a connection is asked whether it lives, and how often.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How the API servers are reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Kubeconfig; without it the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Folder with `token` and `ca.crt` of the service account.
    pub service_account: Option<PathBuf>,
    /// Endpoints as `HOST:PORT`; without them the one of the kubeconfig or of the environment.
    pub endpoints: Vec<String>,
    /// Name to expect in the servers' certificates instead of the endpoint's own.
    pub tls_server_name: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}", path = .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The pod's service account cannot be used.
    #[error(
        "no --kubeconfig, and the pod's service account cannot be read: {path}: {source}",
        path = .path.display()
    )]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// No endpoint was named and the environment has none.
    #[error("no API server is named: use --api-server HOST:PORT (may be repeated) or --kubeconfig FILE")]
    NoEndpoint,
    /// An endpoint is not `HOST:PORT`.
    #[error("--api-server {endpoint:?} is not HOST:PORT: {source}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Cause.
        source: http::uri::InvalidUri,
    },
    /// The client cannot be made (certificate, token).
    #[error("client for {endpoint}: {source}")]
    Client {
        /// For which endpoint.
        endpoint: String,
        /// Cause.
        source: Box<kube::Error>,
    },
}

/// The API servers, and what is known about reaching them.
#[derive(Clone)]
pub struct ApiServers {
    client: Client,
    shared: Arc<Shared>,
}

struct Shared {
    names: Vec<String>,
    /// Number of changes so far; the endpoint in use is this modulo the number of endpoints. Bodies that stream from
    /// the server used before end when it changes: a watch on a dead server must not wait for its idle timeout.
    turn: watch::Sender<u64>,
    requests: AtomicU64,
}

impl ApiServers {
    /// Makes the client. Nothing is connected yet.
    pub async fn new(access: &Access) -> Result<Self, AccessError> {
        let base = base_config(access).await?;
        let mut uris = Vec::new();
        for endpoint in &access.endpoints {
            let uri = if endpoint.contains("://") { endpoint.clone() } else { format!("https://{endpoint}") };
            let source = |source| AccessError::Endpoint { endpoint: endpoint.clone(), source };
            uris.push(uri.parse::<http::Uri>().map_err(source)?);
        }
        if uris.is_empty() {
            uris.push(base.as_ref().map(|c| c.cluster_url.clone()).ok_or(AccessError::NoEndpoint)?);
        }
        let mut clients = Vec::new();
        let mut names = Vec::new();
        for uri in uris {
            let mut config = match &base {
                Some(base) => base.clone(),
                None => return Err(AccessError::NoEndpoint),
            };
            config.cluster_url = uri.clone();
            if access.tls_server_name.is_some() {
                config.tls_server_name.clone_from(&access.tls_server_name);
            }
            let client = one(config).map_err(|source| AccessError::Client {
                endpoint: uri.to_string(),
                source: Box::new(source),
            })?;
            clients.push(client);
            names.push(uri.authority().map_or_else(|| uri.to_string(), ToString::to_string));
        }
        let shared = Arc::new(Shared { names, turn: watch::channel(0).0, requests: AtomicU64::new(0) });
        let client = Client::new(FailOver { clients, shared: shared.clone() }, "default");
        Ok(Self { client, shared })
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The endpoint in use, for people to read.
    pub fn in_use(&self) -> &str {
        let turn = *self.shared.turn.borrow();
        &self.shared.names[turn as usize % self.shared.names.len()]
    }

    /// The endpoint in use does not answer: the next one is used, and streams from this one end.
    pub fn give_up(&self) {
        self.shared.turn.send_modify(|turn| *turn += 1);
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

/// A client for one server, made by hand for what the library's own way does not offer: no delay of a request's last
/// segment, and keepalive, so that a watch whose connection died without a word ends within [`KEEPALIVE`] × 4. Nothing is
/// retried here: that would hide a dead server from the fail-over.
fn one(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(3));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_write_timeout(Some(WRITE));
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

async fn base_config(access: &Access) -> Result<Option<Config>, AccessError> {
    if let Some(path) = &access.kubeconfig {
        let failed = |source| AccessError::Kubeconfig { path: path.clone(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        return config.map(Some).map_err(failed);
    }
    let folder = access.service_account.clone().unwrap_or_else(|| Path::new(SERVICE_ACCOUNT).to_owned());
    let token = folder.join("token");
    if let Err(source) = std::fs::metadata(&token) {
        return Err(AccessError::ServiceAccount { path: token, source });
    }
    let from_environment = || {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        format!("https://{host}:{port}").parse::<http::Uri>().ok()
    };
    let uri = match from_environment() {
        Some(uri) => uri,
        None if access.endpoints.is_empty() => return Ok(None),
        None => http::Uri::from_static("https://kubernetes.default.svc"),
    };
    let mut config = Config::new(uri);
    config.root_cert_file = Some(folder.join("ca.crt"));
    config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
    Ok(Some(config))
}

#[derive(Clone)]
struct FailOver {
    clients: Vec<Client>,
    shared: Arc<Shared>,
}

impl tower::Service<Request<Body>> for FailOver {
    type Response = Response<Severable>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut turns = self.shared.turn.subscribe();
        let turn = *turns.borrow_and_update();
        let client = self.clients[turn as usize % self.clients.len()].clone();
        let shared = self.shared.clone();
        shared.requests.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let answer = tokio::select! {
                answer = client.send(request) => answer,
                // The sender lives as long as this service does.
                Ok(()) = turns.changed() => Err(kube::Error::Service(Box::new(given_up()))),
            };
            let useless = match &answer {
                Err(_) => true,
                // 500 is about the request; these are about the server.
                Ok(response) => matches!(response.status().as_u16(), 502..=504),
            };
            if useless {
                // Many requests fail together; only the first of them moves on.
                shared.turn.send_if_modified(|now| {
                    let mine = *now == turn;
                    *now += u64::from(mine);
                    mine
                });
            }
            let severed = Box::pin(async move {
                // The sender lives as long as the client; should it go, nothing is severed.
                if turns.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            });
            answer.map(|response| response.map(|body| Severable { body, severed }))
        })
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
            return Poll::Ready(Some(Err(Box::new(given_up()))));
        }
        Poll::Pending
    }
}

fn given_up() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::ConnectionAborted,
        "the connection to the API server was given up",
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that answers each request of a connection with `body`, or stays silent after the head.
    fn server(body: &'static str, silent: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer);
                let length = if silent { body.len() + 10 } else { body.len() };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(head.as_bytes());
                held.push(stream);
            }
        });
        address
    }

    async fn access(endpoints: Vec<String>) -> ApiServers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
            users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";
        std::fs::write(&path, text).unwrap();
        let endpoints = endpoints.into_iter().map(|e| format!("http://{e}")).collect();
        ApiServers::new(&Access { kubeconfig: Some(path), endpoints, ..Access::default() }).await.unwrap()
    }

    fn request() -> Request<Body> {
        Request::get("/x").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn the_next_server_is_used_when_one_fails() {
        let good = server("hello", false);
        let servers = access(vec!["127.0.0.1:1".to_owned(), good.clone()]).await;
        assert_eq!(servers.in_use(), "127.0.0.1:1");
        assert!(servers.client().send(request()).await.is_err());
        assert_eq!(servers.in_use(), good);
        let answer = servers.client().send(request()).await.unwrap();
        assert_eq!(answer.into_body().collect_bytes().await.unwrap().as_ref(), b"hello");
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_server_is_given_up() {
        let silent = server("begun", true);
        let servers = access(vec![silent]).await;
        let body = servers.client().send(request()).await.unwrap().into_body();
        let reading = tokio::spawn(body.collect_bytes());
        servers.give_up();
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
        assert!(read.is_err(), "the stream went on: {read:?}");
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let error = ApiServers::new(&Access {
            service_account: Some("/nowhere".into()),
            endpoints: vec!["127.0.0.1:6443".into()],
            ..Access::default()
        })
        .await
        .err()
        .unwrap();
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
    }
}
