//! Rules as `iptables-restore` reads them and as `iptables-save` prints them.
//!
//! The programs (legacy, nft, and their releases) print one rule in several ways. What is read is brought to the
//! spelling that [`super::rules`] writes; what is not understood stays as it is, so that an unknown rule compares unequal
//! instead of being overlooked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use ipnet::IpNet;

use crate::state::{Family, PREFIX, Ruleset};

/// Input for `iptables-restore --noflush` that makes `desired` of `current`; empty where both are equal. Foreign chains
/// and rules are not mentioned. Each table is one atomic commit.
pub fn restore_text(desired: &Ruleset, current: &Ruleset) -> String {
    let no_chains = BTreeMap::new();
    let mut text = String::new();
    for table in tables(desired).union(&tables(current)) {
        let wanted = desired.chains.get(*table).unwrap_or(&no_chains);
        let there = current.chains.get(*table).unwrap_or(&no_chains);
        let wanted_jumps = jumps(desired, table);
        let jumps_there = jumps(current, table);
        if wanted == there && wanted_jumps == jumps_there {
            continue;
        }
        let stale: Vec<&String> = there.keys().filter(|name| !wanted.contains_key(*name)).collect();
        // A chain that is declared is emptied, even with --noflush. Writing to a String cannot fail.
        let _ = writeln!(text, "*{table}");
        for name in wanted.keys().chain(stale.iter().copied()) {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for (name, rules) in wanted {
            for rule in rules {
                let _ = writeln!(text, "-A {name} {rule}");
            }
        }
        let from: BTreeSet<&String> = wanted_jumps.keys().chain(jumps_there.keys()).copied().collect();
        let none = Vec::new();
        for from in from {
            let wanted = *wanted_jumps.get(from).unwrap_or(&&none);
            let there = *jumps_there.get(from).unwrap_or(&&none);
            if wanted != there {
                for jump in there {
                    let _ = writeln!(text, "-D {from} {jump}");
                }
                // Before all others, so that no foreign rule takes the packet first; the last goes in first.
                for jump in wanted.iter().rev() {
                    let _ = writeln!(text, "-I {from} {jump}");
                }
            }
        }
        for name in stale {
            let _ = writeln!(text, "-X {name}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn tables(ruleset: &Ruleset) -> BTreeSet<&str> {
    ruleset
        .chains
        .keys()
        .map(String::as_str)
        .chain(ruleset.jumps.keys().map(|(table, _)| table.as_str()))
        .collect()
}

fn jumps<'a>(ruleset: &'a Ruleset, table: &str) -> BTreeMap<&'a String, &'a Vec<String>> {
    ruleset.jumps.iter().filter(|((t, _), _)| t == table).map(|((_, from), rules)| (from, rules)).collect()
}

/// Our chains and the jumps to them, from the output of `iptables-save` (or `ip6tables-save`).
pub fn parse(family: Family, saved: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut table = "";
    for line in saved.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split_whitespace().next().unwrap_or_default();
            if name.starts_with(PREFIX) {
                ruleset.chains.entry(table.to_owned()).or_default().entry(name.to_owned()).or_default();
            }
        } else if let Some((chain, rule)) = rule_of(line) {
            if chain.starts_with(PREFIX) {
                let chains = ruleset.chains.entry(table.to_owned()).or_default();
                chains.entry(chain.to_owned()).or_default().push(normal(family, rule));
            } else if leads_to_ours(rule) {
                let from = (table.to_owned(), chain.to_owned());
                ruleset.jumps.entry(from).or_default().push(normal(family, rule));
            }
        }
    }
    ruleset
}

/// Chain and rest of an `-A` line, with or without counters before it.
pub(super) fn rule_of(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1.trim_start(),
        None => line,
    };
    let rest = line.strip_prefix("-A ")?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

fn leads_to_ours(rule: &str) -> bool {
    let mut words = rule.split_whitespace();
    while let Some(word) = words.next() {
        if matches!(word, "-j" | "--jump" | "-g" | "--goto") {
            return words.next().is_some_and(|target| target.starts_with(PREFIX));
        }
    }
    false
}

/// One spelling for what the programs print in several.
fn normal(family: Family, rule: &str) -> String {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let mut out: Vec<String> = Vec::with_capacity(words.len());
    let mut i = 0;
    while let Some(word) = words.get(i).copied() {
        let next = words.get(i + 1).copied().unwrap_or_default();
        let pair = match word {
            "-s" | "--source" | "-d" | "--destination" => {
                let option = if matches!(word, "-s" | "--source") { "-s" } else { "-d" };
                Some((option, network(family, next)))
            }
            "--jump" => Some(("-j", next.to_owned())),
            "--ctstate" => Some(("--ctstate", states(next))),
            "--mark" => Some(("--mark", masked(next, false))),
            "--set-xmark" => Some(("--set-xmark", masked(next, true))),
            "--set-mark" => number_and_mask(next)
                .map(|(value, mask)| ("--set-xmark", format!("{value:#x}/{:#x}", value | mask)))
                .or(Some(("--set-mark", next.to_owned()))),
            "--or-mark" => number(next).map(|v| ("--set-xmark", format!("{v:#x}/{v:#x}"))),
            "--xor-mark" => number(next).map(|v| ("--set-xmark", format!("{v:#x}/0x0"))),
            "--and-mark" => number(next).map(|v| ("--set-xmark", format!("0x0/{:#x}", !v))),
            "-p" | "--protocol" => Some(("-p", protocol(next))),
            _ => None,
        };
        match pair {
            Some((option, value)) => {
                out.push(option.to_owned());
                out.push(value);
                i += 2;
            }
            None => {
                out.push(word.to_owned());
                i += 1;
            }
        }
    }
    out.join(" ")
}

fn network(family: Family, word: &str) -> String {
    let host = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let with_length = if word.contains('/') { word.to_owned() } else { format!("{word}/{host}") };
    with_length.parse::<IpNet>().map_or_else(|_| word.to_owned(), |net| net.trunc().to_string())
}

fn protocol(word: &str) -> String {
    match word {
        "6" => "tcp",
        "17" => "udp",
        "132" => "sctp",
        other => other,
    }
    .to_owned()
}

fn states(word: &str) -> String {
    const ORDER: [&str; 5] = ["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED"];
    let mut list: Vec<&str> = word.split(',').collect();
    list.sort_by_key(|s| ORDER.iter().position(|o| o == s).unwrap_or(ORDER.len()));
    list.join(",")
}

fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

fn number_and_mask(word: &str) -> Option<(u32, u32)> {
    match word.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(word)?, u32::MAX)),
    }
}

/// `value/mask` in hexadecimal; a full mask is left out unless `always`.
fn masked(word: &str, always: bool) -> String {
    match number_and_mask(word) {
        Some((value, u32::MAX)) if !always => format!("{value:#x}"),
        Some((value, mask)) => format!("{value:#x}/{mask:#x}"),
        None => word.to_owned(),
    }
}
