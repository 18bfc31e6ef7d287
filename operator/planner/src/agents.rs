//! How long ago each agent was last heard of, by its Lease. Ages count from what this process itself observed: the
//! clock of another machine is never asked.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use nodenet_crds::timing::{
    FENCE_LIFETIME, FENCE_MARGIN, LEASE_RENEW_CANDIDATE, LEASE_RENEW_IDLE, lease_duration_seconds,
};

/// How long nothing moves although most agents are silent, as long as another agent proves that the API server
/// answers: then they are gone indeed.
pub(crate) const SILENCE_PATIENCE: Duration = Duration::from_secs(60);
/// Agents that went silent this long before another one did not do so together with it.
const TOGETHER: Duration = Duration::from_secs(30);

/// What is known of an agent's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its Lease was seen renewed, and that is not too long ago. `since`: without a gap since then.
    Alive {
        /// Monotonic time.
        since: Duration,
    },
    /// It has a Lease, but it was not seen renewed yet; or Leases cannot be read at the moment.
    Unproven,
    /// Its Lease was not renewed in time; its addresses may still be there until the given time.
    Silent {
        /// Monotonic time.
        fenced_at: Duration,
    },
    /// Silent for so long that addresses which it held have surely run out.
    Fenced,
}

#[derive(Debug)]
struct Agent {
    renew_time: Option<MicroTime>,
    holder: Option<String>,
    last_seen: Duration,
    /// Since when renewals were seen without a gap; `None`: never seen renewed.
    alive_since: Option<Duration>,
    duration: Duration,
}

/// All agents' Leases, by the name of the Node.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    by_node: BTreeMap<String, Agent>,
    /// Since when Leases are observed without a gap; `None` while they are not.
    observing: Option<Duration>,
}

fn default_duration() -> Duration {
    Duration::from_secs(lease_duration_seconds(FENCE_LIFETIME, LEASE_RENEW_CANDIDATE).unsigned_abs().into())
}

impl Agents {
    /// Takes a Lease in. Returns whether the agent came to life by it.
    pub(crate) fn observe(&mut self, lease: &Lease, now: Duration) -> bool {
        let Some(name) = lease.metadata.name.as_deref() else { return false };
        let spec = lease.spec.as_ref();
        let renew_time = spec.and_then(|s| s.renew_time.clone());
        let holder = spec.and_then(|s| s.holder_identity.clone());
        let seconds = spec.and_then(|s| s.lease_duration_seconds).filter(|s| (1..=3600).contains(s));
        let duration = seconds
            .map_or_else(default_duration, |s| Duration::from_secs(s.unsigned_abs().into()))
            // The addresses live this long whatever the Lease says.
            .max(FENCE_LIFETIME);
        match self.by_node.get_mut(name) {
            Some(agent) => {
                let renewed = agent.renew_time != renew_time || agent.holder != holder;
                agent.renew_time = renew_time;
                agent.holder = holder;
                if !renewed {
                    agent.duration = duration;
                    return false;
                }
                let gap = now.saturating_sub(agent.last_seen) >= agent.duration;
                agent.duration = duration;
                agent.last_seen = now;
                if self.observing.is_none() {
                    // Part of a list: it was renewed at some time, which does not prove that it lives now.
                    return false;
                }
                let dead = agent.alive_since.is_none() || gap;
                if dead {
                    agent.alive_since = Some(now);
                }
                dead
            }
            None => {
                let alive_since = self.observing.map(|_| now);
                let agent = Agent { renew_time, holder, last_seen: now, alive_since, duration };
                self.by_node.insert(name.to_owned(), agent);
                alive_since.is_some()
            }
        }
    }

    /// Leases cannot be read any more.
    pub(crate) fn lost(&mut self) {
        self.observing = None;
    }

    /// The list of Leases has ended: from now on silence counts.
    pub(crate) fn synced(&mut self, now: Duration) {
        if self.observing.is_none() {
            for agent in self.by_node.values_mut() {
                agent.last_seen = now;
                agent.alive_since = None;
            }
            self.observing = Some(now);
        }
    }

    /// What is known of the agent of a node.
    pub(crate) fn life(&self, node: &str, now: Duration) -> Life {
        let Some(observing) = self.observing else { return Life::Unproven };
        let (last_seen, duration, alive_since) = match self.by_node.get(node) {
            Some(a) => (a.last_seen, a.duration, a.alive_since),
            // Never had a Lease while we looked.
            None => (observing, default_duration(), None),
        };
        let age = now.saturating_sub(last_seen);
        if age < duration {
            alive_since.map_or(Life::Unproven, |since| Life::Alive { since })
        } else if age < duration + FENCE_MARGIN {
            Life::Silent { fenced_at: last_seen + duration + FENCE_MARGIN }
        } else {
            Life::Fenced
        }
    }

    /// When the next step of [`Agents::life`] is due if the agent stays silent.
    pub(crate) fn next_step(&self, node: &str, now: Duration) -> Option<Duration> {
        let observing = self.observing?;
        let (last_seen, duration) = match self.by_node.get(node) {
            Some(a) => (a.last_seen, a.duration),
            None => (observing, default_duration()),
        };
        [last_seen + duration, last_seen + duration + FENCE_MARGIN].into_iter().find(|t| *t > now)
    }

    /// The node is gone and nothing of it is left.
    pub(crate) fn forget(&mut self, node: &str) {
        self.by_node.remove(node);
    }

    /// Whole seconds since the agent was last heard of.
    pub(crate) fn age_seconds(&self, node: &str, now: Duration) -> Option<u64> {
        self.by_node.get(node).map(|a| now.saturating_sub(a.last_seen).as_secs())
    }

    /// Whether the agent of `node` fell silent together with most others, so that the API server is what was away.
    /// `Some(t)`: so it is, to be asked again at `t` at the latest. Only agents that were seen renewing count, and of
    /// the others only those that should have renewed since; with two agents both must be silent.
    pub(crate) fn silent_together(&self, node: &str, now: Duration) -> Option<Duration> {
        let agent = self.by_node.get(node)?;
        let from = agent.last_seen;
        let (mut silent, mut renewing) = (1_usize, 0_usize);
        for (name, other) in &self.by_node {
            if name == node || other.alive_since.is_none() {
                continue;
            }
            let period = match other.duration.saturating_sub(FENCE_LIFETIME) {
                p if p <= LEASE_RENEW_CANDIDATE => LEASE_RENEW_CANDIDATE,
                _ => LEASE_RENEW_IDLE,
            };
            if other.last_seen > from + period.max(LEASE_RENEW_CANDIDATE) {
                renewing += 1;
            } else if other.last_seen + TOGETHER >= from && now > other.last_seen + period * 2 {
                silent += 1;
            }
        }
        if silent < 2 || silent <= renewing {
            return None;
        }
        let patience = from + SILENCE_PATIENCE;
        if now >= patience && renewing > 0 {
            return None;
        }
        Some(if now < patience { patience } else { now + SILENCE_PATIENCE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use k8s_openapi::jiff::Timestamp;

    fn lease(node: &str, renewal: i64) -> Lease {
        Lease {
            metadata: ObjectMeta { name: Some(node.into()), ..Default::default() },
            spec: Some(LeaseSpec {
                renew_time: Timestamp::from_second(renewal).ok().map(MicroTime),
                lease_duration_seconds: Some(8),
                ..Default::default()
            }),
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_listed_lease_proves_no_life_until_it_is_renewed() {
        let mut agents = Agents::default();
        agents.observe(&lease("a", 1), s(0));
        assert_eq!(agents.life("a", s(0)), Life::Unproven, "not even listed to the end");
        agents.synced(s(1));
        assert_eq!(agents.life("a", s(2)), Life::Unproven);
        assert!(agents.observe(&lease("a", 2), s(3)), "came to life");
        assert_eq!(agents.life("a", s(4)), Life::Alive { since: s(3) });
        assert!(!agents.observe(&lease("a", 2), s(9)), "the same renewal again");
        let fenced_at = s(11) + FENCE_MARGIN;
        assert_eq!(agents.life("a", s(11)), Life::Silent { fenced_at });
        assert_eq!(agents.life("a", fenced_at), Life::Fenced);
    }

    #[test]
    fn ages_do_not_count_while_leases_cannot_be_read() {
        let mut agents = Agents::default();
        agents.synced(s(0));
        agents.observe(&lease("a", 1), s(1));
        agents.lost();
        assert_eq!(agents.life("a", s(100)), Life::Unproven);
        agents.synced(s(100));
        assert_eq!(agents.life("a", s(107)), Life::Unproven);
        assert_eq!(agents.life("a", s(108) + FENCE_MARGIN), Life::Fenced);
    }

    #[test]
    fn of_two_agents_one_may_die_but_both_silent_mean_the_api_was_away() {
        let mut agents = Agents::default();
        agents.synced(s(0));
        agents.observe(&lease("a", 1), s(1));
        agents.observe(&lease("b", 1), s(2));
        assert!(agents.silent_together("a", s(10)).is_some());
        for t in 3..10 {
            agents.observe(&lease("b", t), s(t as u64));
        }
        assert_eq!(agents.silent_together("a", s(10)), None);
    }

    #[test]
    fn an_agent_that_died_long_before_is_no_sign_of_an_outage() {
        let mut agents = Agents::default();
        agents.synced(s(0));
        agents.observe(&lease("old", 1), s(1));
        for t in 1..100 {
            agents.observe(&lease("a", t), s(t as u64));
            agents.observe(&lease("b", t), s(t as u64));
        }
        for t in 100..110 {
            agents.observe(&lease("b", t), s(t as u64));
        }
        assert_eq!(agents.silent_together("a", s(110)), None);
    }
}
