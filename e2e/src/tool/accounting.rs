//! Which programs a kernel has run, from its process accounting, and what a process has cost.

use super::{During, ToolError};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// `linux/acct.h`: the size of a record, the flag of a process that never called exec, the name's place.
const RECORD: usize = 64;
const FORK_ONLY: u8 = 1;
const NAME: std::ops::Range<usize> = 36..53;

/// Lets the kernel write a record into `file` for each process that ends.
///
/// # Errors
/// When it refuses.
pub fn begin(file: &str) -> Result<(), ToolError> {
    fs::write(file, "").during("write", file)?;
    nix::unistd::acct::enable(file).during("account to", file)
}

/// Prints a line for each program that has run and ended: how often, and its name.
///
/// # Errors
/// When the file cannot be read.
pub fn print(file: &str) -> Result<(), ToolError> {
    for (name, count) in programs(&fs::read(file).during("read", file)?) {
        println!("{count} {name}");
    }
    Ok(())
}

fn programs(records: &[u8]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in records.chunks_exact(RECORD).filter(|record| record[0] & FORK_ONLY == 0) {
        let name = record[NAME].split(|byte| *byte == 0).next().unwrap_or_default();
        *counts.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
    }
    counts
}

/// Waits until a process (with the programs it has waited for) has used no processor for that long; `false`
/// when it never rests.
///
/// # Errors
/// When it is gone.
pub fn wait_for_rest(process: u32, rest: Duration, timeout: Duration) -> Result<bool, ToolError> {
    let begin = Instant::now();
    let mut last = (processor_ticks(process)?, Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = processor_ticks(process)?;
        if now > last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() >= rest {
            return Ok(true);
        }
        if begin.elapsed() > timeout {
            return Ok(false);
        }
    }
}

/// Processor time of a process and of the programs it has waited for, in the kernel's ticks.
fn processor_ticks(process: u32) -> Result<u64, ToolError> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).during("read", &path)?;
    Ok(ticks(&text))
}

/// The sum of utime, stime, cutime and cstime (proc(5): fields 14 to 17; the name, field 2, may hold blanks).
fn ticks(stat: &str) -> u64 {
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Prints the processor time of a process and of the programs it has waited for, in milliseconds.
///
/// # Errors
/// When it is gone.
pub fn print_processor_time(process: u32) -> Result<(), ToolError> {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .during("read", "the kernel's clock tick")?
        .and_then(|ticks| u64::try_from(ticks).ok())
        .unwrap_or(100);
    println!("{}", processor_ticks(process)? * 1000 / per_second);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_counted_by_name_and_bare_forks_are_not() {
        let record = |flags: u8, name: &str| {
            let mut bytes = vec![0; RECORD];
            bytes[0] = flags;
            bytes[NAME.start..NAME.start + name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let records =
            [record(0, "ipset"), record(FORK_ONLY, "proxy"), record(2, "ipset"), record(0, "iptables")];
        let expected = [("ipset".to_owned(), 2), ("iptables".to_owned(), 1)].into();
        assert_eq!(programs(&records.concat()), expected);
    }

    #[test]
    fn processor_time_is_that_of_the_process_and_its_children() {
        assert_eq!(ticks("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 0 0"), 127);
    }
}
