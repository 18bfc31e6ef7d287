//! The lanes: the only callers of [`commit`](crate::kernel::Kernel::commit).
//!
//! Two threads, each with a kernel of its own, so that a failover never waits behind ten thousand virtual servers:
//! [`address_lane`] holds the addresses of virtual IPs, [`service_lane`] everything else. Both go the same way
//! ([`machine`]): observe, compare, write the journal, commit, look again at what was touched.

pub mod address_lane;
pub mod clock;
pub mod failures;
pub mod holding;
pub mod journal;
pub mod kube_proxy;
pub mod lock;
pub mod machine;
pub mod memory;
pub mod runtime;
pub mod schedule;
pub mod scope;
pub mod service_lane;
pub mod wire;
pub mod words;
