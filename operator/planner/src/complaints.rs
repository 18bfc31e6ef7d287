//! What is wrong with Services: told once, as Events of theirs. A Service has no status of ours to say it in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::output::{Event, EventType};
use crate::service::Named;
use crate::{Kind, ObjectRef};

/// Most complaints about one Service: its author decides how many there could be.
const MOST: usize = 8;

/// One thing that is wrong with a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Complaint {
    /// CamelCase word.
    pub(crate) reason: &'static str,
    /// What is wrong and what helps, at most 1024 characters.
    pub(crate) note: String,
}

/// What was told of which Service, and what is to be told.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    told: BTreeMap<Named, Vec<Complaint>>,
    /// Services that were there when this process began to lead and that it has not looked at yet.
    from_before: BTreeSet<Named>,
    events: Vec<Event>,
}

impl Complaints {
    /// Takes over from a leader that may have told what is wrong with these Services.
    pub(crate) fn adopt(&mut self, services: impl Iterator<Item = Named>) {
        self.from_before.extend(services);
    }

    /// All that is wrong with a Service now. What was not wrong before becomes an Event.
    pub(crate) fn set(&mut self, service: &Named, uid: Option<&Arc<str>>, mut now: Vec<Complaint>) {
        now.truncate(MOST);
        let again = self.from_before.remove(service);
        let before = self.told.remove(service).unwrap_or_default();
        for complaint in now.iter().filter(|complaint| !before.contains(complaint)) {
            self.events.push(Event {
                regarding: ObjectRef::namespaced(Kind::Service, &*service.namespace, &*service.name),
                uid: uid.map(ToString::to_string),
                type_: EventType::Warning,
                reason: complaint.reason,
                action: "Plan",
                note: complaint.note.clone(),
                again,
            });
        }
        if !now.is_empty() {
            self.told.insert(service.clone(), now);
        }
    }

    /// The Events that are due.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}
