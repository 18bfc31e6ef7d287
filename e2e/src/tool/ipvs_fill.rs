//! The bare loop that a first sync is measured against: the messages that fill an IPVS table, and nothing around them.

use super::ipvs::{Ipvs, later};
use super::ipvs_watch::say;
use super::{During, ToolError};
use std::net::SocketAddr;
use std::time::Instant;

/// Fills the table with `count` TCP virtual servers at consecutive addresses and so many real servers each, at addresses
/// that follow each other from `destination` on; prints the messages and the milliseconds. `together` messages go in one
/// send.
///
/// # Errors
/// What the kernel refuses.
pub fn fill(
    first: SocketAddr,
    count: u32,
    destination: SocketAddr,
    destinations: u32,
    together: usize,
) -> Result<(), ToolError> {
    let ipvs = Ipvs::open().during("open", "netlink")?;
    let begin = Instant::now();
    let servers = (0..count).map(|number| {
        let real = (number * destinations..(number + 1) * destinations)
            .map(|place| SocketAddr::new(later(destination.ip(), place), destination.port()));
        (SocketAddr::new(later(first.ip(), number), first.port()), real.collect())
    });
    let messages = ipvs.add(servers, together.max(1)).during("fill", "the IPVS table")?;
    say(&format!("{messages} {:.1}", begin.elapsed().as_secs_f64() * 1000.0));
    Ok(())
}
