//! A keyed queue: changes of one key within a short window become one piece of work, a key that fails is tried again
//! ever later, and no key waits for another.
//!
//! It holds no timer and no task of its own: the caller asks [`Queue::next_due`] when to look again, so that all of
//! it runs in virtual time under test.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// When work is due.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A key is due this long after its last change.
    pub window: Duration,
    /// A key that keeps changing is due this long after its first change.
    pub longest: Duration,
    /// Pause after the first failure; doubles with each further one.
    pub backoff: Duration,
    /// Longest pause between two attempts.
    pub backoff_max: Duration,
}

impl Timing {
    /// Times for a debounce window.
    pub fn with_window(window: Duration) -> Self {
        Self {
            window,
            longest: (window * 10).max(Duration::from_millis(50)),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// First change that is not done yet.
    first: Instant,
    /// Place in `order`; `None` while the work is under way.
    due: Option<(Instant, u64)>,
    /// Changed again while the work is under way.
    again: bool,
    failures: u32,
    /// Not before this, whatever changes.
    not_before: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<K> {
    timing: Timing,
    entries: HashMap<K, Entry>,
    order: BTreeMap<(Instant, u64), K>,
    sequence: u64,
}

impl<K: Hash + Eq + Clone> Queue<K> {
    /// An empty queue.
    pub fn new(timing: Timing) -> Self {
        Self { timing, entries: HashMap::new(), order: BTreeMap::new(), sequence: 0 }
    }

    /// Keys that wait or are under way.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes a change of `key`.
    pub fn add(&mut self, key: K, now: Instant) {
        self.add_at(key, now, now + self.timing.window);
    }

    /// Notes that `key` must be looked at, without waiting for further changes.
    pub fn add_now(&mut self, key: K, now: Instant) {
        self.add_at(key, now, now);
    }

    fn add_at(&mut self, key: K, now: Instant, due: Instant) {
        let timing = self.timing;
        match self.entries.get_mut(&key) {
            None => {
                let entry = Entry { first: now, due: None, again: false, failures: 0, not_before: None };
                self.entries.insert(key.clone(), entry);
                self.schedule(key, due);
            }
            Some(entry) => {
                let Some((old, _)) = entry.due else {
                    if !entry.again {
                        entry.again = true;
                        entry.first = now;
                    }
                    return;
                };
                let mut due = due.min(entry.first + timing.longest);
                if let Some(earliest) = entry.not_before {
                    due = due.max(earliest);
                }
                if due != old {
                    self.schedule(key, due);
                }
            }
        }
    }

    fn schedule(&mut self, key: K, due: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if let Some(place) = entry.due.take() {
            self.order.remove(&place);
        }
        self.sequence += 1;
        entry.due = Some((due, self.sequence));
        self.order.insert((due, self.sequence), key);
    }

    /// When the next key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.order.keys().next().map(|(due, _)| *due)
    }

    /// Takes a key that is due, with the time of its first change. It is under way until [`Queue::done`] or
    /// [`Queue::failed`].
    pub fn pop(&mut self, now: Instant) -> Option<(K, Instant)> {
        let first = self.order.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        let key = first.remove();
        let entry = self.entries.get_mut(&key)?;
        entry.due = None;
        Some((key, entry.first))
    }

    /// The work on `key` is done.
    pub fn done(&mut self, key: &K, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.again {
            entry.again = false;
            entry.failures = 0;
            entry.not_before = None;
            let due = (now + self.timing.window).min(entry.first + self.timing.longest).max(now);
            self.schedule(key.clone(), due);
        } else {
            self.entries.remove(key);
        }
    }

    /// The work on `key` failed: it is due again after a pause that doubles with each failure. Returns the pause.
    pub fn failed(&mut self, key: &K, now: Instant) -> Duration {
        let timing = self.timing;
        let Some(entry) = self.entries.get_mut(key) else { return Duration::ZERO };
        let pause = timing
            .backoff
            .saturating_mul(2u32.saturating_pow(entry.failures.min(16)))
            .min(timing.backoff_max);
        entry.failures += 1;
        entry.again = false;
        entry.not_before = Some(now + pause);
        self.schedule(key.clone(), now + pause);
        pause
    }

    /// Forgets all that waits; what is under way stays until it is done.
    pub fn clear_waiting(&mut self) {
        self.order.clear();
        self.entries.retain(|_, e| e.due.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn queue() -> (Queue<&'static str>, Instant) {
        (Queue::new(Timing::with_window(20 * MS)), Instant::now())
    }

    fn drain(queue: &mut Queue<&'static str>, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop(now).map(|(key, _)| key)).collect()
    }

    #[test]
    fn changes_within_the_window_are_one_piece_of_work() {
        let (mut q, t) = queue();
        q.add("a", t);
        q.add("a", t + 10 * MS);
        assert_eq!(drain(&mut q, t + 25 * MS), [""; 0]);
        assert_eq!(q.next_due(), Some(t + 30 * MS));
        assert_eq!(q.pop(t + 30 * MS), Some(("a", t)));
        q.done(&"a", t + 31 * MS);
        assert!(q.is_empty() && q.next_due().is_none());
    }

    #[test]
    fn a_key_that_never_rests_is_due_at_the_longest() {
        let (mut q, t) = queue();
        for i in 0..1000 {
            let now = t + i * 5 * MS;
            q.add("a", now);
            if let Some((_, first)) = q.pop(now) {
                assert_eq!(first, t);
                assert_eq!(now, t + 200 * MS);
                return;
            }
        }
        panic!("never due");
    }

    #[test]
    fn a_change_during_the_work_is_not_lost() {
        let (mut q, t) = queue();
        q.add("a", t);
        assert_eq!(drain(&mut q, t + 20 * MS), ["a"]);
        q.add("a", t + 21 * MS);
        assert_eq!(drain(&mut q, t + 500 * MS), [""; 0], "one at a time");
        q.done(&"a", t + 30 * MS);
        assert_eq!(q.next_due(), Some(t + 50 * MS));
        assert_eq!(drain(&mut q, t + 50 * MS), ["a"]);
    }

    #[test]
    fn a_failing_key_waits_ever_longer_and_blocks_nobody() {
        let (mut q, mut t) = queue();
        let mut pauses = Vec::new();
        q.add("poisoned", t);
        for _ in 0..12 {
            t = q.next_due().unwrap();
            assert_eq!(drain(&mut q, t), ["poisoned"]);
            pauses.push(q.failed(&"poisoned", t).as_millis());
            q.add("good", t);
            assert_eq!(drain(&mut q, t + 20 * MS), ["good"]);
            q.done(&"good", t + 20 * MS);
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses.last(), Some(&30_000));
        // A change does not shorten the pause.
        q.add("poisoned", t);
        assert_eq!(q.next_due(), Some(t + Duration::from_secs(30)));
        t += Duration::from_secs(30);
        assert_eq!(drain(&mut q, t), ["poisoned"]);
        q.done(&"poisoned", t);
        q.add("poisoned", t);
        assert_eq!(drain(&mut q, t + 20 * MS), ["poisoned"]);
        assert_eq!(q.failed(&"poisoned", t), 100 * MS, "a success starts over");
    }

    #[test]
    fn work_that_must_not_wait_does_not() {
        let (mut q, t) = queue();
        q.add("a", t);
        q.add_now("a", t + MS);
        assert_eq!(drain(&mut q, t + MS), ["a"]);
    }
}
