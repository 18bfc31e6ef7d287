//! A lab with nodenet installed and running in it: what most tests begin with.

use super::error::LabError;
use super::guest::Started;
use super::nodenet::{Nodenet, agent_log, workspace};
use super::process::{Process, wait_for};
use super::protocol::Exec;
use super::{Lab, LabSpec};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long anything may take on a busy machine. Tests that hold nodenet to shorter times say so.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A lab with the chart installed, operators and an agent on each node.
#[derive(Debug)]
pub struct Running {
    // Operators go before the lab.
    operators: Vec<Process>,
    agents: BTreeMap<String, Started>,
    /// How each agent was started: the chart's workload can be read only while the API server is there.
    commands: BTreeMap<String, Exec>,
    nodenet: Nodenet,
    lab: Lab,
}

impl Running {
    /// Starts all of it; prints `SKIP: <why>` and returns `None` where the machine lacks what a lab needs.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_or_skip(spec: LabSpec, operators: u16) -> Result<Option<Self>, LabError> {
        let Some(lab) = Lab::start_or_skip(spec)? else { return Ok(None) };
        let nodenet = Nodenet::built()?;
        lab.install_chart(&nodenet, &[])?;
        let mut running =
            Self { operators: Vec::new(), agents: BTreeMap::new(), commands: BTreeMap::new(), nodenet, lab };
        for number in 0..operators {
            running.operators.push(running.lab.start_operator(&running.nodenet, number)?);
        }
        for node in running.nodes() {
            running.start_agent(&node)?;
        }
        Ok(Some(running))
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab, to stop and start parts of it.
    pub fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Vec<String> {
        self.lab.topology().spec().nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Applies an example and what Kubernetes' controllers would write for it.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn apply_example(&self, name: &str) -> Result<(), LabError> {
        let folder = workspace().join("examples").join(name).display().to_string();
        let slices = format!("{folder}/cluster/endpointslice.yaml");
        self.lab.cluster().kubectl(&["apply", "-f", &folder, "-f", &slices]).map(drop)
    }

    /// Waits for a condition as `kubectl wait` does, e.g. `Ready` of `vip/prometheus`.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_for_condition(&self, condition: &str, object: &[&str]) -> Result<(), LabError> {
        let condition = format!("--for=condition={condition}");
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let arguments = [&["wait", condition.as_str(), timeout.as_str()], object].concat();
        self.lab.cluster().kubectl(&arguments).map(drop)
    }

    /// Asks until it is so.
    ///
    /// # Errors
    /// [`LabError::Timeout`] naming what was waited for, or the first error of `so`.
    pub fn eventually(
        &self,
        what: &str,
        mut so: impl FnMut() -> Result<bool, LabError>,
    ) -> Result<(), LabError> {
        wait_for(what, PATIENCE, self.lab.site().folder(), || Ok(so()?.then_some(())))
    }

    /// Starts a node's agent (again).
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent(&mut self, node: &str) -> Result<(), LabError> {
        self.start_agent_with(node, &[])
    }

    /// Starts a node's agent with arguments beyond those of the chart.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent_with(&mut self, node: &str, arguments: &[&str]) -> Result<(), LabError> {
        let mut exec = self.lab.prepare_agent(&self.nodenet, node)?;
        exec.argv.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self.commands.insert(node.into(), exec);
        self.restart_agent_without_api(node)
    }

    /// Starts a node's agent as it was started before; its token stands in the node's files.
    ///
    /// # Errors
    /// When it was never started, or does not start.
    pub fn restart_agent_without_api(&mut self, node: &str) -> Result<(), LabError> {
        let Some(exec) = self.commands.get(node).cloned() else {
            let reason = format!("it never ran on {node}");
            return Err(LabError::Guest { operation: "restart the agent".into(), reason });
        };
        let started = self.lab.place(node).spawn(exec, &agent_log(node))?;
        self.agents.insert(node.into(), started);
        Ok(())
    }

    /// Ends a node's agent with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_agent(&mut self, node: &str) -> Result<(), LabError> {
        let Some(agent) = self.agents.remove(node) else {
            return Err(LabError::Guest {
                operation: "kill the agent".into(),
                reason: format!("none on {node}"),
            });
        };
        agent.signal(Signal::SIGKILL)?;
        agent.wait(PATIENCE).map(drop)
    }

    /// Ends an operator with SIGKILL.
    pub fn kill_operator(&mut self, number: usize) {
        self.operators.remove(number).kill();
    }

    /// A metric of a node's agent, summed over its labels; `None` while it does not answer.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn agent_metric(&self, node: &str, name: &str) -> Result<Option<f64>, LabError> {
        let url = "http://127.0.0.1:10356/metrics";
        let answer = self.lab.place(node).attempt(&["curl", "-s", "--max-time", "5", url])?;
        let values: Vec<f64> = answer
            .stdout
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        Ok((answer.code == 0).then(|| values.iter().sum()))
    }

    /// Which nodes have an IPv4 address in the kernel, and whether it is secondary there.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn holders(&self, address: &str) -> Result<BTreeMap<String, bool>, LabError> {
        let mut holders = BTreeMap::new();
        for node in self.nodes() {
            let text = self.lab.place(&node).run(&["ip", "-json", "-4", "addr", "show"])?;
            let links: Vec<Value> = serde_json::from_str(&text)
                .map_err(|source| LabError::Json { object: node.clone(), source })?;
            let found = links
                .iter()
                .flat_map(|link| link["addr_info"].as_array().into_iter().flatten())
                .find(|found| found["local"] == address);
            if let Some(found) = found {
                holders.insert(node, found["secondary"] == true);
            }
        }
        Ok(holders)
    }

    /// An object's condition of a type as (status, reason, message).
    ///
    /// # Errors
    /// What kubectl says.
    pub fn condition(&self, object: &[&str], kind: &str) -> Result<(String, String, String), LabError> {
        let object = self.lab.cluster().get(object)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found =
            conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
        let field = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Ok((field("status"), field("reason"), field("message")))
    }
}
