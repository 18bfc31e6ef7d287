//! Events of the node's NodeNetState, for changes of state only.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use nodenet_crds::{NodeNetState, VirtualIP};

use super::facts::Notice;

/// Longest note that the API takes.
const NOTE_MAX: usize = 1024;

/// Publishes Events.
pub struct Events {
    client: kube::Client,
    reporter: Reporter,
    /// The last note of each reason, and who published it. A recorder takes a second Event with the same reason for the
    /// first once more, whatever its note says: it counts on and the note is lost. So each note has its own.
    recorders: BTreeMap<&'static str, (String, Recorder)>,
    reference: ObjectReference,
}

impl Events {
    /// Events about the NodeNetState of `node`.
    pub fn new(client: kube::Client, node: &str) -> Self {
        let reporter = Reporter { controller: "nodenet-agent".to_owned(), instance: Some(node.to_owned()) };
        let mut reference = reference::<NodeNetState>(node);
        // Events of objects without namespace stand in `default`; API servers of 1.20 want both to be equal.
        reference.namespace = Some("default".to_owned());
        Self { client, reporter, recorders: BTreeMap::new(), reference }
    }

    /// From now on Events carry the object's UID, so that `kubectl describe` shows them.
    pub fn set_uid(&mut self, uid: Option<String>) {
        self.reference.uid = uid;
    }

    /// Publishes one. `false`: no API server took the request, so it is worth another try. What an API server refuses
    /// is in the log, and that is all: it would refuse it again.
    pub async fn publish(&mut self, notice: &Notice) -> bool {
        let note: String = notice.note.chars().take(NOTE_MAX / 2).collect();
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: Some(note),
            action: notice.action.to_owned(),
            secondary: notice.virtual_ip.as_deref().map(reference::<VirtualIP>),
        };
        if self.recorders.get(notice.reason).is_none_or(|(last, _)| *last != notice.note) {
            let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            self.recorders.insert(notice.reason, (notice.note.clone(), recorder));
        }
        let Some((_, recorder)) = self.recorders.get(notice.reason) else { return true };
        let publish = recorder.publish(&event, &self.reference);
        match tokio::time::timeout(super::lease::TIMEOUT, publish).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!("Event {} was not published: {error}", notice.reason);
                refused(&error)
            }
            Err(_) => {
                tracing::debug!("Event {} was not published: no answer", notice.reason);
                false
            }
        }
    }
}

/// Whether an API server has said no, rather than none has said anything or one was too busy (RFC 9110 §15.5, §15.6;
/// RFC 6585 §4).
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code < 500 && status.code != 429)
}

fn reference<K: Resource<DynamicType = ()>>(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::refused;
    use kube::core::Status;

    #[test]
    fn only_what_an_api_server_refuses_is_given_up() {
        let answer = |code| kube::Error::Api(Status { code, ..Status::default() }.boxed());
        assert!(refused(&answer(403)) && refused(&answer(422)));
        assert!(!refused(&answer(429)) && !refused(&answer(500)) && !refused(&answer(504)));
        let nobody = std::io::Error::other("no route to host");
        assert!(!refused(&kube::Error::Service(Box::new(nobody))));
    }
}
