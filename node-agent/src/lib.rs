//! The node agent: resolves what its node must have, compares it with what the kernel has, and makes it so.
//!
//! | module | owns | may use |
//! |---|---|---|
//! | [`state`] | one normal form for desired and observed state, operations, their order | nothing |
//! | [`resolve`] | NodeNetState + slices + the node's own addresses → desired state, kept incrementally | `state`, kinds |
//! | [`diff`] | desired and observed state → operations; what is ours and may be removed | `state` |
//! | [`filter`] | the constant packet filter rules, as text and back | `state` |
//! | [`kernel`] | the trait (observe, commit) and its two makers: netlink and fake | `state`, wire |
//! | [`agent`] | the lanes: the only callers of commit; journal, fence, cold start | all of the above |
//! | [`source`] | the API server and the copy on disk | kinds, kube |
//! | [`health_server`] | what load balancers ask by HTTP | `resolve`, `report` |
//! | [`report`] | status, conditions, metrics, health, Lease | kinds, kube |
//! | [`cli`] | the commands of `nodenet-agent` | all of the above |

pub mod agent;
pub mod cli;
pub mod diff;
pub mod filter;
pub mod health_server;
pub mod kernel;
pub mod report;
pub mod resolve;
pub mod source;
pub mod state;
