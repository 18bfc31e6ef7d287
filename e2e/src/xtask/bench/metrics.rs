//! Counts that the measured programs and the API server keep themselves.

use crate::lab::Lab;
use crate::lab::nodenet::HOST_AGENT_PORT;
use crate::lab::traffic::Place;

/// Where an agent tells its metrics.
pub(super) const AGENT: &str = "http://127.0.0.1:10356/metrics";

/// What the agent on the host has done.
pub(super) struct Programmed {
    /// Messages to its kernel.
    pub(super) messages: f64,
    /// Virtual servers that stand.
    pub(super) servers: f64,
}

/// Messages that an agent has sent to its kernel.
pub(super) fn kernel_messages(place: &Place, url: &str) -> Option<f64> {
    sum(&place.run(&["curl", "-s", "--max-time", "10", url]).ok()?, "nodenet_agent_kernel_messages_total")
}

/// What the agent on the host tells; `None` while it does not answer.
pub(super) fn programmed_on_host(lab: &Lab) -> Option<Programmed> {
    let text = lab.site().http_get(HOST_AGENT_PORT, "/metrics").ok()?;
    Some(Programmed {
        messages: sum(&text, "nodenet_agent_kernel_messages_total").unwrap_or(0.0),
        servers: sum(&text, "nodenet_agent_virtual_servers").unwrap_or(0.0),
    })
}

/// Writes of NodeNetSlices that the API server has taken.
pub(super) fn slice_writes(lab: &Lab) -> anyhow::Result<f64> {
    let text = lab.cluster().kubectl(&["get", "--raw", "/metrics"])?;
    let writes = text.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"nodenetslices\"")
            && ["POST", "PUT", "PATCH", "DELETE", "APPLY"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    Ok(writes.filter_map(value).sum())
}

/// The sum of a metric over its labels.
fn sum(text: &str, name: &str) -> Option<f64> {
    let mut values = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(value)
        .peekable();
    values.peek()?;
    Some(values.sum())
}

fn value(line: &str) -> Option<f64> {
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_with_longer_names() {
        let text = "a_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 7\n";
        assert_eq!(sum(text, "a_total"), Some(5.0));
        assert_eq!(sum(text, "b_total"), None);
    }
}
