//! What runs inside of the lab; see [`nodenet_e2e::tool`]. Not for people: `cargo xtask` is.

use clap::{Parser, Subcommand};
use nodenet_e2e::tool::traffic::{self, Transport};
use nodenet_e2e::tool::{accounting, guard, init, ipvs_fill, ipvs_watch, netlink_tap, reaper};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    call: Call,
}

#[derive(Subcommand)]
enum Call {
    /// Runs a program that ends with its owner.
    Guard {
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        log: String,
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Removes a lab's remains when its owner is gone.
    Reap {
        #[arg(long)]
        netns: String,
        #[arg(long)]
        folder: PathBuf,
    },
    /// Answers on TCP, UDP and SCTP ports.
    Serve {
        #[arg(long)]
        answer: String,
        #[arg(required = true)]
        ports: Vec<u16>,
    },
    /// Asks a number of times.
    Ask {
        #[arg(long, default_value = "tcp")]
        transport: Transport,
        #[arg(long, default_value_t = 1)]
        count: u32,
        target: SocketAddr,
    },
    /// Asks until it is killed.
    Probe {
        #[arg(long, default_value = "tcp")]
        transport: Transport,
        #[arg(long, default_value_t = 50)]
        per_second: u32,
        target: SocketAddr,
    },
    /// Asks a list of questions from the standard input, all at once.
    Survey,
    /// Asks over UDP from one socket until it is killed.
    KeepAsking {
        #[arg(long, default_value_t = 10)]
        per_second: u32,
        target: SocketAddr,
    },
    /// Waits until TCP virtual servers at consecutive addresses have their real servers.
    AwaitRange {
        first: SocketAddr,
        count: u32,
        destinations: usize,
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
    /// Waits until a TCP virtual server has a real server.
    AwaitDestination {
        server: SocketAddr,
        destination: SocketAddr,
        #[arg(long)]
        absent: bool,
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
    /// Fills the IPVS table, with nothing around the messages that do it.
    FillRange {
        first: SocketAddr,
        count: u32,
        destination: SocketAddr,
        destinations: u32,
        /// Messages in one send.
        #[arg(long, default_value_t = 1)]
        together: usize,
    },
    /// Counts what is asked of the kernel over netlink until it is killed.
    CountRequests,
    /// Lets the kernel account for each process that ends.
    Account { file: String },
    /// Prints which programs have run.
    Accounted { file: String },
    /// Prints the processor time of a process in milliseconds.
    ProcessorTime { process: u32 },
    /// Waits until a process has used no processor for a while.
    AwaitRest {
        process: u32,
        #[arg(long, default_value_t = 500)]
        rest_millis: u64,
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
    /// Reads an endless answer.
    Download { target: SocketAddr },
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return match init::run() {
            Ok(never) => match never {},
            Err(error) => fail(&error),
        };
    }
    let result = match Arguments::parse().call {
        Call::Guard { netns, log, argv } => guard::run(&guard::Guarded { netns, log, argv }),
        Call::Reap { netns, folder } => reaper::run(&netns, &folder).map(|()| 0),
        Call::Serve { answer, ports } => traffic::serve(&answer, &ports).map(|()| 0),
        Call::Ask { transport, count, target } => {
            traffic::ask(transport, target, count);
            Ok(0)
        }
        Call::Probe { transport, per_second, target } => {
            traffic::probe(transport, target, per_second);
            Ok(0)
        }
        Call::Survey => traffic::survey().map(|()| 0),
        Call::KeepAsking { per_second, target } => {
            traffic::keep_asking(target, per_second);
            Ok(0)
        }
        Call::AwaitRange { first, count, destinations, timeout_seconds } => {
            let timeout = Duration::from_secs(timeout_seconds);
            ipvs_watch::wait_for_range(first, count, destinations, timeout).map(code)
        }
        Call::AwaitDestination { server, destination, absent, timeout_seconds } => {
            let timeout = Duration::from_secs(timeout_seconds);
            ipvs_watch::wait_for_destination(server, destination, !absent, timeout).map(code)
        }
        Call::FillRange { first, count, destination, destinations, together } => {
            ipvs_fill::fill(first, count, destination, destinations, together).map(|()| 0)
        }
        Call::CountRequests => netlink_tap::count().map(|()| 0),
        Call::Account { file } => accounting::begin(&file).map(|()| 0),
        Call::Accounted { file } => accounting::print(&file).map(|()| 0),
        Call::ProcessorTime { process } => accounting::print_processor_time(process).map(|()| 0),
        Call::AwaitRest { process, rest_millis, timeout_seconds } => {
            let (rest, timeout) = (Duration::from_millis(rest_millis), Duration::from_secs(timeout_seconds));
            accounting::wait_for_rest(process, rest, timeout).map(code)
        }
        Call::Download { target } => {
            traffic::download(target);
            Ok(0)
        }
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("lab-tool: {error}");
    ExitCode::from(125)
}

fn code(done: bool) -> i32 {
    i32::from(!done)
}
