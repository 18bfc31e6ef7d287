//! How long it takes until what another hand has removed is back, where the kernel announces the removal.

use super::Bench;
use super::peers::Peer;
use anyhow::{Context, ensure};

/// Removes the local route of the services and looks until it is back; prints how many milliseconds that took. A look
/// starts two programs, which takes the guest up to 0.1 s: the time is too long by as much, never too short.
const ROUTE: &str = r#"
range=$(ip route show table local dev nodenet0 | awk '$1 == "local" { print $2; exit }')
test -n "$range" || exit 1
begin=$(date +%s%N)
ip route del local "$range" dev nodenet0 table local || exit 1
looks=0
while ! ip route show table local dev nodenet0 | grep -q "^local $range "; do
    looks=$((looks + 1))
    test $looks -lt 300 || exit 1
done
echo $((($(date +%s%N) - begin) / 1000000))
"#;

/// Milliseconds until the route is back.
pub(super) fn route(bench: &Bench, peer: &dyn Peer) -> anyhow::Result<f64> {
    let said = bench.lab.place(peer.node()).run(&["sh", "-c", ROUTE])?;
    let millis: f64 = said.trim().parse().with_context(|| format!("the route's repair: {said:?}"))?;
    ensure!(millis > 0.0, "the route was back before it was gone");
    Ok(millis)
}
