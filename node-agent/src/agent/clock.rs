//! Jitter: agents of a cluster must not do the same thing at the same moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// `base` made longer or shorter by a random part of it, at most `part` (0.2 is ±20 %).
pub fn jitter(base: Duration, part: f64) -> Duration {
    // Each RandomState has keys of its own: as random as jitter needs, without a dependency.
    let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    base.mul_f64(1.0 + part * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_part() {
        let base = Duration::from_secs(30);
        let all: Vec<_> = (0..100).map(|_| jitter(base, 0.2)).collect();
        assert!(all.iter().all(|d| (24.0..=36.0).contains(&d.as_secs_f64())), "{all:?}");
        assert!(all.iter().any(|d| *d != all[0]), "always the same");
    }
}
