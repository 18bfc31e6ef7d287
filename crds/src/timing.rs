//! Times that operator and agents must agree on. All are counted from what a process itself observed, never from
//! another machine's clock.

use std::time::Duration;

/// How often an agent that holds or may get a virtual IP of protocol `Operator` renews its Lease.
pub const LEASE_RENEW_CANDIDATE: Duration = Duration::from_secs(2);
/// How often every other agent renews its Lease.
pub const LEASE_RENEW_IDLE: Duration = Duration::from_secs(10);
/// Valid lifetime (`valid_lft`) that an agent gives to a held address at each renewal. A dead agent's addresses are
/// gone this long after its last breath: the fence.
pub const FENCE_LIFETIME: Duration = Duration::from_secs(6);
/// How often a living agent renews the lifetime of held addresses.
pub const FENCE_RENEW: Duration = Duration::from_secs(2);
/// Lifetime that an agent gives on a clean stop (upgrade, restart), so that its successor finds the addresses. It counts
/// from when the agent asked for the renewal of its Lease that covers it.
pub const FENCE_LIFETIME_RESTART: Duration = Duration::from_secs(30);
/// Added by the operator before it calls a fence run out: the kernel looks for addresses that ran out up to a second late
/// (`check_lifetime` in net/ipv4/devinet.c runs once a second at most), and a Lease takes a request's time to be seen.
pub const FENCE_MARGIN: Duration = Duration::from_secs(2);

/// `Lease.spec.leaseDurationSeconds` of an agent: the operator may give its virtual IPs to another node this long
/// (plus [`FENCE_MARGIN`]) after it last *saw* the Lease renewed, not earlier. It covers the time in which the agent may
/// have died without missing a renewal, and the lifetime of addresses renewed just before that. An agent that lost the
/// API server first and died later is not covered: its addresses live for their lifetime after its death, and until then
/// it gives them up when it hears on the link that another node is about to take them. That one asks the link
/// first, and waits for what a dead agent left.
pub const fn lease_duration_seconds(lifetime: Duration, renew: Duration) -> i32 {
    (lifetime.as_secs() + renew.as_secs()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_by_the_operator_fits_in_twelve_seconds() {
        let move_after =
            lease_duration_seconds(FENCE_LIFETIME, LEASE_RENEW_CANDIDATE) as u64 + FENCE_MARGIN.as_secs();
        assert!(move_after <= 10, "{move_after} s leave no room for the commit and the announcement");
        assert!(FENCE_RENEW * 3 <= FENCE_LIFETIME, "two renewals may be lost");
    }
}
