//! The real kernel, by netlink.
