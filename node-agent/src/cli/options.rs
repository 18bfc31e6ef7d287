//! Options that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::CliError;
use crate::filter::overlaps_inside;
use crate::kernel::Kernel;
use crate::kernel::fake::FakeKernel;
use crate::kernel::netlink::{Namespace, NetlinkKernel, Options as NetlinkOptions, PacketFilterMode};
use crate::resolve::Options as ResolverOptions;

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
    /// IPVS scheduler of services that name none.
    #[arg(long, value_name = "NAME", default_value = "rr")]
    pub scheduler: String,
    /// Masquerade all traffic to service addresses, whatever its source.
    #[arg(long)]
    pub masquerade_all: bool,
    /// Mark of packets that are masqueraded, as VALUE/MASK.
    #[arg(long, value_name = "VALUE/MASK", default_value = "0x4000/0x4000")]
    pub masquerade_mark: String,
}

impl ServiceOptions {
    /// For the resolver.
    pub fn resolver(&self) -> Result<ResolverOptions, CliError> {
        let wrong = |problem: &str| CliError::Option {
            option: "--masquerade-mark",
            value: self.masquerade_mark.clone(),
            problem: problem.to_owned(),
        };
        let number = |text: &str| {
            let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
            u32::from_str_radix(digits, radix)
                .map_err(|_| wrong("write two 32-bit numbers, as 0x4000/0x4000"))
        };
        let (mark, mask) =
            self.masquerade_mark.split_once('/').ok_or_else(|| wrong("the mask is missing"))?;
        let (mark, mask) = (number(mark)?, number(mask)?);
        if mark == 0 || mark & !mask != 0 {
            return Err(wrong("the value must not be 0 and must lie within the mask"));
        }
        if overlaps_inside(mask) {
            return Err(wrong("the lowest 13 bits mark packets of the node's own clients: use a higher one"));
        }
        Ok(ResolverOptions {
            node: self.node.clone(),
            default_scheduler: self.scheduler.clone(),
            masquerade_all: self.masquerade_all,
            mark,
            mask,
            ..ResolverOptions::default()
        })
    }
}
