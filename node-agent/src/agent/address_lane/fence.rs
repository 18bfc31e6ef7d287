//! The fence: held addresses live a few seconds, and the lane renews them for as long as it lives.

use std::time::{Duration, Instant};

use super::AddressLane;

impl AddressLane {
    /// Gives the held addresses a new lifetime.
    pub(super) fn renew(&mut self, lifetime: Duration) {
        let seconds = u32::try_from(lifetime.as_secs().max(1)).unwrap_or(u32::MAX);
        let (done, failed) = self.machine.renew(self.resolver.desired(), &self.observed, Some(seconds));
        let now = Instant::now();
        if done > 0 {
            self.ends.metrics.fence_renewals.inc();
            if let Some(last) = self.renewed {
                let gap = (now - last).as_secs_f64();
                if gap > self.ends.metrics.fence_gap_worst.get() {
                    self.ends.metrics.fence_gap_worst.set(gap);
                }
            }
        }
        self.renewed = (done > 0).then_some(now);
        // An address that cannot be renewed runs out: the Lease must not say otherwise.
        self.healthy = failed.is_empty();
        if !failed.is_empty() {
            self.dirty = true;
        }
    }

    /// What was not renewed in time has run out: it is asked for before it is taken again.
    pub(super) fn lapse(&mut self, now: Instant) {
        if self.renewed.take_if(|last| now.duration_since(*last) > self.times.lifetime).is_none() {
            return;
        }
        // The kernel would make an address that ran out anew at its renewal.
        for name in self.holding.lapsed(now) {
            tracing::warn!(
                "the addresses of virtual IP {name} were not renewed in time: they are taken again after a question"
            );
            self.give_up(&name);
        }
    }

    /// Whether an address of ours, which is not renewed here, lives longer than a renewal gives: an earlier agent stopped,
    /// and what this one must have is not known yet.
    pub(super) fn outliving(&self) -> bool {
        let desired = &self.resolver.desired().addresses;
        let mut observed = self.observed.addresses.iter();
        observed.any(|(key, there)| {
            let lives =
                there.lifetime.is_some_and(|left| Duration::from_secs(left.into()) > self.times.lifetime);
            lives && self.is_held(key) && !desired.contains_key(key)
        })
    }

    /// The last renewal: so that a successor finds the addresses, they live until then.
    pub(super) fn stop(&mut self, until: Option<Instant>) {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.renew(left.unwrap_or_default().max(self.times.lifetime));
    }
}
