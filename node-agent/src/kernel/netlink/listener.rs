//! Threads that listen, for as long as somebody wants to hear.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::kernel::KernelError;

/// First wait before what failed is opened anew; doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// After so long without a failure the next one is the first again.
const WELL: Duration = Duration::from_secs(60);
/// How often a thread that waits looks whether it shall end.
const ATTENTION: Duration = Duration::from_millis(50);

/// Whether a listener hears.
#[derive(Debug)]
pub struct Hearing {
    /// Which listener.
    pub listener: &'static str,
    /// Why it does not; `None` when it does again.
    pub lost: Option<KernelError>,
}

/// A thread that listens; dropping it ends the thread.
pub struct Listener {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Opens something and works with it on a thread of its own. When either fails, `hearing` is told, and both begin
    /// anew after a while; `work` then knows that something may have been missed. It ends when `work` does so well.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start<S: Send + 'static>(
        name: &'static str,
        open: impl Fn() -> Result<S, KernelError> + Send + 'static,
        hearing: impl Fn(Hearing) + Send + 'static,
        mut work: impl FnMut(S, bool, &AtomicBool) -> Result<(), KernelError> + Send + 'static,
    ) -> Result<Self, KernelError> {
        let ending = Arc::new(AtomicBool::new(false));
        // Here and not on the thread: what happens after the return is heard.
        let first = open();
        let run = {
            let ending = Arc::clone(&ending);
            move || {
                let mut opened = first;
                let (mut again, mut wait) = (false, FIRST);
                loop {
                    let begun = Instant::now();
                    let outcome = opened.and_then(|opened| {
                        if again {
                            hearing(Hearing { listener: name, lost: None });
                        }
                        work(opened, again, &ending)
                    });
                    let Err(error) = outcome else { return };
                    tracing::error!(%error, "{name} hears nothing, and tries again");
                    hearing(Hearing { listener: name, lost: Some(error) });
                    wait = if begun.elapsed() > WELL { FIRST } else { wait };
                    if !rest(wait, &ending) {
                        return;
                    }
                    (again, wait) = (true, (wait * 2).min(LONGEST));
                    opened = open();
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|source| KernelError::Io {
            operation: "start",
            object: format!("thread {name}"),
            source,
        })?;
        Ok(Self { ending, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the listener was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Waits; whether to go on.
fn rest(wait: Duration, ending: &AtomicBool) -> bool {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        if ending.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(ATTENTION.min(wait));
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn error() -> KernelError {
        let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
        KernelError::Io { operation: "open", object: "socket".to_owned(), source }
    }

    #[test]
    fn what_fails_is_told_and_opened_anew() {
        let (tell, told) = mpsc::channel();
        let (worked, working) = mpsc::channel();
        // Works and fails, cannot be opened, works.
        let openings = Mutex::new(vec![true, false, true]);
        let open = move || match openings.lock().unwrap().pop() {
            Some(false) => Err(error()),
            _ => Ok(()),
        };
        let mut turn = 0;
        let hearing = move |it: Hearing| tell.send(it.lost.is_some()).unwrap();
        let listener = Listener::start("ears", open, hearing, move |(), again, ending| {
            turn += 1;
            worked.send(again).unwrap();
            if turn == 1 {
                return Err(error());
            }
            while !ending.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(())
        })
        .unwrap();
        assert!(!working.recv_timeout(PATIENCE).unwrap(), "nothing was missed before");
        assert!(working.recv_timeout(PATIENCE).unwrap(), "something may have been missed");
        let told: Vec<bool> = (0..3).map(|_| told.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(told, [true, true, false], "lost twice, then found");
        drop(listener);
    }

    #[test]
    fn one_that_cannot_be_opened_at_first_goes_on_later_and_ends_when_told() {
        let (tell, told) = mpsc::channel();
        let open = || Err::<(), _>(error());
        let hearing = move |it: Hearing| drop(tell.send(it));
        let listener = Listener::start("ears", open, hearing, |(), _, _| Ok(())).unwrap();
        for _ in 0..2 {
            assert!(told.recv_timeout(PATIENCE).unwrap().lost.is_some());
        }
        drop(listener);
    }
}
