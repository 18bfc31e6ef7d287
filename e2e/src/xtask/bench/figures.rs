//! What is measured, as it stands in the report.

use super::load::Load;
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// All samples of one quantity.
#[derive(Debug, Default, Clone)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(super) fn extend(&mut self, samples: impl IntoIterator<Item = f64>) {
        self.0.extend(samples);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The one in the middle, or the mean of the two there.
    pub(super) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
    }

    pub(super) fn least(&self) -> Option<f64> {
        self.sorted().first().copied()
    }

    pub(super) fn greatest(&self) -> Option<f64> {
        self.sorted().last().copied()
    }

    /// What so many of a hundred do not exceed; `None` for less than a hundred samples.
    pub(super) fn percentile(&self, percent: usize) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * percent).div_ceil(100);
        (sorted.len() >= 100).then(|| sorted.get(rank.checked_sub(1)?).copied())?
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Samples", 2)?;
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        out.serialize_field("median", &self.median().map(round))?;
        out.serialize_field("samples", &self.0.iter().copied().map(round).collect::<Vec<_>>())?;
        out.end()
    }
}

/// What was measured of one of the two.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    /// From the start of the process to the last real server in the kernel.
    pub(super) first_sync_seconds: Samples,
    /// From the start of the process until the set of service addresses is full too.
    pub(super) complete_seconds: Samples,
    /// How much earlier it may have been: the time that the last look took.
    pub(super) first_sync_resolution_seconds: Samples,
    /// Processor time of the program and of those it has started.
    pub(super) first_sync_processor_seconds: Samples,
    /// Programs that it has started.
    pub(super) first_sync_programs: Samples,
    /// Their names and how often, of the last round.
    pub(super) first_sync_programs_by_name: String,
    /// Netlink messages to the kernel, its own and those of the programs it starts.
    pub(super) first_sync_messages: Samples,
    /// Those of them that do more than ask.
    pub(super) first_sync_changing_messages: Samples,
    /// The sends that carried them all.
    pub(super) first_sync_sends: Samples,
    /// Writes to the API that it caused.
    pub(super) first_sync_api_writes: Samples,
    /// From the API server's answer to the kernel, when an endpoint comes.
    pub(super) endpoint_added_millis: Samples,
    /// The same when it goes.
    pub(super) endpoint_removed_millis: Samples,
    /// From the removal of the services' route by another hand until it is back.
    pub(super) route_repair_millis: Samples,
    /// From the API server's answer until a Service that is new is served with all its endpoints.
    pub(super) new_service_millis: Samples,
    /// From the API server's last answer to the kernel, when all endpoints of a large Service were replaced in steps.
    pub(super) rolling_millis: Samples,
    /// Writes of EndpointSlices (or Endpoints) that such an update consisted of.
    pub(super) rolling_steps: Samples,
    /// Writes of NodeNetSlices that it caused.
    pub(super) rolling_api_writes: Samples,
    /// Part of one processor that the program uses while nothing happens, in percent.
    pub(super) idle_percent: Samples,
    /// How long it was given where a first sync did not end.
    pub(super) unfinished_after_seconds: Option<f64>,
    /// Netlink messages to the kernel of one change.
    pub(super) change_messages: Samples,
    /// Those of them that do more than ask.
    pub(super) change_changing_messages: Samples,
    /// Programs started for one change.
    pub(super) change_programs: Samples,
    /// Writes of NodeNetSlices and of the spec of NodeNetStates that one change caused.
    pub(super) change_api_writes: Samples,
    /// Processor time of one change.
    pub(super) change_processor_millis: Samples,
    /// Resident memory after the first sync, in MiB.
    pub(super) resident_mebibytes: Samples,
    /// Its peak until the end of the round.
    pub(super) peak_resident_mebibytes: Samples,
}

impl Figures {
    /// Endpoints that came and that went.
    pub(super) fn change_millis(&self) -> Samples {
        let mut all = self.endpoint_added_millis.clone();
        all.extend(self.endpoint_removed_millis.0.iter().copied());
        all
    }
}

/// The messages of a first sync and nothing around them.
#[derive(Debug, Serialize)]
pub(super) struct BareLoop {
    /// How many.
    pub(super) messages: f64,
    /// With a send and an answer for each.
    pub(super) single_seconds: f64,
    /// Many in a send, one answer for them.
    pub(super) together_seconds: f64,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_gibibytes: f64,
    pub(super) kernel: String,
    pub(super) guest_kernel: String,
    pub(super) kube_apiserver: String,
    /// Runnable processes beside the bench when it began (1, 5, 15 minutes): a busy machine measures worse.
    pub(super) load_average: String,
}

/// The report.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) services: usize,
    pub(super) endpoints_per_service: usize,
    pub(super) rounds: usize,
    /// A question to the guest and its answer, over a connection of its own: what stands between the guest's
    /// look and the host's clock is half of it at most.
    pub(super) channel_round_trip_millis: Samples,
    /// From the operator's start to the last slice, control plane on the same machine.
    pub(super) publish_seconds: Option<f64>,
    /// The operator's memory at the end: resident and peak.
    pub(super) operator_resident_mebibytes: Vec<(f64, f64)>,
    /// What the kernel itself needs for the messages of a first sync.
    pub(super) bare_loop: Option<BareLoop>,
    pub(super) nodenet: Option<Figures>,
    /// The agent on the host with its kernel in memory.
    pub(super) nodenet_on_fake_kernel: Option<Figures>,
    pub(super) kube_proxy: Option<Figures>,
}

impl Report {
    pub(super) fn new(load: &Load, rounds: usize) -> Self {
        Self { services: load.services, endpoints_per_service: load.endpoints, rounds, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_there() {
        assert_eq!(Samples(vec![]).median(), None);
        assert_eq!(Samples(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Samples(vec![4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
    }

    #[test]
    fn a_percentile_needs_a_hundred_samples() {
        assert_eq!(Samples((1..=99).map(f64::from).collect()).percentile(99), None);
        assert_eq!(Samples((1..=100).map(f64::from).collect()).percentile(99), Some(99.0));
        assert_eq!(Samples((1..=250).rev().map(f64::from).collect()).percentile(99), Some(248.0));
    }
}
