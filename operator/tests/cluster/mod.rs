//! A real API server for tests: the one of `NODENET_TEST_KUBECONFIG` or `KUBECONFIG`, whose objects of the kinds that
//! nodenet reads are **deleted** by every test. `cargo xtask cluster -- cargo test -p nodenet-operator` brings one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config, Resource};
use nodenet_crds::{NodeNetSlice, NodeNetState, VirtualIP};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Everything in these tests is there within this time, or it never comes.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// Namespace of the leader's Lease.
const NAMESPACE: &str = "nodenet-test-system";
/// Namespace of the agents' Leases.
const NODES: &str = "nodenet-test-nodes";
/// Range that the Services of the lab's API server come from.
const SERVICE_CIDR: &str = "10.96.0.0/12";

/// One test at a time: they share the cluster.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Cluster {
    pub client: Client,
    kubeconfig: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// An empty cluster, or `None` with the reason printed.
    pub async fn empty() -> Option<Self> {
        let turn = TURN.lock().await;
        let path = ["NODENET_TEST_KUBECONFIG", "KUBECONFIG"].iter().find_map(std::env::var_os);
        let Some(kubeconfig) = path.filter(|p| !p.is_empty()).map(PathBuf::from) else {
            println!("SKIP: no API server: KUBECONFIG is not set (cargo xtask cluster -- cargo test …)");
            return None;
        };
        let file = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let cluster = Self { client, kubeconfig, _turn: turn };
        cluster.prepare().await;
        Some(cluster)
    }

    async fn prepare(&self) {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for crd in nodenet_crds::schema::custom_resource_definitions().unwrap() {
            ignore_conflict(crds.create(&PostParams::default(), &crd).await);
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [NAMESPACE, NODES] {
            let namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
            ignore_conflict(namespaces.create(&PostParams::default(), &namespace).await);
        }
        self.until("the kinds are served", async || {
            Api::<VirtualIP>::all(self.client.clone()).list(&ListParams::default()).await.is_ok()
                && Api::<NodeNetSlice>::all(self.client.clone()).list(&ListParams::default()).await.is_ok()
                && Api::<NodeNetState>::all(self.client.clone()).list(&ListParams::default()).await.is_ok()
        })
        .await;
        let services: Api<Service> = Api::namespaced(self.client.clone(), "default");
        for service in services.list(&ListParams::default()).await.unwrap() {
            let name = service.metadata.name.unwrap();
            if name != "kubernetes" {
                services.delete(&name, &DeleteParams::default()).await.unwrap();
            }
        }
        let all = (DeleteParams::default(), ListParams::default());
        let endpoints: Api<Value2<EndpointSlice>> = Api::namespaced(self.client.clone(), "default");
        // The API server's own is not ours to delete: it would come back in the middle of a test.
        let all_but_its_own = ListParams::default().fields("metadata.name!=kubernetes");
        endpoints.delete_collection(&all.0, &all_but_its_own).await.unwrap();
        Api::<Node>::all(self.client.clone()).delete_collection(&all.0, &all.1).await.unwrap();
        Api::<VirtualIP>::all(self.client.clone()).delete_collection(&all.0, &all.1).await.unwrap();
        for namespace in [NAMESPACE, NODES] {
            let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
            leases.delete_collection(&all.0, &all.1).await.unwrap();
        }
        nodenet_operator::cleanup::cleanup(&self.client, Duration::ZERO).await.unwrap();
        assert!(self.slices().await.is_empty());
    }

    /// Starts an operator.
    pub fn operator(&self, identity: &str) -> Operator {
        Operator::start(&self.kubeconfig, identity)
    }

    pub async fn put<K>(&self, value: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        self.write(Api::namespaced(self.client.clone(), "default"), value).await
    }

    pub async fn put_cluster<K>(&self, value: Value) -> K
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        self.write(Api::all(self.client.clone()), value).await
    }

    async fn write<K>(&self, api: Api<K>, mut value: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let map = value.as_object_mut().unwrap();
        map.insert("apiVersion".into(), json!(K::api_version(&())));
        map.insert("kind".into(), json!(K::kind(&())));
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&value)).await.unwrap()
    }

    /// A ready Node.
    pub async fn node(&self, name: &str, address: &str) {
        let _: Node = self
            .put_cluster(json!({ "metadata": { "name": name }, "spec": { "podCIDRs": ["10.244.0.0/24"] } }))
            .await;
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// A Service with one port.
    pub async fn service(&self, name: &str) -> Service {
        self.put(json!({
            "metadata": { "name": name },
            "spec": { "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080 }] },
        }))
        .await
    }

    /// The EndpointSlice of a Service.
    pub async fn endpoints(&self, service: &str, addresses: &[String]) {
        self.endpoint_slice(service, 1, addresses).await;
    }

    pub async fn endpoint_slice(&self, service: &str, number: usize, addresses: &[String]) {
        let endpoints: Vec<_> =
            addresses.iter().map(|a| json!({ "addresses": [a], "conditions": { "ready": true } })).collect();
        let _: EndpointSlice = self
            .put(json!({
                "metadata": {
                    "name": format!("{service}-{number}"),
                    "labels": { "kubernetes.io/service-name": service },
                },
                "addressType": "IPv4",
                "ports": [{ "port": 8080, "protocol": "TCP" }],
                "endpoints": endpoints,
            }))
            .await;
    }

    /// A sign of life of a node's agent.
    pub async fn renew_lease(&self, node: &str) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NODES);
        let lease = json!({ "metadata": { "name": node }, "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": 8,
            "renewTime": format!("{:.6}", jiff::Timestamp::now()),
        }});
        let _: Lease = self.write(leases, lease).await;
    }

    /// Writes the status of a NodeNetState, as its agent does.
    pub async fn report(&self, node: &str, status: Value) {
        let states: Api<NodeNetState> = Api::all(self.client.clone());
        let body = json!({
            "apiVersion": NodeNetState::api_version(&()),
            "kind": NodeNetState::kind(&()),
            "metadata": { "name": node },
            "status": status,
        });
        let params = PatchParams::apply("agent").force();
        states.patch_status(node, &params, &Patch::Apply(&body)).await.unwrap();
    }

    pub async fn slices(&self) -> Vec<NodeNetSlice> {
        let api: Api<NodeNetSlice> = Api::all(self.client.clone());
        api.list(&ListParams::default()).await.unwrap().items
    }

    /// What agents would make of a Service: the endpoints of its highest complete revision.
    pub async fn published(&self, service: &str) -> Option<Vec<String>> {
        published(&self.slices().await, service)
    }

    /// Waits until `condition` holds; fails after [`PATIENCE`]. Returns how long it took.
    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
        let begun = Instant::now();
        while !condition().await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }
}

/// Objects whose content does not matter, so that garbage can be deleted.
pub type Value2<K> = kube::core::PartialObjectMeta<K>;

fn ignore_conflict<T>(result: Result<T, kube::Error>) {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(other.unwrap()),
    }
}

pub fn published(slices: &[NodeNetSlice], service: &str) -> Option<Vec<String>> {
    let parts: Vec<_> = slices.iter().flat_map(|s| &s.spec.services).filter(|p| p.name == service).collect();
    let mut revisions: Vec<_> = parts.iter().map(|p| p.revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    revisions.into_iter().rev().find_map(|revision| {
        let of: Vec<_> = parts.iter().filter(|p| p.revision == revision).collect();
        let mut numbers: Vec<_> = of.iter().map(|p| p.part).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let complete = i32::try_from(numbers.len()).unwrap() == of.first()?.parts;
        let mut addresses: Vec<_> =
            of.iter().flat_map(|p| &p.ports).flat_map(|p| &p.endpoints).map(|e| e.address.clone()).collect();
        addresses.sort();
        addresses.dedup();
        complete.then_some(addresses)
    })
}

/// A running operator; killed when dropped.
pub struct Operator {
    child: Child,
    http: SocketAddr,
    log: Arc<StdMutex<String>>,
}

impl Operator {
    fn start(kubeconfig: &std::path::Path, identity: &str) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nodenet-operator"))
            .arg("run")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--identity", identity, "--namespace", NAMESPACE, "--node-namespace", NODES])
            .args([
                "--service-cidr",
                SERVICE_CIDR,
                "--http-address",
                &http.to_string(),
                "--log",
                "info,nodenet_operator=debug",
            ])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::<StdMutex<String>>::default();
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, http, log }
    }

    /// Status code and body of a page; `None` while nobody listens.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Sum of the series of a metric whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, body) = self.get("/metrics").unwrap_or_default();
        let lines = body.lines().filter(|l| l.split(['{', ' ']).next() == Some(name) && l.contains(labels));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Writes to the API server so far, Leases apart.
    pub fn writes(&self) -> u64 {
        self.metric("nodenet_operator_api_writes_total", "") as u64
    }

    pub fn leads(&self) -> bool {
        self.metric("nodenet_operator_leader", "") == 1.0
    }

    /// Waits until nothing is left to do for a while.
    pub async fn settled(&self) {
        let begun = Instant::now();
        let (mut writes, mut since) = (self.writes(), Instant::now());
        while since.elapsed() < Duration::from_millis(1500) {
            assert!(begun.elapsed() < PATIENCE, "never at rest\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
            let ready = self.get("/readyz").is_some_and(|(code, _)| code == 200);
            let now = self.writes();
            if now != writes || !ready || self.metric("nodenet_operator_queue_depth", "") > 0.0 {
                (writes, since) = (now, Instant::now());
            }
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Without a word, as a lost machine would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// As Kubernetes stops a pod. Returns its log.
    pub async fn terminate(mut self) -> String {
        self.signal("TERM");
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.log()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of an operator\n{}", self.log());
        }
    }
}
