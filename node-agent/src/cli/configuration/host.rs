//! What of the node itself settings depend on.

/// What of the machine settings depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// First two numbers of the kernel's release.
    pub kernel: Option<(u32, u32)>,
    /// Those that are online.
    pub processors: u32,
}

impl Default for Host {
    fn default() -> Self {
        Self { kernel: None, processors: 1 }
    }
}

impl Host {
    /// The one that this process runs on.
    pub fn running() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: release(&text("/proc/sys/kernel/osrelease")),
            // Those of the node, whatever the agent itself may use.
            processors: processors(&text("/sys/devices/system/cpu/online")),
        }
    }

    /// `net.ipv4.vs.conn_reuse_mode`. Before 5.9 a client that comes again from the same port, after its connection ended,
    /// waits for a second with 1; from then on with 0 it can come to a server that is gone. Kernels before 4.1 have no
    /// such setting.
    pub fn connection_reuse(&self) -> Option<u64> {
        match self.kernel? {
            release if release >= (5, 9) => Some(1),
            release if release >= (4, 1) => Some(0),
            _ => None,
        }
    }
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Counts a list of the kernel's, as `0-3,8`; 1 where it says nothing.
fn processors(list: &str) -> u32 {
    let count = |range: &str| -> Option<u32> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    list.trim().split(',').filter_map(count).sum::<u32>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_itself_is_read() {
        assert_eq!(release("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(release("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(release(""), None);
        assert_eq!((processors("0-3\n"), processors("0-3,8,10-11"), processors("")), (4, 7, 1));
    }
}
