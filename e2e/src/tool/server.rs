//! The guest's side of [`crate::lab::protocol`]: a thread for each connection.

use super::namespaces::Namespaces;
use super::{During, ToolError};
use crate::lab::protocol::{Event, Exec, PORT, Request};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Where programs are looked for.
pub(super) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A started program's end, once it has one.
#[derive(Debug, Default)]
struct Ending {
    code: Mutex<Option<i32>>,
    changed: Condvar,
}

#[derive(Debug, Clone, Default)]
struct Guest {
    namespaces: Namespaces,
    started: Arc<Mutex<HashMap<u32, Arc<Ending>>>>,
}

/// Serves on the guest's address until the guest is killed.
pub(super) fn serve(address: &str) -> Result<Infallible, ToolError> {
    let listener = TcpListener::bind((address, PORT)).during("listen on", address)?;
    let guest = Guest::default();
    loop {
        let (stream, _) = listener.accept().during("accept on", address)?;
        let guest = guest.clone();
        std::thread::spawn(move || {
            // A host that went away is no matter to the guest.
            let _ = guest.answer(stream);
        });
    }
}

/// The connection's writing side, shared by the readers of both output streams.
#[derive(Debug, Clone)]
struct Answer(Arc<Mutex<TcpStream>>);

impl Answer {
    fn send(&self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

impl Guest {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        let answer = Answer(Arc::new(Mutex::new(stream)));
        let request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => return answer.send(&Event::Failed { reason: error.to_string() }),
        };
        match self.fulfil(request, &answer) {
            Ok(event) => answer.send(&event),
            Err(error) => answer.send(&Event::Failed { reason: error.to_string() }),
        }
    }

    fn fulfil(&self, request: Request, answer: &Answer) -> Result<Event, ToolError> {
        match request {
            Request::Ping => Ok(Event::Done),
            Request::Namespace { name } => self.namespaces.create(&name).map(|()| Event::Done),
            Request::Run(exec) => self.run(&exec, answer),
            Request::Spawn { exec, log } => self.spawn(&exec, &log),
            Request::Kill { id, signal } => {
                let signal = Signal::try_from(signal).during("signal", id)?;
                killpg(pid(id), signal).during("signal", id)?;
                Ok(Event::Done)
            }
            Request::Wait { id, timeout_millis } => self.wait(id, Duration::from_millis(timeout_millis)),
            Request::Put { namespace, path, content, mode } => {
                if let Some(name) = &namespace {
                    self.namespaces.enter(name)?;
                }
                if let Some(folder) = Path::new(&path).parent() {
                    fs::create_dir_all(folder).during("make", folder.display())?;
                }
                fs::write(&path, content).during("write", &path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .during("set the mode of", &path)?;
                Ok(Event::Done)
            }
        }
    }

    /// The command, made on a thread that is in the namespaces by now.
    fn command(&self, exec: &Exec) -> Result<Command, ToolError> {
        let Some((program, arguments)) = exec.argv.split_first() else {
            return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput)).during("start", "nothing");
        };
        if let Some(name) = &exec.namespace {
            self.namespaces.enter(name)?;
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .envs(exec.env.iter().map(|(name, value)| (name, value)))
            .current_dir(exec.cwd.as_deref().unwrap_or("/"))
            .process_group(0);
        Ok(command)
    }

    fn run(&self, exec: &Exec, answer: &Answer) -> Result<Event, ToolError> {
        let mut child = self
            .command(exec)?
            .stdin(if exec.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .during("start", &exec.argv[0])?;
        let readers = [
            child.stdout.take().map(|pipe| forward(pipe, answer.clone(), |text| Event::Out { text })),
            child.stderr.take().map(|pipe| forward(pipe, answer.clone(), |text| Event::Err { text })),
        ];
        if let Some(mut pipe) = child.stdin.take() {
            // A program that does not read its input to the end is free to do so.
            let _ = pipe.write_all(exec.stdin.as_bytes());
        }
        let status = child.wait().during("wait for", &exec.argv[0])?;
        for reader in readers.into_iter().flatten() {
            let _ = reader.join();
        }
        Ok(Event::Exit { code: code(status) })
    }

    fn spawn(&self, exec: &Exec, log: &str) -> Result<Event, ToolError> {
        let log_file = OpenOptions::new().create(true).append(true).open(log).during("open the log", log)?;
        let errors = log_file.try_clone().during("duplicate", log)?;
        let mut child = self
            .command(exec)?
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(errors)
            .spawn()
            .during("start", &exec.argv[0])?;
        let id = child.id();
        let ending = Arc::<Ending>::default();
        self.started.lock().unwrap_or_else(PoisonError::into_inner).insert(id, ending.clone());
        std::thread::spawn(move || {
            let code = child.wait().map_or(255, code);
            *ending.code.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
            ending.changed.notify_all();
        });
        Ok(Event::Started { id })
    }

    fn wait(&self, id: u32, timeout: Duration) -> Result<Event, ToolError> {
        let ending = self.started.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let Some(ending) = ending else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).during("wait for", id);
        };
        let code = ending.code.lock().unwrap_or_else(PoisonError::into_inner);
        let (code, _) = ending
            .changed
            .wait_timeout_while(code, timeout, |code| code.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        Ok(code.map_or(Event::Running, |code| Event::Exit { code }))
    }
}

/// Sends all that a program writes, as it is written.
fn forward(
    mut pipe: impl Read + Send + 'static,
    answer: Answer,
    event: fn(String) -> Event,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        let mut kept = 0;
        while let Ok(count @ 1..) = pipe.read(&mut buffer[kept..]) {
            let filled = kept + count;
            // A character may be cut in two by the end of a piece: its first bytes wait for the rest.
            let whole = match std::str::from_utf8(&buffer[..filled]) {
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                _ => filled,
            };
            let text = String::from_utf8_lossy(&buffer[..whole]).into_owned();
            if !text.is_empty() && answer.send(&event(text)).is_err() {
                return;
            }
            buffer.copy_within(whole..filled, 0);
            kept = filled - whole;
        }
    })
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
