//! The commands of `nodenet-agent`.
