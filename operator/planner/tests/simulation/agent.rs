//! One node: an agent that does as its NodeNetState says, and its kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use nodenet_crds::timing::{
    FENCE_LIFETIME, FENCE_RENEW, LEASE_RENEW_CANDIDATE, LEASE_RENEW_IDLE, lease_duration_seconds,
};
use nodenet_crds::{
    AddressOnNode, AssignedState, InterfaceOnNode, NodeNetState, NodeNetStateStatus, VirtualIPOnNode,
    VirtualIPState,
};
use nodenet_planner::{Kind, Object, ObjectRef};

use super::objects::meta;
use super::{Cluster, at, s};

/// One node's agent and kernel.
#[derive(Debug)]
pub struct Agent {
    /// The process runs.
    pub alive: bool,
    /// The API server answers it.
    pub connected: bool,
    /// It acts on its NodeNetState.
    pub obeys: bool,
    /// It reports what it has.
    pub reports: bool,
    /// It programs virtual servers.
    pub programs: bool,
    pub(super) spec: Option<NodeNetState>,
    /// Address -> when it runs out.
    pub(super) kernel: BTreeMap<String, Duration>,
    pub(super) renewed: Duration,
    pub(super) refreshed: Duration,
    pub(super) renewals: i64,
}

impl Agent {
    /// One that has just started, well in every way.
    pub fn new() -> Self {
        Self {
            alive: true,
            connected: true,
            obeys: true,
            reports: true,
            programs: true,
            spec: None,
            kernel: BTreeMap::new(),
            renewed: s(0),
            refreshed: s(0),
            renewals: 0,
        }
    }
}

impl Cluster {
    /// One turn of its loop.
    pub(super) fn agent(&mut self, name: &str) {
        let now = self.now;
        let reachable = self.api;
        let state = self.state(name).cloned();
        let Some(agent) = self.agents.get_mut(name) else { return };
        agent.kernel.retain(|_, until| *until > now);
        if !agent.alive {
            return;
        }
        let online = agent.connected && reachable;
        let mut lease = None;
        if online {
            let fresh = agent.spec.as_ref().map(|s| &s.spec) != state.as_ref().map(|s| &s.spec);
            if agent.obeys && fresh {
                agent.spec.clone_from(&state);
            }
            let candidate = agent.spec.as_ref().is_some_and(|s| !s.spec.virtual_ips.is_empty());
            let period = if candidate { LEASE_RENEW_CANDIDATE } else { LEASE_RENEW_IDLE };
            if agent.renewals == 0 || now >= agent.renewed + period {
                agent.renewed = now;
                agent.renewals += 1;
                lease = Some(Lease {
                    metadata: meta(name),
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.to_owned()),
                        lease_duration_seconds: Some(lease_duration_seconds(FENCE_LIFETIME, period)),
                        renew_time: Some(MicroTime(at(now).wall)),
                        ..Default::default()
                    }),
                });
            }
        }
        let spec = agent.spec.clone().map(|s| s.spec).unwrap_or_default();
        let active = spec.virtual_ips.iter().filter(|v| v.state == AssignedState::Active);
        let wanted: BTreeSet<String> = active.flat_map(|v| v.addresses.clone()).collect();
        agent.kernel.retain(|a, _| wanted.contains(a));
        let refresh = now >= agent.refreshed + FENCE_RENEW;
        for address in &wanted {
            if refresh || !agent.kernel.contains_key(address) {
                agent.kernel.insert(address.clone(), now + FENCE_LIFETIME);
            }
        }
        if refresh {
            agent.refreshed = now;
        }
        let down = state
            .as_ref()
            .and_then(|s| s.status.as_ref())
            .is_some_and(|s| s.interfaces.iter().any(|i| !i.up));
        let status = agent.spec.as_ref().filter(|_| online && agent.obeys && agent.reports).map(|read| {
            NodeNetStateStatus {
                observed_generation: read.metadata.generation,
                slice_revision: Some(if agent.programs { i64::MAX >> 8 } else { 0 }),
                interfaces: state.as_ref().and_then(|s| s.status.as_ref()).map_or_else(
                    || {
                        let node = ObjectRef::cluster(Kind::Node, name);
                        let ip = match self.objects.get(&node) {
                            Some(Object::Node(n)) => n.status.as_ref().and_then(|s| s.addresses.clone()),
                            _ => None,
                        };
                        let ip = ip.unwrap_or_default();
                        vec![InterfaceOnNode {
                            name: "eth0".to_owned(),
                            up: true,
                            addresses: ip.iter().map(|a| format!("{}/24", a.address)).collect(),
                        }]
                    },
                    |s| s.interfaces.clone(),
                ),
                gateways: state
                    .as_ref()
                    .and_then(|s| s.status.as_ref())
                    .map(|s| s.gateways.clone())
                    .unwrap_or_default(),
                virtual_ips: spec
                    .virtual_ips
                    .iter()
                    .map(|v| VirtualIPOnNode {
                        name: v.name.clone(),
                        state: match v.state {
                            _ if down => VirtualIPState::Fault,
                            AssignedState::Active => VirtualIPState::Active,
                            AssignedState::Backup => VirtualIPState::Backup,
                        },
                        message: None,
                        addresses: v
                            .addresses
                            .iter()
                            .filter(|_| v.state == AssignedState::Active)
                            .map(|a| AddressOnNode {
                                address: a.clone(),
                                interface: "eth0".to_owned(),
                                role: None,
                            })
                            .collect(),
                    })
                    .collect(),
                ..Default::default()
            }
        });
        if let Some(lease) = lease {
            self.put(lease);
        }
        if let (Some(status), Some(mut state)) = (status, self.state(name).cloned())
            && state.status.as_ref() != Some(&status)
        {
            state.status = Some(status);
            self.put(state);
        }
    }
}
