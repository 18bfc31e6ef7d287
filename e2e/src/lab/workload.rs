//! Plays kubelet for the chart's workloads: reads a Deployment or DaemonSet back from the API server and
//! makes its container's command line and environment.

use super::cluster::Cluster;
use super::error::LabError;
use serde_json::Value;

/// What a container of a workload would run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The namespace it stands in.
    pub namespace: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// The arguments of its first container.
    pub arguments: Vec<String>,
    /// The environment of its first container.
    pub env: Vec<(String, String)>,
}

impl Workload {
    /// Reads `deployment` or `daemonset` `name`, for a pod of that name on that node.
    ///
    /// # Errors
    /// What kubectl says, or an object that is no workload.
    pub fn read(
        cluster: &Cluster,
        kind: &str,
        namespace: &str,
        name: &str,
        pod: &str,
        node: &str,
    ) -> Result<Self, LabError> {
        let object = cluster.get(&[kind, name, "--namespace", namespace])?;
        Self::parse(&object, pod, node).ok_or_else(|| LabError::Missing {
            what: format!("a container in {kind} {namespace}/{name}"),
            remedy: "the chart must make one".into(),
        })
    }

    fn parse(object: &Value, pod: &str, node: &str) -> Option<Self> {
        let spec = &object["spec"]["template"]["spec"];
        let container = spec["containers"].get(0)?;
        let namespace = object["metadata"]["namespace"].as_str()?;
        let mut env: Vec<(String, String)> = Vec::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("spec.nodeName") => node.to_owned(),
                Some("metadata.name") => pod.to_owned(),
                Some("metadata.namespace") => namespace.to_owned(),
                _ => variable["value"].as_str().unwrap_or_default().to_owned(),
            };
            env.push((variable["name"].as_str()?.to_owned(), value));
        }
        let expand = |argument: &Value| {
            let text = argument.as_str().unwrap_or_default().to_owned();
            env.iter().fold(text, |text, (name, value)| text.replace(&format!("$({name})"), value))
        };
        let arguments = container["args"].as_array().into_iter().flatten().map(expand).collect();
        Some(Self {
            namespace: namespace.to_owned(),
            service_account: spec["serviceAccountName"].as_str().unwrap_or("default").to_owned(),
            arguments,
            env,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_are_resolved_as_a_kubelet_does() {
        let object = json!({"metadata": {"namespace": "ns"}, "spec": {"template": {"spec": {
            "serviceAccountName": "agent",
            "containers": [{
                "args": ["run", "--node=$(NODE_NAME)"],
                "env": [
                    {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "RUST_LOG", "value": "info"},
                ],
            }],
        }}}});
        let workload = Workload::parse(&object, "pod", "node-1").unwrap();
        assert_eq!(workload.arguments, ["run", "--node=node-1"]);
        assert_eq!(
            workload.env,
            [("NODE_NAME".to_owned(), "node-1".to_owned()), ("RUST_LOG".to_owned(), "info".to_owned())]
        );
        assert_eq!(workload.service_account, "agent");
    }
}
