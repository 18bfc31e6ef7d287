//! Programs that answer and ask, so that a test knows which pod answered and what address it saw.
//!
//! The answer to a connection or a datagram is one line: the name of who answers and the asker's
//! address as it was seen. A TCP client that then sends `stream` gets bytes until it goes.

use super::{During, ToolError};
use clap::ValueEnum;
use nix::libc::IPPROTO_SCTP;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long one attempt waits for its answer: longer than a busy guest with one processor takes.
const ANSWER: Duration = Duration::from_secs(6);

/// How many attempts a prober leaves without an answer at a time.
const UNANSWERED: usize = 128;

/// What carries the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An SCTP association.
    Sctp,
    /// A GET of `/healthz` over TCP: the answer is the status code.
    Http,
}

impl Transport {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Http => "http",
        }
    }
}

/// A target and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What carries it.
    pub transport: Transport,
    /// Who is asked.
    pub target: SocketAddr,
    /// How often, one after the other.
    pub count: u32,
    /// How long each attempt waits.
    pub patience_millis: u64,
    /// How long to wait between two attempts.
    pub pause_millis: u64,
}

/// One question and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// When it began, in microseconds since 1970.
    pub begin_micros: u64,
    /// How long it took.
    pub took_micros: u64,
    /// Who answered.
    pub answer: Option<String>,
    /// The asker's address as the answering side saw it.
    pub source: Option<IpAddr>,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// What a download has received.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// When, in microseconds since 1970.
    pub at_micros: u64,
    /// Bytes until then.
    pub bytes: u64,
    /// Why it ended.
    pub error: Option<String>,
}

/// Answers on these ports until it is killed.
///
/// # Errors
/// When a port is taken.
pub fn serve(answer: &str, ports: &[u16]) -> Result<(), ToolError> {
    let mut threads = Vec::new();
    for port in ports {
        for ip in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let address = SocketAddr::new(ip, *port);
            let (listener, datagrams) = bind(address).during("listen on", address)?;
            let name = answer.to_owned();
            threads.push(std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let name = name.clone();
                    std::thread::spawn(move || answer_connection(&name, client));
                }
            }));
            let name = answer.to_owned();
            threads.push(std::thread::spawn(move || {
                let mut question = [0; 64];
                while let Ok((_, from)) = datagrams.recv_from(&mut question) {
                    let _ = datagrams.send_to(line(&name, from).as_bytes(), from);
                }
            }));
            // Where the kernel has it.
            if let Ok(associations) = listen_sctp(address) {
                let name = answer.to_owned();
                threads.push(std::thread::spawn(move || {
                    while let Ok((client, from)) = associations.accept() {
                        let from = from.as_socket().unwrap_or(address);
                        std::thread::spawn({
                            let name = name.clone();
                            move || answer_association(&name, from, client)
                        });
                    }
                }));
            }
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// Both transports' sockets of one family each, so that IPv4 addresses show as such.
fn bind(address: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let stream = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    let datagram = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    for socket in [&stream, &datagram] {
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
    }
    stream.listen(1024)?;
    Ok((stream.into(), datagram.into()))
}

fn listen_sctp(address: SocketAddr) -> io::Result<Socket> {
    let socket = sctp(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket)
}

fn sctp(of: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(of), Type::STREAM, Some(Protocol::from(IPPROTO_SCTP)))
}

fn answer_association(name: &str, from: SocketAddr, mut client: Socket) -> io::Result<()> {
    client.write_all(line(name, from).as_bytes())?;
    // The other side has read it when it closes.
    client.set_read_timeout(Some(ANSWER))?;
    client.read(&mut [0; 16]).map(drop)
}

fn line(name: &str, from: SocketAddr) -> String {
    format!("{name} {}\n", from.ip())
}

fn answer_connection(name: &str, mut client: TcpStream) -> io::Result<()> {
    let from = client.peer_addr()?;
    client.write_all(line(name, from).as_bytes())?;
    let mut request = String::new();
    BufReader::new(client.try_clone()?).read_line(&mut request)?;
    if request.trim() == "stream" {
        let piece = [0; 16 << 10];
        loop {
            client.write_all(&piece)?;
            // Enough to notice a break at once, little enough to leave the guest its one processor.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Asks so many times and prints an [`Attempt`] each.
pub fn ask(transport: Transport, target: SocketAddr, count: u32) {
    for _ in 0..count {
        print(&attempt(transport, target, ANSWER));
    }
}

/// Reads a list of [`Question`]s from the standard input, asks all at once and prints the list of the
/// [`Attempt`]s for each.
///
/// # Errors
/// When the input is no such list.
pub fn survey() -> Result<(), ToolError> {
    let text = io::read_to_string(io::stdin()).during("read", "the questions")?;
    let questions: Vec<Question> = serde_json::from_str(&text).during("parse", "the questions")?;
    let asked: Vec<_> = questions
        .into_iter()
        .map(|question| {
            std::thread::spawn(move || -> Vec<Attempt> {
                let patience = Duration::from_millis(question.patience_millis);
                let pause = Duration::from_millis(question.pause_millis);
                let mut attempts = Vec::new();
                for number in 0..question.count {
                    if number > 0 {
                        std::thread::sleep(pause);
                    }
                    let attempt = attempt(question.transport, question.target, patience);
                    // Who was silent once is left alone: the others wait for this one.
                    let silent =
                        attempt.error.is_some() && attempt.took_micros / 1000 >= question.patience_millis;
                    attempts.push(attempt);
                    if silent {
                        break;
                    }
                }
                attempts
            })
        })
        .collect();
    let answers: Vec<Vec<Attempt>> =
        asked.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
    print(&answers);
    Ok(())
}

/// Asks over UDP from one socket again and again, as a client that keeps it, until it is killed.
pub fn keep_asking(target: SocketAddr, per_second: u32) {
    let period = Duration::from_secs(1) / per_second.max(1);
    let mut kept = None;
    loop {
        let begin = Instant::now();
        let socket = match kept.take() {
            Some(socket) => Ok(socket),
            None => datagrams_to(target),
        };
        let (begin_micros, result) = (now(), socket.map(|socket| (ask_from(&socket, period), socket)));
        let result = match result {
            Ok((result, socket)) => {
                kept = Some(socket);
                result
            }
            Err(error) => Err(error),
        };
        print(&told(begin_micros, begin, result));
        std::thread::sleep(period.saturating_sub(begin.elapsed()));
    }
}

/// Begins so many attempts each second, whether the earlier ones are answered or not, until it is killed. While
/// [`UNANSWERED`] of them wait, it begins no other: more would keep the guest from ever answering again.
pub fn probe(transport: Transport, target: SocketAddr, per_second: u32) {
    let period = Duration::from_secs(1) / per_second.max(1);
    let (begin, begun) = mpsc::sync_channel(0);
    let begun = Arc::new(Mutex::new(begun));
    for _ in 0..UNANSWERED {
        let begun = Arc::clone(&begun);
        std::thread::spawn(move || {
            let next = || begun.lock().unwrap_or_else(PoisonError::into_inner).recv();
            while next().is_ok() {
                print(&attempt(transport, target, ANSWER));
            }
        });
    }
    let mut next = Instant::now();
    while begin.send(()).is_ok() {
        next = (next + period).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Reads an endless answer and prints a [`Progress`] every 100 ms and at the end.
pub fn download(target: SocketAddr) {
    let mut bytes = 0;
    let result = receive(target, &mut bytes);
    let error = result.err().map_or_else(|| "closed by the server".into(), |error| error.to_string());
    print(&Progress { at_micros: now(), bytes, error: Some(error) });
}

fn receive(target: SocketAddr, bytes: &mut u64) -> io::Result<()> {
    let mut server = TcpStream::connect_timeout(&target, ANSWER)?;
    server.write_all(b"stream\n")?;
    // A download that stands still for so long is as good as broken.
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut buffer = vec![0; 64 << 10];
    let mut told = Instant::now();
    loop {
        match server.read(&mut buffer)? {
            0 => return Ok(()),
            count => *bytes += count as u64,
        }
        if told.elapsed() >= Duration::from_millis(100) {
            print(&Progress { at_micros: now(), bytes: *bytes, error: None });
            told = Instant::now();
        }
    }
}

fn attempt(transport: Transport, target: SocketAddr, patience: Duration) -> Attempt {
    let (begin_micros, begin) = (now(), Instant::now());
    let result = match transport {
        Transport::Tcp => ask_tcp(target, patience),
        Transport::Udp => datagrams_to(target).and_then(|socket| ask_from(&socket, patience)),
        Transport::Sctp => ask_sctp(target, patience),
        Transport::Http => ask_http(target, patience),
    };
    told(begin_micros, begin, result)
}

fn told(begin_micros: u64, begin: Instant, result: io::Result<String>) -> Attempt {
    let took_micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (answer, source, error) = match result {
        Ok(text) => match text.trim().split_once(' ') {
            Some((name, source)) => (Some(name.to_owned()), source.parse().ok(), None),
            None => (None, None, Some(format!("an unknown answer: `{}`", text.trim()))),
        },
        Err(error) => (None, None, Some(error.to_string())),
    };
    Attempt { begin_micros, took_micros, answer, source, error }
}

fn ask_tcp(target: SocketAddr, patience: Duration) -> io::Result<String> {
    let server = TcpStream::connect_timeout(&target, patience)?;
    server.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    BufReader::new(server).read_line(&mut text)?;
    Ok(text)
}

fn ask_sctp(target: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut server = sctp(target)?;
    server.set_read_timeout(Some(patience))?;
    server.connect_timeout(&target.into(), patience)?;
    let mut answer = [0; 256];
    let length = server.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn ask_http(target: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut server = TcpStream::connect_timeout(&target, patience)?;
    server.set_read_timeout(Some(patience))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    server.write_all(request.as_bytes())?;
    let mut status = String::new();
    BufReader::new(server).read_line(&mut status)?;
    // "HTTP/1.1 200 OK": the code, and nothing of who asked.
    Ok(format!("{} -", status.split(' ').nth(1).unwrap_or("nothing")))
}

fn datagrams_to(target: SocketAddr) -> io::Result<UdpSocket> {
    let any =
        if target.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

fn ask_from(socket: &UdpSocket, patience: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"?")?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn print(value: &impl Serialize) {
    static OUTPUT: Mutex<()> = Mutex::new(());
    let _whole_lines = OUTPUT.lock();
    if let Ok(text) = serde_json::to_string(value) {
        // Whoever reads this may be gone; then nobody needs it.
        let _ = writeln!(io::stdout(), "{text}");
    }
}
