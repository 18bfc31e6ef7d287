//! Which write may go out now.
//!
//! Slices go out in the order in which they were planned: those of one plan together, and none of the next before all
//! of them are answered. Agents report the highest revision that they have seen, and that is only worth something when
//! a higher one is not there first. Everything else is ordered by object only, so that the address of a failed node is
//! not queued behind ten thousand Services; only a NodeNetState that does not exist yet waits for the slices: an agent
//! that has its state and not the slices would take an empty plan for the whole one.

use std::collections::{BTreeMap, HashMap, VecDeque};

use nodenet_planner::{Kind, ObjectRef, Output};
use tokio::time::Instant;

use crate::publish::target;

/// Writes under way at once.
const MOST: usize = 32;
/// Slices under way at once: the API server is busy enough with that.
const MOST_SLICES: usize = 8;

/// A write and the first change that led to it.
#[derive(Clone, Debug)]
pub struct Write {
    /// What to write.
    pub output: Output,
    /// The plan that it belongs to; later plans have higher numbers.
    pub plan: u64,
    /// When the change arrived, where it is measured.
    pub since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Write>,
    busy: bool,
}

#[derive(Debug, Default)]
struct Slices {
    waiting: VecDeque<Write>,
    busy: usize,
    /// The plan whose slices are under way.
    plan: u64,
}

/// Writes that wait, and how many are under way.
#[derive(Debug, Default)]
pub struct Lanes {
    slices: Slices,
    /// By object; events, which have none, are in order among themselves.
    others: HashMap<Option<ObjectRef>, Queue>,
    /// Those of `others` with a write that may go, in order of arrival.
    ready: BTreeMap<u64, Option<ObjectRef>>,
    sequence: u64,
    busy: usize,
}

fn is_slice(object: Option<&ObjectRef>) -> bool {
    object.is_some_and(|o| o.kind == Kind::NodeNetSlice)
}

impl Lanes {
    /// Adds a write; one to the same object that has not gone out is replaced by it.
    pub fn push(&mut self, write: Write) {
        let object = target(&write.output);
        let slice = is_slice(object.as_ref());
        let waiting = if slice {
            &mut self.slices.waiting
        } else {
            &mut self.others.entry(object.clone()).or_default().waiting
        };
        if object.is_some()
            && let Some(older) = waiting.iter_mut().find(|w| target(&w.output) == object)
        {
            // In the older one's place, and what waited for that waits for this.
            *older = Write { output: write.output, plan: older.plan, since: older.since.or(write.since) };
            return;
        }
        waiting.push_back(write);
        if !slice && waiting.len() == 1 && !self.others.get(&object).is_some_and(|q| q.busy) {
            self.may_go(object);
        }
    }

    fn may_go(&mut self, object: Option<ObjectRef>) {
        self.sequence += 1;
        self.ready.insert(self.sequence, object);
    }

    /// The next write that may go out; it is under way until [`Lanes::done`].
    pub fn pop(&mut self) -> Option<Write> {
        if self.busy >= MOST {
            return None;
        }
        let write = self.pop_other().or_else(|| self.pop_slice())?;
        self.busy += 1;
        Some(write)
    }

    fn pop_other(&mut self) -> Option<Write> {
        let slices_done = self.slices.waiting.is_empty() && self.slices.busy == 0;
        let may_go = |object: &Option<ObjectRef>| {
            let next = self.others.get(object).and_then(|q| q.waiting.front());
            slices_done || !next.is_some_and(|w| matches!(w.output, Output::PutState { replaces: None, .. }))
        };
        let place = self.ready.iter().find(|(_, object)| may_go(object)).map(|(place, _)| *place)?;
        let object = self.ready.remove(&place)?;
        let queue = self.others.get_mut(&object)?;
        let write = queue.waiting.pop_front()?;
        queue.busy = true;
        Some(write)
    }

    fn pop_slice(&mut self) -> Option<Write> {
        let slices = &mut self.slices;
        let next = slices.waiting.front()?;
        if slices.busy > 0 && (slices.busy >= MOST_SLICES || next.plan != slices.plan) {
            return None;
        }
        slices.plan = next.plan;
        slices.busy += 1;
        slices.waiting.pop_front()
    }

    /// A write that was under way has ended.
    pub fn done(&mut self, output: &Output) {
        self.busy = self.busy.saturating_sub(1);
        let object = target(output);
        if is_slice(object.as_ref()) {
            self.slices.busy = self.slices.busy.saturating_sub(1);
            return;
        }
        let Some(queue) = self.others.get_mut(&object) else { return };
        queue.busy = false;
        if queue.waiting.is_empty() {
            self.others.remove(&object);
        } else {
            self.may_go(object);
        }
    }

    /// Writes that wait.
    pub fn waiting(&self) -> usize {
        self.slices.waiting.len() + self.others.values().map(|q| q.waiting.len()).sum::<usize>()
    }

    /// Writes under way.
    pub fn under_way(&self) -> usize {
        self.busy
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.ready.clear();
        self.slices.waiting.clear();
        self.others.retain(|_, queue| {
            queue.waiting.clear();
            queue.busy
        });
    }
}

#[cfg(test)]
mod tests {
    use nodenet_crds::{NodeNetSliceSpec, NodeNetStateSpec};
    use nodenet_planner::Precondition;

    use super::*;

    fn slice(name: &str, plan: u64) -> Write {
        let spec = NodeNetSliceSpec { revision: plan as i64, ..NodeNetSliceSpec::default() };
        Write { output: Output::PutSlice { name: name.into(), spec, replaces: None }, plan, since: None }
    }

    fn state(node: &str) -> Write {
        let output = Output::DeleteState { node: node.into(), expect: Precondition::default() };
        Write { output, plan: 0, since: None }
    }

    fn all(lanes: &mut Lanes) -> Vec<Write> {
        std::iter::from_fn(|| lanes.pop()).collect()
    }

    fn name(write: &Write) -> String {
        target(&write.output).unwrap().name
    }

    #[test]
    fn slices_of_one_plan_go_together_those_of_the_next_wait_and_others_pass_them() {
        let mut lanes = Lanes::default();
        for write in [slice("a", 1), slice("b", 1), slice("c", 2), state("n1"), state("n2"), state("n1")] {
            lanes.push(write);
        }
        let out = all(&mut lanes);
        assert_eq!(out.iter().map(name).collect::<Vec<_>>(), ["n1", "n2", "a", "b"]);
        lanes.done(&out[2].output);
        assert!(lanes.pop().is_none(), "b is under way");
        lanes.done(&out[3].output);
        assert_eq!(name(&lanes.pop().unwrap()), "c");
        assert_eq!((lanes.waiting(), lanes.under_way()), (0, 3));
    }

    #[test]
    fn a_state_that_does_not_exist_yet_waits_for_the_slices() {
        let mut lanes = Lanes::default();
        let new = |node: &str, replaces| {
            let (node, spec) = (node.to_owned(), NodeNetStateSpec::default());
            Write { output: Output::PutState { node, node_uid: None, spec, replaces }, plan: 1, since: None }
        };
        lanes.push(new("new", None));
        lanes.push(slice("a", 1));
        lanes.push(new("old", Some(Precondition::default())));
        let out = all(&mut lanes);
        assert_eq!(out.iter().map(name).collect::<Vec<_>>(), ["old", "a"]);
        lanes.done(&out[1].output);
        assert_eq!(name(&lanes.pop().unwrap()), "new");
    }

    #[test]
    fn one_object_has_one_write_under_way() {
        let mut lanes = Lanes::default();
        lanes.push(state("n1"));
        let first = lanes.pop().unwrap();
        lanes.push(state("n1"));
        assert!(lanes.pop().is_none());
        lanes.done(&first.output);
        assert_eq!(name(&lanes.pop().unwrap()), "n1");
    }

    #[test]
    fn a_newer_write_takes_the_place_of_one_that_has_not_gone() {
        let mut lanes = Lanes::default();
        for write in [slice("a", 1), slice("b", 1), slice("a", 2)] {
            lanes.push(write);
        }
        let out = all(&mut lanes);
        assert_eq!(out.iter().map(name).collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches!(&out[0].output, Output::PutSlice { spec, .. } if spec.revision == 2));
        // Under way is gone: the next one waits behind.
        lanes.push(slice("a", 3));
        assert!(lanes.pop().is_none());
        assert_eq!(lanes.waiting(), 1);
    }

    #[test]
    fn the_number_under_way_is_bounded() {
        let mut lanes = Lanes::default();
        for i in 0..100 {
            lanes.push(slice(&format!("s{i}"), 1));
            lanes.push(state(&format!("n{i}")));
        }
        assert_eq!(all(&mut lanes).len(), MOST);
    }

    #[test]
    fn what_is_under_way_survives_clearing() {
        let mut lanes = Lanes::default();
        lanes.push(slice("a", 1));
        lanes.push(state("n"));
        let out = all(&mut lanes);
        lanes.push(state("n"));
        lanes.clear();
        assert_eq!((lanes.waiting(), lanes.under_way()), (0, 2));
        lanes.push(slice("c", 2));
        lanes.push(state("n"));
        assert!(lanes.pop().is_none(), "still behind the first");
        for write in &out {
            lanes.done(&write.output);
        }
        assert_eq!(all(&mut lanes).iter().map(name).collect::<Vec<_>>(), ["n", "c"]);
    }
}
