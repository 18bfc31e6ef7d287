//! Events of the node's NodeNetState, for changes of state only.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use nodenet_crds::{NodeNetState, VirtualIP};

use super::facts::Notice;

/// Longest note that the API takes.
const NOTE_MAX: usize = 1024;

/// Publishes Events.
pub struct Events {
    recorder: Recorder,
    reference: ObjectReference,
}

impl Events {
    /// Events about the NodeNetState of `node`.
    pub fn new(client: kube::Client, node: &str) -> Self {
        let reporter = Reporter { controller: "nodenet-agent".to_owned(), instance: Some(node.to_owned()) };
        let mut reference = reference::<NodeNetState>(node);
        // Events of objects without namespace stand in `default`; API servers of 1.20 want both to be equal.
        reference.namespace = Some("default".to_owned());
        Self { recorder: Recorder::new(client, reporter), reference }
    }

    /// From now on Events carry the object's UID, so that `kubectl describe` shows them.
    pub fn set_uid(&mut self, uid: Option<String>) {
        self.reference.uid = uid;
    }

    /// Publishes one; what the API server does not take is in the log.
    pub async fn publish(&self, notice: &Notice) {
        let note: String = notice.note.chars().take(NOTE_MAX / 2).collect();
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: Some(note),
            action: notice.action.to_owned(),
            secondary: notice.virtual_ip.as_deref().map(reference::<VirtualIP>),
        };
        let publish = self.recorder.publish(&event, &self.reference);
        match tokio::time::timeout(super::lease::TIMEOUT, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("Event {} was not published: {error}", notice.reason),
            Err(_) => tracing::debug!("Event {} was not published: no answer", notice.reason),
        }
    }
}

fn reference<K: Resource<DynamicType = ()>>(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}
