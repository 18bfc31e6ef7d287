//! stub
mod ownership;
pub use ownership::{Journal, Look};
