//! What scenarios have in common: nodenet at work on the lab's nodes, and waiting for what must come.

use super::error::LabError;
use super::guest::Started;
use super::kube_proxy::KubeProxy;
use super::nodenet::{NAMESPACE, Nodenet, agent_log, workspace};
use super::process::{Process, wait_for};
use super::protocol::Exec;
use super::traffic::Place;
use super::{Lab, LabSpec};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

/// How long to wait for what must come, on a busy machine. Nothing is said about times by waiting so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks while waiting. A look is a program in the guest, which has one processor.
const LOOK: Duration = Duration::from_millis(500);

/// Why something is not so yet, in words.
#[derive(Debug)]
pub struct Unmet(pub String);

impl<E: Display> From<E> for Unmet {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// That something is so; otherwise what was seen instead.
///
/// # Errors
/// What was seen instead.
pub fn so(holds: bool, seen: impl Display) -> Result<(), Unmet> {
    if holds { Ok(()) } else { Err(Unmet(seen.to_string())) }
}

/// A lab with nodenet at work in it. Dropping it ends everything.
#[derive(Debug)]
pub struct Scene {
    // Before the lab: they run in it.
    operators: BTreeMap<u16, Process>,
    agents: BTreeMap<String, Started>,
    kube_proxies: BTreeMap<String, Started>,
    nodenet: Nodenet,
    agent_flags: Vec<String>,
    lab: Lab,
}

impl Scene {
    /// A lab with the chart installed and nothing started yet; prints `SKIP: <why>` and returns `None` where
    /// the machine lacks something. `values` are the chart's; `agent_flags` come behind the chart's own.
    ///
    /// # Errors
    /// When the lab or Helm fails.
    pub fn install_or_skip(
        spec: LabSpec,
        values: &[&str],
        agent_flags: &[&str],
    ) -> Result<Option<Self>, LabError> {
        let nodenet = match Nodenet::built() {
            Err(error @ LabError::Missing { .. }) => {
                println!("SKIP: {error}");
                return Ok(None);
            }
            other => other?,
        };
        let Some(lab) = Lab::start_or_skip(spec)? else { return Ok(None) };
        lab.install_chart(&nodenet, values)?;
        let agent_flags = agent_flags.iter().map(|flag| (*flag).to_owned()).collect();
        Ok(Some(Self {
            operators: BTreeMap::new(),
            agents: BTreeMap::new(),
            kube_proxies: BTreeMap::new(),
            nodenet,
            agent_flags,
            lab,
        }))
    }

    /// Starts two operators and all agents.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_all(&mut self) -> Result<(), LabError> {
        for number in [0, 1] {
            self.start_operator(number)?;
        }
        for node in self.nodes() {
            self.start_agent(&node)?;
        }
        Ok(())
    }

    /// Applies the examples with what kubelet and controllers would write, and waits until all is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn apply_examples(&self) -> Result<(), LabError> {
        for example in ["000-keepalived-vip", "002-what-forwards-the-packet"] {
            let folder = workspace().join("examples").join(example).display().to_string();
            self.lab.cluster().kubectl(&["apply", "-f", &folder])?;
            self.lab.cluster().kubectl(&["apply", "-f", &format!("{folder}/cluster/endpointslice.yaml")])?;
        }
        // The agent that was there first may have got the virtual IP first: then it moves once.
        self.until("the virtual IP on the preferred node", || {
            let vip = self.lab.cluster().get(&["vip", "prometheus"])?;
            let holder = &vip["status"]["summary"]["holder"];
            so(holder == "k8s-node-1", format!("holder: {holder}"))
        })?;
        self.all_ready()
    }

    /// Waits until the example's virtual IP and all nodes are ready.
    ///
    /// # Errors
    /// When they do not get ready.
    pub fn all_ready(&self) -> Result<(), LabError> {
        self.until("the virtual IP and all nodes ready", || {
            let ready = self.condition(&["vip", "prometheus"], "Ready")?;
            so(ready.status == "True", format!("vip: {ready:?}"))?;
            for node in self.nodes() {
                let ready = self.condition(&["nns", &node], "Ready")?;
                so(ready.status == "True" && ready.reason == "Ready", format!("{node}: {ready:?}"))?;
                let status = &self.state(&node)?["status"]["virtualServers"];
                so(status["desired"].as_i64() >= Some(8), format!("{node}: {status}"))?;
            }
            Ok(())
        })
    }

    /// Says that the third web server of the examples is ready or not, as its controller would.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn change_third_web_server(&self, ready: bool) -> Result<(), LabError> {
        let patch = format!(
            r#"[{{"op": "replace", "path": "/endpoints/2/conditions", "value": {{"ready": {ready}}}}}]"#
        );
        let change = ["patch", "endpointslice", "lvs-svc-test-1", "--type=json", "--patch", &patch];
        self.lab.cluster().kubectl(&change).map(drop)
    }

    /// As [`Scene::change_third_web_server`], and waits until every node has it so.
    ///
    /// # Errors
    /// When a node does not follow.
    pub fn set_third_web_server(&self, ready: bool) -> Result<(), LabError> {
        self.change_third_web_server(ready)?;
        for node in self.nodes() {
            self.until(&format!("10.244.5.24:80 on {node}: {ready}"), || {
                let servers = self.servers(&node)?;
                let real = servers.get("TCP 10.243.21.14:8880 rr");
                let weight = real.and_then(|real| real.get("10.244.5.24:80")).copied();
                so(real.is_some() && (weight > Some(0)) == ready, format!("{servers:?}"))
            })?;
        }
        Ok(())
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab, to stop and start parts of it.
    pub fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// The programs.
    pub fn nodenet(&self) -> &Nodenet {
        &self.nodenet
    }

    /// A node, pod or client by its name.
    pub fn place(&self, name: &str) -> Place {
        self.lab.place(name)
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Vec<String> {
        self.lab.topology().spec().nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Starts an operator replica.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_operator(&mut self, number: u16) -> Result<(), LabError> {
        let process = self.lab.start_operator(&self.nodenet, number)?;
        self.operators.insert(number, process);
        Ok(())
    }

    /// Kills an operator replica with SIGKILL.
    pub fn kill_operator(&mut self, number: u16) {
        if let Some(process) = self.operators.remove(&number) {
            process.kill();
        }
    }

    /// The replica that leads.
    ///
    /// # Errors
    /// When the Lease cannot be read or names none.
    pub fn leader(&self) -> Result<u16, Unmet> {
        let lease = self.lead()?;
        let holder = lease["holderIdentity"].as_str().unwrap_or_default();
        let of = |number: &u16| holder.contains(&format!("nodenet-operator-{number}"));
        [0, 1].into_iter().find(of).ok_or_else(|| Unmet(format!("held by `{holder}`")))
    }

    /// How often the lead went to another process.
    ///
    /// # Errors
    /// When the Lease cannot be read.
    pub fn terms(&self) -> Result<i64, Unmet> {
        let lease = self.lead()?;
        lease["leaseTransitions"].as_i64().ok_or_else(|| Unmet(lease.to_string()))
    }

    fn lead(&self) -> Result<Value, LabError> {
        let lease = self.lab.cluster().get(&["lease", "nodenet-operator", "-n", NAMESPACE])?;
        Ok(lease["spec"].clone())
    }

    /// How an agent is started.
    ///
    /// # Errors
    /// When the chart is not there.
    pub fn prepare_agent(&self, node: &str) -> Result<Exec, LabError> {
        let mut exec = self.lab.prepare_agent(&self.nodenet, node)?;
        exec.argv.extend(self.agent_flags.iter().cloned());
        Ok(exec)
    }

    /// Starts an agent.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent(&mut self, node: &str) -> Result<(), LabError> {
        let exec = self.prepare_agent(node)?;
        self.start_prepared_agent(node, exec)
    }

    /// Starts an agent that was prepared before: at once, and without an API server.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_prepared_agent(&mut self, node: &str, exec: Exec) -> Result<(), LabError> {
        let started = self.place(node).spawn(exec, &agent_log(node))?;
        self.agents.insert(node.to_owned(), started);
        Ok(())
    }

    /// Ends an agent with a signal and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn end_agent(&mut self, node: &str, signal: Signal) -> Result<(), LabError> {
        self.agents.remove(node).map_or(Ok(()), |agent| end(&agent, &format!("the agent of {node}"), signal))
    }

    /// Starts kube-proxy on a node.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_kube_proxy(&mut self, kube_proxy: &KubeProxy, node: &str) -> Result<(), LabError> {
        let started = self.lab.start_kube_proxy(kube_proxy, node)?;
        self.kube_proxies.insert(node.to_owned(), started);
        Ok(())
    }

    /// Ends kube-proxy on a node with a signal and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn end_kube_proxy(&mut self, node: &str, signal: Signal) -> Result<(), LabError> {
        let ended = self.kube_proxies.remove(node);
        ended.map_or(Ok(()), |program| end(&program, &format!("kube-proxy of {node}"), signal))
    }

    /// Asks again and again until it is so, and returns what came of it.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with what was seen last.
    pub fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T, Unmet>) -> Result<T, LabError> {
        let mut last = String::new();
        let result = wait_for(what, PATIENCE, self.lab.site().folder(), || match ask() {
            Ok(value) => Ok(Some(value)),
            Err(Unmet(why)) => {
                last = why;
                std::thread::sleep(LOOK);
                Ok(None)
            }
        });
        result.map_err(|error| match error {
            LabError::Timeout { what, waited, log } => {
                LabError::Timeout { what: format!("{what} (at last: {last})"), waited, log }
            }
            other => other,
        })
    }
}

fn end(program: &Started, what: &str, signal: Signal) -> Result<(), LabError> {
    program.signal(signal)?;
    match program.wait(PATIENCE)? {
        Some(_) => Ok(()),
        None => {
            Err(LabError::Guest { operation: format!("end {what} by {signal}"), reason: "it runs on".into() })
        }
    }
}
