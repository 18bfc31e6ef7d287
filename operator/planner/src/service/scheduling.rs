//! How connections are spread over the endpoints of a Service, and for how long one that leaves keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::SignedDuration;
use nodenet_crds::{
    ALLOWED_MODULES, ANNOTATION_DRAIN_TIMEOUT, ANNOTATION_ENDPOINT_WEIGHTS, ANNOTATION_SCHEDULER,
    ANNOTATION_SCHEDULER_FLAGS, SchedulerFlag,
};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where nothing is said (Service v1).
const AFFINITY_SECONDS: i32 = 10_800;
/// Longest affinity that the API takes.
const AFFINITY_SECONDS_MAX: i32 = 86_400;

/// Longest time that an endpoint may take to leave (the schema's bound).
const DRAIN_SECONDS_MAX: i32 = 86_400;
/// Most weights that a Service may give.
const WEIGHTS_MAX: usize = 256;
/// Greatest weight.
const WEIGHT_MAX: i32 = 65_535;

/// Scheduler, its flags, affinity, weights and drain timeout of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scheduling {
    scheduler: Option<Box<str>>,
    flags: Option<Vec<SchedulerFlag>>,
    pub(super) persistence_seconds: Option<i32>,
    pub(super) drain_timeout_seconds: Option<i32>,
    weights: Weights,
    pub(super) unusable: Vec<Unusable>,
}

/// Weights of endpoints; those that are not named have 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Weights {
    by_address: BTreeMap<IpAddr, i32>,
    by_node: BTreeMap<Box<str>, i32>,
}

/// An annotation that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// There is no such scheduler.
    #[error(
        "annotation {ANNOTATION_SCHEDULER}: IPVS has no scheduler {name:?}, the default is used; it may be one of {known}",
        known = schedulers().collect::<Vec<_>>().join(", ")
    )]
    Scheduler {
        /// What stands there.
        name: String,
    },
    /// There is no such flag.
    #[error(
        "annotation {ANNOTATION_SCHEDULER_FLAGS}: there is no flag {name:?}, it is left out; it may be Fallback or Port"
    )]
    Flag {
        /// What stands there.
        name: String,
    },
    /// Not a time, or too long a one.
    #[error(
        "annotation {ANNOTATION_DRAIN_TIMEOUT}: {text:?} is no time from 0s to 24h in whole seconds, the agents' default \
         is used; write it like 90s or 5m"
    )]
    DrainTimeout {
        /// What stands there.
        text: String,
    },
    /// Not a weight of something.
    #[error(
        "annotation {ANNOTATION_ENDPOINT_WEIGHTS}: {entry:?} is left out; it must be an address or a Node, = and a weight \
         from 0 to {WEIGHT_MAX}"
    )]
    Weight {
        /// What stands there.
        entry: String,
    },
    /// Too many weights.
    #[error(
        "annotation {ANNOTATION_ENDPOINT_WEIGHTS}: what comes after the first {WEIGHTS_MAX} entries is left out; name \
         Nodes instead of addresses, or only what is not 1"
    )]
    TooManyWeights,
}

/// What a person wrote may be long; a message is not.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Schedulers by name.
fn schedulers() -> impl Iterator<Item = &'static str> {
    ALLOWED_MODULES.iter().filter_map(|module| module.strip_prefix("ip_vs_"))
}

impl Scheduling {
    pub(super) fn new(service: &Service) -> Self {
        let mut scheduling = Self { persistence_seconds: persistence_seconds(service), ..Self::default() };
        let annotation =
            |name: &str| service.metadata.annotations.as_ref()?.get(name).map(|text| text.trim());
        match annotation(ANNOTATION_SCHEDULER) {
            Some(name) if schedulers().any(|known| known == name) => scheduling.scheduler = Some(name.into()),
            Some(name) => scheduling.unusable.push(Unusable::Scheduler { name: short(name) }),
            None => {}
        }
        if let Some(text) = annotation(ANNOTATION_SCHEDULER_FLAGS) {
            let mut flags = Vec::new();
            for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                match word {
                    "Fallback" => flags.push(SchedulerFlag::Fallback),
                    "Port" => flags.push(SchedulerFlag::Port),
                    _ => {
                        scheduling.unusable.push(Unusable::Flag { name: short(word) });
                    }
                }
            }
            flags.sort_unstable();
            flags.dedup();
            scheduling.flags = Some(flags);
        }
        if let Some(text) = annotation(ANNOTATION_DRAIN_TIMEOUT) {
            scheduling.drain_timeout_seconds = drain_seconds(text);
            if scheduling.drain_timeout_seconds.is_none() {
                scheduling.unusable.push(Unusable::DrainTimeout { text: short(text) });
            }
        }
        if let Some(text) = annotation(ANNOTATION_ENDPOINT_WEIGHTS) {
            let mut entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            for entry in entries.by_ref().take(WEIGHTS_MAX) {
                if !scheduling.weights.add(entry) {
                    scheduling.unusable.push(Unusable::Weight { entry: short(entry) });
                }
            }
            if entries.next().is_some() {
                scheduling.unusable.push(Unusable::TooManyWeights);
            }
        }
        scheduling
    }

    /// Weight of an endpoint, where it is not 1. An address counts for more than a Node.
    pub(super) fn weight(&self, address: IpAddr, node: Option<&str>) -> Option<i32> {
        let Weights { by_address, by_node } = &self.weights;
        let weight = by_address.get(&address).or_else(|| by_node.get(node?)).copied();
        weight.filter(|weight| *weight != 1)
    }

    /// The scheduler, `default` where the Service names none.
    pub(super) fn scheduler<'a>(&'a self, default: Option<&'a str>) -> Option<&'a str> {
        self.scheduler.as_deref().or(default)
    }

    /// Its flags. `mh` hashes the client's port too unless the Service says otherwise, as kube-proxy has it.
    pub(super) fn flags(&self, default: Option<&str>) -> Vec<SchedulerFlag> {
        match self.scheduler(default) {
            Some("mh") => self.flags.clone().unwrap_or_else(|| vec![SchedulerFlag::Port]),
            Some("sh") => self.flags.clone().unwrap_or_default(),
            // To others the same bits mean nothing, or something else.
            _ => Vec::new(),
        }
    }
}

impl Weights {
    /// Takes one `what=weight`; whether it makes sense.
    fn add(&mut self, entry: &str) -> bool {
        let Some((what, weight)) = entry.split_once('=') else { return false };
        let (what, weight) = (what.trim(), weight.trim().parse::<i32>());
        let Some(weight) = weight.ok().filter(|weight| (0..=WEIGHT_MAX).contains(weight)) else {
            return false;
        };
        match what.parse::<IpAddr>() {
            Ok(address) => _ = self.by_address.insert(address, weight),
            Err(_) if what.is_empty() || what.len() > 253 => return false,
            Err(_) => _ = self.by_node.insert(what.into(), weight),
        }
        true
    }
}

fn drain_seconds(text: &str) -> Option<i32> {
    let time = text.parse::<SignedDuration>().ok().filter(|time| time.subsec_nanos() == 0)?;
    i32::try_from(time.as_secs()).ok().filter(|seconds| (0..=DRAIN_SECONDS_MAX).contains(seconds))
}

fn persistence_seconds(service: &Service) -> Option<i32> {
    let spec = service.spec.as_ref().filter(|spec| spec.session_affinity.as_deref() == Some("ClientIP"))?;
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    Some(seconds.clamp(1, AFFINITY_SECONDS_MAX))
}
