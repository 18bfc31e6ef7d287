//! The configuration file of the agent: what kube-proxy's configuration has, in its meaning.
//!
//! What stands in no file has its default; a flag of the same name comes before the file. What the pod itself depends on
//! (the node's name, API servers, folders, the address of health and metrics) is given by flags only.

mod host;
mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use self::host::Host;
use super::options::{KernelKind, KernelOptions};
use crate::agent::kube_proxy;
use crate::filter::{InsideError, InsideMarks};
use crate::resolve::Options as ResolverOptions;
use crate::state::IPVS_TIMEOUTS;
use words::NO_PAUSE;
pub use words::{Place, Time, duration, period, place, scheduler};

/// The configuration. [`Configuration::default`] is in force where nothing is said.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Configuration {
    /// Time between two looks at everything.
    pub verify_period: Time,
    /// Least time between two commits of changes.
    pub min_sync_period: Time,
    /// How long a removed backend may keep its connections.
    pub drain_timeout: Time,
    /// Where load balancers ask for the health of the proxy; an address and port, or `none`.
    pub healthz_address: Place,
    /// Whether Services are served. Otherwise the node has its virtual IPs and nothing else, beside another proxy.
    pub service_proxy: bool,
    /// Where they are not: what an agent that served them made for them is removed. What kube-proxy has adopted of it
    /// stays.
    pub remove_services: bool,
    /// What a kube-proxy that is stopped left is taken over: its virtual servers are adopted as they are, and its
    /// addresses, sets and rules are removed. Otherwise they are left as they are, and Services to them.
    pub takeover: bool,
    /// Ranges in which virtual servers of others are neither adopted, changed nor removed.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<IpNet>,
    /// Scheduler of Services that name none.
    pub scheduler: String,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// Bit of the mark of packets that are masqueraded, from 0 to 31.
    pub masquerade_bit: u8,
    /// Bits of the mark of packets by which the node's own clients reach ports with `externalTrafficPolicy: Local`.
    pub inside_mark: InsideMark,
    /// Timeouts of IPVS.
    pub ipvs: Ipvs,
    /// Limits of connection tracking.
    pub conntrack: Conntrack,
}

/// Bits of a mark: see [`InsideMarks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InsideMark {
    /// Set in all such marks.
    pub base: u32,
    /// Lowest of the bits that differ.
    pub first_bit: u8,
    /// How many of those there are, from 2 to 12.
    pub bits: u8,
}

/// Timeouts of IPVS. Absent or 0: as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ipvs {
    /// Established TCP connections.
    pub tcp_timeout: Option<Time>,
    /// TCP connections after a FIN.
    pub tcp_fin_timeout: Option<Time>,
    /// UDP.
    pub udp_timeout: Option<Time>,
}

/// Limits of connection tracking. Absent, 0 or false: as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Conntrack {
    /// Connections for each processor of the node.
    pub max_per_core: Option<u32>,
    /// Connections at least, where the former is given.
    pub min: Option<u32>,
    /// How long an idle TCP connection is known.
    pub tcp_established_timeout: Option<Time>,
    /// How long one is known that only one end has closed.
    pub tcp_close_wait_timeout: Option<Time>,
    /// Whether TCP packets out of the window are let pass.
    pub tcp_be_liberal: bool,
    /// How long a UDP packet without an answer is remembered.
    pub udp_timeout: Option<Time>,
    /// How long one that was answered is.
    pub udp_stream_timeout: Option<Time>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            verify_period: Time(Duration::from_secs(30)),
            min_sync_period: Time(Duration::ZERO),
            drain_timeout: Time(Duration::from_secs(900)),
            healthz_address: Place(Some(SocketAddr::from(([0, 0, 0, 0], 10256)))),
            service_proxy: true,
            remove_services: false,
            takeover: false,
            exclude_cidrs: Vec::new(),
            scheduler: "rr".to_owned(),
            masquerade_all: false,
            masquerade_bit: 14,
            inside_mark: InsideMark::default(),
            ipvs: Ipvs::default(),
            conntrack: Conntrack::default(),
        }
    }
}

impl Default for InsideMark {
    fn default() -> Self {
        Self { base: 0x1000, first_bit: 0, bits: 12 }
    }
}

/// Why a configuration file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error("read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It is not YAML, or a field is unknown or of another type.
    #[error("{}: {source}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Cause, with the field and its place.
        source: serde_yaml_ng::Error,
    },
    /// A field makes no sense.
    #[error("{}: {field}: {problem}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong and what to write.
        problem: String,
    },
    /// The bits of `insideMark` make no sense.
    #[error("{}: insideMark.{source}", file.display())]
    InsideMark {
        /// The file.
        file: PathBuf,
        /// Cause.
        source: InsideError,
    },
}

/// Longest timeout of IPVS in seconds: the kernel counts it in ticks of at most a thousandth.
const IPVS_LONGEST: u64 = i32::MAX as u64 / 1000;

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or something in it makes no sense.
    pub fn read(file: &Path) -> Result<Self, ConfigurationError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigurationError::Read { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigurationError> {
        let read: Option<Self> = serde_yaml_ng::from_str(text)
            .map_err(|source| ConfigurationError::Parse { file: file.to_owned(), source })?;
        let read = read.unwrap_or_default();
        read.check(file)?;
        Ok(read)
    }

    fn check(&self, file: &Path) -> Result<(), ConfigurationError> {
        let wrong =
            |field, problem: String| ConfigurationError::Field { file: file.to_owned(), field, problem };
        scheduler(&self.scheduler).map_err(|problem| wrong("scheduler", problem))?;
        if self.verify_period.0.is_zero() {
            return Err(wrong("verifyPeriod", NO_PAUSE.to_owned()));
        }
        if self.remove_services && self.service_proxy {
            let problem =
                "Services are served: set serviceProxy to false too, once another proxy serves them";
            return Err(wrong("removeServices", problem.to_owned()));
        }
        if self.takeover && !self.service_proxy {
            let problem = "no Services are served, so none are taken over: leave out this or serviceProxy";
            return Err(wrong("takeover", problem.to_owned()));
        }
        if self.masquerade_bit > 31 {
            let problem = format!("{} is no bit of a mark: write one from 0 to 31", self.masquerade_bit);
            return Err(wrong("masqueradeBit", problem));
        }
        let inside = self
            .inside()
            .map_err(|source| ConfigurationError::InsideMark { file: file.to_owned(), source })?;
        if inside.overlaps(1 << self.masquerade_bit) {
            let (base, mask) = inside.in_common();
            let problem = format!(
                "bit {} is one of those of insideMark ({base:#x} and {:#x}), which mark packets of the node's own \
                 clients: use another one, or move those",
                self.masquerade_bit, !mask
            );
            return Err(wrong("masqueradeBit", problem));
        }
        for (field, time, longest) in self.kernel_times() {
            let Some(Time(time)) = time else { continue };
            if time.subsec_nanos() != 0 || time.as_secs() > longest {
                let problem = format!("{time:?}: write whole seconds, at most {longest}");
                return Err(wrong(field, problem));
            }
        }
        Ok(())
    }

    fn inside(&self) -> Result<InsideMarks, InsideError> {
        let InsideMark { base, first_bit, bits } = self.inside_mark;
        InsideMarks::new(base, first_bit, bits)
    }

    /// Fields that are seconds of the kernel, with the longest it takes.
    fn kernel_times(&self) -> [(&'static str, Option<Time>, u64); 7] {
        let longest = i32::MAX as u64;
        let (ipvs, conntrack) = (&self.ipvs, &self.conntrack);
        [
            ("ipvs.tcpTimeout", ipvs.tcp_timeout, IPVS_LONGEST),
            ("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout, IPVS_LONGEST),
            ("ipvs.udpTimeout", ipvs.udp_timeout, IPVS_LONGEST),
            ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout, longest),
            ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout, longest),
            ("conntrack.udpTimeout", conntrack.udp_timeout, longest),
            ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout, longest),
        ]
    }

    /// For the resolver of `node`.
    pub fn resolver(&self, node: &str, kernel: &KernelOptions) -> ResolverOptions {
        let host = match kernel.kernel {
            KernelKind::Netlink => Host::running(),
            KernelKind::Fake => Host::default(),
        };
        let mark = 1 << self.masquerade_bit;
        ResolverOptions {
            node: node.to_owned(),
            service_proxy: self.service_proxy,
            default_scheduler: self.scheduler.clone(),
            masquerade_all: self.masquerade_all,
            mark,
            mask: mark,
            // What was read was checked.
            inside: self.inside().unwrap_or_default(),
            settings: self.settings(&host),
            ..ResolverOptions::default()
        }
    }

    /// For the service lane.
    pub fn kube_proxy(&self) -> kube_proxy::Settings {
        kube_proxy::Settings {
            serve: self.service_proxy,
            remove: self.remove_services,
            takeover: self.takeover,
            excluded: self.exclude_cidrs.clone(),
            ..kube_proxy::Settings::default()
        }
    }

    /// Settings of the kernel.
    fn settings(&self, host: &Host) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        let mut set = |name: &str, value: u64| _ = settings.insert(name.to_owned(), value.to_string());
        if let Some(mode) = host.connection_reuse() {
            set("net.ipv4.vs.conn_reuse_mode", mode);
        }
        let netfilter = |name: &str| format!("net.netfilter.nf_conntrack_{name}");
        let names = IPVS_TIMEOUTS.map(str::to_owned).into_iter().chain(
            ["tcp_timeout_established", "tcp_timeout_close_wait", "udp_timeout", "udp_timeout_stream"]
                .map(netfilter),
        );
        for (name, (_, time, _)) in names.zip(self.kernel_times()) {
            match time.map_or(0, |time| time.0.as_secs()) {
                0 => {}
                seconds => set(&name, seconds),
            }
        }
        let Conntrack { max_per_core, min, tcp_be_liberal, .. } = self.conntrack;
        if let Some(each) = max_per_core.filter(|each| *each > 0) {
            let most = u64::from(each) * u64::from(host.processors);
            set(&netfilter("max"), most.max(min.unwrap_or(0).into()).min(i32::MAX as u64));
        }
        if tcp_be_liberal {
            set(&netfilter("tcp_be_liberal"), 1);
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        Configuration::parse(Path::new("agent.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        assert_eq!(parse(""), Ok(Configuration::default()));
        assert_eq!(parse("# nothing\n"), Ok(Configuration::default()));
        let some = parse("scheduler: mh\nipvs: {tcpTimeout: 15m}\ninsideMark: {base: 0x8000}\n").unwrap();
        assert_eq!(some.scheduler, "mh");
        assert_eq!(some.ipvs.tcp_timeout, Some(Time(Duration::from_secs(900))));
        assert_eq!((some.inside_mark.base, some.inside_mark.bits), (0x8000, 12));
        assert_eq!(some.verify_period, Configuration::default().verify_period);
        let options = KernelOptions::fake();
        let default = Configuration::default().resolver("node-1", &options);
        let ResolverOptions { mark, mask, inside, settings, .. } = ResolverOptions::default();
        assert_eq!(
            (default.mark, default.mask, default.inside, default.settings),
            (mark, mask, inside, settings)
        );
    }

    #[test]
    fn errors_name_file_field_and_remedy() {
        for (text, words) in [
            ("schedular: rr", &["agent.yaml: unknown field `schedular`", "`scheduler`"][..]),
            ("scheduler: roundrobin", &["agent.yaml: scheduler: ", "\"roundrobin\"", "rr, "]),
            ("ipvs: {tcpTimeout: 5 days}", &["agent.yaml: ipvs.tcpTimeout: ", "ms, s, m or h"]),
            ("ipvs: {tcpTimeout: 1500ms}", &["agent.yaml: ipvs.tcpTimeout: 1.5s: write whole seconds"]),
            ("ipvs: {udpTimeout: 1000h}", &["agent.yaml: ipvs.udpTimeout: ", "at most 2147483"]),
            ("conntrack: {max: 1}", &["agent.yaml: conntrack: unknown field `max`", "`maxPerCore`"]),
            ("verifyPeriod: 0s", &["agent.yaml: verifyPeriod: must be more than 0"]),
            ("masqueradeBit: 32", &["agent.yaml: masqueradeBit: 32 is no bit", "from 0 to 31"]),
            ("masqueradeBit: 12", &["agent.yaml: masqueradeBit: bit 12 is one of those of insideMark"]),
            ("masqueradeBit: 5", &["agent.yaml: masqueradeBit: bit 5 is one of those of insideMark"]),
            ("insideMark: {bits: 20}", &["agent.yaml: insideMark.bits: 20 is not from 2 to 12"]),
            ("insideMark: {base: 0x4000}", &["masqueradeBit: bit 14"]),
            ("healthzAddress: 10256", &["agent.yaml: healthzAddress: "]),
            ("healthzAddress: everywhere", &["agent.yaml: healthzAddress: \"everywhere\": write an address"]),
        ] {
            let error = parse(text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
        }
        let error = Configuration::read(Path::new("/none/agent.yaml")).unwrap_err().to_string();
        assert!(error.starts_with("read /none/agent.yaml: "), "{error}");
    }

    #[test]
    fn what_is_absent_or_0_is_not_touched() {
        let old = Host { kernel: Some((5, 4)), processors: 8 };
        let settings = |text: &str, host: &Host| -> Vec<String> {
            let settings = parse(text).unwrap().settings(host);
            settings.iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(settings("", &old), ["net.ipv4.vs.conn_reuse_mode=0"]);
        let new = Host { kernel: Some((5, 9)), ..old };
        assert_eq!(settings("", &new), ["net.ipv4.vs.conn_reuse_mode=1"]);
        let unknown = Host { kernel: None, ..old };
        let nothing: [&str; 0] = [];
        assert_eq!(settings("ipvs: {udpTimeout: 0s}\nconntrack: {maxPerCore: 0, min: 9}", &unknown), nothing);
        let all = "ipvs: {tcpTimeout: 10m, tcpFinTimeout: 30s, udpTimeout: 1m}\nconntrack: {maxPerCore: 1000, min: 9, \
                   tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h, tcpBeLiberal: true, udpTimeout: 30s, \
                   udpStreamTimeout: 2m}";
        assert_eq!(
            settings(all, &unknown),
            [
                "ipvs.timeout.tcp=600",
                "ipvs.timeout.tcp_fin=30",
                "ipvs.timeout.udp=60",
                "net.netfilter.nf_conntrack_max=8000",
                "net.netfilter.nf_conntrack_tcp_be_liberal=1",
                "net.netfilter.nf_conntrack_tcp_timeout_close_wait=3600",
                "net.netfilter.nf_conntrack_tcp_timeout_established=86400",
                "net.netfilter.nf_conntrack_udp_timeout=30",
                "net.netfilter.nf_conntrack_udp_timeout_stream=120",
            ]
        );
        let least = "conntrack: {maxPerCore: 1000, min: 131072}";
        assert_eq!(settings(least, &unknown), ["net.netfilter.nf_conntrack_max=131072"]);
    }
}
