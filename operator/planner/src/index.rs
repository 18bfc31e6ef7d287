//! The synchronous index: every event goes in, every write comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::accept::{Claims, Facts};
use crate::agents::Agents;
use crate::complaints::Complaints;
use crate::external::External;
use crate::inside::InsideNumbers;
use crate::service::{EndpointsInfo, Named};
use crate::slices::Slices;
use crate::vip::Vip;
use crate::{Key, Kind, Now, ObjectRef, Settings};

/// Kinds from which the plans of Services follow.
const FOR_SERVICES: [Kind; 6] =
    [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::VirtualIP, Kind::NodeNetState, Kind::NodeNetSlice];

mod adopt;
mod changes;
mod planning;
mod virtual_ips;

/// All that is known of the cluster, and what follows from it.
#[derive(Debug)]
pub struct Index {
    facts: Facts,
    endpoints: BTreeMap<Named, EndpointsInfo>,
    endpoints_of: BTreeMap<Named, BTreeSet<Named>>,
    /// The Service of the API servers.
    api_service: Named,
    vips: BTreeMap<String, Vip>,
    agents: Agents,
    slices: Slices,
    inside: InsideNumbers,
    complaints: Complaints,
    external: External,
    /// Names of nodes, shared by the endpoints on them.
    names: BTreeSet<Arc<str>>,

    /// Objects that exist but were never decoded, with the Service of an EndpointSlice.
    unreadable: BTreeMap<ObjectRef, Option<Named>>,
    complete: BTreeSet<Kind>,
    /// What was shown since a list began.
    listing: BTreeMap<Kind, BTreeSet<ObjectRef>>,

    leading: bool,
    slices_adopted: bool,
    vips_adopted: bool,
    /// Keys whose input was not complete.
    held_back: BTreeSet<Key>,

    /// VirtualIPs that name a Service, in the spec or in what is in force.
    vips_of_service: BTreeMap<Named, BTreeSet<String>>,
    /// Who wants an address, by valid specs and by what is in force.
    wanted: Claims,
    /// Who has an address in force.
    in_force: Claims,
    /// Nodes that may have an address, or say that they do; more than there are, never fewer.
    near: BTreeMap<IpAddr, BTreeSet<String>>,

    /// Grows with every change of a Node or of a node's interfaces: specs must be judged again.
    epoch: u64,
    /// Addresses and ranges of the cluster that came or went: Services that name one from outside are judged again.
    moved: BTreeSet<IpNet>,
    todo_vips: BTreeSet<String>,
    todo_services: BTreeSet<Named>,
    todo_nodes: BTreeSet<String>,

    deadlines: BTreeMap<Key, Duration>,
    by_time: BTreeSet<(Duration, Key)>,
}

impl Index {
    /// An index that knows nothing: every kind is incomplete.
    pub fn new(settings: Settings) -> Self {
        let slices = Slices::new(settings.slice_bytes, settings.part_bytes);
        Self {
            facts: Facts { settings, ..Facts::default() },
            endpoints: BTreeMap::new(),
            endpoints_of: BTreeMap::new(),
            api_service: Named::new("default", "kubernetes"),
            vips: BTreeMap::new(),
            agents: Agents::default(),
            slices,
            inside: InsideNumbers::default(),
            complaints: Complaints::default(),
            external: External::default(),
            names: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            complete: BTreeSet::new(),
            listing: BTreeMap::new(),
            leading: false,
            slices_adopted: false,
            vips_adopted: false,
            held_back: BTreeSet::new(),
            vips_of_service: BTreeMap::new(),
            wanted: Claims::default(),
            in_force: Claims::default(),
            near: BTreeMap::new(),
            epoch: 0,
            moved: BTreeSet::new(),
            todo_vips: BTreeSet::new(),
            todo_services: BTreeSet::new(),
            todo_nodes: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// As [`Index::new`], for a cluster that consists of what is shown to it, without agents that report.
    pub(crate) fn offline(settings: Settings) -> Self {
        let mut index = Self::new(settings);
        index.facts.offline = true;
        index
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.facts.settings
    }

    /// Begins to lead: what is published now is taken over as the plan so far (holders, places in slices, revisions).
    /// Before, [`Index::plan`] yields nothing: a follower keeps its index warm by [`Index::apply`] alone. Returns
    /// everything there is to plan.
    pub fn lead(&mut self, _now: &Now) -> BTreeSet<Key> {
        self.leading = true;
        self.all_keys()
    }

    /// The kinds whose list is not complete: outputs that need them are withheld.
    pub fn incomplete(&self) -> BTreeSet<Kind> {
        Kind::ALL.into_iter().filter(|k| !self.complete.contains(k)).collect()
    }

    /// Whether all is known that the plans of Services follow from: what is published afterwards is whole.
    pub fn is_informed(&self) -> bool {
        let unread = |object: &ObjectRef| FOR_SERVICES.contains(&object.kind);
        self.slices_adopted
            && self.vips_adopted
            && self.has(&FOR_SERVICES)
            && !self.unreadable.keys().any(unread)
            && !self.slices.any_unreadable()
    }

    /// Highest revision of the slices that are published.
    pub fn slice_revision(&self) -> i64 {
        self.slices.seen_revision()
    }

    /// Number of objects known of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let states = self.facts.states.values().filter(|s| s.exists).count();
        [
            (Kind::Node, self.facts.nodes.len()),
            (Kind::Service, self.facts.services.len()),
            (Kind::EndpointSlice, self.endpoints.len()),
            (Kind::VirtualIP, self.vips.values().filter(|v| v.object.is_some()).count()),
            (Kind::NodeNetState, states),
            (Kind::NodeNetSlice, self.slices.names().count()),
        ]
        .into()
    }

    /// Number of endpoints known, in all EndpointSlices.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.values().map(EndpointsInfo::len).sum()
    }

    /// The monotonic time at which something must be planned although nothing happens (a fence runs out, a delay
    /// ends): [`Index::take_due`] has its key from then on.
    pub fn due(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The keys whose time has come. Each is returned once.
    pub fn take_due(&mut self, now: &Now) -> BTreeSet<Key> {
        let mut out = BTreeSet::new();
        while let Some((at, key)) = self.by_time.first().cloned() {
            if at > now.monotonic {
                break;
            }
            self.set_deadline(key.clone(), None);
            out.insert(key);
        }
        out
    }

    fn set_deadline(&mut self, key: Key, at: Option<Duration>) {
        if let Some(old) = self.deadlines.remove(&key) {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key.clone()));
            self.deadlines.insert(key, at);
        }
    }

    fn all_keys(&self) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        keys.extend(self.all_vips());
        let services = self.facts.services.keys().chain(self.slices.services());
        keys.extend(services.map(service_key));
        keys.extend(self.slices.names().map(|n| Key::Slice(n.clone())));
        let nodes = self.facts.nodes.keys().chain(self.facts.states.keys());
        keys.extend(nodes.map(|n| Key::Node(n.clone())));
        keys
    }

    fn all_vips(&self) -> impl Iterator<Item = Key> + '_ {
        self.vips.keys().map(|n| Key::VirtualIP(n.clone()))
    }

    fn has(&self, kinds: &[Kind]) -> bool {
        kinds.iter().all(|k| self.complete.contains(k))
    }
}

fn service_key(service: &Named) -> Key {
    Key::service(&*service.namespace, &*service.name)
}
