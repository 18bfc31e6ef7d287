//! Which node is to hold a virtual IP of protocol `Operator`. A pure decision on what is known at one moment.
//!
//! A holder stays until there is a cause: its agent is dead (and its addresses have surely run out), it is worse off
//! than another candidate (not Ready, cordoned, its interface down, a fault), it is no candidate any more, or, with
//! `preempt`, a node of higher priority has been well for long enough.

use std::cmp::Reverse;
use std::time::Duration;

use crate::agents::Life;

/// How well a node can hold a virtual IP, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nothing speaks against it.
    Well,
    /// Its Node is cordoned: people want to take it away.
    Cordoned,
    /// Its Node is not Ready, but its agent lives.
    NotReady,
    /// An interface is down, or the agent reported that it cannot hold it.
    Unable,
}

/// A node that may hold the virtual IP.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node: String,
    pub(crate) priority: i32,
    pub(crate) life: Life,
    pub(crate) standing: Standing,
    /// What speaks against it, in words; empty for [`Standing::Well`].
    pub(crate) against: String,
    /// Since when nothing spoke against it (monotonic).
    pub(crate) well_since: Duration,
}

impl Candidate {
    fn alive(&self) -> bool {
        matches!(self.life, Life::Alive { .. })
    }
}

/// The node that holds it by the plan so far.
#[derive(Clone, Debug)]
pub(crate) struct CurrentHolder {
    pub(crate) node: String,
    pub(crate) life: Life,
    /// Seconds since its agent was last heard of.
    pub(crate) silent_seconds: Option<u64>,
    /// When it fell silent with most others: the time to ask again.
    pub(crate) silent_together: Option<Duration>,
    /// Why it is no candidate any more, in words.
    pub(crate) no_candidate: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing changes.
    Stay,
    /// Nobody can hold it now; in words why.
    Nobody(String),
    /// The holder is silent; its addresses may still be there.
    WaitForFence,
    /// Most agents are silent: nothing moves.
    AgentsSilent,
    /// The holder is gone and there is nobody else.
    NoOther,
    /// This node is to hold it, for this reason.
    Move {
        /// Name of the node.
        node: String,
        /// In words.
        reason: String,
        /// Whether the old holder was lost, not left.
        lost: bool,
    },
}

/// Decides, and says when time alone may change the decision.
pub(crate) fn decide(
    holder: Option<&CurrentHolder>,
    candidates: &[Candidate],
    preempt: bool,
    delay: Duration,
    now: Duration,
) -> (Decision, Option<Duration>) {
    let rank = |c: &&Candidate| (c.standing, Reverse(c.priority), c.node.clone());
    let living = || candidates.iter().filter(|c| c.alive());
    let Some(holder) = holder else {
        return match living().filter(|c| c.standing < Standing::Unable).min_by_key(rank) {
            Some(best) => {
                let reason = if candidates.len() == 1 {
                    "it is the only candidate".to_owned()
                } else {
                    let peers = living().filter(|c| c.standing == best.standing);
                    let ties = peers.filter(|c| c.priority == best.priority).count();
                    let of = candidates.len();
                    match ties {
                        1 => format!("highest priority ({}) of {of} candidates", best.priority),
                        _ => format!("first by name of {ties} candidates with priority {}", best.priority),
                    }
                };
                (Decision::Move { node: best.node.clone(), reason, lost: false }, None)
            }
            None => (Decision::Nobody(nobody(candidates)), None),
        };
    };
    let best_other =
        living().filter(|c| c.node != holder.node && c.standing < Standing::Unable).min_by_key(rank);
    match holder.life {
        Life::Silent { .. } => return (Decision::WaitForFence, None),
        Life::Fenced => {
            if let Some(again) = holder.silent_together {
                return (Decision::AgentsSilent, Some(again));
            }
            let Some(other) = best_other else { return (Decision::NoOther, None) };
            let ago = holder.silent_seconds.map_or(String::new(), |s| format!(" for {s} s"));
            let reason = format!(
                "the agent of {} has not renewed its Lease{ago}, so its addresses have run out",
                holder.node
            );
            return (Decision::Move { node: other.node.clone(), reason, lost: true }, None);
        }
        Life::Alive { .. } | Life::Unproven => {}
    }
    let Some(other) = best_other else { return (Decision::Stay, None) };
    let to = |reason: String| Decision::Move { node: other.node.clone(), reason, lost: false };
    let own = candidates.iter().find(|c| c.node == holder.node);
    let Some(own) = own else {
        let why = holder.no_candidate.as_deref().unwrap_or("it is no candidate any more");
        return (to(format!("{} had to leave it: {why}", holder.node)), None);
    };
    if own.standing > other.standing {
        return (to(format!("{} had to leave it: {}", own.node, own.against)), None);
    }
    let better: Vec<_> =
        living().filter(|c| c.standing == Standing::Well && c.priority > own.priority).collect();
    if preempt && !better.is_empty() {
        let ripe = better.iter().filter(|c| c.well_since + delay <= now).min_by_key(|c| rank(c));
        if let Some(best) = ripe {
            let reason =
                format!("its priority {} is higher than {} of {}", best.priority, own.priority, own.node);
            return (Decision::Move { node: best.node.clone(), reason, lost: false }, None);
        }
        return (Decision::Stay, better.iter().map(|c| c.well_since + delay).min());
    }
    (Decision::Stay, None)
}

/// Why no candidate can hold it.
fn nobody(candidates: &[Candidate]) -> String {
    let list = |what: &str, nodes: Vec<&str>| {
        let shown = nodes.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = if nodes.len() > 5 { ", …" } else { "" };
        format!("{what} {shown}{more}")
    };
    let silent: Vec<&str> = candidates.iter().filter(|c| !c.alive()).map(|c| c.node.as_str()).collect();
    if silent.len() == candidates.len() {
        return list("no agent answers on", silent);
    }
    let unable: Vec<String> =
        candidates.iter().filter(|c| c.alive()).map(|c| format!("{}: {}", c.node, c.against)).collect();
    unable.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn candidate(node: &str, priority: i32) -> Candidate {
        Candidate {
            node: node.into(),
            priority,
            life: Life::Alive { since: s(0) },
            standing: Standing::Well,
            against: String::new(),
            well_since: s(0),
        }
    }

    fn holder(node: &str) -> CurrentHolder {
        CurrentHolder {
            node: node.into(),
            life: Life::Alive { since: s(0) },
            silent_seconds: Some(1),
            silent_together: None,
            no_candidate: None,
        }
    }

    fn moved_to(decision: &Decision) -> Option<&str> {
        match decision {
            Decision::Move { node, .. } => Some(node),
            _ => None,
        }
    }

    #[test]
    fn the_first_holder_is_of_the_highest_priority_then_the_first_by_name() {
        let all = [candidate("c", 100), candidate("b", 150), candidate("a", 150)];
        assert_eq!(moved_to(&decide(None, &all, true, s(0), s(1)).0), Some("a"));
    }

    #[test]
    fn a_node_whose_agent_was_never_seen_renewing_gets_nothing() {
        let mut dead = candidate("a", 200);
        dead.life = Life::Unproven;
        let all = [dead, candidate("b", 100)];
        assert_eq!(moved_to(&decide(None, &all, true, s(0), s(1)).0), Some("b"));
        assert_eq!(decide(Some(&holder("b")), &all, true, s(0), s(1)).0, Decision::Stay);
    }

    #[test]
    fn nothing_moves_without_a_cause() {
        let all = [candidate("a", 100), candidate("b", 100)];
        assert_eq!(decide(Some(&holder("b")), &all, true, s(0), s(1)).0, Decision::Stay);
        let all = [candidate("a", 200), candidate("b", 100)];
        assert_eq!(decide(Some(&holder("b")), &all, false, s(0), s(1)).0, Decision::Stay, "no preempt");
    }

    #[test]
    fn preemption_waits_until_the_better_node_was_well_for_the_delay() {
        let mut better = candidate("a", 200);
        better.well_since = s(10);
        let all = [better, candidate("b", 100)];
        let (decision, again) = decide(Some(&holder("b")), &all, true, s(30), s(39));
        assert_eq!((decision, again), (Decision::Stay, Some(s(40))));
        assert_eq!(moved_to(&decide(Some(&holder("b")), &all, true, s(30), s(40)).0), Some("a"));
    }

    #[test]
    fn a_holder_that_is_worse_off_leaves_to_a_node_of_lower_priority() {
        let mut own = candidate("a", 200);
        own.standing = Standing::NotReady;
        own.against = "its Node is not Ready".into();
        let all = [own, candidate("b", 100)];
        let (decision, _) = decide(Some(&holder("a")), &all, true, s(0), s(1));
        assert_eq!(moved_to(&decision), Some("b"));
        assert_eq!(
            decide(Some(&holder("b")), &all, true, s(0), s(1)).0,
            Decision::Stay,
            "and does not get it back before it is well"
        );
    }

    #[test]
    fn where_all_are_not_ready_the_holder_stays() {
        let mut all = [candidate("a", 100), candidate("b", 200)];
        for c in &mut all {
            c.standing = Standing::NotReady;
        }
        assert_eq!(decide(Some(&holder("a")), &all, false, s(0), s(1)).0, Decision::Stay);
    }

    #[test]
    fn a_silent_holder_is_waited_for_until_its_fence() {
        let mut silent = holder("a");
        let all = [candidate("b", 100)];
        silent.life = Life::Silent { fenced_at: s(9) };
        assert_eq!(decide(Some(&silent), &all, true, s(0), s(8)).0, Decision::WaitForFence);
        silent.life = Life::Fenced;
        assert!(matches!(decide(Some(&silent), &all, true, s(0), s(9)).0, Decision::Move { lost: true, .. }));
        silent.silent_together = Some(s(60));
        assert_eq!(decide(Some(&silent), &all, true, s(0), s(9)), (Decision::AgentsSilent, Some(s(60))));
    }
}
