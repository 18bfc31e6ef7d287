//! How operator and agents reach the API servers: by a list of real endpoints, never by the ClusterIP of the
//! `kubernetes` Service, which nodenet itself programs. Requests go to one server until it fails, then to the next.

mod access;
mod fail_over;

pub use access::{Access, AccessError, SERVICE_ACCOUNT};
pub use fail_over::{ApiServers, unanswered};
