//! What the kernel itself needs for a first sync: the same messages without anything around them.

use super::figures::BareLoop;
use super::{Bench, HOST_AGENT_NODE};
use crate::lab::process::lab_tool;
use anyhow::Context;

/// Messages in one send, where there are several: about as many as nodenet sends.
const TOGETHER: &str = "2000";

/// Fills the table of a node that nothing else uses, and empties it again.
pub(super) fn measure(bench: &Bench) -> anyhow::Result<BareLoop> {
    let load = &bench.plan.load;
    let place = bench.lab.place(HOST_AGENT_NODE);
    let tool = lab_tool()?.display().to_string();
    // What was removed lately slows the kernel down when more is added: each has a namespace of its own.
    let one = |together: &str| {
        let run = format!(
            "ip link set lo up; ip link add d0 type dummy; ip addr add 192.0.2.1/24 dev d0; ip link set d0 up; \
             ip route add default via 192.0.2.2; {tool} fill-range {} {} {} {} --together {together}; ipvsadm -C",
            load.server(0),
            load.services,
            load.first_endpoint(),
            load.endpoints,
        );
        let said = place.run(&["unshare", "-n", "sh", "-c", &run])?;
        let (messages, millis) = said.trim().split_once(' ').context("the bare loop says nothing")?;
        anyhow::Ok((messages.parse::<f64>()?, millis.parse::<f64>()? / 1000.0))
    };
    let (messages, single_seconds) = one("1")?;
    let (_, together_seconds) = one(TOGETHER)?;
    Ok(BareLoop { messages, single_seconds, together_seconds })
}
