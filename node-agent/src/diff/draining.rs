//! Real servers on their way out: they take no new connections and go when the old ones have ended, or at a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::state::{RealServerKey, Scope, VirtualServerKey, Which};

/// Real servers on their way out, with the time at which they go whatever connections they still have. Not kept across
/// a restart: weight 0 and the absence of a wish say it again, with a new deadline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draining {
    deadlines: BTreeMap<(VirtualServerKey, RealServerKey), Duration>,
}

impl Draining {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Which they are.
    pub fn iter(&self) -> impl Iterator<Item = (&VirtualServerKey, &RealServerKey)> {
        self.deadlines.keys().map(|(server, real)| (server, real))
    }

    /// Their virtual servers: look at these from time to time, nothing announces that a connection ended.
    pub fn scope(&self) -> Scope {
        let servers = self.deadlines.keys().map(|(server, _)| *server).collect();
        Scope { virtual_servers: Which::Only(servers), ..Scope::default() }
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.values().min().copied()
    }

    /// The deadline of one, given at its first call.
    pub(super) fn deadline(
        &mut self,
        server: VirtualServerKey,
        real: RealServerKey,
        new: Duration,
    ) -> Duration {
        *self.deadlines.entry((server, real)).or_insert(new)
    }

    pub(super) fn end(&mut self, server: VirtualServerKey, real: RealServerKey) {
        self.deadlines.remove(&(server, real));
    }

    /// Ends those of a virtual server that `keep` does not know.
    pub(super) fn keep(&mut self, server: VirtualServerKey, keep: impl Fn(&RealServerKey) -> bool) {
        let first = RealServerKey { address: std::net::Ipv4Addr::UNSPECIFIED.into(), port: 0 };
        let gone: Vec<RealServerKey> = self
            .deadlines
            .range((server, first)..)
            .map(|((at, real), _)| (at, real))
            .take_while(|(at, _)| **at == server)
            .filter(|(_, real)| !keep(real))
            .map(|(_, real)| *real)
            .collect();
        for real in gone {
            self.end(server, real);
        }
    }

    /// Virtual servers that have some, without repetition.
    pub(super) fn servers(&self) -> Vec<VirtualServerKey> {
        let mut servers: Vec<VirtualServerKey> = self.deadlines.keys().map(|(server, _)| *server).collect();
        servers.dedup();
        servers
    }
}
