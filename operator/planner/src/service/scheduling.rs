//! How connections are spread over the endpoints of a Service.

use k8s_openapi::api::core::v1::Service;
use nodenet_crds::{ALLOWED_MODULES, ANNOTATION_SCHEDULER, ANNOTATION_SCHEDULER_FLAGS, SchedulerFlag};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where nothing is said (Service v1).
const AFFINITY_SECONDS: i32 = 10_800;
/// Longest affinity that the API takes.
const AFFINITY_SECONDS_MAX: i32 = 86_400;

/// Scheduler, its flags and affinity of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scheduling {
    scheduler: Option<Box<str>>,
    flags: Option<Vec<SchedulerFlag>>,
    pub(super) persistence_seconds: Option<i32>,
    pub(super) unusable: Vec<Unusable>,
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
            Some(name) => {
                // What a person wrote may be long; a message is not.
                let name = name.chars().take(64).collect();
                scheduling.unusable.push(Unusable::Scheduler { name });
            }
            None => {}
        }
        if let Some(text) = annotation(ANNOTATION_SCHEDULER_FLAGS) {
            let mut flags = Vec::new();
            for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                match word {
                    "Fallback" => flags.push(SchedulerFlag::Fallback),
                    "Port" => flags.push(SchedulerFlag::Port),
                    _ => {
                        let name = word.chars().take(64).collect();
                        scheduling.unusable.push(Unusable::Flag { name });
                    }
                }
            }
            flags.sort_unstable();
            flags.dedup();
            scheduling.flags = Some(flags);
        }
        scheduling
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

fn persistence_seconds(service: &Service) -> Option<i32> {
    let spec = service.spec.as_ref().filter(|spec| spec.session_affinity.as_deref() == Some("ClientIP"))?;
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    Some(seconds.clamp(1, AFFINITY_SECONDS_MAX))
}
