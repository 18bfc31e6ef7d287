//! Which write may go out now.
//!
//! Slices go out one after another, in the order in which they were planned: agents report the highest revision that
//! they have seen, and that is only worth something when a higher one is never there first. Everything else is
//! ordered by object only, so that the address of a failed node is not queued behind ten thousand Services.

use std::collections::{BTreeMap, HashMap, VecDeque};

use nodenet_planner::{Kind, ObjectRef, Output};
use tokio::time::Instant;

use crate::publish::target;

/// Writes under way at once.
const MOST: usize = 32;

/// A write and the first change that led to it.
#[derive(Clone, Debug)]
pub struct Write {
    /// What to write.
    pub output: Output,
    /// When the change arrived, where it is measured.
    pub since: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Lane {
    Slices,
    Object(ObjectRef),
    /// Events: in order, and never in anybody's way.
    Events,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Write>,
    busy: bool,
}

/// Writes that wait, and how many are under way.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: HashMap<Lane, Queue>,
    /// Lanes with a write that may go, in order of arrival.
    ready: BTreeMap<u64, Lane>,
    sequence: u64,
    busy: usize,
}

fn lane(output: &Output) -> Lane {
    match target(output) {
        None => Lane::Events,
        Some(object) if object.kind == Kind::NodeNetSlice => Lane::Slices,
        Some(object) => Lane::Object(object),
    }
}

impl Lanes {
    /// Adds a write; one to the same object that has not gone out is replaced by it.
    pub fn push(&mut self, write: Write) {
        let lane = lane(&write.output);
        let queue = self.lanes.entry(lane.clone()).or_default();
        if let Some(object) = target(&write.output)
            && let Some(older) =
                queue.waiting.iter_mut().find(|w| target(&w.output).as_ref() == Some(&object))
        {
            let since = older.since.or(write.since);
            *older = Write { since, ..write };
            return;
        }
        let first = queue.waiting.is_empty() && !queue.busy;
        queue.waiting.push_back(write);
        if first {
            self.sequence += 1;
            self.ready.insert(self.sequence, lane);
        }
    }

    /// The next write that may go out; it is under way until [`Lanes::done`].
    pub fn pop(&mut self) -> Option<Write> {
        if self.busy >= MOST {
            return None;
        }
        let (_, lane) = self.ready.pop_first()?;
        let queue = self.lanes.get_mut(&lane)?;
        let write = queue.waiting.pop_front()?;
        queue.busy = true;
        self.busy += 1;
        Some(write)
    }

    /// A write that was under way has ended.
    pub fn done(&mut self, output: &Output) {
        let lane = lane(output);
        self.busy = self.busy.saturating_sub(1);
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        queue.busy = false;
        if queue.waiting.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.sequence += 1;
            self.ready.insert(self.sequence, lane);
        }
    }

    /// Writes that wait.
    pub fn waiting(&self) -> usize {
        self.lanes.values().map(|q| q.waiting.len()).sum()
    }

    /// Writes under way.
    pub fn under_way(&self) -> usize {
        self.busy
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.ready.clear();
        self.lanes.retain(|_, queue| {
            queue.waiting.clear();
            queue.busy
        });
    }
}

#[cfg(test)]
mod tests {
    use nodenet_crds::NodeNetSliceSpec;
    use nodenet_planner::Precondition;

    use super::*;

    fn slice(name: &str, revision: i64) -> Write {
        let spec = NodeNetSliceSpec { revision, ..NodeNetSliceSpec::default() };
        Write { output: Output::PutSlice { name: name.into(), spec, replaces: None }, since: None }
    }

    fn state(node: &str) -> Write {
        Write {
            output: Output::DeleteState { node: node.into(), expect: Precondition::default() },
            since: None,
        }
    }

    fn name(write: &Write) -> String {
        target(&write.output).unwrap().name
    }

    #[test]
    fn slices_go_one_after_another_and_others_pass_them() {
        let mut lanes = Lanes::default();
        for write in [slice("a", 1), slice("b", 2), state("n1"), state("n2")] {
            lanes.push(write);
        }
        let out: Vec<_> = std::iter::from_fn(|| lanes.pop()).collect();
        assert_eq!(out.iter().map(name).collect::<Vec<_>>(), ["a", "n1", "n2"]);
        lanes.done(&out[0].output);
        assert_eq!(name(&lanes.pop().unwrap()), "b");
        assert_eq!((lanes.waiting(), lanes.under_way()), (0, 3));
    }

    #[test]
    fn a_newer_write_takes_the_place_of_one_that_has_not_gone() {
        let mut lanes = Lanes::default();
        for write in [slice("a", 1), slice("b", 1), slice("a", 2)] {
            lanes.push(write);
        }
        let first = lanes.pop().unwrap();
        assert!(matches!(&first.output, Output::PutSlice { spec, .. } if spec.revision == 2));
        // Under way is gone: the next one waits behind.
        lanes.push(slice("a", 3));
        assert_eq!(lanes.waiting(), 2);
    }

    #[test]
    fn what_is_under_way_survives_clearing() {
        let mut lanes = Lanes::default();
        lanes.push(slice("a", 1));
        lanes.push(slice("b", 1));
        let first = lanes.pop().unwrap();
        lanes.clear();
        assert_eq!((lanes.waiting(), lanes.under_way()), (0, 1));
        lanes.push(slice("c", 1));
        assert!(lanes.pop().is_none(), "still behind the first");
        lanes.done(&first.output);
        assert_eq!(name(&lanes.pop().unwrap()), "c");
    }
}
