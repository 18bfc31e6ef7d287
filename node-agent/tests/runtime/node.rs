//! An agent on a kernel in memory.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nodenet_agent::agent::address_lane::{self, Message};
use nodenet_agent::agent::holding;
use nodenet_agent::agent::kube_proxy;
use nodenet_agent::agent::runtime::{self, Config, Machinery};
use nodenet_agent::agent::service_lane;
use nodenet_agent::agent::wire::{Answers, Wire};
use nodenet_agent::health_server::Listen;
use nodenet_agent::kernel::fake::FakeKernel;
use nodenet_agent::kernel::netlink::owner::{AnotherOwner, Says};
use nodenet_agent::kernel::netlink::probe::Question;
use nodenet_agent::kernel::{Kernel, KernelError};
use nodenet_agent::report::metrics::Metrics;
use nodenet_agent::resolve::Options;
use nodenet_agent::state::AddressKey;
use nodenet_client::{Access, ApiServers};
use serde_json::{Value, json};

use crate::api::Api;

pub const NODE: &str = "k8s-node-1";

/// Waits until `done`, and fails with `what` if that does not come.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "not in 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Links in memory.
#[derive(Clone, Default)]
pub struct FakeLinks {
    pub inner: Arc<Mutex<LinksInner>>,
}

#[derive(Default)]
pub struct LinksInner {
    pub announced: Vec<AddressKey>,
    pub watched: BTreeSet<AddressKey>,
    pub probed: Vec<(AddressKey, Question)>,
    /// Who else answers.
    pub owner: Option<String>,
    pub inbox: Option<Sender<Message>>,
}

impl Wire for FakeLinks {
    fn announce(&mut self, key: &AddressKey) -> Result<(), KernelError> {
        self.inner.lock().unwrap().announced.push(key.clone());
        Ok(())
    }

    fn watch(&mut self, keys: BTreeSet<AddressKey>) {
        self.inner.lock().unwrap().watched = keys;
    }

    fn probe(&mut self, keys: Vec<AddressKey>, question: Question, _: Duration, answers: Answers) {
        let mut inner = self.inner.lock().unwrap();
        for key in keys {
            inner.probed.push((key.clone(), question));
            answers(key, Ok(inner.owner.clone()));
        }
    }
}

impl FakeLinks {
    pub fn announced(&self) -> usize {
        self.inner.lock().unwrap().announced.len()
    }

    /// Another host says that it has the address.
    pub fn claim(&self, interface: &str, address: &str) {
        self.say(Says::Has, interface, address);
    }

    /// Another host says something of the address.
    pub fn say(&self, says: Says, interface: &str, address: &str) {
        let heard = AnotherOwner {
            says,
            interface: interface.into(),
            address: address.parse().unwrap(),
            mac: nodenet_wire::ethernet::MacAddress([2, 0, 0, 0, 0, 9]),
        };
        let inner = self.inner.lock().unwrap();
        inner.inbox.as_ref().unwrap().send(Message::Heard(heard)).unwrap();
    }
}

/// A node: what survives its agent.
pub struct Node {
    pub kernel: FakeKernel,
    pub links: FakeLinks,
    /// How it listens for load balancers.
    pub listen: Option<Listen>,
    pub folder: tempfile::TempDir,
}

/// A running agent.
pub struct Agent {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    pub task: tokio::task::JoinHandle<Result<(), runtime::RunError>>,
    pub metrics: Arc<Metrics>,
}

impl Node {
    pub fn new() -> Self {
        let kernel = FakeKernel::new();
        kernel.add_link("eth0", "");
        kernel.add_address("eth0", "192.168.0.11/24");
        Self { kernel, links: FakeLinks::default(), listen: None, folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> Config {
        Config {
            node: NODE.into(),
            state_dir: self.path().join("state"),
            run_dir: self.path().join("run"),
            node_namespace: "nodenet-nodes".into(),
            operator_namespace: "nodenet-system".into(),
            http_address: None,
            healthz_address: None,
            resolver: Options { node: NODE.into(), ..Options::default() },
            addresses: address_lane::Times {
                renew: Duration::from_millis(200),
                contact: Duration::from_secs(3),
                verify: Duration::from_secs(3600),
                holding: holding::Times {
                    grace: Duration::from_millis(300),
                    probe: Duration::from_millis(50),
                    again: Duration::from_millis(50),
                    settled: Duration::from_millis(300),
                    cede: Duration::from_millis(500),
                },
                ..address_lane::Times::default()
            },
            services: service_lane::Times {
                verify: Duration::from_secs(3600),
                least: Duration::ZERO,
                retry: Duration::from_millis(20),
                retry_max: Duration::from_secs(1),
                unwanted: Duration::from_millis(200),
            },
            kube_proxy: kube_proxy::Settings { look: Duration::from_millis(50), ..Default::default() },
            drain_timeout: Duration::from_secs(900),
            coalesce: Duration::from_millis(300),
            collect: Duration::from_millis(20),
            grace: Duration::from_millis(300),
            operator_look: Duration::from_secs(60),
            operator_limit: Duration::from_secs(120),
        }
    }

    pub async fn start(&self, api: &Api) -> Agent {
        self.start_with(api, self.config(), Box::new(self.kernel.clone()), Box::new(self.kernel.clone()))
            .await
    }

    pub async fn start_with(
        &self,
        api: &Api,
        config: Config,
        addresses: Box<dyn Kernel>,
        services: Box<dyn Kernel>,
    ) -> Agent {
        let kubeconfig = self.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let access = Access { kubeconfig: Some(kubeconfig), ..Access::default() };
        let servers = ApiServers::new(&access).await.unwrap();
        let metrics = Arc::new(Metrics::default());
        let (events, links) = (self.kernel.events(), self.links.clone());
        let machinery = Machinery {
            addresses,
            services,
            links: Box::new(move |inbox: Sender<Message>| {
                let to = inbox.clone();
                std::thread::spawn(move || {
                    while let Ok(event) = events.recv() {
                        if to.send(Message::Kernel(event)).is_err() {
                            return;
                        }
                    }
                });
                links.inner.lock().unwrap().inbox = Some(inbox);
                Box::new(links)
            }),
            listen: self.listen.clone(),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let counted = metrics.clone();
        let task = tokio::spawn(async move {
            let stopped = async move {
                let _ = stopped.await;
            };
            runtime::run(config, servers, machinery, counted, stopped).await
        });
        Agent { stop: Some(stop), task, metrics }
    }

    pub fn has(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        self.kernel.state().addresses.keys().any(|key| key.address == address)
    }

    pub fn servers(&self) -> usize {
        self.kernel.state().virtual_servers.len()
    }
}

impl Agent {
    /// As SIGTERM does.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// A spec with one virtual IP.
pub fn spec(state: &str) -> Value {
    json!({
        "serviceAddresses": {"mode": "Route", "cidrs": ["10.96.0.0/12"]},
        "clusterCIDRs": ["10.244.0.0/16"],
        "virtualIPs": [{
            "name": "web", "state": state, "addresses": ["192.168.0.15/24"], "priority": 100,
            "announce": {"count": 2, "intervalMillis": 10, "refreshSeconds": 0},
        }],
    })
}

/// A slice with a Service that has a ClusterIP, a node port and these endpoints.
pub fn slice(number: u8, revision: i64, endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|a| json!({"address": a, "port": 80, "node": "other"})).collect();
    json!({
        "revision": revision,
        "services": [{
            "namespace": "default", "name": format!("web-{number}"), "uid": format!("uid-{number}"),
            "revision": revision, "part": 0, "parts": 1,
            "ports": [{
                "protocol": "TCP",
                "frontends": [
                    {"kind": "ClusterIP", "address": format!("10.96.0.{number}"), "port": 80},
                    {"kind": "NodePort", "port": 30000 + i32::from(number)},
                ],
                "endpoints": endpoints,
            }],
        }],
    })
}
