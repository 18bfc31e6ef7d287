//! Forwarding of IPv6, and the routers that a node knows by their advertisements.
//!
//! A kernel that forwards ignores advertisements where `accept_ra` is 1, as it is everywhere by default: the default route
//! runs out some minutes later, and the node is cut off. With 2 it goes on to hear them.

use std::collections::BTreeSet;

use super::{NetlinkKernel, link, route};
use crate::kernel::KernelError;

/// Whether a node forwards IPv6.
const FORWARDING: &str = "net.ipv6.conf.all.forwarding";

/// Kinds of interfaces at which routers are: devices without a kind, and what is put together of those. At the others
/// are pods, which are to advertise nothing to the node.
const TOWARDS_ROUTERS: [&str; 4] = ["", "bond", "team", "vlan"];

/// Whether to write this setting turns forwarding on.
pub(super) fn turns_on(name: &str, value: &str) -> bool {
    name == FORWARDING && value == "1"
}

/// Before forwarding is turned on: interfaces that heed advertisements go on to do so. Where it is on already, nothing is
/// changed: what they heed then is somebody's choice. How many settings were written.
///
/// # Errors
/// When interfaces or settings cannot be read or written; forwarding is to stay off then.
pub(super) fn keep_routers(kernel: &mut NetlinkKernel) -> Result<u64, KernelError> {
    let is = |settings: &std::collections::BTreeMap<String, String>, name: &str, value: &str| {
        settings.get(name).map(String::as_str) == Some(value)
    };
    let now = kernel.settings.read(&BTreeSet::from([FORWARDING.to_owned()]))?;
    if !is(&now, FORWARDING, "0") {
        return Ok(0);
    }
    let interfaces = link::list(&mut kernel.route).map_err(|error| error.about("read", "interfaces"))?;
    let advertised = route::advertised_defaults(&mut kernel.route)
        .map_err(|error| error.about("read", "default routes of IPv6"))?;
    let names: BTreeSet<String> = interfaces
        .values()
        .filter(|it| {
            let kind = it.link.kind.as_str();
            (TOWARDS_ROUTERS.contains(&kind) && it.name != "lo") || advertised.contains(&it.index)
        })
        .map(|it| format!("net.ipv6.conf.{}.accept_ra", it.name.replace('.', "/")))
        .collect();
    let there = kernel.settings.read(&names)?;
    let mut written = 0;
    for name in names.iter().filter(|name| is(&there, name, "1")) {
        tracing::info!("{name} = 2: forwarding of IPv6 is turned on, and the node still needs its router");
        written += u64::from(kernel.settings.write(name, "2")?);
    }
    Ok(written)
}
