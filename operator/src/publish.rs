//! One write to the API server: what each [`Output`] is on the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use nodenet_crds::{
    NodeNetSlice, NodeNetState, NodeNetStateSpec, OPERATOR_FIELD_MANAGER, SLICE_FINALIZER, VirtualIP,
};
use nodenet_planner::{Event, Kind, Object, ObjectRef, Output, Precondition};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::metrics::{Metrics, Outcome};

/// Longest wait for an answer. Shorter than what lies between a leader's deadline and the end of its Lease.
const ANSWER: Duration = Duration::from_secs(4);
/// Namespace of events about cluster-scoped objects.
const EVENT_NAMESPACE: &str = "default";

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused it or could not be reached.
    #[error("{verb} {object}: {}", explain(.source))]
    Request {
        /// The object.
        object: ObjectRef,
        /// `create`, `replace`, `apply-status`, `delete`, `release`.
        verb: &'static str,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// No answer in time: it may have been done.
    #[error("{verb} {object}: no answer within {ANSWER:?}")]
    Timeout {
        /// The object.
        object: ObjectRef,
        /// As above.
        verb: &'static str,
    },
}

/// What to do about a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody else wrote in between: read, plan and try again; nothing to tell anybody.
    Conflict,
    /// The server is away or busy: try again later.
    Retry,
    /// The server does not accept it: a person must look, and it is tried again ever later.
    Refused,
}

impl Error {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Timeout { .. } => Class::Retry,
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Class::Conflict,
                    429 | 500.. => Class::Retry,
                    _ => Class::Refused,
                },
                _ => Class::Retry,
            },
        }
    }
}

/// The client's error in words, with what helps where that is known.
pub fn explain(error: &kube::Error) -> String {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::Service(source) => {
            return format!("no answer from the API server: {}", chain(source.as_ref()));
        }
        kube::Error::HyperError(source) => {
            return format!("no answer from the API server: {}", chain(source));
        }
        other => return chain(other),
    };
    let help = match status.code {
        401 => " (the token or certificate is not valid for this cluster)",
        403 => " (the role of this account lacks the right; compare it with the chart's)",
        404 if status.message.contains("could not find the requested resource")
            || status.message.contains("404 page not found") =>
        {
            " (is its CustomResourceDefinition installed? see crds/ of the chart)"
        }
        _ => "",
    };
    format!("{}{help}", status.message.trim_end())
}

/// An error with its causes, without saying anything twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

/// The object that an output writes; an event has none of its own.
pub fn target(output: &Output) -> Option<ObjectRef> {
    match output {
        Output::PutSlice { name, .. }
        | Output::DeleteSlice { name, .. }
        | Output::ReleaseSlice { name, .. } => Some(ObjectRef::cluster(Kind::NodeNetSlice, name)),
        Output::PutState { node, .. } | Output::DeleteState { node, .. } => {
            Some(ObjectRef::cluster(Kind::NodeNetState, node))
        }
        Output::VirtualIPStatus { name, .. } => Some(ObjectRef::cluster(Kind::VirtualIP, name)),
        Output::Event(_) => None,
    }
}

/// Writes outputs. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    slices: Api<NodeNetSlice>,
    slice_metadata: Api<PartialObjectMeta<NodeNetSlice>>,
    states: Api<NodeNetState>,
    virtual_ips: Api<VirtualIP>,
    client: Client,
    instance: String,
    metrics: Metrics,
    cut: Arc<Cut>,
}

/// Kinds whose objects the API server did not keep whole. Said once: it is so for every object of the kind.
#[derive(Default)]
struct Cut {
    slices: AtomicBool,
    states: AtomicBool,
}

impl Cut {
    fn warn(&self, kind: Kind, name: &str, consequence: &str) {
        let said = if kind == Kind::NodeNetSlice { &self.slices } else { &self.states };
        if !said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the API server did not keep all of {kind} {name}: its CustomResourceDefinition is older than this \
                 operator, and {consequence}; apply the chart's crds/ (docs/install.md, Upgrade), then restart the operator"
            );
        }
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Writes through `client`; events name `instance` as the replica.
    pub fn new(client: &Client, instance: &str, metrics: &Metrics) -> Self {
        Self {
            slices: Api::all(client.clone()),
            slice_metadata: Api::all(client.clone()),
            states: Api::all(client.clone()),
            virtual_ips: Api::all(client.clone()),
            client: client.clone(),
            instance: instance.to_owned(),
            metrics: metrics.clone(),
            cut: Arc::default(),
        }
    }

    /// Does one write. Returns the object as the server has it now, for outputs that put a whole object.
    ///
    /// # Errors
    /// See [`Error`]; a deletion of what is gone is none.
    pub async fn write(&self, output: &Output) -> Result<Option<Object>, Error> {
        let (kind, verb) = match output {
            Output::PutSlice { replaces: None, .. } => ("NodeNetSlice", "create"),
            Output::PutSlice { .. } => ("NodeNetSlice", "replace"),
            Output::DeleteSlice { .. } => ("NodeNetSlice", "delete"),
            Output::ReleaseSlice { .. } => ("NodeNetSlice", "release"),
            Output::PutState { replaces: None, .. } => ("NodeNetState", "create"),
            Output::PutState { .. } => ("NodeNetState", "replace"),
            Output::DeleteState { .. } => ("NodeNetState", "delete"),
            Output::VirtualIPStatus { .. } => ("VirtualIP", "apply-status"),
            Output::Event(_) => ("Event", "create"),
        };
        let object = || match (target(output), output) {
            (Some(object), _) => object,
            (None, Output::Event(event)) => event.regarding.clone(),
            (None, _) => ObjectRef::cluster(Kind::Node, ""),
        };
        let result = match timeout(ANSWER, self.request(output)).await {
            Err(_) => Err(Error::Timeout { object: object(), verb }),
            Ok(Err(source)) => Err(Error::Request { object: object(), verb, source: Box::new(source) }),
            Ok(Ok(answer)) => Ok(answer),
        };
        let outcome = match &result {
            Ok(_) => Outcome::Ok,
            Err(error) if error.class() == Class::Conflict => Outcome::Conflict,
            Err(_) => Outcome::Error,
        };
        self.metrics.wrote(kind, verb, outcome);
        result
    }

    /// A NodeNetState as the API server has it now; `None` where it has none, or does not say.
    pub async fn state(&self, node: &str) -> Option<Object> {
        let found = timeout(ANSWER, self.states.get_opt(node)).await.ok()?.ok()?;
        found.map(Object::from)
    }

    async fn request(&self, output: &Output) -> Result<Option<Object>, kube::Error> {
        let manager =
            PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PostParams::default() };
        match output {
            Output::PutSlice { name, spec, replaces } => {
                let mut slice = NodeNetSlice::new(name, spec.clone());
                slice.metadata.finalizers = Some(vec![SLICE_FINALIZER.to_owned()]);
                let slice = match replaces {
                    None => self.slices.create(&manager, &slice).await?,
                    Some(expect) => {
                        slice.metadata.uid = expect.uid.clone();
                        slice.metadata.resource_version = expect.resource_version.clone();
                        self.slices.replace(name, &manager, &slice).await?
                    }
                };
                if slice.spec != *spec {
                    self.cut.warn(
                        Kind::NodeNetSlice,
                        name,
                        "Services do not get what the newer one adds (source ranges, traffic policies)",
                    );
                }
                Ok(Some(slice.into()))
            }
            Output::DeleteSlice { name, expect } => {
                gone_is_done(self.slices.delete(name, &delete(expect)).await.map(drop))
            }
            Output::ReleaseSlice { name, expect } => gone_is_done(self.release(name, expect).await),
            Output::PutState { node, node_uid, spec, replaces } => {
                let owner = node_uid.as_ref().map(|uid| OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: node.clone(),
                    uid: uid.clone(),
                    ..OwnerReference::default()
                });
                let state = match replaces {
                    None => {
                        let mut state = NodeNetState::new(node, spec.clone());
                        state.metadata.owner_references = owner.map(|owner| vec![owner]);
                        self.states.create(&manager, &state).await?
                    }
                    Some(expect) => {
                        let patch = replacement(expect, spec, owner.as_ref())?;
                        let params = PatchParams {
                            field_manager: Some(OPERATOR_FIELD_MANAGER.into()),
                            ..PatchParams::default()
                        };
                        self.states.patch(node, &params, &patch).await?
                    }
                };
                if state.spec != *spec {
                    self.cut.warn(Kind::NodeNetState, node, "nodes do not get what the newer one adds");
                }
                Ok(Some(state.into()))
            }
            Output::DeleteState { node, expect } => {
                gone_is_done(self.states.delete(node, &delete(expect)).await.map(drop))
            }
            Output::VirtualIPStatus { name, uid, status } => {
                let mut metadata = json!({ "name": name });
                if let Some(uid) = uid {
                    set(&mut metadata, "uid", json!(uid));
                }
                let body = applied::<VirtualIP>(metadata, "status", json!(status));
                match self.virtual_ips.patch_status(name, &apply(), &Patch::Apply(&body)).await.map(drop) {
                    // The status was taken; the answer holds a spec that this version cannot read, which is what the
                    // status is about.
                    Err(kube::Error::SerdeError(_)) => Ok(None),
                    other => gone_is_done(other),
                }
            }
            Output::Event(event) => self.event(event).await,
        }
    }

    /// Takes our finalizer off, and nobody else's.
    async fn release(&self, name: &str, expect: &Precondition) -> Result<(), kube::Error> {
        let found = self.slice_metadata.get(name).await?;
        let mut left = found.metadata.finalizers.unwrap_or_default();
        left.retain(|f| f != SLICE_FINALIZER);
        let version = expect.resource_version.clone().or(found.metadata.resource_version);
        let body = json!({ "metadata": {
            "uid": expect.uid.clone().or(found.metadata.uid),
            "resourceVersion": version,
            "finalizers": left,
        }});
        let params =
            PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PatchParams::default() };
        self.slice_metadata.patch(name, &params, &Patch::Merge(&body)).await.map(drop)
    }

    async fn event(&self, event: &Event) -> Result<Option<Object>, kube::Error> {
        let namespace = match event.regarding.namespace.as_str() {
            "" => EVENT_NAMESPACE,
            namespace => namespace,
        };
        let now = Timestamp::now();
        // As client-go names them: unique by time.
        let by_time = format!("{}.{:x}", event.regarding.name, now.as_nanosecond());
        let mut body = ApiEvent {
            metadata: ObjectMeta {
                name: Some(match event.regarding.kind {
                    Kind::Service => format!("{}.{:016x}", event.regarding.name, content(event)),
                    _ => by_time.clone(),
                }),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            action: Some(event.action.to_owned()),
            reason: Some(event.reason.to_owned()),
            note: Some(event.note.clone()),
            type_: Some(event.type_.as_str().to_owned()),
            reporting_controller: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            reporting_instance: Some(self.instance.chars().take(128).collect()),
            regarding: Some(reference(&event.regarding, event.uid.clone())),
            ..ApiEvent::default()
        };
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), namespace);
        let mut result = api.create(&PostParams::default(), &body).await;
        if let Err(kube::Error::Api(status)) = &result
            && status.code == 409
        {
            // The same was said within the time that Events are kept: by the last leader, or before it was put right and
            // broken again.
            if event.again {
                return Ok(None);
            }
            body.metadata.name = Some(by_time);
            result = api.create(&PostParams::default(), &body).await;
        }
        if let Err(kube::Error::Api(status)) = &result
            && status.code == 422
            && event.regarding.namespace.is_empty()
            && let Some(regarding) = &mut body.regarding
        {
            // API servers of 1.20 want the event's namespace here, though the object has none. Later ones do not, and
            // `kubectl describe` finds the event only without.
            regarding.namespace = Some(namespace.to_owned());
            return api.create(&PostParams::default(), &body).await.map(|_| None);
        }
        result.map(|_| None)
    }
}

/// A number that follows from what an Event says of which object (FNV-1a): the next leader finds the same one.
fn content(event: &Event) -> u64 {
    let parts = [event.uid.as_deref().unwrap_or_default(), event.reason, &event.note];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Replaces the spec of the version that is expected; labels and annotations of other hands stay. Server-side apply
/// could not say that an object must not exist, and a mixture of both leaves removed fields behind.
fn replacement(
    expect: &Precondition,
    spec: &NodeNetStateSpec,
    owner: Option<&OwnerReference>,
) -> Result<Patch<()>, kube::Error> {
    let mut steps = vec![json!({ "op": "replace", "path": "/spec", "value": spec })];
    // It names a version of this object and of no other: the UID goes without saying.
    if let Some(version) = &expect.resource_version {
        steps.push(json!({ "op": "replace", "path": "/metadata/resourceVersion", "value": version }));
    }
    if let Some(owner) = owner {
        steps.push(json!({ "op": "add", "path": "/metadata/ownerReferences", "value": [owner] }));
    }
    serde_json::from_value(Value::Array(steps)).map(Patch::Json).map_err(kube::Error::SerdeError)
}

fn reference(object: &ObjectRef, uid: Option<String>) -> ObjectReference {
    let api_version = match object.kind {
        Kind::Node | Kind::Service => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::Lease => "coordination.k8s.io/v1",
        Kind::VirtualIP | Kind::NodeNetState | Kind::NodeNetSlice => "nodenet.dev/v1alpha1",
    };
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(object.kind.to_string()),
        name: Some(object.name.clone()),
        namespace: (!object.namespace.is_empty()).then(|| object.namespace.clone()),
        uid,
        ..ObjectReference::default()
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(OPERATOR_FIELD_MANAGER).force()
}

fn applied<K: Resource<DynamicType = ()>>(metadata: Value, part: &str, content: Value) -> Value {
    let mut body = json!({ "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata });
    set(&mut body, part, content);
    body
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(field.to_owned(), value);
    }
}

fn delete(expect: &Precondition) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: expect.uid.clone(),
            resource_version: expect.resource_version.clone(),
        }),
        ..DeleteParams::default()
    }
}

fn gone_is_done(result: Result<(), kube::Error>) -> Result<Option<Object>, kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        other => other.map(|()| None),
    }
}
