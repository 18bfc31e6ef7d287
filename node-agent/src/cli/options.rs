//! Options that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::CliError;
use super::configuration::{self, Configuration};
use crate::kernel::Kernel;
use crate::kernel::fake::FakeKernel;
use crate::kernel::netlink::{Namespace, NetlinkKernel, Options as NetlinkOptions, PacketFilterMode};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelKind {
    /// The running one.
    Netlink,
    /// None: one in memory, with eth0 at 192.0.2.1/24, which forgets everything at the end. For trying things out and for
    /// measuring.
    Fake,
}

/// Which of the two iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PacketFilter {
    /// The one that the host uses; nft where it uses none.
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// Which kernel to work on.
#[derive(Clone, Debug, Args)]
pub struct KernelOptions {
    /// Network namespace: a name as `ip netns` knows it, or a path. The own one by default.
    #[arg(long, value_name = "NAME|PATH")]
    pub netns: Option<String>,
    /// Which kernel.
    #[arg(long, value_enum, default_value = "netlink")]
    pub kernel: KernelKind,
    /// Which iptables carries the rules.
    #[arg(long, value_enum, default_value = "auto")]
    pub packet_filter: PacketFilter,
    /// Folder of the kernel settings, where /proc/sys is read-only.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys", env = "NODENET_SYSCTL_ROOT")]
    pub proc_sys: PathBuf,
    /// Folder of the kernel modules.
    #[arg(long, value_name = "DIR", default_value = "/lib/modules")]
    pub modules: PathBuf,
    /// Where the journal of what is ours stands. For another network namespace it is a folder below, by its name.
    #[arg(long, value_name = "DIR", default_value = "/run/nodenet")]
    pub run_dir: PathBuf,
}

impl KernelOptions {
    /// A kernel in memory.
    #[cfg(test)]
    pub fn fake() -> Self {
        Self {
            netns: None,
            kernel: KernelKind::Fake,
            packet_filter: PacketFilter::Auto,
            proc_sys: PathBuf::new(),
            modules: PathBuf::new(),
            run_dir: PathBuf::new(),
        }
    }

    /// The network namespace.
    pub fn namespace(&self) -> Namespace {
        match &self.netns {
            None => Namespace::own(),
            Some(path) if path.contains('/') => Namespace::at(path),
            Some(name) => Namespace::at(format!("/run/netns/{name}")),
        }
    }

    /// Folder of the journal.
    pub fn run_dir(&self) -> PathBuf {
        match &self.netns {
            None => self.run_dir.clone(),
            Some(name) => self.run_dir.join("netns").join(name.trim_start_matches('/').replace('/', "_")),
        }
    }

    /// Opens the kernel.
    pub fn open(&self) -> Result<Box<dyn Kernel>, CliError> {
        Ok(match self.kernel {
            KernelKind::Fake => Box::new(fake()),
            KernelKind::Netlink => Box::new(self.netlink()?),
        })
    }

    /// Opens the running kernel.
    pub fn netlink(&self) -> Result<NetlinkKernel, CliError> {
        Ok(NetlinkKernel::new(NetlinkOptions {
            namespace: self.namespace(),
            sysctl_root: self.proc_sys.clone(),
            modules_root: self.modules.clone(),
            packet_filter: match self.packet_filter {
                PacketFilter::Auto => PacketFilterMode::Auto,
                PacketFilter::Nft => PacketFilterMode::Nft,
                PacketFilter::Legacy => PacketFilterMode::Legacy,
            },
        })?)
    }
}

/// A kernel in memory of a node with one interface.
pub fn fake() -> FakeKernel {
    let kernel = FakeKernel::new();
    kernel.add_link("eth0", "");
    kernel.add_address("eth0", "192.0.2.1/24");
    kernel
}

/// How services are resolved.
#[derive(Clone, Debug, Args)]
pub struct ServiceOptions {
    /// Name of the node.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node: String,
    /// Configuration file (YAML). A flag of the same name comes before what stands there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// IPVS scheduler of services that name none [default: rr].
    #[arg(long, value_name = "NAME", value_parser = configuration::scheduler)]
    pub scheduler: Option<String>,
    /// Masquerade all traffic to service addresses, whatever its source [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub masquerade_all: Option<bool>,
}

impl ServiceOptions {
    /// What the file and these flags say.
    pub fn configuration(&self) -> Result<Configuration, CliError> {
        let mut read = match &self.config {
            Some(file) => Configuration::read(file)?,
            None => Configuration::default(),
        };
        if let Some(scheduler) = &self.scheduler {
            read.scheduler.clone_from(scheduler);
        }
        if let Some(all) = self.masquerade_all {
            read.masquerade_all = all;
        }
        Ok(read)
    }
}
