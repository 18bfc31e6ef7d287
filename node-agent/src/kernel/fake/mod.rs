//! A kernel in memory that obeys the real one's rules.
