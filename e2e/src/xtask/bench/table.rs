//! The figures as a person reads them.

use super::bars::Verdict;
use super::figures::{Figures, Report, Samples};

/// Prints machine and medians, with the least and the greatest where there are several.
pub(super) fn print(report: &Report) {
    let machine = &report.machine;
    println!(
        "\n{} Services with {} endpoints each, {} rounds, medians (least..greatest).",
        report.services, report.endpoints_per_service, report.rounds
    );
    println!(
        "{}, {} cores, {} GiB, Linux {}; guest Linux {}; kube-apiserver {}; load average before {}.\n",
        machine.processor,
        machine.cores,
        machine.memory_gibibytes,
        machine.kernel,
        machine.guest_kernel,
        machine.kube_apiserver,
        machine.load_average,
    );
    println!("| | nodenet | kube-proxy, ipvs mode | nodenet, kernel in memory |\n|---|---|---|---|");
    for (name, digits, samples) in ROWS {
        let cell = |figures: &Option<Figures>| match figures {
            Some(figures) => show(&samples(figures), *digits),
            None => "–".into(),
        };
        let cells = [&report.nodenet, &report.kube_proxy, &report.nodenet_on_fake_kernel].map(cell);
        println!("| {name} | {} |", cells.join(" | "));
    }
    for (who, figures) in [("nodenet", &report.nodenet), ("kube-proxy", &report.kube_proxy)] {
        if let Some(seconds) = figures.as_ref().and_then(|figures| figures.unfinished_after_seconds) {
            println!("\n{who} did not finish every first sync within the {seconds:.0} s that it had");
        }
        if let Some(figures) = figures.as_ref().filter(|f| !f.first_sync_programs_by_name.is_empty()) {
            println!("\nprograms of {who}'s first sync: {}", figures.first_sync_programs_by_name);
        }
    }
    if let Some(bare) = &report.bare_loop {
        println!(
            "\na bare loop that sends the {} messages of a first sync: {:.2} s one by one, {:.2} s in large sends",
            bare.messages, bare.single_seconds, bare.together_seconds
        );
    }
    if let Some(samples) = report.nodenet_on_fake_kernel.as_ref().map(Figures::change_millis)
        && let Some(late) = samples.percentile(99)
    {
        println!("of {} changes with the kernel in memory 99 % took {late:.1} ms or less", samples.len());
    }
    if let Some(seconds) = report.publish_seconds {
        println!("\nthe operator published all slices {seconds:.2} s after its start");
    }
    for (resident, peak) in &report.operator_resident_mebibytes {
        println!("the operator's memory at the end: {resident:.1} MiB resident, {peak:.1} MiB at its peak");
    }
    let channel = show(&report.channel_round_trip_millis, 2);
    println!("a question to the guest and its answer: {channel} ms");
}

type Row = (&'static str, usize, fn(&Figures) -> Samples);

const ROWS: &[Row] = &[
    ("first sync: all real servers stand, s", 2, |f| f.first_sync_seconds.clone()),
    ("at most so much earlier, s", 2, |f| f.first_sync_resolution_seconds.clone()),
    ("first sync: sets are full too, s", 2, |f| f.complete_seconds.clone()),
    ("processor time of it, s", 2, |f| f.first_sync_processor_seconds.clone()),
    ("programs started", 0, |f| f.first_sync_programs.clone()),
    ("netlink messages", 0, |f| f.first_sync_messages.clone()),
    ("of these more than a question", 0, |f| f.first_sync_changing_messages.clone()),
    ("sends that carried them", 0, |f| f.first_sync_sends.clone()),
    ("API writes", 0, |f| f.first_sync_api_writes.clone()),
    ("one endpoint, API answer to kernel, ms", 1, Figures::change_millis),
    ("when it comes, ms", 1, |f| f.endpoint_added_millis.clone()),
    ("when it goes, ms", 1, |f| f.endpoint_removed_millis.clone()),
    ("a new Service, API answer to kernel, ms", 1, |f| f.new_service_millis.clone()),
    ("rolling update of 250 endpoints: last API answer to kernel, ms", 1, |f| f.rolling_millis.clone()),
    ("writes that it consisted of", 0, |f| f.rolling_steps.clone()),
    ("API writes that it caused", 0, |f| f.rolling_api_writes.clone()),
    ("idle: of one processor, %", 2, |f| f.idle_percent.clone()),
    ("a route removed by another hand is back, ms", 0, |f| f.route_repair_millis.clone()),
    ("netlink messages a change", 0, |f| f.change_messages.clone()),
    ("of these more than a question", 0, |f| f.change_changing_messages.clone()),
    ("programs started a change", 0, |f| f.change_programs.clone()),
    ("API writes a change", 0, |f| f.change_api_writes.clone()),
    ("processor time a change, ms", 0, |f| f.change_processor_millis.clone()),
    ("resident memory, MiB", 1, |f| f.resident_mebibytes.clone()),
    ("its peak, MiB", 1, |f| f.peak_resident_mebibytes.clone()),
];

fn show(samples: &Samples, digits: usize) -> String {
    let Some((median, (least, greatest))) = samples.median().zip(samples.least().zip(samples.greatest()))
    else {
        return "–".into();
    };
    if samples.len() < 2 || least.total_cmp(&greatest).is_eq() {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({least:.digits$}..{greatest:.digits$})")
}

/// Prints each bar with its verdict.
pub(super) fn print_bars(verdicts: &[Verdict]) {
    if !verdicts.is_empty() {
        println!();
    }
    for verdict in verdicts {
        let word = if verdict.reached { "reached" } else { "NOT REACHED" };
        println!("{word}: {}: {}", verdict.bar, verdict.seen);
    }
}

/// How nodenet's figures grow with the number of Services; kube-proxy's beside them.
pub(super) fn print_growth(reports: &[Report]) {
    if reports.len() < 2 {
        return;
    }
    let sizes: Vec<String> = reports.iter().map(|report| report.services.to_string()).collect();
    println!("\n| Services | {} |\n|---|{}", sizes.join(" | "), "---|".repeat(reports.len()));
    type Of = fn(&Report) -> Option<&Figures>;
    let all: [(&str, Of); 3] = [
        ("nodenet", |report| report.nodenet.as_ref()),
        ("kube-proxy", |report| report.kube_proxy.as_ref()),
        ("kernel in memory", |report| report.nodenet_on_fake_kernel.as_ref()),
    ];
    for (name, digits, samples) in ROWS.iter().filter(|row| GROWING.contains(&row.0)) {
        for (who, of) in &all {
            let cells: Vec<String> = reports
                .iter()
                .map(|report| match of(report) {
                    Some(figures) => match (samples(figures).median(), figures.unfinished_after_seconds) {
                        (None, Some(seconds)) if name.starts_with("first sync") => {
                            format!("more than {seconds:.0}")
                        }
                        _ => show(&samples(figures), *digits),
                    },
                    None => "–".into(),
                })
                .collect();
            if cells.iter().any(|cell| cell != "–") {
                println!("| {who}: {name} | {} |", cells.join(" | "));
            }
        }
    }
}

/// What depends on the number of Services, or must not.
const GROWING: &[&str] = &[
    "first sync: all real servers stand, s",
    "first sync: sets are full too, s",
    "processor time of it, s",
    "one endpoint, API answer to kernel, ms",
    "a new Service, API answer to kernel, ms",
    "rolling update of 250 endpoints: last API answer to kernel, ms",
    "idle: of one processor, %",
    "resident memory, MiB",
];

#[cfg(test)]
mod tests {
    use super::{GROWING, ROWS};

    #[test]
    fn what_grows_is_in_the_table() {
        for name in GROWING {
            assert!(ROWS.iter().any(|row| row.0 == *name), "{name}");
        }
    }
}
