//! Metrics. Names are `nodenet_agent_*`, units are base units, labels are bounded.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::kernel::{Class, KernelError};
use crate::state::Operation;

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Lane {
    /// Addresses of virtual IPs.
    Address,
    /// Everything else.
    Service,
}

/// Labels of what a lane does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LaneLabel {
    /// Which lane.
    pub lane: Lane,
}

/// Labels of a synchronisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SyncLabel {
    /// Which lane.
    pub lane: Lane,
    /// `full` where everything was looked at, `change` where only what changed.
    pub scope: &'static str,
}

/// Label of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationLabel {
    /// Kind of the operation, for example `add_virtual_server`.
    pub operation: &'static str,
}

/// Labels of a refused operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// Kind of the operation, or `observe`.
    pub operation: &'static str,
    /// What is done about it.
    pub class: &'static str,
}

/// Label of virtual servers by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServersLabel {
    /// `desired`, `programmed` or `failed`.
    pub state: &'static str,
}

/// Label of a thread that listens to the kernel or a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// Which.
    pub listener: &'static str,
}

/// Label of a write to the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabel {
    /// `ok` or `error`.
    pub result: &'static str,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    /// Operations that the kernel took.
    pub operations: Family<OperationLabel, Counter>,
    /// Operations that it refused, and looks that failed.
    pub errors: Family<ErrorLabel, Counter>,
    /// Messages, files and programs that changed the kernel.
    pub messages: Family<LaneLabel, Counter>,
    /// Time of a synchronisation from the first look to the last.
    pub sync: Family<SyncLabel, Histogram>,
    /// Changes of another hand that were put back.
    pub drift: Family<LaneLabel, Counter>,
    /// From a slice's arrival to the kernel having it.
    pub programming: Histogram,
    /// Writes of the status.
    pub status_writes: Family<WriteLabel, Counter>,
    /// Renewals of the Lease.
    pub lease_renewals: Family<WriteLabel, Counter>,
    /// Renewals of the lifetime of addresses.
    pub fence_renewals: Counter,
    /// Announcements sent.
    pub announcements: Counter,
    /// Addresses of virtual IPs in the kernel.
    pub addresses_held: Gauge,
    /// Virtual servers.
    pub servers: Family<ServersLabel, Gauge>,
    /// Looks whether kube-proxy is here.
    pub kube_proxy_looks: Counter,
    /// Whether Services are left to kube-proxy.
    pub beside_kube_proxy: Gauge,
    /// Failures of the copy on disk.
    pub store_failing: Gauge,
    /// Whether the API server answered the last request.
    pub api_server_reachable: Gauge,
    /// Whether the node's NodeNetState was deleted.
    pub state_gone: Gauge,
    /// Listeners that hear nothing.
    pub listeners_failing: Family<ListenerLabel, Gauge>,
    /// Seconds since the start that the addresses ran without a renewal, as a worst case.
    pub fence_gap_worst: Gauge<f64, AtomicU64>,
}

fn durations() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            operations: Family::default(),
            errors: Family::default(),
            messages: Family::default(),
            sync: Family::new_with_constructor(durations),
            drift: Family::default(),
            programming: durations(),
            status_writes: Family::default(),
            lease_renewals: Family::default(),
            fence_renewals: Counter::default(),
            announcements: Counter::default(),
            addresses_held: Gauge::default(),
            servers: Family::default(),
            kube_proxy_looks: Counter::default(),
            beside_kube_proxy: Gauge::default(),
            store_failing: Gauge::default(),
            api_server_reachable: Gauge::default(),
            state_gone: Gauge::default(),
            listeners_failing: Family::default(),
            fence_gap_worst: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Names all metrics in a registry.
    pub fn registry(&self) -> Registry {
        let mut r = Registry::with_prefix("nodenet_agent");
        let info = Info::new(vec![("version", super::status::VERSION)]);
        r.register("build", "The agent", info);
        r.register("kernel_operations", "Operations that the kernel took", self.operations.clone());
        r.register(
            "kernel_errors",
            "Operations that the kernel refused and looks that failed",
            self.errors.clone(),
        );
        r.register(
            "kernel_messages",
            "Messages, files and programs that changed the kernel",
            self.messages.clone(),
        );
        r.register(
            "sync_duration_seconds",
            "Time of a synchronisation from the first look to the last",
            self.sync.clone(),
        );
        r.register("drift_repaired", "Changes of another hand that were put back", self.drift.clone());
        r.register(
            "network_programming_duration_seconds",
            "From a slice's arrival to the kernel having it",
            self.programming.clone(),
        );
        r.register("status_writes", "Writes of the status", self.status_writes.clone());
        r.register("lease_renewals", "Renewals of the Lease", self.lease_renewals.clone());
        r.register(
            "fence_renewals",
            "Renewals of the lifetime of held addresses",
            self.fence_renewals.clone(),
        );
        r.register(
            "fence_gap_worst_seconds",
            "Longest time between two renewals of held addresses",
            self.fence_gap_worst.clone(),
        );
        r.register("announcements", "Announcements of held addresses", self.announcements.clone());
        r.register("addresses_held", "Addresses of virtual IPs in the kernel", self.addresses_held.clone());
        r.register("virtual_servers", "Virtual servers", self.servers.clone());
        r.register("kube_proxy_looks", "Looks whether kube-proxy is here", self.kube_proxy_looks.clone());
        r.register(
            "beside_kube_proxy",
            "Whether Services are left to kube-proxy, which runs or left its tables",
            self.beside_kube_proxy.clone(),
        );
        r.register(
            "store_failing",
            "Whether the copy of the desired state on disk could not be written",
            self.store_failing.clone(),
        );
        r.register(
            "api_server_reachable",
            "Whether the API server answered the last request",
            self.api_server_reachable.clone(),
        );
        r.register(
            "state_gone",
            "Whether the node's NodeNetState was deleted; the last one stays in force",
            self.state_gone.clone(),
        );
        r.register(
            "listeners_failing",
            "Threads that hear nothing: of kernel events, of other owners of addresses",
            self.listeners_failing.clone(),
        );
        r
    }

    /// Counts an operation that the kernel took.
    pub fn done(&self, operation: &Operation) {
        self.operations.get_or_create(&OperationLabel { operation: kind(operation) }).inc();
    }

    /// Counts an operation that the kernel refused.
    pub fn refused(&self, operation: &Operation, error: &KernelError) {
        self.errors.get_or_create(&ErrorLabel { operation: kind(operation), class: class(error) }).inc();
    }

    /// Counts a look that failed.
    pub fn unseen(&self, error: &KernelError) {
        self.errors.get_or_create(&ErrorLabel { operation: "observe", class: class(error) }).inc();
    }

    /// Notes a synchronisation.
    pub fn synced(&self, lane: Lane, full: bool, took: Duration, messages: usize) {
        let scope = if full { "full" } else { "change" };
        self.sync.get_or_create(&SyncLabel { lane, scope }).observe(took.as_secs_f64());
        self.messages.get_or_create(&LaneLabel { lane }).inc_by(messages as u64);
    }
}

fn class(error: &KernelError) -> &'static str {
    match error.class() {
        Class::Retry => "retry",
        Class::Conflict => "conflict",
        Class::Invalid => "invalid",
        Class::Fatal => "fatal",
    }
}

/// Kind of an operation, as a label.
pub fn kind(operation: &Operation) -> &'static str {
    match operation {
        Operation::LoadModule(_) => "load_module",
        Operation::SetSysctl(..) => "set_sysctl",
        Operation::AddLink(_) => "add_link",
        Operation::DeleteLink(_) => "delete_link",
        Operation::CreateSet(..) => "create_set",
        Operation::DestroySet(_) => "destroy_set",
        Operation::AddEntry(..) => "add_entry",
        Operation::DeleteEntry(..) => "delete_entry",
        Operation::ReplaceRules(..) => "replace_rules",
        Operation::RemoveKubeProxyRules(_) => "remove_kube_proxy_rules",
        Operation::AddRoute(_) => "add_route",
        Operation::DeleteRoute(_) => "delete_route",
        Operation::AddVirtualServer(..) => "add_virtual_server",
        Operation::SetVirtualServer(..) => "set_virtual_server",
        Operation::DeleteVirtualServer(_) => "delete_virtual_server",
        Operation::AddRealServer(..) => "add_real_server",
        Operation::SetRealServer(..) => "set_real_server",
        Operation::DeleteRealServer(..) => "delete_real_server",
        Operation::ForgetConnections(..) => "forget_connections",
        Operation::AddAddress(..) => "add_address",
        Operation::SetAddress(..) => "set_address",
        Operation::DeleteAddress(..) => "delete_address",
    }
}
