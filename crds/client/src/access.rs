//! What a client is made of: a kubeconfig or the pod's service account, and the list of endpoints.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// Where Kubernetes puts the token and the certificate of a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Name that every API server's certificate holds, whatever addresses it lists.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";
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
    /// Folder with `token` and `ca.crt` of the service account; [`SERVICE_ACCOUNT`] by default.
    pub service_account: Option<PathBuf>,
    /// Endpoints as `HOST:PORT`; without them the one of the kubeconfig or of the environment.
    pub endpoints: Vec<String>,
    /// Name to expect in the servers' certificates. By default the one that the certificate was made for: that of
    /// the kubeconfig's server, or `kubernetes.default.svc` in a pod; the addresses of all endpoints it need not hold.
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
    #[error("--api-server {endpoint:?} is not HOST:PORT ({source}); write for example 192.168.0.10:6443")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Cause.
        source: http::Error,
    },
    /// The client cannot be made (certificate, token).
    #[error("client for {endpoint}: {source}")]
    Client {
        /// For which endpoint.
        endpoint: Uri,
        /// Cause.
        source: Box<kube::Error>,
    },
}

impl Access {
    /// The configuration of each endpoint, in the list's order; at least one.
    pub(crate) async fn configs(&self) -> Result<Vec<Config>, AccessError> {
        let (base, pod) = match &self.kubeconfig {
            Some(path) => (Some(from_file(path).await?), false),
            None => (self.in_pod()?, true),
        };
        let Some(mut base) = base else { return Err(AccessError::NoEndpoint) };
        if self.tls_server_name.is_some() {
            base.tls_server_name.clone_from(&self.tls_server_name);
        }
        if self.endpoints.is_empty() {
            return Ok(vec![base]);
        }
        self.endpoints.iter().map(|endpoint| at(&base, endpoint, pod)).collect()
    }

    /// The pod's service account; `None` where neither the environment nor the list says where the API server is.
    fn in_pod(&self) -> Result<Option<Config>, AccessError> {
        let folder = self.service_account.as_deref().unwrap_or(Path::new(SERVICE_ACCOUNT));
        let token = folder.join("token");
        if let Err(source) = std::fs::metadata(&token) {
            return Err(AccessError::ServiceAccount { path: token, source });
        }
        let from_environment = || {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
            let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("https://{host}:{port}").parse::<Uri>().ok()
        };
        let uri = match from_environment() {
            Some(uri) => uri,
            None if self.endpoints.is_empty() => return Ok(None),
            None => Uri::from_static("https://kubernetes.default.svc"),
        };
        let mut config = Config::new(uri);
        config.root_cert_file = Some(folder.join("ca.crt"));
        config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
        Ok(Some(config))
    }
}

async fn from_file(path: &Path) -> Result<Config, AccessError> {
    let failed = |source| AccessError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)
}

/// `base` at another endpoint of the same cluster.
fn at(base: &Config, endpoint: &str, in_pod: bool) -> Result<Config, AccessError> {
    let url = Uri::builder()
        .scheme(base.cluster_url.scheme_str().unwrap_or("https"))
        .authority(endpoint)
        .path_and_query("/")
        .build()
        .map_err(|source| AccessError::Endpoint { endpoint: endpoint.to_owned(), source })?;
    let mut config = base.clone();
    if config.tls_server_name.is_none() {
        config.tls_server_name = if in_pod {
            Some(IN_CLUSTER_NAME.to_owned())
        } else {
            base.cluster_url.host().map(|host| host.trim_matches(['[', ']']).to_owned())
        };
    }
    config.cluster_url = url;
    Ok(config)
}

/// A client for one server. Made by hand for what the library's own way does not offer:
/// * no delay: with Nagle's algorithm the last segment of a request waits for the acknowledgement of the one before,
///   which the other side may withhold for 40 ms;
/// * keepalive: a watch on a connection that died without a word ends within [`KEEPALIVE`] × 4.
///
/// Nothing is retried here: that would hide a dead server from the fail-over.
pub(crate) fn one(config: Config) -> Result<Client, AccessError> {
    let endpoint = config.cluster_url.clone();
    build(config).map_err(|source| AccessError::Client { endpoint, source: Box::new(source) })
}

fn build(config: Config) -> Result<Client, kube::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_checked_for_the_name_it_was_made_for() {
        let config = Config::new("https://api.example.org:6443".parse().unwrap());
        let one = at(&config, "192.168.0.10:6443", false).unwrap();
        assert_eq!(one.cluster_url, "https://192.168.0.10:6443/");
        assert_eq!(one.tls_server_name.as_deref(), Some("api.example.org"));
        let one = at(&config, "[2001:db8::1]:6443", true).unwrap();
        assert_eq!(one.cluster_url, "https://[2001:db8::1]:6443/");
        assert_eq!(one.tls_server_name.as_deref(), Some("kubernetes.default.svc"));
    }

    #[test]
    fn an_endpoint_that_is_none_is_refused_in_words() {
        let config = Config::new("https://a:1".parse().unwrap());
        let error = at(&config, "https://192.168.0.10:6443", false).unwrap_err().to_string();
        assert!(error.contains("HOST:PORT"), "{error}");
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let access = Access {
            service_account: Some("/nowhere".into()),
            endpoints: vec!["127.0.0.1:6443".into()],
            ..Access::default()
        };
        let error = access.configs().await.err().unwrap();
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
    }
}
