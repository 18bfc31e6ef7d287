//! Programs of the host.

use std::{
    env,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::kernel::KernelError;

/// Where programs of root are when `PATH` does not say so.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Longest part of a program's words in an error.
const WORDS: usize = 1024;
/// Longest time that a program may take: `iptables-restore` waits 10 s for another hand's lock, a busy machine needs
/// seconds to load a module. A lane that waits for longer is of no use to anybody.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks whether a program that closed its output has ended.
const LOOK: Duration = Duration::from_millis(2);

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(PLACES.iter().map(PathBuf::from))
        .map(|place| place.join(name))
        .find(|program| program.is_file())
}

/// What a program is run for, for errors.
pub(super) struct Task<'a> {
    pub(super) operation: &'static str,
    pub(super) object: String,
    pub(super) program: &'a str,
}

impl Task<'_> {
    /// Runs a program with its input, and kills it with all that it started when it does not end in time.
    ///
    /// # Errors
    /// When it cannot be run or did not end in time. That it failed is in its status.
    pub(super) fn run(
        self,
        mut command: Command,
        input: &str,
        limit: Duration,
    ) -> Result<Output, KernelError> {
        let deadline = Instant::now() + limit;
        let failed = |source| KernelError::Io {
            operation: "run",
            object: format!("{} ({} {})", self.program, self.operation, self.object),
            source,
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        // Threads of their own: a program may write before it has read everything, and one that does neither must not
        // hold this one. They end with the pipes.
        if let Some(mut stdin) = child.stdin.take().filter(|_| !input.is_empty()) {
            let input = input.as_bytes().to_vec();
            // A program that ends before it read everything says why by itself.
            std::thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let mut words = [Vec::new(), Vec::new()];
        for (words, pipe) in words.iter_mut().zip([stdout, stderr]) {
            let Some(pipe) = pipe else { continue };
            match pipe.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(read) => *words = read.map_err(failed)?,
                Err(_) => return Err(self.end(child, limit)),
            }
        }
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                let [stdout, stderr] = words;
                return Ok(Output { status, stdout, stderr });
            }
            if Instant::now() >= deadline {
                return Err(self.end(child, limit));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn end(self, mut child: Child, limit: Duration) -> KernelError {
        if let Ok(group) = i32::try_from(child.id()) {
            // It may have ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        // One that hangs in the kernel ends when the kernel lets it.
        std::thread::spawn(move || drop(child.wait()));
        let Self { operation, object, program } = self;
        KernelError::Late { operation, object, program: program.to_owned(), limit }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.read_to_end(&mut bytes).map(|_| bytes);
        // Whoever started the program may have given it up.
        let _ = tell.send(read);
    });
    told
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Class;

    fn shell(script: &str, input: &str, limit: Duration) -> Result<Output, KernelError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Task { operation: "replace", object: "rules".to_owned(), program: "sh" }.run(command, input, limit)
    }

    #[test]
    fn input_and_output_may_be_larger_than_a_pipe() {
        let input = "a line of rules\n".repeat(100_000);
        let output = shell("tee /dev/stderr; exit 3", &input, LIMIT).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stdout == input.as_bytes() && output.stderr == input.as_bytes());
    }

    #[test]
    fn a_program_that_reads_nothing_fails_by_its_own_words() {
        let output = shell("echo no >&2; exit 1", &"x".repeat(1_000_000), LIMIT).unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b"no\n"[..]));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_started_and_named() {
        for script in ["sleep 600", "sleep 600 & wait", "exec >/dev/null 2>&1; sleep 600"] {
            let folder = tempfile::tempdir().unwrap();
            let pid = folder.path().join("pid");
            let script = format!("echo $$ > {}; {script}", pid.display());
            let error = shell(&script, &"x".repeat(1_000_000), Duration::from_millis(500)).unwrap_err();
            assert_eq!(error.class(), Class::Retry);
            assert_eq!(error.to_string(), "replace rules: sh did not end within 0.5 s and was killed");
            let group = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
            let deadline = Instant::now() + LIMIT;
            while killpg(Pid::from_raw(group), None).is_ok() {
                assert!(Instant::now() < deadline, "{script}: something is left of it");
                std::thread::yield_now();
            }
        }
    }
}
