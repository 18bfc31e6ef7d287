//! When held addresses are announced. Pure: time comes in as an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nodenet_crds::Announce;

use crate::state::AddressKey;

#[derive(Debug)]
struct Plan {
    left: i32,
    interval: Duration,
    refresh: Option<Duration>,
    next: Option<Instant>,
}

/// Announcements of held addresses.
#[derive(Debug, Default)]
pub struct Schedule {
    plans: BTreeMap<AddressKey, Plan>,
}

impl Schedule {
    /// The address was taken: announce it as asked, the first time now.
    pub fn taken(&mut self, key: AddressKey, announce: &Announce, now: Instant) {
        let millis = u64::try_from(announce.interval_millis).unwrap_or(200);
        let refresh =
            u64::try_from(announce.refresh_seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let next = if announce.count > 0 { Some(now) } else { refresh.map(|r| now + r) };
        let interval = Duration::from_millis(millis);
        self.plans.insert(key, Plan { left: announce.count, interval, refresh, next });
    }

    /// The address is held since before: only the refresh is kept.
    pub fn held(&mut self, key: &AddressKey, announce: &Announce, now: Instant) {
        let refresh =
            u64::try_from(announce.refresh_seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
        match self.plans.get_mut(key) {
            Some(plan) if plan.refresh == refresh => {}
            Some(plan) => {
                plan.refresh = refresh;
                if plan.left <= 0 {
                    plan.next = refresh.map(|r| now + r);
                }
            }
            None => {
                let quiet = Announce { count: 0, ..announce.clone() };
                self.taken(key.clone(), &quiet, now);
            }
        }
    }

    /// The address is held no more, unless it is one of these.
    pub fn retain(&mut self, held: impl Fn(&AddressKey) -> bool) {
        self.plans.retain(|key, _| held(key));
    }

    /// The next announcement.
    pub fn next(&self) -> Option<Instant> {
        self.plans.values().filter_map(|plan| plan.next).min()
    }

    /// What is to be announced now.
    pub fn due(&mut self, now: Instant) -> Vec<AddressKey> {
        let mut due = Vec::new();
        for (key, plan) in &mut self.plans {
            if plan.next.is_none_or(|next| next > now) {
                continue;
            }
            due.push(key.clone());
            plan.left = plan.left.saturating_sub(1).max(0);
            plan.next = if plan.left > 0 { Some(now + plan.interval) } else { plan.refresh.map(|r| now + r) };
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AddressKey {
        AddressKey { interface: "eth0".into(), address: "192.168.0.15".parse().unwrap() }
    }

    fn times(announce: &Announce, seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        schedule.taken(key(), announce, start);
        let mut out = Vec::new();
        while let Some(next) = schedule.next().filter(|next| *next <= end) {
            out.extend(schedule.due(next).iter().map(|_| (next - start).as_millis() as u64));
        }
        out
    }

    #[test]
    fn count_interval_and_refresh_are_kept() {
        let announce = Announce { count: 3, interval_millis: 200, refresh_seconds: 2 };
        assert_eq!(times(&announce, 5), [0, 200, 400, 2400, 4400]);
        let once = Announce { count: 1, interval_millis: 200, refresh_seconds: 0 };
        assert_eq!(times(&once, 60), [0]);
        let never = Announce { count: 0, interval_millis: 200, refresh_seconds: 0 };
        assert_eq!(times(&never, 60), [0; 0]);
    }

    #[test]
    fn an_address_that_was_held_before_is_not_announced_again() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let announce = Announce { count: 5, interval_millis: 200, refresh_seconds: 10 };
        schedule.held(&key(), &announce, start);
        assert_eq!(schedule.next(), Some(start + Duration::from_secs(10)));
        schedule.retain(|_| false);
        assert_eq!(schedule.next(), None);
    }
}
