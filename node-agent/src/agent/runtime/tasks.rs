//! The parts of the agent that live as long as it does.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// Tasks, each with what it does. When one ends, the agent is not whole any more.
#[derive(Default)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    parts: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one that is not expected to end.
    pub(super) fn spawn(&mut self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.set.spawn(work);
        self.parts.insert(task.id(), part);
    }

    /// Starts one that may end well: its work is done, or the part that it follows has ended, which is told of that one.
    pub(super) fn spawn_finite(
        &mut self,
        part: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(part, async move {
            work.await;
            std::future::pending().await
        });
    }

    /// Waits until one ends: which, and whether by a panic.
    pub(super) async fn ended(&mut self) -> (&'static str, bool) {
        match self.set.join_next_with_id().await {
            Some(Ok((id, ()))) => (self.part(id), false),
            Some(Err(error)) => (self.part(error.id()), error.is_panic()),
            None => std::future::pending().await,
        }
    }

    fn part(&self, id: Id) -> &'static str {
        self.parts.get(&id).copied().unwrap_or("is unknown")
    }

    /// Ends them all.
    pub(super) async fn shutdown(mut self) {
        self.set.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_ends_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("stays", std::future::pending());
        tasks.spawn_finite("is done once", async {});
        tasks.spawn("goes", async {});
        assert_eq!(tasks.ended().await, ("goes", false));
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.ended().await, ("panics", true));
        tasks.shutdown().await;
    }
}
