//! Sets and the rules that name them.

use std::collections::BTreeSet;

use super::{Outcome, Prune};
use crate::state::{
    Family, IpSet, NodeState, Operation, PREFIX, PREFIX6, Ruleset, Scope, SetEntry, SetKind, Which,
};

pub(super) fn compare(
    desired: &NodeState,
    observed: &NodeState,
    scope: &Scope,
    prune: Prune,
    operations: &mut Vec<Operation>,
    outcome: &mut Outcome,
) {
    // Families whose rules must go for a moment, because they name a set that is of a wrong type.
    let mut without_rules = BTreeSet::new();
    let names: BTreeSet<&String> = match &scope.sets {
        Which::All => desired.sets.keys().chain(observed.sets.keys()).collect(),
        Which::Only(names) => names.iter().collect(),
    };
    for name in names {
        match (desired.sets.get(name), observed.sets.get(name)) {
            (Some(wanted), None) => {
                operations.push(create(name, wanted));
                let entries = wanted.entries.iter();
                operations.extend(entries.map(|entry| Operation::AddEntry(name.clone(), *entry)));
            }
            (Some(wanted), Some(there)) if (wanted.kind, wanted.family) != (there.kind, there.family) => {
                // Making it anew removes what is in it.
                if !prune.services {
                    continue;
                }
                without_rules.insert(family_of(name));
                operations.push(Operation::DestroySet(name.clone()));
                outcome.widen.rules = true;
                outcome.widen.sets.merge(Which::Only(BTreeSet::from([name.clone()])));
            }
            (Some(wanted), Some(there)) => {
                // A larger one than wanted is no harm.
                if there.max_entries < wanted.max_entries {
                    operations.push(create(name, wanted));
                }
                for entry in wanted.entries.difference(&there.entries) {
                    operations.push(Operation::AddEntry(name.clone(), *entry));
                }
                if prune.services {
                    // One that only gets another mark was replaced.
                    let replaced = |entry: &SetEntry| {
                        wanted.kind == SetKind::HashIpPortMark
                            && wanted.entries.iter().any(|wanted| wanted.is_same_element(entry))
                    };
                    for entry in there.entries.difference(&wanted.entries).filter(|entry| !replaced(entry)) {
                        operations.push(Operation::DeleteEntry(name.clone(), *entry));
                    }
                }
            }
            (None, Some(_)) if prune.services && is_ours(name) => {
                operations.push(Operation::DestroySet(name.clone()));
            }
            _ => {}
        }
    }
    for (name, entries) in scope.set_entries.iter().filter(|(name, _)| !scope.sets.contains(name.as_str())) {
        let Some(wanted) = desired.sets.get(name) else { continue };
        let Some(there) = observed.sets.get(name) else {
            outcome.widen.sets.merge(Which::Only(BTreeSet::from([name.clone()])));
            continue;
        };
        for entry in entries {
            match (wanted.entries.contains(entry), there.entries.contains(entry)) {
                (true, false) => operations.push(Operation::AddEntry(name.clone(), *entry)),
                (false, true) if prune.services => {
                    operations.push(Operation::DeleteEntry(name.clone(), *entry));
                }
                _ => {}
            }
        }
    }
    rules(desired, observed, scope, prune, &without_rules, operations);
}

fn rules(
    desired: &NodeState,
    observed: &NodeState,
    scope: &Scope,
    prune: Prune,
    without: &BTreeSet<Family>,
    operations: &mut Vec<Operation>,
) {
    let none = Ruleset::default();
    let wanted_of = |family| desired.rules.get(&family).unwrap_or(&none);
    for family in [Family::V4, Family::V6] {
        let there = observed.rules.get(&family).unwrap_or(&none);
        let wanted = wanted_of(family);
        if without.contains(&family) {
            operations.push(Operation::ReplaceRules(family, Ruleset::default()));
        } else if scope.rules && wanted != there && (prune.services || *wanted != none) {
            operations.push(Operation::ReplaceRules(family, wanted.clone()));
        }
    }
}

fn create(name: &str, set: &IpSet) -> Operation {
    Operation::CreateSet(name.to_owned(), set.kind, set.family, set.max_entries)
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || name.starts_with(PREFIX6)
}

/// Family of the rules that name a set.
fn family_of(name: &str) -> Family {
    if name.starts_with(PREFIX6) { Family::V6 } else { Family::V4 }
}
