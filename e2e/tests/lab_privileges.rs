//! The agent in a guest kernel with the privileges that the chart's container has, and not one more.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use nodenet_e2e::lab::error::LabError;
use nodenet_e2e::lab::guest::Guest;
use nodenet_e2e::lab::nodenet::{Nodenet, workspace};
use nodenet_e2e::lab::prerequisites;
use nodenet_e2e::lab::process::output;
use nodenet_e2e::lab::protocol::Exec;
use nodenet_e2e::lab::site::Site;
use std::process::Command;

/// The node, and what a container runtime does: settings read-only, the node's own `net` of them at another place.
const CONTAINER: &str = "
    ip link set lo up
    ip link add ens33 type dummy
    ip addr add 192.168.0.11/24 dev ens33
    ip link set ens33 up
    mkdir -p /host/proc/sys/net
    mount --bind /proc/sys/net /host/proc/sys/net
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    # What the init container does.
    modprobe -a ip_tables ip6_tables
";

/// What the container runtime does to a container with these capabilities and allowPrivilegeEscalation: false.
const CONFINED: &[&str] =
    &["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", "--no-new-privs"];

/// A guest with the programs; prints `SKIP: <why>` where the machine lacks what it needs.
fn start() -> Option<(Guest, Nodenet, Site)> {
    let made = prerequisites::guest().and_then(|()| {
        let built = Nodenet::built()?;
        let site = Site::create()?;
        let guest = Guest::boot(&site, 1024)?;
        Ok((guest, built, site))
    });
    match made {
        Ok(made) => Some(made),
        Err(error @ LabError::Missing { .. }) => {
            println!("SKIP: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_agent_needs_no_more_than_the_chart_gives_it() {
    let Some((guest, nodenet, _site)) = start() else { return };
    let example = workspace().join("examples/000-keepalived-vip").display().to_string();
    let plan = output(
        Command::new(&nodenet.operator).args(["render", "--service-cidr=10.243.0.0/16", "-f", &example]),
        "",
    )
    .expect("a plan");
    let run = |argv: &[&str], stdin: &str| {
        guest
            .channel()
            .run(Exec::new(argv.iter().copied()).stdin(stdin))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    run(&["sh", "-ec", CONTAINER], "");
    let agent = nodenet.agent.display().to_string();
    let confined = |arguments: &[&str]| {
        let mut argv = CONFINED.to_vec();
        argv.push(&agent);
        argv.extend(arguments);
        let exec = Exec::new(argv).stdin(&plan).env("NODENET_SYSCTL_ROOT", "/host/proc/sys");
        guest.channel().run(exec).unwrap_or_else(|error| panic!("{error}"))
    };
    let apply = ["apply", "-f", "-", "--node", "k8s-node-1"];

    let said = confined(&apply);
    assert!(said.contains("The kernel is as wanted."), "{said}");
    let servers = run(&["ipvsadm", "-Ln"], "");
    for server in ["192.168.0.11:39090", "192.168.0.15:39090", "192.168.0.15:9090", "10.243.9.90:9090"] {
        assert!(servers.contains(server), "{servers}");
    }
    let addresses = run(&["ip", "addr", "show", "dev", "ens33"], "");
    assert!(addresses.contains("192.168.0.15/24 scope global secondary ens33"), "{addresses}");
    assert_eq!(run(&["cat", "/proc/sys/net/ipv4/vs/conntrack"], "").trim(), "1");
    assert_eq!(run(&["cat", "/proc/sys/net/ipv4/conf/ens33/promote_secondaries"], "").trim(), "1");
    let rules = run(&["iptables-legacy-save"], "");
    assert!(rules.contains("-A POSTROUTING") && rules.contains("NODENET-POSTROUTING"), "{rules}");

    let said = confined(&apply);
    assert!(said.contains("Nothing to do"), "a second time: {said}");

    confined(&["cleanup"]);
    assert!(!run(&["ipvsadm", "-Ln"], "").contains("39090"));
    assert!(!run(&["ip", "addr"], "").contains("192.168.0.15"));
}
