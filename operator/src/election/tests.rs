use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

use super::*;

/// An API server with one Lease, for one thread.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    version: u64,
    writes: u32,
    /// What happens to the next requests.
    fault: Fault,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// No request is answered nor done.
    Away,
    /// Writes are done but the answer is lost.
    AnswerLost,
}

#[derive(Clone)]
struct Store {
    server: Rc<RefCell<Server>>,
    fault: Rc<RefCell<Fault>>,
}

impl Store {
    async fn gate(&self) -> Fault {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let fault = match *self.fault.borrow() {
            Fault::None => self.server.borrow().fault,
            own => own,
        };
        if fault == Fault::Away {
            std::future::pending::<()>().await;
        }
        fault
    }

    fn write(&self, record: &Record) -> Record {
        let mut server = self.server.borrow_mut();
        server.version += 1;
        server.writes += 1;
        let record = Record { version: server.version.to_string(), ..record.clone() };
        server.lease = Some(record.clone());
        record
    }
}

impl LeaseStore for Store {
    async fn get(&self) -> Result<Option<Record>, StoreError> {
        self.gate().await;
        Ok(self.server.borrow().lease.clone())
    }

    async fn create(&self, record: &Record) -> Result<Record, StoreError> {
        let fault = self.gate().await;
        if self.server.borrow().lease.is_some() {
            return Err(StoreError::Conflict);
        }
        let written = self.write(record);
        if fault == Fault::AnswerLost {
            std::future::pending::<()>().await;
        }
        Ok(written)
    }

    async fn replace(&self, record: &Record) -> Result<Record, StoreError> {
        let fault = self.gate().await;
        if self.server.borrow().lease.as_ref().is_none_or(|l| l.version != record.version) {
            return Err(StoreError::Conflict);
        }
        let written = self.write(record);
        if fault == Fault::AnswerLost {
            std::future::pending::<()>().await;
        }
        Ok(written)
    }
}

struct Candidate {
    leadership: Leadership,
    fault: Rc<RefCell<Fault>>,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

fn candidate(server: &Rc<RefCell<Server>>, identity: &str) -> Candidate {
    announcing(server, identity, watch::channel(None).1)
}

fn announcing(
    server: &Rc<RefCell<Server>>,
    identity: &str,
    published: watch::Receiver<Option<Published>>,
) -> Candidate {
    let fault = Rc::default();
    let store = Store { server: server.clone(), fault: Rc::clone(&fault) };
    let (election, leadership) = Election::new(store, identity.into(), Timing::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let done = spawn_local(election.announcing(published).run(async move {
        let _ = stopped.await;
    }));
    Candidate { leadership, fault, stop, done }
}

/// Waits, in virtual time, until `condition` holds; returns how long it took.
async fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_two_candidates_leads_and_keeps_leading() {
    run(async {
        let server = Rc::default();
        let (a, b) = (candidate(&server, "a"), candidate(&server, "b"));
        until(Duration::from_secs(1), || a.leadership.may_write() || b.leadership.may_write()).await;
        let a_first = a.leadership.may_write();
        for _ in 0..1000 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_ne!(a.leadership.may_write(), b.leadership.may_write());
            assert_eq!(a.leadership.may_write(), a_first);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_leader_stops_writing_before_another_may_begin() {
    run(async {
        let server = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        let b = candidate(&server, "b");
        tokio::time::sleep(Duration::from_secs(30)).await;
        *a.fault.borrow_mut() = Fault::Away;
        let mut gap = None;
        let begun = Instant::now();
        until(Duration::from_secs(60), || {
            assert!(!(a.leadership.may_write() && b.leadership.may_write()), "two leaders");
            if gap.is_none() && !a.leadership.may_write() {
                gap = Some(begun.elapsed());
            }
            b.leadership.may_write()
        })
        .await;
        let stopped = gap.expect("a stopped first");
        assert!(stopped <= Duration::from_secs(10), "{stopped:?}");
        assert!(begun.elapsed() - stopped >= Duration::from_secs(3), "room for requests under way");
        // Back again, the old leader stands by.
        *a.fault.borrow_mut() = Fault::None;
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!a.leadership.may_write() && b.leadership.may_write());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_leader_hands_over_at_once() {
    run(async {
        let server = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        let b = candidate(&server, "b");
        tokio::time::sleep(Duration::from_secs(5)).await;
        a.stop.send(()).unwrap();
        a.done.await.unwrap();
        assert!(!a.leadership.may_write());
        let took = until(Duration::from_secs(10), || b.leadership.may_write()).await;
        assert!(took <= Duration::from_secs(3), "{took:?}");
        drop(b.stop);
        b.done.await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_said_of_the_own_term_and_while_it_is_found_so() {
    run(async {
        let server: Rc<RefCell<Server>> = Rc::default();
        let said = || server.borrow().lease.as_ref().unwrap().published;
        let found = |term| {
            let until = Instant::now() + Duration::from_secs(30);
            Some(Published { term, revision: 7, until })
        };
        let (published, announced) = watch::channel(found(1));
        let a = announcing(&server, "a", announced);
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        assert_eq!(said(), None, "its term has only just begun");
        until(Duration::from_secs(5), || said() == Some(7)).await;
        published.send_replace(None);
        until(Duration::from_secs(5), || said().is_none()).await;
        published.send_replace(found(1));
        until(Duration::from_secs(5), || said() == Some(7)).await;
        until(Duration::from_secs(35), || said().is_none()).await;
        published.send_replace(found(2));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(said(), None, "of a term that is not now");
        published.send_replace(found(1));
        until(Duration::from_secs(5), || said() == Some(7)).await;
        a.stop.send(()).unwrap();
        a.done.await.unwrap();
        assert_eq!(said(), None, "nobody leads");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_lease_is_what_this_process_saw() {
    run(async {
        // A holder whose clock is a year behind: by its renewTime it would be long dead.
        let renewed = Timestamp::now() - Duration::from_secs(31_000_000);
        let server: Rc<RefCell<Server>> = Rc::default();
        server.borrow_mut().lease = Some(Record {
            version: "0".into(),
            holder: Some("other".into()),
            duration: Duration::from_secs(15),
            acquired: None,
            renewed: Some(renewed),
            transitions: 0,
            published: None,
        });
        let a = candidate(&server, "a");
        let took = until(Duration::from_secs(60), || a.leadership.may_write()).await;
        assert!(took >= Duration::from_secs(15), "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_leader_of_the_same_name_continues_at_once() {
    run(async {
        let server = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        a.done.abort();
        let again = candidate(&server, "a");
        let took = until(Duration::from_secs(60), || again.leadership.may_write()).await;
        assert!(took <= Duration::from_secs(1), "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_was_lost_is_recognised() {
    run(async {
        let server: Rc<RefCell<Server>> = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        *a.fault.borrow_mut() = Fault::AnswerLost;
        let writes = server.borrow().writes;
        until(Duration::from_secs(9), || server.borrow().writes > writes).await;
        *a.fault.borrow_mut() = Fault::None;
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(a.leadership.may_write());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn two_replicas_of_one_name_never_lead_together() {
    run(async {
        let server = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        let b = candidate(&server, "a");
        // The second takes over as if it were the first restarted; the first must notice at its next renewal.
        until(Duration::from_secs(5), || b.leadership.may_write()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!a.leadership.may_write() && b.leadership.may_write());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_made_again() {
    run(async {
        let server: Rc<RefCell<Server>> = Rc::default();
        let a = candidate(&server, "a");
        until(Duration::from_secs(1), || a.leadership.may_write()).await;
        server.borrow_mut().lease = None;
        until(Duration::from_secs(5), || server.borrow().lease.is_some()).await;
        assert!(a.leadership.may_write());
    })
    .await;
}
