//! See the table in the crate's root.
