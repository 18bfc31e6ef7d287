//! An API server in memory, as far as the agent speaks to one: lists and watches of the kinds, patches of the status, of
//! Leases, Events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// The server; it stops with the test.
#[derive(Clone)]
pub struct Api {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    changes: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct Shared {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    pub statuses: Vec<Value>,
    pub leases: Vec<Value>,
    pub events: Vec<Value>,
    down: bool,
    refusing_leases: bool,
    lease_latency: std::time::Duration,
    lease_requests: usize,
    operator: Operator,
    operator_looks: u64,
}

/// The operator's Lease.
#[derive(Clone, Copy, Default)]
pub enum Operator {
    /// There is none.
    #[default]
    Never,
    /// It is not renewed any more.
    Silent { published: i64 },
    /// It is renewed between two looks.
    Lives { published: Option<i64> },
}

impl Api {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared { version: 1, ..Shared::default() }));
        let api = Self { address, shared, changes: broadcast::channel(10_000).0 };
        let router = Router::new()
            .route("/apis/nodenet.dev/v1alpha1/{plural}", get(list))
            .route("/apis/nodenet.dev/v1alpha1/nodenetstates/{name}/status", patch(status))
            .route(
                "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}",
                patch(lease).get(operator),
            )
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        api
    }

    pub fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string()
    }

    /// Adds or replaces an object; `spec` is all that it has.
    pub fn put(&self, plural: &str, name: &str, generation: i64, spec: Value) {
        let kind = if plural == "nodenetstates" { "NodeNetState" } else { "NodeNetSlice" };
        let mut shared = self.shared.lock().unwrap();
        shared.version += 1;
        let status = shared.objects.get(&(plural.into(), name.into())).map(|o| o["status"].clone());
        let object = json!({
            "apiVersion": "nodenet.dev/v1alpha1", "kind": kind,
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "generation": generation,
                "resourceVersion": shared.version.to_string(),
            },
            "spec": spec,
            "status": status.unwrap_or(Value::Null),
        });
        let new = shared.objects.insert((plural.into(), name.into()), object.clone()).is_none();
        let type_ = if new { "ADDED" } else { "MODIFIED" };
        let _ = self.changes.send((plural.into(), json!({"type": type_, "object": object})));
    }

    pub fn delete(&self, plural: &str, name: &str) {
        let mut shared = self.shared.lock().unwrap();
        shared.version += 1;
        let mut object = shared.objects.remove(&(plural.into(), name.into())).unwrap();
        object["metadata"]["resourceVersion"] = json!(shared.version.to_string());
        let _ = self.changes.send((plural.into(), json!({"type": "DELETED", "object": object})));
    }

    /// What the operator's Lease is from now on.
    pub fn set_operator(&self, operator: Operator) {
        self.shared.lock().unwrap().operator = operator;
    }

    /// While down it answers everything with 503.
    pub fn set_down(&self, down: bool) {
        self.shared.lock().unwrap().down = down;
    }

    /// While so it answers Leases with 403, and everything else as ever.
    pub fn refuse_leases(&self, refuse: bool) {
        self.shared.lock().unwrap().refusing_leases = refuse;
    }

    /// From now on it takes so long to take a Lease.
    pub fn set_lease_latency(&self, latency: std::time::Duration) {
        self.shared.lock().unwrap().lease_latency = latency;
    }

    /// Leases that were asked for, and those of them that are not taken yet.
    pub fn lease_requests(&self) -> (usize, usize) {
        let shared = self.shared.lock().unwrap();
        (shared.lease_requests, shared.lease_requests - shared.leases.len())
    }

    pub fn status(&self) -> Value {
        self.shared.lock().unwrap().statuses.last().cloned().unwrap_or(Value::Null)
    }

    pub fn condition(&self, type_: &str) -> Value {
        let status = self.status();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == type_).unwrap_or(Value::Null)
    }

    pub fn status_writes(&self) -> usize {
        self.shared.lock().unwrap().statuses.len()
    }

    pub fn leases(&self) -> Vec<Value> {
        self.shared.lock().unwrap().leases.clone()
    }

    pub fn event_reasons(&self) -> Vec<String> {
        let shared = self.shared.lock().unwrap();
        shared.events.iter().map(|e| e["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn down(api: &Api) -> Option<Response> {
    let down = api.shared.lock().unwrap().down;
    down.then(|| (StatusCode::SERVICE_UNAVAILABLE, "down").into_response())
}

async fn list(State(api): State<Api>, Path(plural): Path<String>, uri: axum::http::Uri) -> Response {
    if let Some(down) = down(&api) {
        return down;
    }
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
        .collect();
    let wanted = query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name=")).map(str::to_owned);
    let mine = move |o: &Value| wanted.as_ref().is_none_or(|name| o["metadata"]["name"] == name.as_str());
    if query.contains_key("watch") {
        let since: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let receiver = api.changes.subscribe();
        let missed: Vec<Value> = {
            let shared = api.shared.lock().unwrap();
            let newer = |o: &&Value| version(o) > since && mine(o);
            let of_kind = shared.objects.iter().filter(|((p, _), _)| *p == plural).map(|(_, o)| o);
            of_kind.filter(newer).map(|o| json!({"type": "MODIFIED", "object": o})).collect()
        };
        let later =
            futures::stream::unfold(receiver, |mut r| async move { r.recv().await.ok().map(|c| (c, r)) })
                .filter_map(move |(p, change)| {
                    let keep = p == plural && mine(&change["object"]) && version(&change["object"]) > since;
                    async move { keep.then_some(change) }
                });
        let watch_api = api.clone();
        let lines = futures::stream::iter(missed)
            .chain(later)
            .map(|c| Ok::<_, std::io::Error>(Bytes::from(format!("{c}\n"))))
            .take_while(move |_| {
                let down = watch_api.shared.lock().unwrap().down;
                async move { !down }
            });
        return Body::from_stream(lines).into_response();
    }
    let shared = api.shared.lock().unwrap();
    let items: Vec<&Value> =
        shared.objects.iter().filter(|((p, _), o)| *p == plural && mine(o)).map(|(_, o)| o).collect();
    let kind = if plural == "nodenetstates" { "NodeNetStateList" } else { "NodeNetSliceList" };
    answer(json!({
        "apiVersion": "nodenet.dev/v1alpha1", "kind": kind,
        "metadata": {"resourceVersion": shared.version.to_string()}, "items": items,
    }))
}

fn answer(body: Value) -> Response {
    ([("content-type", "application/json")], body.to_string()).into_response()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

async fn status(State(api): State<Api>, Path(name): Path<String>, body: Bytes) -> Response {
    if let Some(down) = down(&api) {
        return down;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let mut shared = api.shared.lock().unwrap();
    shared.version += 1;
    let version = shared.version.to_string();
    shared.statuses.push(body["status"].clone());
    let Some(object) = shared.objects.get_mut(&("nodenetstates".to_owned(), name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if object["metadata"]["uid"] != body["metadata"]["uid"] {
        return StatusCode::CONFLICT.into_response();
    }
    object["status"] = body["status"].clone();
    object["metadata"]["resourceVersion"] = json!(version);
    let object = object.clone();
    let _ = api.changes.send(("nodenetstates".into(), json!({"type": "MODIFIED", "object": object.clone()})));
    answer(object)
}

async fn lease(State(api): State<Api>, body: Bytes) -> Response {
    if let Some(down) = down(&api) {
        return down;
    }
    if api.shared.lock().unwrap().refusing_leases {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "no",
        });
        return (StatusCode::FORBIDDEN, answer(body)).into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let latency = {
        let mut shared = api.shared.lock().unwrap();
        shared.lease_requests += 1;
        shared.lease_latency
    };
    // Once it is here it is taken, whether somebody still waits for the answer or not.
    let taken = body.clone();
    let taking = tokio::spawn(async move {
        tokio::time::sleep(latency).await;
        api.shared.lock().unwrap().leases.push(taken);
    });
    taking.await.unwrap();
    answer(body)
}

async fn operator(State(api): State<Api>) -> Response {
    if let Some(down) = down(&api) {
        return down;
    }
    let mut shared = api.shared.lock().unwrap();
    shared.operator_looks += 1;
    let (renewal, published) = match shared.operator {
        Operator::Never => {
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
                "message": "no",
            });
            return (StatusCode::NOT_FOUND, answer(body)).into_response();
        }
        Operator::Silent { published } => (0, Some(published)),
        Operator::Lives { published } => (shared.operator_looks, published),
    };
    let annotations = published.map(|revision| json!({"nodenet.dev/published": revision.to_string()}));
    answer(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "nodenet-operator", "namespace": "nodenet-system", "annotations": annotations},
        "spec": {"holderIdentity": "operator-1", "renewTime": format!("2026-01-01T00:00:00.{:06}Z", renewal)},
    }))
}

async fn event(State(api): State<Api>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    api.shared.lock().unwrap().events.push(body.clone());
    answer(body)
}
