//! What waits: keys to be planned, with a window in which changes of one key become one piece of work, and objects
//! whose write failed, with a pause that grows.
//!
//! Nothing here holds a timer or a task: the caller asks when to look again, so that all of it runs in virtual time
//! under test.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Keys ordered by when they are due; a key stands here once.
#[derive(Debug)]
struct Schedule<K> {
    order: BTreeMap<(Instant, u64), K>,
    sequence: u64,
}

impl<K> Schedule<K> {
    fn new() -> Self {
        Self { order: BTreeMap::new(), sequence: 0 }
    }

    fn insert(&mut self, key: K, due: Instant) -> (Instant, u64) {
        self.sequence += 1;
        self.order.insert((due, self.sequence), key);
        (due, self.sequence)
    }

    fn next_due(&self) -> Option<Instant> {
        self.order.keys().next().map(|(due, _)| *due)
    }

    fn pop(&mut self, now: Instant) -> Option<K> {
        let first = self.order.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[derive(Debug)]
struct Waiting {
    first: Instant,
    place: (Instant, u64),
}

/// Keys with a debounce window: a key is due when it was left alone for the window, or, if it never is, ten windows
/// after its first change. Keys do not wait for each other.
#[derive(Debug)]
pub struct Queue<K> {
    window: Duration,
    waiting: HashMap<K, Waiting>,
    schedule: Schedule<K>,
}

impl<K: Hash + Eq + Clone> Queue<K> {
    /// An empty queue.
    pub fn new(window: Duration) -> Self {
        Self { window, waiting: HashMap::new(), schedule: Schedule::new() }
    }

    /// Keys that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The longest that a key waits.
    pub fn longest(&self) -> Duration {
        self.window * 10
    }

    /// Notes a change of `key` that arrived at `at`.
    pub fn add(&mut self, key: K, at: Instant) {
        self.schedule(key, at, at + self.window);
    }

    /// Notes that `key` must be looked at, without waiting for further changes.
    pub fn add_now(&mut self, key: K, at: Instant) {
        self.schedule(key, at, at);
    }

    fn schedule(&mut self, key: K, at: Instant, due: Instant) {
        let longest = self.longest();
        match self.waiting.get_mut(&key) {
            None => {
                let place = self.schedule.insert(key.clone(), due);
                self.waiting.insert(key, Waiting { first: at, place });
            }
            Some(waiting) => {
                let due = due.min(waiting.first + longest);
                if due != waiting.place.0 {
                    self.schedule.order.remove(&waiting.place);
                    waiting.place = self.schedule.insert(key, due);
                }
            }
        }
    }

    /// When the next key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.next_due()
    }

    /// Takes a key that is due, with the time of its first change.
    pub fn pop(&mut self, now: Instant) -> Option<(K, Instant)> {
        let key = self.schedule.pop(now)?;
        let first = self.waiting.remove(&key)?.first;
        Some((key, first))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.window);
    }
}

/// First and longest pause after a failure.
pub const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

#[derive(Debug)]
struct Failing {
    failures: u32,
    waits: bool,
}

/// Keys that failed: each is due again after a pause that doubles with every further failure and starts over with a
/// success.
#[derive(Debug)]
pub struct Backoff<K> {
    failing: HashMap<K, Failing>,
    schedule: Schedule<K>,
}

impl<K: Hash + Eq + Clone> Default for Backoff<K> {
    fn default() -> Self {
        Self { failing: HashMap::new(), schedule: Schedule::new() }
    }
}

impl<K: Hash + Eq + Clone> Backoff<K> {
    /// `key` failed. Returns the pause until it is due again: `first`, doubled with each failure before, and at most
    /// `longest`.
    pub fn failed(&mut self, key: &K, (first, longest): (Duration, Duration), now: Instant) -> Duration {
        let failing = self.failing.entry(key.clone()).or_insert(Failing { failures: 0, waits: false });
        let pause = first.saturating_mul(2u32.saturating_pow(failing.failures.min(16))).min(longest);
        if !failing.waits {
            failing.failures += 1;
            failing.waits = true;
            self.schedule.insert(key.clone(), now + pause);
        }
        pause
    }

    /// `key` succeeded.
    pub fn succeeded(&mut self, key: &K) {
        if self.failing.remove(key).is_some() {
            self.schedule.order.retain(|_, k| k != key);
        }
    }

    /// Whether `key` failed and its pause has not ended.
    pub fn waits(&self, key: &K) -> bool {
        self.failing.get(key).is_some_and(|f| f.waits)
    }

    /// Keys whose pause has not ended.
    pub fn len(&self) -> usize {
        self.schedule.order.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.schedule.order.is_empty()
    }

    /// Whether there is such a key among those whose pause has not ended.
    pub fn any(&self, matches: impl Fn(&K) -> bool) -> bool {
        self.schedule.order.values().any(matches)
    }

    /// When the next pause ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.schedule.next_due()
    }

    /// Takes a key whose pause has ended. Its failures are remembered until it succeeds.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let key = self.schedule.pop(now)?;
        if let Some(failing) = self.failing.get_mut(&key) {
            failing.waits = false;
        }
        Some(key)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn queue() -> (Queue<&'static str>, Instant) {
        (Queue::new(20 * MS), Instant::now())
    }

    #[test]
    fn changes_within_the_window_are_one_piece_of_work() {
        let (mut q, t) = queue();
        q.add("a", t);
        q.add("a", t + 10 * MS);
        q.add("b", t + 10 * MS);
        assert_eq!(q.pop(t + 29 * MS), None);
        assert_eq!(q.next_due(), Some(t + 30 * MS));
        assert_eq!(q.pop(t + 30 * MS), Some(("a", t)));
        assert_eq!(q.pop(t + 30 * MS), Some(("b", t + 10 * MS)));
        assert!(q.is_empty() && q.next_due().is_none());
    }

    #[test]
    fn a_key_that_never_rests_is_due_after_ten_windows() {
        let (mut q, t) = queue();
        let mut taken = Vec::new();
        for i in 0..100 {
            let now = t + i * 5 * MS;
            q.add("a", now);
            taken.extend(q.pop(now).map(|(_, first)| now - first));
        }
        assert_eq!(taken[0], 200 * MS);
    }

    #[test]
    fn work_that_must_not_wait_does_not() {
        let (mut q, t) = queue();
        q.add("a", t);
        q.add_now("a", t + MS);
        assert_eq!(q.pop(t + MS), Some(("a", t)));
    }

    #[test]
    fn a_failing_key_waits_ever_longer() {
        let mut b = Backoff::default();
        let mut t = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.push(b.failed(&"a", PAUSE, t).as_millis());
            assert!(b.waits(&"a"));
            t = b.next_due().unwrap();
            assert_eq!(b.pop(t), Some("a"));
            assert!(!b.waits(&"a"));
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses.last(), Some(&30_000));
        b.succeeded(&"a");
        assert_eq!(b.failed(&"a", PAUSE, t), 100 * MS, "a success starts over");
    }

    #[test]
    fn a_key_that_fails_twice_is_due_once() {
        let mut b = Backoff::default();
        let t = Instant::now();
        b.failed(&"a", PAUSE, t);
        b.failed(&"a", PAUSE, t);
        assert_eq!(b.len(), 1);
        b.succeeded(&"a");
        assert!(b.is_empty() && b.next_due().is_none());
    }
}
