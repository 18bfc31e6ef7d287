//! What runs inside of the lab; see [`nodenet_e2e::tool`]. Not for people: `cargo xtask` is.

use clap::{Parser, Subcommand};
use nodenet_e2e::tool::{guard, init};
use std::process::ExitCode;

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
