//! Programs of the host.

use std::{env, path::PathBuf};

/// Where programs of root are when `PATH` does not say so.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Longest part of a program's words in an error.
const WORDS: usize = 1024;

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(PLACES.iter().map(PathBuf::from))
        .map(|place| place.join(name))
        .find(|program| program.is_file())
}

/// What a program said, as long as it fits an error.
pub(super) fn shortened(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let words = words.trim();
    match words.char_indices().nth(WORDS) {
        Some((end, _)) => format!("{}…", words.get(..end).unwrap_or_default()),
        None => words.to_owned(),
    }
}
