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
/// Lifetime that an agent gives on a clean stop (upgrade, restart), so that its successor finds the addresses.
pub const FENCE_LIFETIME_RESTART: Duration = Duration::from_secs(30);
/// Added by the operator before it calls a fence run out (timer granularity of both sides).
pub const FENCE_MARGIN: Duration = Duration::from_secs(1);

/// `Lease.spec.leaseDurationSeconds` of an agent: the operator may give its virtual IPs to another node this long
/// (plus [`FENCE_MARGIN`]) after it last *saw* the Lease renewed, not earlier. It covers the time to the next renewal
/// that may be lost and the lifetime of addresses renewed just before.
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
