//! The control plane: etcd and kube-apiserver in the lab's network namespace.
//!
//! The API server is reached at two places: from guest and namespace at [`Site::HOST`], from the test
//! process through a forwarder on the host's loopback, so that clients in the test need no namespace.
//! There is no kubelet and no controller: the lab makes Nodes and EndpointSlices itself.

use super::error::{During, LabError};
use super::forwarder::Forwarder;
use super::prerequisites::ControlPlane;
use super::process::{Process, attempt, output, wait_for};
use super::site::Site;
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PORT: u16 = 6443;
const ADMIN_TOKEN: &str = "lab-admin";
const START: Duration = Duration::from_secs(90);

/// What the API server is told.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Service ranges: one, or one of each family for dual stack.
    pub service_cidrs: Vec<String>,
    /// Node ports, `first-last`.
    pub node_ports: String,
    /// More flags.
    pub flags: Vec<String>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            service_cidrs: vec!["10.243.0.0/16".into()],
            node_ports: "30000-39999".into(),
            flags: Vec::new(),
        }
    }
}

/// A running control plane. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    apiserver: Option<Process>,
    etcd: Process,
    forwarder: Forwarder,
    programs: ControlPlane,
    command_line: Vec<String>,
    netns: String,
    folder: PathBuf,
    minor: u32,
    service_cidrs: Vec<String>,
}

impl Cluster {
    /// Starts etcd and the API server and waits until objects can be created.
    ///
    /// # Errors
    /// When a program is unusable or does not come up; the error names its log.
    pub fn start(site: &Site, programs: ControlPlane, spec: &ClusterSpec) -> Result<Self, LabError> {
        let folder = site.folder().to_owned();
        let at = |name: &str| folder.join(name).display().to_string();
        output(Command::new("openssl").args(["genrsa", "-out", &at("service-accounts.key"), "2048"]), "")?;
        fs::write(at("tokens.csv"), format!("{ADMIN_TOKEN},lab-admin,lab-admin,system:masters\n"))
            .during("write", "tokens.csv")?;
        let etcd = Process::start(
            Some(site.netns()),
            &site.log("etcd"),
            &[
                &programs.etcd.display().to_string(),
                "--data-dir",
                &at("etcd"),
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--log-level=warn",
            ],
        )?;
        let version = output(Command::new(&programs.kube_apiserver).arg("--version"), "")?;
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
        let mut command_line = vec![
            programs.kube_apiserver.display().to_string(),
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--secure-port={PORT}"),
            "--bind-address=0.0.0.0".into(),
            // The namespace has no default route to guess it from.
            format!("--advertise-address={}", Site::HOST),
            // The server makes itself a certificate there, for its address and for localhost.
            format!("--cert-dir={}", at("certificates")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", at("service-accounts.key")),
            format!("--service-account-signing-key-file={}", at("service-accounts.key")),
            format!("--service-cluster-ip-range={}", spec.service_cidrs.join(",")),
            format!("--service-node-port-range={}", spec.node_ports),
            // Nobody makes the default service accounts that this plug-in asks for.
            "--disable-admission-plugins=ServiceAccount".into(),
            "--allow-privileged=true".into(),
        ];
        if minor < 21 {
            // Its own v1beta1 would stand in the way of the v1 that the lab brings.
            command_line.push("--runtime-config=discovery.k8s.io/v1beta1=false".into());
            if spec.service_cidrs.len() > 1 {
                command_line.push("--feature-gates=IPv6DualStack=true".into());
            }
        }
        command_line.extend(spec.flags.iter().cloned());
        let forwarder = Forwarder::start(site.netns(), api_address())?;
        let mut cluster = Self {
            apiserver: None,
            etcd,
            forwarder,
            programs,
            command_line,
            netns: site.netns().into(),
            folder,
            minor,
            service_cidrs: spec.service_cidrs.clone(),
        };
        cluster.start_apiserver()?;
        cluster.ensure_endpoint_slices()?;
        Ok(cluster)
    }

    /// Starts the API server (again) and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_apiserver(&mut self) -> Result<(), LabError> {
        let log = self.folder.join("kube-apiserver.log");
        let mut apiserver = Process::start(Some(&self.netns), &log, &self.command_line)?;
        let certificate = self.folder.join("certificates/apiserver.crt");
        wait_for("the certificate of the API server", START, &log, || {
            if !apiserver.is_running() {
                return Err(LabError::Command {
                    command: "kube-apiserver".into(),
                    code: "an error".into(),
                    output: apiserver.tail(),
                });
            }
            Ok(certificate.exists().then_some(()))
        })?;
        self.write_kubeconfigs()?;
        wait_for("readiness of the API server", START, &log, || {
            if !apiserver.is_running() {
                return Err(LabError::Command {
                    command: "kube-apiserver".into(),
                    code: "an error".into(),
                    output: apiserver.tail(),
                });
            }
            let ready = attempt(self.kubectl_command().args(["get", "--raw", "/readyz"]), "")?;
            let default = attempt(self.kubectl_command().args(["get", "namespace", "default"]), "")?;
            Ok((ready.status.success() && default.status.success()).then_some(()))
        })?;
        self.apiserver = Some(apiserver);
        Ok(())
    }

    /// Stops the API server; etcd keeps what it has.
    pub fn stop_apiserver(&mut self) {
        if let Some(process) = self.apiserver.take() {
            process.kill();
        }
    }

    /// The running API server.
    pub fn apiserver(&self) -> Option<&Process> {
        self.apiserver.as_ref()
    }

    /// The running etcd.
    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    /// The API server's minor version (20 for 1.20).
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// The Service ranges.
    pub fn service_cidrs(&self) -> &[String] {
        &self.service_cidrs
    }

    /// The administrator's kubeconfig, usable anywhere on this host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The administrator's kubeconfig for programs in the lab's namespace or the guest.
    pub fn inner_kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig-inside")
    }

    /// `host:port` of the API server as seen in the lab's namespace and in the guest.
    pub fn endpoint(&self) -> String {
        api_address().to_string()
    }

    /// Runs kubectl as administrator and returns its output.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.kubectl_with(arguments, "")
    }

    /// As [`Cluster::kubectl`], with a standard input.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn kubectl_with(&self, arguments: &[&str], stdin: &str) -> Result<String, LabError> {
        output(self.kubectl_command().args(arguments), stdin)
    }

    /// Reads an object or list as JSON.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, LabError> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|source| LabError::Json { object: arguments.join(" "), source })
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn apply(&self, manifests: &str) -> Result<String, LabError> {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Runs helm as administrator.
    ///
    /// # Errors
    /// What helm says.
    pub fn helm(&self, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(&self.programs.helm);
        let home = self.folder.join("helm");
        command.env("KUBECONFIG", self.kubeconfig());
        for (variable, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(variable, home.join(folder));
        }
        output(command.args(arguments), "")
    }

    /// A token of a ServiceAccount, good for a day; `node`: as kubelet hands it to a pod of that node, so that
    /// it says whose it is where the server's release can (1.31 and later).
    ///
    /// # Errors
    /// What kubectl says.
    pub fn token(
        &self,
        namespace: &str,
        service_account: &str,
        node: Option<&str>,
    ) -> Result<String, LabError> {
        let mut arguments =
            vec!["create", "token", service_account, "--namespace", namespace, "--duration=24h"];
        if let Some(node) = node.filter(|_| self.minor >= 31) {
            arguments.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
        }
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    /// A kubeconfig with a token, for use in the lab's namespace or the guest.
    ///
    /// # Errors
    /// When the API server's certificate cannot be read.
    pub fn inner_kubeconfig_with(&self, token: &str) -> Result<String, LabError> {
        self.kubeconfig_text(&format!("https://{}", self.endpoint()), token)
    }

    /// A kubeconfig with a token, usable anywhere on this host.
    ///
    /// # Errors
    /// When the API server's certificate cannot be read.
    pub fn kubeconfig_with(&self, token: &str) -> Result<String, LabError> {
        self.kubeconfig_text(&format!("https://localhost:{}", self.forwarder.port()), token)
    }

    /// Makes a Node as a kubelet would.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn create_node(
        &self,
        name: &str,
        addresses: &[String],
        pod_cidrs: &[String],
        labels: &[(String, String)],
    ) -> Result<(), LabError> {
        let mut all_labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        all_labels.insert("kubernetes.io/hostname".into(), json!(name));
        let mut status_addresses: Vec<Value> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        status_addresses.push(json!({"type": "Hostname", "address": name}));
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": all_labels},
            "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
            "status": {"addresses": status_addresses, "conditions": [ready_condition(true)]},
        });
        self.kubectl_with(&["create", "-f", "-"], &node.to_string())?;
        // The API server adds the not-ready taint to new nodes; the node life-cycle controller, which
        // would take it away, does not run here.
        let untaint = json!({"spec": {"taints": null}}).to_string();
        self.kubectl(&["patch", "node", name, "--type=merge", "--patch", &untaint]).map(drop)
    }

    /// Sets a Node's Ready condition, as the node life-cycle controller would.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn set_node_ready(&self, name: &str, ready: bool) -> Result<(), LabError> {
        let patch = json!({"status": {"conditions": [ready_condition(ready)]}}).to_string();
        let arguments =
            ["patch", "node", name, "--subresource=status", "--type=strategic", "--patch", patch.as_str()];
        self.kubectl(&arguments).map(drop)
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.folder.join("kube-cache"));
        command
    }

    /// kubectl's own path, for a person's shell.
    pub fn kubectl_program(&self) -> &Path {
        &self.programs.kubectl
    }

    fn write_kubeconfigs(&self) -> Result<(), LabError> {
        let (outer, inner) = (self.kubeconfig_with(ADMIN_TOKEN)?, self.inner_kubeconfig_with(ADMIN_TOKEN)?);
        for (path, text) in [(self.kubeconfig(), outer), (self.inner_kubeconfig(), inner)] {
            fs::write(&path, text).during("write", path.display())?;
        }
        Ok(())
    }

    fn kubeconfig_text(&self, server: &str, token: &str) -> Result<String, LabError> {
        let path = self.folder.join("certificates/apiserver.crt");
        let certificate = fs::read(&path).during("read", path.display())?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": server,
                "certificate-authority-data": base64(&certificate),
            }}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        });
        Ok(config.to_string())
    }

    /// Brings `discovery.k8s.io/v1` where the server has none.
    fn ensure_endpoint_slices(&self) -> Result<(), LabError> {
        let mut ask = self.kubectl_command();
        if attempt(ask.args(["get", "--raw", "/apis/discovery.k8s.io/v1"]), "")?.status.success() {
            return Ok(());
        }
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": "endpointslices.discovery.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, stands in for the built-in kind"},
            },
            "spec": {
                "group": "discovery.k8s.io",
                "scope": "Namespaced",
                "names": {
                    "kind": "EndpointSlice",
                    "listKind": "EndpointSliceList",
                    "plural": "endpointslices",
                    "singular": "endpointslice",
                },
                "versions": [{
                    "name": "v1",
                    "served": true,
                    "storage": true,
                    "schema": {"openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": true,
                    }},
                }],
            },
        });
        self.apply(&definition.to_string())?;
        let log = self.folder.join("kube-apiserver.log");
        wait_for("the kind EndpointSlice", START, &log, || {
            let mut ask = self.kubectl_command();
            let answer = attempt(ask.args(["get", "--raw", "/apis/discovery.k8s.io/v1/endpointslices"]), "")?;
            Ok(answer.status.success().then_some(()))
        })
    }
}

fn ready_condition(ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({"type": "Ready", "status": status, "reason": "Lab", "message": "set by the lab"})
}

fn api_address() -> SocketAddr {
    SocketAddr::new(Site::HOST.parse::<Ipv4Addr>().unwrap_or(Ipv4Addr::UNSPECIFIED).into(), PORT)
}

/// Standard base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let index = group >> (18 - 6 * position) & 63;
            let padded = position > chunk.len();
            text.push(if padded { '=' } else { char::from(ALPHABET[index as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// RFC 4648, section 10.
    #[test]
    fn base64_matches_the_rfcs_vectors() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
