use std::sync::{Arc, Mutex};

use axum::http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// An API server in memory: Nodes, Services and EndpointSlices to list, and a record of what is written.
#[derive(Clone, Default)]
struct Server {
    services: usize,
    /// Lists of this kind do not come.
    unlisted: &'static str,
    /// Writes to objects of this name are refused.
    poisoned: &'static str,
    /// The NodeNetStates. Their agents write their status whenever they were listed.
    states: Arc<Mutex<Vec<Value>>>,
    writes: Arc<Mutex<Vec<(Instant, String)>>>,
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

fn state(spec: &nodenet_crds::NodeNetStateSpec, version: &str) -> Value {
    let metadata = json!({ "name": "n1", "uid": "s", "resourceVersion": version, "generation": 1 });
    json!({ "metadata": metadata, "spec": spec })
}

impl Server {
    fn list(&self, path: &str) -> Vec<Value> {
        let name = |i: usize| format!("s{i}");
        match path.rsplit('/').next().unwrap_or_default() {
            "nodes" => vec![json!({ "metadata": { "name": "n1", "uid": "n", "resourceVersion": "1" } })],
            "services" => (0..self.services)
                .map(|i| {
                    json!({
                        "metadata": { "name": name(i), "namespace": "shop", "uid": name(i), "resourceVersion": "1" },
                        "spec": { "type": "ClusterIP", "clusterIP": format!("10.96.0.{i}"),
                                  "clusterIPs": [format!("10.96.0.{i}")],
                                  "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] },
                    })
                })
                .collect(),
            "endpointslices" => (0..self.services)
                .map(|i| {
                    let endpoints: Vec<_> =
                        (1..50).map(|e| json!({ "addresses": [format!("10.244.{i}.{e}")] })).collect();
                    json!({
                        "metadata": { "name": name(i), "namespace": "shop", "resourceVersion": "1",
                                      "labels": { "kubernetes.io/service-name": name(i) } },
                        "addressType": "IPv4", "ports": [{ "port": 80, "protocol": "TCP" }],
                        "endpoints": endpoints,
                    })
                })
                .collect(),
            "nodenetstates" => {
                let mut states = self.states.lock().unwrap();
                let listed = states.clone();
                for state in states.iter_mut() {
                    let version: u32 = version(state).parse().unwrap();
                    state["metadata"]["resourceVersion"] = json!((version + 1).to_string());
                }
                listed
            }
            _ => Vec::new(),
        }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let (code, body) = if method == Method::GET {
            if query.contains("watch=true") || path.rsplit('/').next() == Some(self.unlisted) {
                std::future::pending::<()>().await;
            }
            match path.rsplit_once("/nodenetstates/") {
                Some(_) => (200, self.states.lock().unwrap()[0].clone()),
                None => (200, json!({ "metadata": { "resourceVersion": "9" }, "items": self.list(&path) })),
            }
        } else {
            let bytes = request.into_body().collect_bytes().await.unwrap();
            let mut object: Value = serde_json::from_slice(&bytes).unwrap();
            let name = match object["metadata"]["name"].as_str() {
                Some(name) => name.to_owned(),
                None => path.rsplit('/').next().unwrap().to_owned(),
            };
            self.writes.lock().unwrap().push((Instant::now(), name.clone()));
            if name == self.poisoned {
                let status = json!({ "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid",
                                     "message": "this one never" });
                (422, status)
            } else if let Some(steps) = object.as_array() {
                let mut states = self.states.lock().unwrap();
                let step = |path: &str| steps.iter().find(|s| s["path"] == path).unwrap()["value"].clone();
                if step("/metadata/resourceVersion") == version(&states[0]) {
                    states[0]["spec"] = step("/spec");
                    (200, states[0].clone())
                } else {
                    (409, json!({ "kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict" }))
                }
            } else {
                object["metadata"]["resourceVersion"] = json!("10");
                object["metadata"]["uid"] = json!(name);
                (201, object)
            }
        };
        Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
    }

    fn written(&self, name: &str) -> Vec<Instant> {
        self.writes.lock().unwrap().iter().filter(|(_, n)| n == name).map(|(at, _)| *at).collect()
    }
}

/// Runs the loop for a while against the server. Returns what it said of its publications in the end.
async fn run(server: &Server, leadership: Leadership, time: Duration) -> Option<Published> {
    let (published, said) = tokio::sync::watch::channel(None);
    let answering = server.clone();
    let client = Client::new(
        tower::service_fn(move |request| {
            let server = answering.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        }),
        "default",
    );
    let (metrics, health) = (Metrics::new(), Health::new());
    let publisher = Publisher::new(&client, "test", &metrics);
    let settings = Settings { slice_bytes: 8192, ..Settings::default() };
    let window = Duration::from_millis(5);
    let control = Control::new(settings, window, publisher, leadership, metrics.clone(), health.clone());
    let source = Source { client, node_namespace: "nodes".into(), metrics, health };
    control.announcing(published).run(source, tokio::time::sleep(time)).await;
    *said.borrow()
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_refused_is_tried_ever_later_and_holds_up_no_other() {
    let server = Server { services: 20, poisoned: "nodenet-0000", ..Server::default() };
    run(&server, Leadership::forever(), Duration::from_secs(60)).await;
    let refused = server.written("nodenet-0000");
    assert!((8..=12).contains(&refused.len()), "{} attempts in a minute", refused.len());
    let pauses: Vec<_> = refused.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    let good = server.written("nodenet-0001");
    assert_eq!(good.len(), 1, "{:?}", server.writes.lock().unwrap());
    assert!(good[0] - refused[0] < Duration::from_millis(100));
    assert_eq!(server.written("n1").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn that_all_is_published_is_said_when_it_is() {
    let minute = Duration::from_secs(60);
    let server = Server { services: 20, ..Server::default() };
    let published = run(&server, Leadership::forever(), minute).await.unwrap();
    assert_eq!(published.term, 1);
    assert!(published.revision >= 20, "{published:?}");
    assert!(published.until > Instant::now(), "it is said again and again");
    let none = Server::default();
    assert_eq!(run(&none, Leadership::forever(), minute).await.unwrap().revision, 0);

    let refused = Server { services: 20, poisoned: "nodenet-0000", ..Server::default() };
    assert_eq!(run(&refused, Leadership::forever(), minute).await, None, "a slice is missing");
    let blind = Server { services: 20, unlisted: "endpointslices", ..Server::default() };
    assert_eq!(run(&blind, Leadership::forever(), minute).await, None, "a kind is not known");
    assert_eq!(run(&server, Leadership::never(), minute).await, None, "another one may know more");
}

#[tokio::test(start_paused = true)]
async fn a_standby_writes_nothing() {
    let server = Server { services: 20, ..Server::default() };
    run(&server, Leadership::never(), Duration::from_secs(60)).await;
    assert!(server.writes.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_another_leader_wrote_last_is_read_before_a_state_is_written() {
    let node = json!({ "metadata": { "name": "n1" } });
    let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).unwrap();
    let now = Now { monotonic: Duration::ZERO, wall: Timestamp::UNIX_EPOCH };
    let planned = nodenet_planner::render(Settings::default(), vec![node.into()], &now);
    let server = Server::default();
    server.states.lock().unwrap().push(state(&Default::default(), "1"));
    let leader = server.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        // No watch shows it.
        *leader.states.lock().unwrap() = vec![state(&planned.states[0].spec, "2")];
    });
    run(&server, Leadership::after(Duration::from_secs(10)), Duration::from_secs(20)).await;
    assert_eq!(server.written("n1").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_its_agent_wrote_meanwhile_is_read_and_written_at_once() {
    let server = Server::default();
    server.states.lock().unwrap().push(state(&Default::default(), "1"));
    run(&server, Leadership::forever(), Duration::from_secs(60)).await;
    let written = server.written("n1");
    assert_eq!(written.len(), 2, "refused once: no watch showed the new version");
    assert!(written[1] - written[0] < Duration::from_millis(50), "{:?}", written[1] - written[0]);
    assert_ne!(server.states.lock().unwrap()[0]["spec"]["kernel"], json!({}));
}
