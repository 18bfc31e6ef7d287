//! Watches the kernel's IPVS table for the benches, at little cost: the guest has one processor, and the
//! program under test needs it.

use super::ipvs::{Ipvs, address, later};
use super::{During, ToolError};
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Prints `ready`, waits until `count` TCP virtual servers at consecutive addresses have that many real servers
/// each, and prints `seen` (or `timeout`), for how many milliseconds that has been so at the most, and how often
/// it has asked.
///
/// It asks for one virtual server every 5 ms, the last address first, so that it leaves the processor to the
/// program under test: a look at 2,000 virtual servers with 10 real servers each costs 30 to 50 ms. When that
/// one is complete it looks at the whole table once, and asks for the next that is not complete if there is one.
///
/// # Errors
/// When the table cannot be read.
pub fn wait_for_range(
    first: SocketAddr,
    count: u32,
    destinations: usize,
    timeout: Duration,
) -> Result<bool, ToolError> {
    let mut ipvs = Ipvs::open().during("open", "netlink")?;
    let begin = Instant::now();
    let mut waited = true;
    let mut left = count;
    let mut asked = ASKED_AT_FIRST;
    say("ready");
    while let Some(number) = left.checked_sub(1) {
        let server = SocketAddr::new(later(first.ip(), number), first.port());
        let look = Instant::now();
        asked += 1;
        if ipvs.destinations(server).during("ask for", server)?.len() >= destinations {
            left = number;
            if std::mem::take(&mut waited) && real_servers()? >= destinations * count as usize {
                say(&format!("seen {} {asked}", look.elapsed().as_millis()));
                return Ok(true);
            }
            continue;
        }
        if begin.elapsed() > timeout {
            say(&format!("timeout 0 {asked}"));
            return Ok(false);
        }
        waited = true;
        std::thread::sleep(Duration::from_millis(5));
    }
    // The last was completed while all others were walked through.
    say(&format!("seen 0 {asked}"));
    Ok(true)
}

/// How many real servers the table has.
fn real_servers() -> Result<usize, ToolError> {
    let table = "/proc/net/ip_vs";
    let text = fs::read_to_string(table).during("read", table)?;
    // One line of the heading starts with an arrow too.
    Ok(text.lines().filter(|line| line.starts_with("  ->")).count().saturating_sub(1))
}

/// Prints `ready`, waits until the TCP virtual server has (or has no more) a real server with a weight
/// above 0, and prints `seen` and how often it has asked. It asks every 2 ms, for that virtual server alone.
///
/// # Errors
/// When netlink fails.
pub fn wait_for_destination(
    server: SocketAddr,
    destination: SocketAddr,
    present: bool,
    timeout: Duration,
) -> Result<bool, ToolError> {
    let mut ipvs = Ipvs::open().during("open", "netlink")?;
    let begin = Instant::now();
    let mut asked = ASKED_AT_FIRST;
    say("ready");
    loop {
        asked += 1;
        let wanted = (address(destination.ip()).to_vec(), destination.port().to_be_bytes().to_vec());
        let found = ipvs.destinations(server).during("ask for", server)?;
        if found.contains(&wanted) == present {
            say(&format!("seen {asked}"));
            return Ok(true);
        }
        if begin.elapsed() > timeout {
            say(&format!("timeout {asked}"));
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The family's number is asked for when the socket is opened.
const ASKED_AT_FIRST: usize = 1;

pub(super) fn say(text: &str) {
    // Whoever reads this may be gone; then nobody needs it.
    let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
}
