//! kube-proxy's chains and the jumps to them: finding them, and taking them out without touching a neighbour's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::text::rule_of;
use crate::state::kube_proxy::is_set;

/// What iptables-save shows of kube-proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Chains that would be removed, as `TABLE CHAIN`.
    pub chains: BTreeSet<String>,
    /// A built-in chain leads to one of them.
    pub jumps: bool,
    /// A built-in chain leads to what only its iptables mode has. That is not removed here.
    pub iptables_mode: bool,
}

/// Chain of a kubelet before 1.27, which made three: it alone has a rule in this one. kube-proxy makes it too, empty, for
/// its own rules to name.
const MARK_DROP: &str = "KUBE-MARK-DROP";
/// The two others, which kube-proxy has as well.
const SHARED: [&str; 2] = [MARK_MASQ, POSTROUTING];
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Whether a chain is one that kube-proxy's ipvs mode makes, in any release. Kubelet's `KUBE-FIREWALL` stands in the
/// table `filter`, kube-proxy's of that name in `nat`.
fn is_chain(table: &str, name: &str) -> bool {
    match table {
        "nat" => matches!(
            name,
            "KUBE-SERVICES"
                | "KUBE-NODE-PORT"
                | "KUBE-LOAD-BALANCER"
                | "KUBE-FIREWALL"
                | "KUBE-FIRE-WALL"
                | "KUBE-PROXY-CANARY"
                | MARK_DROP
                | MARK_MASQ
                | POSTROUTING
        ),
        "filter" => matches!(
            name,
            "KUBE-NODE-PORT"
                | "KUBE-FORWARD"
                | "KUBE-PROXY-FIREWALL"
                | "KUBE-SOURCE-RANGES-FIREWALL"
                | "KUBE-IPVS-FILTER"
                | "KUBE-IPVS-OUT-FILTER"
                | "KUBE-PROXY-CANARY"
        ),
        "mangle" => name == "KUBE-PROXY-CANARY",
        _ => false,
    }
}

/// What of kube-proxy is in the output of `iptables-save` (or `ip6tables-save`) and would be removed.
pub fn find(saved: &str) -> Found {
    let mut found = Found::default();
    for table in tables(saved) {
        let plan = table.plan();
        found.chains.extend(plan.gone.iter().map(|chain| format!("{} {chain}", table.name)));
        found.jumps |= !plan.jumps.is_empty();
        found.iptables_mode |= table.has_iptables_mode();
    }
    found
}

/// Input for `iptables-restore --noflush` that takes it out; empty where there is nothing. Each table is one atomic
/// commit. A chain that a rule of another hand leads to stays, and with it what it needs; of its rules those go that
/// name a set of kube-proxy's, so that the set can go.
pub fn removal(saved: &str) -> String {
    let mut text = String::new();
    for table in tables(saved) {
        let plan = table.plan();
        if plan.gone.is_empty() && plan.jumps.is_empty() && plan.rules.is_empty() {
            continue;
        }
        // Writing to a String cannot fail. A chain that is declared is emptied.
        let _ = writeln!(text, "*{}", table.name);
        for chain in &plan.gone {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (from, rule) in plan.jumps.iter().chain(&plan.rules) {
            let _ = writeln!(text, "-D {from} {rule}");
        }
        for chain in &plan.gone {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// A table as it was saved.
struct Table<'a> {
    name: &'a str,
    built_in: BTreeSet<&'a str>,
    chains: BTreeMap<&'a str, Vec<&'a str>>,
}

/// What is taken out of a table.
#[derive(Default)]
struct Plan<'a> {
    gone: BTreeSet<&'a str>,
    /// Rules of built-in chains that lead to those.
    jumps: Vec<(&'a str, &'a str)>,
    /// Rules of chains that stay.
    rules: Vec<(&'a str, &'a str)>,
}

fn tables(saved: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for line in saved.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name, built_in: BTreeSet::new(), chains: BTreeMap::new() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let name = words.next().unwrap_or_default();
            table.chains.entry(name).or_default();
            if words.next() != Some("-") {
                table.built_in.insert(name);
            }
        } else if let Some((chain, rule)) = rule_of(line) {
            table.chains.entry(chain).or_default().push(rule);
        }
    }
    tables
}

impl<'a> Table<'a> {
    fn rules(&self, chain: &str) -> &[&'a str] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Whether packets are led to chains that only kube-proxy's iptables mode has. Both modes have a chain `KUBE-SERVICES`
    /// in `nat`; there the other one leads to a chain of each Service.
    fn has_iptables_mode(&self) -> bool {
        let led_to = |chain: &str| {
            let mut rules = self.built_in.iter().flat_map(|from| self.rules(from));
            rules.any(|rule| target(rule) == Some(chain))
        };
        match self.name {
            "filter" => ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS"].into_iter().any(led_to),
            "nat" => {
                let of_service = |to: &str| {
                    to == "KUBE-NODEPORTS"
                        || ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-"]
                            .into_iter()
                            .any(|prefix| to.starts_with(prefix))
                };
                let mut rules = self.rules("KUBE-SERVICES").iter();
                led_to("KUBE-SERVICES") && rules.any(|rule| target(rule).is_some_and(of_service))
            }
            _ => false,
        }
    }

    fn plan(&self) -> Plan<'a> {
        let candidates: BTreeSet<&'a str> =
            self.chains.keys().copied().filter(|chain| is_chain(self.name, chain)).collect();
        let mut kept: BTreeSet<&'a str> = BTreeSet::new();
        if !self.rules(MARK_DROP).is_empty() {
            kept.extend(candidates.iter().filter(|chain| **chain == MARK_DROP || SHARED.contains(*chain)));
        }
        let mut jumps = Vec::new();
        for (from, rules) in self.chains.iter().filter(|(from, _)| !candidates.contains(*from)) {
            for rule in rules {
                let Some(to) = target(rule).and_then(|to| candidates.get(to)) else { continue };
                // Its own jumps carry a comment and nothing else, and never lead to a chain that only sets a mark.
                let own =
                    self.built_in.contains(from) && is_plain(rule) && *to != MARK_MASQ && *to != MARK_DROP;
                if own {
                    jumps.push((*from, *rule, *to));
                } else {
                    kept.insert(to);
                }
            }
        }
        // What a chain that stays leads to stays; a mark without the rule that masquerades by it says nothing.
        let mut open: Vec<&'a str> = kept.iter().copied().collect();
        while let Some(chain) = open.pop() {
            let mut needs: Vec<&'a str> = self.rules(chain).iter().filter_map(|rule| target(rule)).collect();
            if chain == MARK_MASQ {
                needs.push(POSTROUTING);
            }
            for need in needs.iter().filter_map(|need| candidates.get(need)) {
                if kept.insert(need) {
                    open.push(need);
                }
            }
        }
        let of_sets = |chain: &&'a str| {
            let chain = *chain;
            self.rules(chain).iter().filter(|rule| names_its_set(rule)).map(move |rule| (chain, *rule))
        };
        Plan {
            jumps: jumps
                .into_iter()
                .filter(|(_, _, to)| !kept.contains(to))
                .map(|(from, rule, _)| (from, rule))
                .collect(),
            rules: kept.iter().flat_map(of_sets).collect(),
            gone: candidates.difference(&kept).copied().collect(),
        }
    }
}

/// The chain or target that a rule leads to.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.by_ref().find(|word| matches!(*word, "-j" | "--jump" | "-g" | "--goto"))?;
    words.next()
}

/// Whether a rule takes every packet: a comment and a jump.
fn is_plain(rule: &str) -> bool {
    let rule = rule.trim();
    let rest = match rule.strip_prefix("-m comment --comment ") {
        None => rule,
        Some(rest) => match rest.strip_prefix('"') {
            // Within quotes a quote is escaped; kube-proxy's comments have none.
            Some(quoted) => quoted.split_once("\" ").map_or("", |(_, rest)| rest),
            None => rest.split_once(' ').map_or("", |(_, rest)| rest),
        },
    };
    rest.trim().strip_prefix("-j ").is_some_and(|target| !target.trim().contains(' '))
}

fn names_its_set(rule: &str) -> bool {
    let mut words = rule.split_whitespace();
    words.by_ref().find(|word| *word == "--match-set").is_some() && words.next().is_some_and(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kube-proxy and a kubelet of today leave, shortened.
    const SAVED: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [1:2]
:FORWARD ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
[5:300] -A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -j KUBE-ROUTER-FORWARD
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m comment --comment \"hairpin\" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
COMMIT
";

    #[test]
    fn its_chains_and_jumps_go_and_nothing_else_does() {
        let expected = "\
*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-X KUBE-MARK-DROP
-X KUBE-MARK-MASQ
-X KUBE-POSTROUTING
-X KUBE-SERVICES
COMMIT
";
        assert_eq!(removal(SAVED), expected);
        let found = find(SAVED);
        assert!(
            found.jumps && found.chains.contains("nat KUBE-SERVICES") && found.chains.len() == 5,
            "{found:?}"
        );
    }

    #[test]
    fn chains_that_an_older_kubelet_shares_stay_without_the_rules_of_sets() {
        let rule = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\nCOMMIT\n";
        let at = SAVED.rfind("COMMIT\n").unwrap();
        let text = removal(&format!("{}{rule}", &SAVED[..at]));
        for word in ["-X KUBE-MARK", "-X KUBE-POSTROUTING", "-D POSTROUTING", ":KUBE-POSTROUTING"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        assert!(text.contains("-X KUBE-SERVICES"), "{text}");
        assert!(text.contains("-D KUBE-POSTROUTING -m comment --comment \"hairpin\" -m set"), "{text}");
    }

    #[test]
    fn a_chain_that_another_hand_uses_stays_with_what_it_needs() {
        let rule = "-A CNI-HOSTPORT-SETMARK -m comment --comment \"masq\" -j KUBE-MARK-MASQ\nCOMMIT\n";
        let at = SAVED.rfind("COMMIT\n").unwrap();
        let text = removal(&format!("{}{rule}", &SAVED[..at]));
        assert!(!text.contains("-X KUBE-MARK-MASQ") && !text.contains("-X KUBE-POSTROUTING"), "{text}");
        assert!(text.contains("-X KUBE-SERVICES") && text.contains("-X KUBE-MARK-DROP"), "{text}");
        // A rule of a person in a built-in chain is no jump of kube-proxy's.
        let rule = "-A PREROUTING -p tcp --dport 99 -j KUBE-SERVICES\nCOMMIT\n";
        let text = removal(&format!("{}{rule}", &SAVED[..at]));
        assert!(!text.contains("-X KUBE-SERVICES") && !text.contains("--dport"), "{text}");
    }

    #[test]
    fn its_iptables_mode_is_known_by_where_packets_are_led() {
        assert!(!find(SAVED).iptables_mode, "this is the ipvs mode's");
        let rejects = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n-A INPUT -m conntrack --ctstate NEW -m \
                       comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n";
        assert!(find(rejects).iptables_mode);
        let of_service = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]\n\
                          -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y\n";
        assert!(!find(of_service).iptables_mode, "no packet is led there");
        let jump = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n";
        assert!(find(&format!("{of_service}{jump}")).iptables_mode);
    }

    #[test]
    fn nothing_of_it_is_nothing_to_do() {
        let kubelet =
            "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n";
        assert_eq!(removal(kubelet), "");
        assert_eq!(find(kubelet), Found::default());
        // What stays does not count as left over again and again.
        let shared = "*nat\n:KUBE-MARK-DROP - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:POSTROUTING \
                      ACCEPT [0:0]\n-A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-MARK-DROP -j MARK --or-mark 0x8000\n";
        assert_eq!((removal(shared), find(shared)), (String::new(), Found::default()));
    }
}
