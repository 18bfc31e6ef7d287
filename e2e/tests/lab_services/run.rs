//! Goes through the table: all behaviours step by step side by side, since each has Services of its own.

use crate::lasting::{LASTING, Lasting};
use crate::table::{Asked, Case, Names, Seen};
use crate::world::Store;
use nodenet_e2e::lab::scene::{Scene, Unmet};
use nodenet_e2e::tool::traffic::Question;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Who is at work.
#[derive(Debug, Clone, Copy)]
pub struct Proxy<'a> {
    /// kube-proxy of this release; nodenet otherwise.
    kube_proxy: Option<&'a str>,
    /// How long a step goes on without another behaviour becoming right.
    patience: Duration,
}

/// nodenet.
pub const NODENET: Proxy<'static> = Proxy { kube_proxy: None, patience: Duration::from_secs(60) };

/// kube-proxy, whose every change takes ten seconds on three nodes in a guest with one processor.
pub fn kube_proxy(release: &str) -> Proxy<'_> {
    Proxy { kube_proxy: Some(release), patience: Duration::from_secs(90) }
}

/// A probe that was not answered as it must be.
#[derive(Debug)]
pub struct Failure {
    behaviour: String,
    step: usize,
    probe: String,
    expected: String,
    seen: String,
}

/// A table for people.
pub fn print(failures: &[Failure]) {
    if failures.is_empty() {
        return;
    }
    let head = ["behaviour", "step", "probe", "expected", "seen"].map(str::to_owned);
    let rows = failures.iter().map(|failure| {
        let Failure { behaviour, step, probe, expected, seen } = failure;
        [behaviour, &step.to_string(), probe, expected, seen].map(String::clone)
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in &rows {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column))).collect();
        println!("    {}", cells.join(" | ").trim_end());
    }
}

/// Takes each case through its steps; returns what was not as it must be.
pub fn run(
    scene: &Scene,
    store: &mut Store<'_>,
    names: &Names,
    cases: &[&Case],
    proxy: Proxy<'_>,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut alive: Vec<&Case> = cases.to_vec();
    let mut progress = Instant::now();
    let longest = cases.iter().map(|case| case.steps.len()).max().unwrap_or(0);
    for number in 0..longest {
        let begin = Instant::now();
        progress = progress.max(begin);
        alive.retain(|case| case.steps.len() > number);
        let steps = || alive.iter().map(|case| &case.steps[number]);
        let changed: Vec<_> = steps().flat_map(|step| &step.services).collect();
        let deleted: Vec<_> = steps().flat_map(|step| &step.deleted).collect();
        store.change(&changed, &deleted).unwrap();
        let mut pending: Vec<(&Case, Vec<Asked>)> = alive
            .iter()
            .map(|case| {
                let ask = |probe: &crate::table::Probe| probe.asked(names, proxy.kube_proxy).unwrap();
                (*case, case.steps[number].probes.iter().map(ask).collect())
            })
            .collect();
        let mut last: Vec<Failure> = Vec::new();
        let all = pending.len();
        while !pending.is_empty() {
            last.clear();
            let before = pending.len();
            let wrong = go(scene, names, &pending);
            pending = pending
                .into_iter()
                .zip(wrong)
                .filter(|(_, wrong)| !wrong.is_empty())
                .map(|((case, asked), wrong)| {
                    last.extend(wrong.into_iter().map(|(index, seen)| Failure {
                        behaviour: case.behaviour.clone(),
                        step: number + 1,
                        probe: asked[index].text.clone(),
                        expected: asked[index].expected.to_string(),
                        seen,
                    }));
                    (case, asked)
                })
                .collect();
            if pending.len() < before {
                progress = Instant::now();
            }
            if progress.elapsed() > proxy.patience {
                break;
            }
        }
        let right = all - pending.len();
        println!("    step {}: {right} of {all} right ({:.1} s)", number + 1, begin.elapsed().as_secs_f64());
        print(&last);
        failures.append(&mut last);
    }
    failures
}

/// Shows the behaviours over time, side by side.
pub fn lasting(scene: &Scene, store: Store<'_>, proxy: Proxy<'_>) -> Vec<Failure> {
    let begin = Instant::now();
    let store = Mutex::new(store);
    let shared = &store;
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        let shown = LASTING.map(|lasting| (lasting, scope.spawn(move || (lasting.show)(scene, shared))));
        for (Lasting { behaviour, kube_proxy_may, .. }, shown) in shown {
            let mut shown = shown.join().unwrap();
            let word = if shown.is_ok() { "right" } else { "wrong" };
            println!("    {behaviour}: {word} ({:.1} s)", begin.elapsed().as_secs_f64());
            if let (Err(Unmet(seen)), Some(known), Some(_)) = (&shown, kube_proxy_may, proxy.kube_proxy) {
                println!("        {known}: {seen}");
                shown = Ok(());
            }
            let failed = |Unmet(seen)| Failure {
                behaviour: behaviour.to_owned(),
                step: 0,
                probe: String::new(),
                expected: String::new(),
                seen,
            };
            failures.extend(shown.map_err(failed).err());
        }
    });
    print(&failures);
    store.into_inner().unwrap().clear().unwrap();
    failures
}

/// Asks every probe once; returns for each case the probes that were answered wrongly. The probes of one case come
/// one after the other, since round robin counts on.
fn go(scene: &Scene, names: &Names, cases: &[(&Case, Vec<Asked>)]) -> Vec<Vec<(usize, String)>> {
    let mut wrong: Vec<Vec<(usize, String)>> = vec![Vec::new(); cases.len()];
    let rounds = cases.iter().map(|(_, asked)| asked.len()).max().unwrap_or(0);
    for round in 0..rounds {
        let mut places: BTreeMap<&str, (Vec<usize>, Vec<Question>)> = BTreeMap::new();
        for (case, (_, asked)) in cases.iter().enumerate() {
            // What is wrong already need not be asked to the end.
            if let Some(asked) = asked.get(round).filter(|_| wrong[case].is_empty()) {
                let (whose, questions) = places.entry(&asked.from).or_default();
                whose.push(case);
                questions.push(asked.question.clone());
            }
        }
        std::thread::scope(|scope| {
            let surveys: Vec<_> = places
                .into_iter()
                .map(|(place, (whose, questions))| {
                    scope.spawn(move || (whose, scene.place(place).survey(&questions).unwrap()))
                })
                .collect();
            for survey in surveys {
                let (whose, answers) = survey.join().unwrap();
                for (case, attempts) in whose.into_iter().zip(answers) {
                    let seen = Seen::new(&attempts, names);
                    if !cases[case].1[round].expected.is(&seen) {
                        wrong[case].push((round, seen.to_string()));
                    }
                }
            }
        });
    }
    wrong
}
