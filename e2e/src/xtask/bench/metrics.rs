//! Counts that the measured programs and the API server keep themselves.

use crate::lab::Lab;
use crate::lab::nodenet::HOST_AGENT_PORT;

/// What the agent on the host has done.
pub(super) struct Programmed {
    /// Real servers that it has added.
    pub(super) added: f64,
    /// Real servers that it has taken out of use or removed.
    pub(super) removed: f64,
    /// Virtual servers that stand.
    pub(super) servers: f64,
}

/// What the agent on the host tells; `None` while it does not answer.
pub(super) fn of_host_agent(lab: &Lab) -> Option<Programmed> {
    let text = lab.site().http_get(HOST_AGENT_PORT, "/metrics").ok()?;
    let operations = |kind: &str| {
        let name = format!("nodenet_agent_kernel_operations_total{{operation=\"{kind}\"}}");
        sum(&text, &name).unwrap_or(0.0)
    };
    Some(Programmed {
        added: operations("add_real_server"),
        removed: operations("set_real_server") + operations("delete_real_server"),
        servers: sum(&text, "nodenet_agent_virtual_servers{state=\"programmed\"}").unwrap_or(0.0),
    })
}

/// Writes of nodenet's objects that the API server has taken.
pub(super) struct Writes {
    /// What the operator plans: slices, and the spec of node states.
    pub(super) planned: f64,
    /// These, and status.
    pub(super) all: f64,
}

/// Reads them from the API server's metrics. Leases and Events are not in it.
pub(super) fn writes(lab: &Lab) -> anyhow::Result<Writes> {
    let text = lab.cluster().kubectl(&["get", "--raw", "/metrics"])?;
    let ours = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains("group=\"nodenet.dev\"")
            && line.contains("code=\"2")
            && ["POST", "PUT", "PATCH", "DELETE", "APPLY"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    let (mut planned, mut all) = (0.0, 0.0);
    for line in text.lines().filter(ours) {
        let count = value(line).unwrap_or(0.0);
        all += count;
        if line.contains("subresource=\"\"") {
            planned += count;
        }
    }
    Ok(Writes { planned, all })
}

/// The sum of a metric over those of its labels that are not named.
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
        assert_eq!(sum(text, "a_total{x=\"2\"}"), Some(3.0));
        assert_eq!(sum(text, "b_total"), None);
    }
}
