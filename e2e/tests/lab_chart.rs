//! The chart on a real API server: it installs, what its accounts may do, what an uninstall leaves behind.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use nodenet_e2e::lab::cluster::{Cluster, ClusterSpec};
use nodenet_e2e::lab::error::LabError;
use nodenet_e2e::lab::nodenet::{NAMESPACE, Nodenet, uninstall_chart, workspace};
use nodenet_e2e::lab::prerequisites;
use nodenet_e2e::lab::process::wait_for;
use nodenet_e2e::lab::scene::PATIENCE;
use nodenet_e2e::lab::site::Site;

const NODES: &str = "nodenet-nodes";

/// A control plane with the chart in it, and nothing else.
struct Installed {
    cluster: Cluster,
    chart: String,
    // Last, because its namespace and folder go with it.
    _site: Site,
}

impl Installed {
    /// Prints `SKIP: <why>` where the machine lacks what it needs.
    fn start() -> Option<Self> {
        let made = prerequisites::control_plane().and_then(|programs| {
            let site = Site::create()?;
            let cluster = Cluster::start(&site, programs, &ClusterSpec::default())?;
            let chart = workspace().join("charts/nodenet").display().to_string();
            Ok(Self { cluster, chart, _site: site })
        });
        match made {
            Ok(made) => {
                made.helm("install", &["--create-namespace"]);
                Some(made)
            }
            Err(error @ LabError::Missing { .. }) => {
                println!("SKIP: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn helm(&self, verb: &str, more: &[&str]) -> String {
        let server = format!("apiServers={{{}}}", self.cluster.endpoint());
        let mut arguments = vec![verb, "nodenet", &self.chart, "--namespace", NAMESPACE, "--set", &server];
        arguments.extend(["--set", "serviceCIDRs={10.243.0.0/16}", "--set", "clusterCIDRs={10.244.0.0/16}"]);
        if self.cluster.minor() < 25 {
            arguments.push("--server-side=false");
        }
        arguments.extend(more);
        self.cluster.helm(&arguments).unwrap_or_else(|error| panic!("helm {verb}: {error}"))
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn apply(&self, manifests: &str) {
        self.cluster.apply(manifests).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether an account of the chart may do something, in the words of `kubectl auth can-i`.
    fn may(&self, account: &str, what: &str) -> bool {
        let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        let mut arguments = vec!["auth", "can-i", &user];
        arguments.extend(what.split_whitespace());
        // It ends with an error where the answer is no.
        match self.cluster.kubectl(&arguments) {
            Ok(answer) => answer.trim() == "yes",
            Err(LabError::Command { .. }) => false,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

#[test]
fn accounts_may_do_what_they_need_and_no_more() {
    let Some(lab) = Installed::start() else { return };
    for what in [
        "get leases/nodenet-operator -n nodenet-system",
        "patch leases -n nodenet-nodes",
        "create leases -n nodenet-nodes",
        "watch nodenetstates",
        "watch nodenetslices",
        "patch nodenetstates --subresource=status",
        "create events.events.k8s.io -n default",
    ] {
        assert!(lab.may("nodenet-agent", what), "the agent may not {what}");
    }
    for what in [
        "update leases/nodenet-operator -n nodenet-system",
        "create leases -n nodenet-system",
        "delete leases -n nodenet-nodes",
        "get leases -n nodenet-nodes",
        "get nodes",
        "patch nodenetstates",
        "update nodenetslices",
        "patch virtualips --subresource=status",
        "list nodes",
        "list services",
        "get secrets -n nodenet-system",
        "create events.events.k8s.io -n kube-system",
    ] {
        assert!(!lab.may("nodenet-agent", what), "the agent may {what}");
    }
    for what in [
        "create leases -n nodenet-system",
        "update leases/nodenet-operator -n nodenet-system",
        "watch leases -n nodenet-nodes",
        "watch endpointslices.discovery.k8s.io -A",
        "update nodenetslices",
        "delete nodenetstates",
        "patch virtualips --subresource=status",
        "create events.events.k8s.io -n kube-system",
    ] {
        assert!(lab.may("nodenet-operator", what), "the operator may not {what}");
    }
    for what in [
        "update leases/another -n nodenet-system",
        "update leases -n nodenet-nodes",
        "patch virtualips",
        "patch services -n default",
        "patch nodes",
        "patch nodenetstates --subresource=status",
        "patch events.events.k8s.io -n default",
        "get secrets -n nodenet-system",
        "list pods -A",
    ] {
        assert!(!lab.may("nodenet-operator", what), "the operator may {what}");
    }
}

#[test]
fn examples_and_upgrades_are_taken() {
    let Some(lab) = Installed::start() else { return };
    let examples = workspace().join("examples").display().to_string();
    lab.kubectl(&["apply", "--recursive", "-f", &examples]);
    assert_eq!(
        lab.kubectl(&["get", "vip", "prometheus", "-o", "jsonpath={.spec.failover.protocol}"]),
        "Operator"
    );
    lab.helm("upgrade", &["--set", "scheduler=wrr"]);
    let file = lab.kubectl(&["-n", NAMESPACE, "get", "configmap", "nodenet-agent", "-o", "jsonpath={.data}"]);
    assert!(file.contains("scheduler: wrr"), "{file}");
}

#[test]
fn an_uninstall_leaves_nothing_that_cannot_be_deleted() {
    let Some(lab) = Installed::start() else { return };
    let nodenet = match Nodenet::built() {
        Ok(built) => built,
        Err(error) => {
            println!("SKIP: {error}");
            return;
        }
    };
    lab.apply(
        "{apiVersion: nodenet.dev/v1alpha1, kind: NodeNetState, metadata: {name: node}, spec: {}}\n---\n\
         {apiVersion: nodenet.dev/v1alpha1, kind: NodeNetSlice, spec: {revision: 1},\n \
          metadata: {name: slice, finalizers: [nodenet.dev/slice-content]}}\n---\n\
         {apiVersion: nodenet.dev/v1alpha1, kind: VirtualIP, metadata: {name: vip}, spec: {addresses: [192.168.0.15/24]}}\n",
    );
    uninstall_chart(&lab.cluster, &nodenet).expect("uninstalled and cleaned up");
    assert_eq!(lab.kubectl(&["get", "nnslice,nns", "-o", "name"]), "");
    assert_eq!(lab.kubectl(&["get", "vip", "-o", "name"]).trim(), "virtualip.nodenet.dev/vip");
}

#[test]
fn an_agent_is_held_to_its_own_node() {
    let Some(lab) = Installed::start() else { return };
    if lab.cluster.minor() < 31 {
        println!(
            "SKIP: this API server (1.{}) binds no token to a Node; KUBEBUILDER_ASSETS names another",
            lab.cluster.minor()
        );
        return;
    }
    for node in ["mine", "other"] {
        lab.cluster.create_node(node, &[], &[], &[]).expect("made");
        lab.apply(&format!(
            "{{apiVersion: nodenet.dev/v1alpha1, kind: NodeNetState, metadata: {{name: {node}}}, spec: {{}}}}"
        ));
    }
    let token = |node| {
        let token = lab.cluster.token(NAMESPACE, "nodenet-agent", node).expect("a token");
        format!("--token={token}")
    };
    let (own, nobodys) = (token(Some("mine")), token(None));
    let lease = |token: &str, node: &str| {
        let lease = format!(
            "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {node}, namespace: {NODES}}}}}"
        );
        lab.cluster.kubectl_with(&[token, "create", "-f", "-"], &lease).map_err(|error| error.to_string())
    };
    let status = |token: &str, node: &str| {
        let state = format!(
            "{{apiVersion: nodenet.dev/v1alpha1, kind: NodeNetState, metadata: {{name: {node}}}, \
              status: {{agentVersion: test}}}}"
        );
        let apply = ["apply", "--server-side", "--subresource=status", "--validate=false", "-f", "-"];
        let mut arguments = vec![token];
        arguments.extend(apply);
        lab.cluster.kubectl_with(&arguments, &state).map_err(|error| error.to_string())
    };
    // A policy is in force a moment after it was made: the first refusal shows that it is.
    wait_for("the policy in force", PATIENCE, &lab.cluster.kubeconfig(), || {
        if lease(&nobodys, "unknown").is_err() {
            return Ok(Some(()));
        }
        lab.kubectl(&["delete", "lease", "unknown", "-n", NODES]);
        Ok(None)
    })
    .expect("refused");
    lease(&own, "mine").expect("its own Lease");
    status(&own, "mine").expect("its own status");
    let refused = |result: Result<String, String>, words: &str| {
        let said = result.expect_err("was not refused");
        assert!(said.contains(words), "{said}");
    };
    refused(lease(&own, "other"), "the agent of node mine may not write what belongs to other");
    refused(status(&own, "other"), "the agent of node mine may not write what belongs to other");
    refused(status(&nobodys, "mine"), "does not say which node it belongs to");
}
