//! A line for each long step, so that nobody wonders whether anything happens.

use std::time::{Duration, Instant};

/// How often a running step says that it still runs.
const REMINDER: Duration = Duration::from_secs(15);

/// Runs a step, says so on standard error, and says how long it took.
///
/// # Errors
/// Those of the step.
pub fn step<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let begin = Instant::now();
    eprintln!("  .. {what}");
    let (done, running) = std::sync::mpsc::channel::<()>();
    let name = what.to_owned();
    let reminder = std::thread::spawn(move || {
        while running.recv_timeout(REMINDER) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("  .. {name} ({} s so far)", begin.elapsed().as_secs());
        }
    });
    let result = work();
    drop(done);
    let _ = reminder.join();
    let mark = if result.is_ok() { "ok" } else { "!!" };
    eprintln!("  {mark} {what} ({:.1} s)", begin.elapsed().as_secs_f64());
    result
}
