use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// Answers of an API server, in the order in which they are given.
enum Answer {
    List(Value),
    /// A watch with these events, which ends after them.
    Watch(Vec<Value>),
    Status(u16, &'static str),
    /// A watch on which nothing happens.
    Silence,
}

fn client(answers: Vec<Answer>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let what = request.uri().query().unwrap_or_default().to_owned();
        log.lock().unwrap().push(if what.contains("watch=true") { "watch" } else { "list" }.to_owned());
        let answer = answers.lock().unwrap().pop_front().unwrap_or(Answer::Silence);
        async move {
            let (code, body) = match answer {
                Answer::List(body) => (200, body.to_string()),
                Answer::Watch(events) => {
                    (200, events.iter().map(|e| format!("{e}\n")).collect::<String>())
                }
                Answer::Status(code, reason) => (
                    code,
                    json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason })
                        .to_string(),
                ),
                Answer::Silence => std::future::pending().await,
            };
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap(),
            )
        }
    });
    (Client::new(service, "default"), asked)
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": "5",
                      "managedFields": [{ "manager": "x" }] },
        "spec": { "clusterIP": "10.96.0.9" },
    })
}

fn garbage(name: &str) -> Value {
    let mut object = service(name);
    object["spec"] = json!({ "ports": "none" });
    object
}

fn list(items: Vec<Value>) -> Answer {
    Answer::List(json!({
        "apiVersion": "v1", "kind": "ServiceList", "metadata": { "resourceVersion": "10" }, "items": items,
    }))
}

/// The first `count` changes of a watch of Services.
async fn changes(answers: Vec<Answer>, count: usize) -> (Vec<String>, Vec<String>) {
    let (client, asked) = client(answers);
    let (sender, mut receiver) = mpsc::channel(100);
    let watch = Watch { kind: Kind::Service, sender, metrics: Metrics::new(), health: Health::new() };
    tokio::spawn(watch.run::<Service>(Api::all(client)));
    let mut seen = Vec::new();
    while seen.len() < count {
        let change = receiver.recv().await.unwrap().change;
        seen.push(match change {
            Change::Upsert(object) => {
                assert!(object.metadata().managed_fields.as_ref().is_none_or(Vec::is_empty));
                format!("upsert {}", object.object_ref())
            }
            Change::Delete(object) => format!("delete {object}"),
            Change::Undecodable { object, .. } => format!("undecodable {object}"),
            Change::Listing(kind) => format!("listing {kind}"),
            Change::Synced(kind) => format!("synced {kind}"),
            Change::Lost(kind) => format!("lost {kind}"),
            other => format!("{other:?}"),
        });
    }
    let asked = asked.lock().unwrap().clone();
    (seen, asked)
}

#[tokio::test(start_paused = true)]
async fn an_undecodable_object_is_a_message_like_any_other() {
    let event = |type_: &str, object| json!({ "type": type_, "object": object });
    let answers = vec![
        list(vec![service("a"), garbage("b"), service("c")]),
        Answer::Watch(vec![
            event("MODIFIED", garbage("a")),
            event("DELETED", garbage("b")),
            event("ADDED", service("d")),
        ]),
    ];
    let (seen, _) = changes(answers, 8).await;
    assert_eq!(
        seen,
        [
            "listing Service",
            "upsert Service shop/a",
            "undecodable Service shop/b",
            "upsert Service shop/c",
            "synced Service",
            "undecodable Service shop/a",
            "delete Service shop/b",
            "upsert Service shop/d",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_ended_connection_is_taken_up_without_a_new_list() {
    let answers = vec![list(vec![]), Answer::Watch(vec![]), Answer::Watch(vec![]), Answer::Silence];
    let (seen, asked) = changes(answers.into_iter().chain([Answer::Watch(vec![])]).collect(), 2).await;
    assert_eq!(seen, ["listing Service", "synced Service"]);
    assert_eq!(asked.first().map(String::as_str), Some("list"));
    assert_eq!(asked.iter().filter(|a| *a == "list").count(), 1, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_history_too_short_leads_to_a_new_list_and_deletes_nothing_before_its_end() {
    let gone = json!({ "type": "ERROR", "object": {
        "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old",
    }});
    let answers = vec![list(vec![service("a")]), Answer::Watch(vec![gone]), list(vec![])];
    let (seen, _) = changes(answers, 6).await;
    assert_eq!(
        seen,
        [
            "listing Service",
            "upsert Service shop/a",
            "synced Service",
            "lost Service",
            "listing Service",
            "synced Service",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_refused_is_tried_at_a_bounded_pace() {
    let (client, asked) = client((0..1000).map(|_| Answer::Status(403, "Forbidden")).collect());
    let (sender, mut receiver) = mpsc::channel(100);
    let (metrics, health) = (Metrics::new(), Health::new());
    let watch = Watch { kind: Kind::Service, sender, metrics, health };
    tokio::spawn(watch.run::<Service>(Api::all(client)));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(100) {
        receiver.recv().await.unwrap();
    }
    let asked = asked.lock().unwrap().len();
    assert!((12..=20).contains(&asked), "{asked} requests in 100 s");
}
