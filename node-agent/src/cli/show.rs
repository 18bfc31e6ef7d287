//! `nodenet-agent show`.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;

use super::CliError;
use super::apply::machine;
use super::options::KernelOptions;
use super::output::Form;
use crate::agent::journal::JournalFile;
use crate::agent::words::{endpoint, set_entry, set_kind, virtual_server};
use crate::filter::InsideMarks;
use crate::state::{Family, Forwarding, NodeState, Scope, VirtualServerKey};

/// Prints interfaces, addresses, local routes, sets, rules and virtual servers as the kernel has them. Addresses and
/// virtual servers are all that there are; of the rest only what is ours.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Form,
    #[command(flatten)]
    kernel: KernelOptions,
}

/// Runs it. `false`: something could not be read.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<bool, CliError> {
    let journal = JournalFile::open_both(&arguments.kernel.run_dir())?;
    let mut machine = machine(arguments.kernel.open()?, journal, InsideMarks::default());
    let mut scope = Scope::all(&NodeState::default());
    scope.modules = nodenet_crds::ALLOWED_MODULES.iter().map(|&m| m.to_owned()).collect();
    scope.sysctls = nodenet_crds::ALLOWED_SYSCTLS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut look = machine.look(&scope);
    // What is not there was only asked for.
    look.state.modules.retain(|_, loaded| *loaded);
    match arguments.output {
        Form::Json => {
            serde_json::to_writer_pretty(&mut *out, &look.state)?;
            writeln!(out)?;
        }
        Form::Yaml => write!(out, "{}", serde_yaml_ng::to_string(&look.state)?)?,
        Form::Text => text(&look.state, |key| machine.journal().owns_virtual_server(key), out)?,
    }
    for unread in &look.unreadable {
        let f = &unread.failure;
        eprintln!("nodenet-agent: {} {}: {}", f.operation, f.object, f.message);
    }
    Ok(look.unreadable.is_empty())
}

/// Prints `state` for people.
pub fn text(
    state: &NodeState,
    ours: impl Fn(&VirtualServerKey) -> bool,
    out: &mut impl Write,
) -> std::io::Result<()> {
    writeln!(out, "Interfaces")?;
    for (name, link) in &state.links {
        let up = match (link.up, link.carrier) {
            (true, true) => "up",
            (true, false) => "no carrier",
            (false, _) => "down",
        };
        let kind = if link.kind.is_empty() { String::new() } else { format!(" ({})", link.kind) };
        writeln!(out, "  {name}{kind} {up}")?;
        for (key, address) in state.addresses.iter().filter(|(key, _)| key.interface == *name) {
            let role =
                address.role.map(|r| format!(" {}", format!("{r:?}").to_lowercase())).unwrap_or_default();
            let life = address.lifetime.map(|s| format!(", {s} s left")).unwrap_or_default();
            let mark = if address.ours { ", ours" } else { "" };
            let bad = if address.unusable { ", unusable" } else { "" };
            writeln!(out, "    {}/{}{role}{life}{mark}{bad}", key.address, address.prefix_length)?;
        }
    }
    if !state.routes.is_empty() {
        writeln!(out, "Local routes")?;
        for route in &state.routes {
            writeln!(out, "  {} dev {}", route.range, route.interface)?;
        }
    }
    if !state.virtual_servers.is_empty() {
        writeln!(out, "Virtual servers")?;
    }
    for (key, server) in &state.virtual_servers {
        let mark = if ours(key) { "" } else { ", not ours" };
        let persistent = if server.persistence > 0 {
            format!(", persistent {} s", server.persistence)
        } else {
            String::new()
        };
        writeln!(out, "  {} {}{persistent}{mark}", virtual_server(key), server.scheduler)?;
        for (real, r) in &server.real_servers {
            let forwarding = match r.forwarding {
                Forwarding::Masquerade => "masquerade",
                Forwarding::DirectRoute => "direct route",
                Forwarding::Tunnel => "tunnel",
            };
            writeln!(
                out,
                "    {} {forwarding} weight {}, {} active and {} other connections",
                endpoint(real),
                r.weight,
                r.active_connections,
                r.inactive_connections
            )?;
        }
    }
    if !state.sets.is_empty() {
        writeln!(out, "Sets")?;
    }
    for (name, set) in &state.sets {
        let many = set.entries.len();
        let most = if set.max_entries > 0 { format!(" of {}", set.max_entries) } else { String::new() };
        writeln!(out, "  {name} {} {many}{most} entries", set_kind(set.kind))?;
        for entry in set.entries.iter().take(20) {
            writeln!(out, "    {}", set_entry(entry))?;
        }
        if many > 20 {
            writeln!(out, "    and {} more (all with -o yaml)", many - 20)?;
        }
    }
    for (family, rules) in &state.rules {
        if rules.chains.is_empty() && rules.jumps.is_empty() {
            continue;
        }
        writeln!(out, "Packet filter ({})", if *family == Family::V4 { "IPv4" } else { "IPv6" })?;
        for ((table, chain), jumps) in &rules.jumps {
            for jump in jumps {
                writeln!(out, "  {table} {chain} {jump}")?;
            }
        }
        for (table, chains) in &rules.chains {
            for (chain, lines) in chains {
                for line in lines {
                    writeln!(out, "  {table} {chain} {line}")?;
                }
            }
        }
    }
    let loaded: Vec<&str> = state.modules.keys().map(String::as_str).collect();
    if !loaded.is_empty() {
        writeln!(out, "Modules\n  {}", loaded.join(" "))?;
    }
    let settings: BTreeMap<_, _> = state.sysctls.iter().collect();
    if !settings.is_empty() {
        writeln!(out, "Settings")?;
        for (name, value) in settings {
            writeln!(out, "  {name} = {value}")?;
        }
    }
    Ok(())
}
