//! The start: what is published is taken over as the plan so far, so that a restart changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nodenet_crds::{AssignedState, conditions};

use super::Index;
use crate::accept::{self, InForce};
use crate::bindings;
use crate::inside::InsideNumbers;
use crate::node::address_of;
use crate::service::Named;
use crate::vip::Holder;
use crate::vip_status::{is_by_grant, whole_seconds};
use crate::{Kind, Now};

/// Kinds that must have been complete once: what is in force for VirtualIPs is rebuilt from them.
const TO_ADOPT_VIPS: [Kind; 5] =
    [Kind::Node, Kind::VirtualIP, Kind::NodeNetState, Kind::Service, Kind::NodeNetSlice];

impl Index {
    /// Takes over what is published, once it is known in full. Returns whether that happened now.
    pub(super) fn adopt(&mut self, now: &Now) -> bool {
        let mut adopted = false;
        if !self.slices_adopted && self.has(&[Kind::NodeNetSlice, Kind::Service]) {
            let services = &self.facts.services;
            self.slices.adopt(|s| services.get(s).map(|i| Arc::clone(&i.uid)));
            self.inside = InsideNumbers::default();
            self.inside.adopt(self.slices.published(), self.slices.any_unreadable());
            let services = &self.facts.services;
            self.external.adopt(self.slices.published(), |s| services.get(s).and_then(|info| info.created));
            self.complaints.adopt(self.facts.services.keys().cloned());
            self.slices_adopted = true;
            adopted = true;
        }
        if !self.vips_adopted && self.slices_adopted && self.has(&TO_ADOPT_VIPS) {
            self.adopt_vips(now);
            self.vips_adopted = true;
            adopted = true;
        }
        adopted
    }

    fn adopt_vips(&mut self, now: &Now) {
        let mut entries: BTreeMap<String, Vec<(&str, &nodenet_crds::AssignedVirtualIP)>> = BTreeMap::new();
        for (node, state) in &self.facts.states {
            for v in &state.spec.virtual_ips {
                entries.entry(v.name.clone()).or_default().push((node, v));
            }
        }
        let mut claims = Vec::new();
        for (name, entries) in entries {
            let Some(mut in_force) = InForce::from_published(entries.iter().copied()) else { continue };
            let plain: Vec<IpAddr> = in_force.addresses.iter().map(|(_, n)| n.addr()).collect();
            in_force.bindings = bindings::published(&plain, self.slices.published());
            let vip = self.vips.entry(name.clone()).or_default();
            if let Some(object) = &vip.object {
                let accepted = conditions::get(&vip.status.conditions, conditions::virtual_ip::ACCEPTED);
                let known = accepted.filter(|c| c.status == "True");
                in_force.generation =
                    known.and_then(|c| c.observed_generation).filter(|g| Some(*g) == object.generation);
            }
            let told = |node: &str| vip.status.addresses.iter().find(|a| a.node == node);
            let active = entries.iter().filter(|(_, v)| v.state == AssignedState::Active);
            let best = active.min_by_key(|(node, _)| (told(node).is_none(), *node));
            if let Some((node, entry)) = best {
                let told = told(node);
                vip.holder = Some(Holder {
                    node: (*node).to_owned(),
                    since: told
                        .and_then(|t| t.since.as_ref())
                        .map_or_else(|| whole_seconds(now.wall), |t| t.0),
                    reason: told.map_or_else(
                        || "it held the addresses when the operator started".to_owned(),
                        |t| t.reason.clone(),
                    ),
                });
                let parsed = entry.addresses.iter().filter_map(|a| a.parse::<IpNet>().ok());
                vip.granted = parsed.map(|n| n.addr()).collect();
            }
            vip.assigned =
                entries.iter().map(|(node, entry)| ((*node).to_owned(), (*entry).clone())).collect();
            let created = vip.object.as_ref().and_then(|o| o.created);
            claims.push(((created, name.clone()), plain.into_iter().collect::<BTreeSet<_>>()));
            for binding in &in_force.bindings {
                let service = Named::new(&binding.namespace, &binding.name);
                self.vips_of_service.entry(service).or_default().insert(name.clone());
            }
            vip.in_force = Some(in_force);
        }
        // A NodeNetState that was deleted while nobody looked has left its trace in the status of the VirtualIP.
        let told = self.vips.values().flat_map(|vip| &vip.status.addresses);
        for held in told.filter(|held| is_by_grant(held)) {
            let Some(address) = address_of(&held.address) else { continue };
            // Where there is one again, it may be another than the one by which the node got the address.
            self.facts.states.entry(held.node.clone()).or_default().haunt(address);
            self.near.entry(address).or_default().insert(held.node.clone());
        }
        for (claim, addresses) in claims {
            let mut wanted = addresses.clone();
            if let Some(object) = self.vips.get(&claim.1).and_then(|v| v.object.as_ref()) {
                wanted.extend(accept::claimed(&object.spec));
            }
            self.wanted.set(claim.clone(), wanted);
            self.in_force.set(claim, addresses);
        }
    }
}
