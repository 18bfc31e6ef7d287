//! nodenet itself in a lab: the chart by Helm, the operator on the host, an agent on each node, each with
//! the arguments, environment and ServiceAccount that the chart gives it.

use super::Lab;
use super::cluster::Cluster;
use super::error::{During, LabError};
use super::guest::Started;
use super::process::{Process, output};
use super::protocol::Exec;
use super::workload::Workload;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release's namespace.
pub const NAMESPACE: &str = "nodenet-system";
/// Where an agent keeps its state, as the chart mounts it.
pub const STATE_FOLDER: &str = "/var/lib/nodenet";
/// Where an agent keeps what does not survive a reboot, as the chart mounts it.
pub const RUN_FOLDER: &str = "/run/nodenet";

/// The built programs and the chart.
#[derive(Debug, Clone)]
pub struct Nodenet {
    /// `nodenet-operator`.
    pub operator: PathBuf,
    /// `nodenet-agent`.
    pub agent: PathBuf,
    /// The chart's folder.
    pub chart: PathBuf,
}

impl Nodenet {
    /// The programs beside the running one (cargo's target folder) and the workspace's chart.
    ///
    /// # Errors
    /// [`LabError::Missing`] when they are not built.
    pub fn built() -> Result<Self, LabError> {
        let tool = super::process::lab_tool()?;
        let program = |name: &str| {
            let path = tool.with_file_name(name);
            if path.exists() {
                return Ok(path);
            }
            Err(LabError::Missing {
                what: path.display().to_string(),
                remedy: format!("build it with `cargo build -p {name}`"),
            })
        };
        Ok(Self {
            operator: program("nodenet-operator")?,
            agent: program("nodenet-agent")?,
            chart: workspace().join("charts/nodenet"),
        })
    }
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Uninstalls the chart, and does what its hook's Job would: no kubelet runs it here, so its program runs on
/// the host, with the ServiceAccount that Helm would make for it.
///
/// # Errors
/// What Helm, kubectl or `nodenet-operator cleanup` says.
pub fn uninstall_chart(cluster: &Cluster, nodenet: &Nodenet) -> Result<(), LabError> {
    let hooks = cluster.helm(&["get", "hooks", "nodenet", "--namespace", NAMESPACE])?;
    cluster.helm(&["uninstall", "nodenet", "--namespace", NAMESPACE, "--no-hooks"])?;
    let account: Vec<&str> = hooks
        .split("\n---\n")
        .filter(|hook| !hook.contains("\nkind: Job") && !hook.contains("\nkind: Pod"))
        .collect();
    cluster.apply(&account.join("\n---\n"))?;
    let token = cluster.token(NAMESPACE, "nodenet-cleanup", None)?;
    let kubeconfig = cluster.kubeconfig().with_file_name("cleanup.kubeconfig");
    fs::write(&kubeconfig, cluster.kubeconfig_with(&token)?).during("write", kubeconfig.display())?;
    output(Command::new(&nodenet.operator).args(["cleanup", "--kubeconfig"]).arg(&kubeconfig), "").map(drop)
}

impl Lab {
    /// Installs the chart with Helm, with this lab's API server and ranges and further `--set` values.
    ///
    /// # Errors
    /// What Helm says.
    pub fn install_chart(&self, nodenet: &Nodenet, values: &[&str]) -> Result<String, LabError> {
        let mut sets = vec![format!("apiServers={{{}}}", self.cluster().endpoint())];
        sets.push(format!("serviceCIDRs={{{}}}", self.cluster().service_cidrs().join(",")));
        let pod_cidrs: Vec<String> = self
            .topology()
            .spec()
            .nodes
            .iter()
            .flat_map(|node| node.pod_cidrs.iter().map(ToString::to_string))
            .collect();
        sets.push(format!("clusterCIDRs={{{}}}", pod_cidrs.join(",")));
        sets.extend(values.iter().map(|value| (*value).to_owned()));
        let chart = nodenet.chart.display().to_string();
        let mut arguments =
            vec!["install", "nodenet", chart.as_str(), "--namespace", NAMESPACE, "--create-namespace"];
        if self.cluster().minor() < 25 {
            // Such a server knows no validation rules and refuses to apply a schema that has them.
            arguments.push("--server-side=false");
        }
        for set in &sets {
            arguments.extend(["--set", set]);
        }
        self.cluster().helm(&arguments)
    }

    /// Starts an operator on the host, in the lab's network namespace, as replica `number` (from 0).
    ///
    /// # Errors
    /// When the chart is not installed or the program does not start.
    pub fn start_operator(&self, nodenet: &Nodenet, number: u16) -> Result<Process, LabError> {
        let pod = format!("nodenet-operator-{number}");
        let workload =
            Workload::read(self.cluster(), "deployment", NAMESPACE, "nodenet-operator", &pod, "lab-host")?;
        let kubeconfig = self.site().folder().join(format!("{pod}.kubeconfig"));
        let text = self.kubeconfig_of(&workload, None)?;
        fs::write(&kubeconfig, text).during("write", kubeconfig.display())?;
        let mut argv = vec![nodenet.operator.display().to_string()];
        argv.extend(workload.arguments);
        for argument in &mut argv {
            // Replicas share the namespace, so each needs a port of its own.
            if argument.starts_with("--http-address=") {
                *argument = format!("--http-address=127.0.0.1:{}", operator_port(number));
            }
        }
        argv.extend(["--kubeconfig".into(), kubeconfig.display().to_string()]);
        let env: Vec<(&str, &str)> =
            workload.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Process::start_with(Some(self.site().netns()), &self.site().log(&pod), &argv, &env)
    }

    /// Starts the agent of a node. Its log is `agent-<node>.log` in the shared folder.
    ///
    /// # Errors
    /// When the chart is not installed or the program does not start.
    pub fn start_agent(&self, nodenet: &Nodenet, node: &str) -> Result<Started, LabError> {
        self.place(node).spawn(self.prepare_agent(nodenet, node)?, &agent_log(node))
    }

    /// Puts what the agent of a node needs in its place and says how it is started.
    ///
    /// # Errors
    /// When the chart is not installed.
    pub fn prepare_agent(&self, nodenet: &Nodenet, node: &str) -> Result<Exec, LabError> {
        let pod = format!("nodenet-agent-{node}");
        let workload = Workload::read(self.cluster(), "daemonset", NAMESPACE, "nodenet-agent", &pod, node)?;
        let text = self.kubeconfig_of(&workload, Some(node))?;
        let kubeconfig = "/run/lab/kubeconfig";
        let place = self.place(node);
        place.put(kubeconfig, &text)?;
        let configuration = "/run/lab/agent.yaml";
        place.put(configuration, &self.agent_configuration()?)?;
        let mut argv = vec![nodenet.agent.display().to_string()];
        argv.extend(workload.arguments);
        for argument in argv.iter_mut().filter(|argument| argument.starts_with("--config=")) {
            *argument = format!("--config={configuration}");
        }
        for (flag, value) in
            [("--kubeconfig", kubeconfig), ("--state-dir", STATE_FOLDER), ("--run-dir", RUN_FOLDER)]
        {
            argv.extend([flag.into(), value.into()]);
        }
        let mut exec = Exec::new(argv);
        // The chart mounts the node's settings elsewhere for want of privileges; here they are in place.
        exec.env = workload.env.into_iter().filter(|(name, _)| name != "NODENET_SYSCTL_ROOT").collect();
        Ok(exec)
    }

    /// Starts the agent of a node on the host, in the lab's network namespace, with its fake kernel: the
    /// whole way from the API server without the guest.
    ///
    /// # Errors
    /// When the chart is not installed or the program does not start.
    pub fn start_host_agent(&self, nodenet: &Nodenet, node: &str) -> Result<Process, LabError> {
        let pod = format!("nodenet-agent-{node}");
        let workload = Workload::read(self.cluster(), "daemonset", NAMESPACE, "nodenet-agent", &pod, node)?;
        let kubeconfig = self.site().folder().join(format!("{pod}.kubeconfig"));
        let text = self.kubeconfig_of(&workload, Some(node))?;
        fs::write(&kubeconfig, text).during("write", kubeconfig.display())?;
        let mut argv = vec![nodenet.agent.display().to_string()];
        let ours =
            |argument: &String| argument.starts_with("--http-address=") || argument.starts_with("--config=");
        argv.extend(workload.arguments.into_iter().filter(|argument| !ours(argument)));
        let configuration = self.site().folder().join(format!("{pod}.yaml"));
        fs::write(&configuration, self.agent_configuration()?).during("write", configuration.display())?;
        argv.push(format!("--http-address=127.0.0.1:{HOST_AGENT_PORT}"));
        argv.push(format!("--config={}", configuration.display()));
        argv.extend(["--kernel=fake".into(), "--kubeconfig".into(), kubeconfig.display().to_string()]);
        for (flag, name) in [("--state-dir", "state"), ("--run-dir", "run")] {
            let folder = self.site().folder().join(&pod).join(name);
            fs::create_dir_all(&folder).during("make", folder.display())?;
            argv.extend([flag.into(), folder.display().to_string()]);
        }
        let env: Vec<(&str, &str)> =
            workload.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Process::start_with(Some(self.site().netns()), &self.site().log(&pod), &argv, &env)
    }

    /// What the chart has the agents read.
    fn agent_configuration(&self) -> Result<String, LabError> {
        let map = self.cluster().get(&["configmap", "nodenet-agent", "--namespace", NAMESPACE])?;
        Ok(map["data"]["agent.yaml"].as_str().unwrap_or_default().to_owned())
    }

    /// What a pod of a workload would find as its ServiceAccount's; `node`: bound to the node that it runs on.
    fn kubeconfig_of(&self, workload: &Workload, node: Option<&str>) -> Result<String, LabError> {
        let token = self.cluster().token(&workload.namespace, &workload.service_account, node)?;
        self.cluster().inner_kubeconfig_with(&token)
    }

    /// What an agent has logged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn agent_log(&self, node: &str) -> Result<String, LabError> {
        self.place(node).run(&["cat", &format!("{}/{}", crate::tool::init::SHARED, agent_log(node))])
    }
}

/// The port of the health and metrics endpoints of an agent on the host, in the lab's namespace.
pub const HOST_AGENT_PORT: u16 = 10356;

/// The port of an operator replica's health and metrics endpoints in the lab's namespace.
pub fn operator_port(number: u16) -> u16 {
    10357 + number
}

pub(super) fn agent_log(node: &str) -> String {
    format!("agent-{node}.log")
}
