//! Makes a `NodeNetStateStatus` of facts. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nodenet_crds::conditions::{self, Status, node, reason};
use nodenet_crds::{Failure, NodeNetStateStatus, NodeSummary, VirtualIPOnNode, VirtualIPState};

use super::facts::{AddressFacts, ServiceFacts, SourceFacts, Verdict};

/// Failures that a status lists.
pub const FAILURES_MAX: usize = 32;

/// Version of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The status that these facts ask for. Transition times of `previous` are kept where a condition does not change.
pub fn compose(
    previous: &NodeNetStateStatus,
    addresses: &AddressFacts,
    services: &ServiceFacts,
    source: &SourceFacts,
    now: &Time,
) -> NodeNetStateStatus {
    let generation = addresses.generation.min(services.generation);
    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(addresses.failures.iter().cloned());
    failures.extend(source.undecodable.iter().map(|(object, error)| Failure {
        object: object.clone(),
        operation: "decode".to_owned(),
        message: error.clone(),
    }));
    failures.extend(source.store.iter().map(|problem| Failure {
        object: "copy of the desired state on disk".to_owned(),
        operation: "write".to_owned(),
        message: problem.clone(),
    }));
    failures.extend(services.failures.iter().cloned());
    failures.truncate(FAILURES_MAX);
    for failure in &mut failures {
        shorten(&mut failure.object, 256);
        shorten(&mut failure.operation, 64);
        shorten(&mut failure.message, 512);
    }
    let held = addresses.virtual_ips.iter().filter(|v| v.state == VirtualIPState::Active).count();
    let mut status = NodeNetStateStatus {
        // The operator gives an address to another node once this one has confirmed that it let go: that must not wait
        // for services. What the conditions speak of, they say themselves.
        observed_generation: addresses.generation,
        slice_revision: services.slice_revision,
        agent_version: Some(VERSION.to_owned()),
        summary: NodeSummary {
            virtual_ips: format!("{held}/{}", addresses.virtual_ips.len()),
            virtual_servers: format!("{}/{}", services.servers.programmed, services.servers.desired),
            policies: "-".to_owned(),
        },
        virtual_ips: addresses.virtual_ips.iter().map(bounded).collect(),
        interfaces: addresses.interfaces.clone(),
        gateways: addresses.gateways.iter().map(ToString::to_string).collect(),
        virtual_servers: services.servers,
        failures,
        // Conditions of other types are another version's; what is not said any more goes.
        conditions: previous
            .conditions
            .iter()
            .filter(|c| {
                c.type_ == conditions::READY
                    || c.type_ == reason::OPERATOR_SILENT
                    || node::ALL.contains(&c.type_.as_str())
            })
            .cloned()
            .collect(),
    };
    let kernel = addresses.kernel.clone().and(services.kernel.clone());
    let of_addresses = addresses.addresses.clone().and(services.addresses.clone());
    let all = [
        (node::KERNEL_READY, &kernel),
        (node::ADDRESSES_READY, &of_addresses),
        (node::PACKET_FILTER_READY, &services.packet_filter),
        (node::VIRTUAL_SERVERS_READY, &services.virtual_servers),
        (node::HEALTH_CHECKS_READY, &services.health_checks),
    ];
    let mut set = |type_: &str, verdict: &Verdict| {
        let Verdict { status: value, reason, message } = verdict;
        conditions::set(&mut status.conditions, type_, *value, reason, message, generation, now.clone());
    };
    for (type_, verdict) in all {
        set(type_, verdict);
    }
    let silent = match &source.operator_silent {
        Some(words) => {
            Verdict { status: Status::True, reason: reason::OPERATOR_SILENT, message: words.clone() }
        }
        None => Verdict {
            status: Status::False,
            reason: reason::READY,
            message: "the operator is not known to be silent".to_owned(),
        },
    };
    set(reason::OPERATOR_SILENT, &silent);
    set(conditions::READY, &summary(&all, source));
    status
}

/// The first condition that is False speaks for the node, then the first that is Unknown. A port that load balancers ask
/// and another program has is told, but the node is Ready: the Service's author chose it, on all nodes.
fn summary(all: &[(&str, &Verdict)], source: &SourceFacts) -> Verdict {
    let decides = |type_: &str| type_ != node::HEALTH_CHECKS_READY;
    for wanted in [Status::False, Status::Unknown] {
        if let Some((type_, verdict)) = all.iter().find(|(type_, v)| v.status == wanted && decides(type_)) {
            let message = format!("{type_}: {}", verdict.message);
            return Verdict { status: wanted, reason: verdict.reason, message };
        }
    }
    if let Some(words) = &source.operator_silent {
        return Verdict { status: Status::True, reason: reason::OPERATOR_SILENT, message: words.clone() };
    }
    // It holds, but there is something to know about it.
    match all.iter().find(|(_, verdict)| verdict.reason != reason::READY) {
        Some((type_, verdict)) => {
            let message = format!("{type_}: {}", verdict.message);
            Verdict { status: Status::True, reason: verdict.reason, message }
        }
        None => Verdict::ready("the kernel is as wanted"),
    }
}

fn bounded(on_node: &VirtualIPOnNode) -> VirtualIPOnNode {
    let mut on_node = on_node.clone();
    if let Some(message) = &mut on_node.message {
        shorten(message, 512);
    }
    on_node
}

fn shorten(text: &mut String, max: usize) {
    if text.chars().count() > max {
        *text = text.chars().take(max - 1).chain(['…']).collect();
    }
}

/// Whether `new` must be written at once: somebody waits for what changed.
pub fn urgent(old: &NodeNetStateStatus, new: &NodeNetStateStatus) -> bool {
    // `kubectl wait` takes a condition for old while its generation is.
    let conditions = |s: &NodeNetStateStatus| -> Vec<(String, String, String, Option<i64>)> {
        let key = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            (c.type_.clone(), c.status.clone(), c.reason.clone(), c.observed_generation)
        };
        s.conditions.iter().map(key).collect()
    };
    // A new Service on a virtual IP is waited for by people: its holder says at once that it is there.
    let holds = new.virtual_ips.iter().any(|v| v.state == nodenet_crds::VirtualIPState::Active);
    old.observed_generation != new.observed_generation
        || (holds && old.virtual_servers != new.virtual_servers)
        || old.virtual_ips != new.virtual_ips
        || old.interfaces != new.interfaces
        || old.gateways != new.gateways
        || old.agent_version != new.agent_version
        || conditions(old) != conditions(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn all_ready() -> (AddressFacts, ServiceFacts) {
        let ready = Verdict::ready("");
        let addresses = AddressFacts {
            generation: Some(2),
            kernel: ready.clone(),
            addresses: ready.clone(),
            ..AddressFacts::default()
        };
        let services = ServiceFacts {
            generation: Some(2),
            kernel: ready.clone(),
            addresses: ready.clone(),
            packet_filter: ready.clone(),
            virtual_servers: ready.clone(),
            health_checks: ready,
            ..ServiceFacts::default()
        };
        (addresses, services)
    }

    fn ready(status: &NodeNetStateStatus) -> (String, String) {
        let ready = conditions::get(&status.conditions, conditions::READY).unwrap();
        (ready.status.clone(), ready.reason.clone())
    }

    #[test]
    fn nothing_known_is_unknown_and_says_so() {
        let status = compose(
            &NodeNetStateStatus::default(),
            &AddressFacts::default(),
            &ServiceFacts::default(),
            &SourceFacts::default(),
            &at(1),
        );
        assert_eq!(ready(&status), ("Unknown".into(), "Pending".into()));
        for type_ in node::ALL {
            assert_eq!(conditions::get(&status.conditions, type_).unwrap().status, "Unknown", "{type_}");
        }
        assert_eq!(status.summary.virtual_ips, "0/0");
    }

    #[test]
    fn the_first_condition_that_fails_gives_ready_its_reason() {
        let (addresses, mut services) = all_ready();
        services.virtual_servers = Verdict::not(reason::KERNEL_REFUSED, "one failed");
        services.packet_filter = Verdict::not(reason::MODULE_MISSING, "no xt_set");
        let status = compose(&Default::default(), &addresses, &services, &SourceFacts::default(), &at(1));
        assert_eq!(ready(&status), ("False".into(), "ModuleMissing".into()));
        let words = &conditions::get(&status.conditions, "Ready").unwrap().message;
        assert_eq!(words, "PacketFilterReady: no xt_set");
    }

    #[test]
    fn a_silent_operator_is_said_and_takes_nothing_away() {
        let (addresses, services) = all_ready();
        let source =
            SourceFacts { operator_silent: Some("not renewed for 90 s".into()), ..Default::default() };
        let status = compose(&Default::default(), &addresses, &services, &source, &at(1));
        assert_eq!(ready(&status), ("True".into(), "OperatorSilent".into()));
        assert!(conditions::is_true(&status.conditions, reason::OPERATOR_SILENT));
    }

    #[test]
    fn the_same_facts_give_the_same_status() {
        let (addresses, services) = all_ready();
        let source = SourceFacts::default();
        let first = compose(&Default::default(), &addresses, &services, &source, &at(1));
        let second = compose(&first, &addresses, &services, &source, &at(99));
        assert_eq!(first, second);
        assert!(!urgent(&first, &second));
    }

    #[test]
    fn counts_wait_and_states_do_not() {
        let (addresses, mut services) = all_ready();
        let source = SourceFacts::default();
        let first = compose(&Default::default(), &addresses, &services, &source, &at(1));
        services.servers.desired = 5;
        services.slice_revision = Some(9);
        let second = compose(&first, &addresses, &services, &source, &at(2));
        assert!(second != first && !urgent(&first, &second));
        services.virtual_servers = Verdict::not(reason::KERNEL_REFUSED, "");
        let third = compose(&second, &addresses, &services, &source, &at(3));
        assert!(urgent(&second, &third));
    }

    #[test]
    fn a_holder_says_at_once_that_a_service_came() {
        use nodenet_crds::{VirtualIPOnNode, VirtualIPState};
        for (state, at_once) in [(VirtualIPState::Active, true), (VirtualIPState::Backup, false)] {
            let vip = VirtualIPOnNode { name: "web".into(), state, message: None, addresses: Vec::new() };
            let old = NodeNetStateStatus { virtual_ips: vec![vip], ..Default::default() };
            let mut new = old.clone();
            new.virtual_servers.programmed += 1;
            assert_eq!(urgent(&old, &new), at_once);
        }
    }

    #[test]
    fn lists_and_strings_keep_their_bounds() {
        let (addresses, mut services) = all_ready();
        let failure =
            Failure { object: "ä".repeat(999), operation: "x".repeat(999), message: "y".repeat(999) };
        services.failures = vec![failure; 100];
        let status = compose(&Default::default(), &addresses, &services, &Default::default(), &at(1));
        assert_eq!(status.failures.len(), FAILURES_MAX);
        let f = &status.failures[0];
        assert_eq!(
            (f.object.chars().count(), f.operation.chars().count(), f.message.chars().count()),
            (256, 64, 512)
        );
    }

    #[test]
    fn addresses_are_confirmed_before_services_are_done() {
        let (addresses, mut services) = all_ready();
        services.generation = Some(1);
        let status = compose(&Default::default(), &addresses, &services, &Default::default(), &at(1));
        assert_eq!(status.observed_generation, Some(2));
        assert!(status.conditions.iter().all(|c| c.observed_generation == Some(1)));
        services.generation = Some(2);
        let next = compose(&status, &addresses, &services, &Default::default(), &at(2));
        assert!(urgent(&status, &next), "whoever waits for a condition of this generation is told at once");
    }
}
