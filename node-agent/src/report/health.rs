//! Signs of life of the lanes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The moment a lane was last seen alive and well.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds after `since`, plus one; 0 is never.
    last: AtomicU64,
    /// Whether the first synchronisation is done.
    synced: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0), synced: AtomicBool::new(false) }
    }
}

impl Pulse {
    /// The lane is alive and did what it must.
    pub fn beat(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last.store(now + 1, Ordering::Release);
    }

    /// The first synchronisation is done.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether the first synchronisation is done.
    pub fn synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// How long ago the last sign of life was; since the start where there was none.
    pub fn age(&self) -> Duration {
        let now = self.since.elapsed();
        match self.last.load(Ordering::Acquire) {
            0 => now,
            last => now.saturating_sub(Duration::from_millis(last - 1)),
        }
    }

    /// Whether there ever was one.
    pub fn ever(&self) -> bool {
        self.last.load(Ordering::Acquire) > 0
    }
}

/// Changes that are not in the kernel yet.
#[derive(Debug, Default)]
pub struct Backlog {
    /// When the oldest of them arrived.
    since: Mutex<Option<Instant>>,
    /// When there was none last, by the clock on the wall.
    cleared: Mutex<Option<SystemTime>>,
}

impl Backlog {
    /// A change arrived.
    pub fn grow(&self) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    /// All that arrived is in the kernel.
    pub fn clear(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
    }

    /// How long the oldest change waits; zero where none does.
    pub fn age(&self) -> Duration {
        self.since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// When no change waited last.
    pub fn cleared(&self) -> Option<SystemTime> {
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both lanes.
#[derive(Debug, Default)]
pub struct Health {
    /// The address lane.
    pub addresses: Pulse,
    /// The service lane.
    pub services: Pulse,
    /// How long the service lane may be silent, and a change of Services wait.
    pub services_limit: Duration,
    /// Changes of Services that wait.
    pub backlog: Backlog,
    /// The node is being deleted, by the operator's word.
    pub leaving: AtomicBool,
}

/// How long the address lane may be silent: it renews the lifetime of addresses every two seconds. A lane that is
/// silent for longer also stops the Lease.
pub const ADDRESSES_LIMIT: Duration = Duration::from_secs(5);
/// A lane that is silent for this long will not come back by itself.
pub const DEAD: Duration = Duration::from_secs(300);

impl Health {
    /// What is wrong, in words; `None` where nothing is.
    pub fn stale(&self) -> Option<String> {
        let lanes =
            [("address", &self.addresses, ADDRESSES_LIMIT), ("service", &self.services, self.services_limit)];
        let mut words = Vec::new();
        for (name, pulse, limit) in lanes {
            if pulse.age() > limit {
                words.push(format!("the {name} lane is silent for {} s", pulse.age().as_secs()));
            }
        }
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Whether Services are proxied as they should be: no change of them waits for longer than it may. At the start, before
    /// any is known, they are.
    pub fn proxies(&self) -> bool {
        self.services.age() <= self.services_limit && self.backlog.age() <= self.services_limit
    }

    /// Whether the node may get new clients: it is not being deleted. Before anything is known it may.
    pub fn eligible(&self) -> bool {
        !self.leaving.load(Ordering::Acquire)
    }

    /// Whether the node is being deleted.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    /// Whether a lane is silent for so long that only a restart helps.
    pub fn dead(&self) -> bool {
        self.addresses.age() > DEAD || self.services.age() > DEAD
    }

    /// What is not done yet, in words.
    pub fn unready(&self) -> Option<String> {
        match (self.addresses.synced(), self.services.synced()) {
            (true, true) => None,
            (false, true) => Some("addresses are not synchronised yet".to_owned()),
            (true, false) => Some("services are not synchronised yet".to_owned()),
            (false, false) => Some("nothing is synchronised yet".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_lane_is_named() {
        let health = Health { services_limit: Duration::from_secs(60), ..Health::default() };
        assert_eq!(health.stale(), None, "both have just begun");
        let health = Health::default();
        std::iter::repeat(()).take_while(|()| health.services.age().is_zero()).for_each(drop);
        health.addresses.beat();
        assert_eq!(health.stale().as_deref(), Some("the service lane is silent for 0 s"));
        assert!(!health.dead());
    }

    #[test]
    fn a_change_that_waits_for_too_long_is_bad_service() {
        let health = Health { services_limit: Duration::from_secs(60), ..Health::default() };
        assert!(health.proxies(), "nothing is known yet");
        health.backlog.grow();
        assert!(health.proxies(), "it has just come");
        let health = Health { services_limit: Duration::ZERO, ..Health::default() };
        health.backlog.grow();
        std::iter::repeat(()).take_while(|()| health.backlog.age().is_zero()).for_each(drop);
        health.services.beat();
        assert!(!health.proxies());
        health.backlog.clear();
        assert!(health.backlog.age().is_zero() && health.backlog.cleared().is_some());
    }

    #[test]
    fn readiness_says_what_is_missing() {
        let health = Health::default();
        assert_eq!(health.unready().as_deref(), Some("nothing is synchronised yet"));
        health.addresses.set_synced();
        assert_eq!(health.unready().as_deref(), Some("services are not synchronised yet"));
        health.services.set_synced();
        assert_eq!(health.unready(), None);
    }
}
