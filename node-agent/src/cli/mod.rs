//! The commands of `nodenet-agent`.

pub mod apply;
pub mod cleanup;
pub mod configuration;
pub mod input;
pub mod options;
pub mod output;
pub mod run;
pub mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Makes the network of one Kubernetes node as its NodeNetState says: addresses of virtual IPs, service addresses,
/// IPVS, ipset and the packet filter rules that they need.
#[derive(Debug, Parser)]
#[command(name = "nodenet-agent", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow the API server and keep the kernel as it says.
    Run(Box<run::Arguments>),
    /// Make the kernel as a file says, without any cluster; or show what that would change.
    Apply(Box<apply::Arguments>),
    /// Print what the kernel has.
    Show(show::Arguments),
    /// Remove everything that is ours from the kernel, and nothing else.
    Cleanup(cleanup::Arguments),
    /// Print the version.
    Version,
}

/// Runs the command and says how it went: 0 done, 1 something could not be done, 2 it could not be tried.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(arguments) => run::run(&arguments).map(|()| true),
        Command::Apply(arguments) => apply::run(&arguments, &mut std::io::stdout().lock()),
        Command::Show(arguments) => show::run(&arguments, &mut std::io::stdout().lock()),
        Command::Cleanup(arguments) => cleanup::run(&arguments, &mut std::io::stdout().lock()),
        Command::Version => {
            println!("nodenet-agent {}", crate::report::status::VERSION);
            Ok(true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // `nodenet-agent show | head` ends early on purpose.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodenet-agent: {error}");
            ExitCode::from(2)
        }
    }
}

/// Why a command could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The input is not usable.
    #[error(transparent)]
    Input(#[from] input::InputError),
    /// The configuration file is not usable.
    #[error(transparent)]
    Configuration(#[from] configuration::ConfigurationError),
    /// The kernel cannot be reached.
    #[error(transparent)]
    Kernel(#[from] crate::kernel::KernelError),
    /// Another agent works here.
    #[error("{0}; stop it first, or use --dry-run")]
    Lock(#[from] crate::agent::lock::LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Store(#[from] crate::source::store::StoreError),
    /// Nothing can be printed.
    #[error("print: {0}")]
    Output(#[from] std::io::Error),
    /// The result cannot be printed as YAML.
    #[error("print as YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
    /// The result cannot be printed as JSON.
    #[error("print as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The API servers cannot be used.
    #[error(transparent)]
    Access(#[from] nodenet_client::AccessError),
    /// The agent does not run.
    #[error(transparent)]
    Run(#[from] crate::agent::runtime::RunError),
    /// The runtime cannot be made.
    #[error("start: {0}")]
    Start(#[source] std::io::Error),
    /// A value of an option.
    #[error("{option} {value:?}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        problem: String,
    },
}
