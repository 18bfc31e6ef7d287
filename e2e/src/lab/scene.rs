//! What scenarios have in common: nodenet at work on the lab's nodes, looks at it from all sides, and
//! waiting for what must come.

use super::error::LabError;
use super::guest::Started;
use super::nodenet::{Nodenet, workspace};
use super::process::{Process, wait_for};
use super::protocol::Exec;
use super::traffic::{Place, answers};
use super::{Lab, LabSpec};
use crate::tool::traffic::{Attempt, Transport};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long to wait for what must come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// An agent's metrics, in its node's namespace, by the chart's default.
const AGENT_METRICS: &str = "http://127.0.0.1:10356/metrics";

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

/// A condition of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A lab with nodenet at work in it. Dropping it ends everything.
#[derive(Debug)]
pub struct Scene {
    // Before the lab: they run in it.
    operators: BTreeMap<u16, Process>,
    agents: BTreeMap<String, Started>,
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
        Ok(Some(Self { operators: BTreeMap::new(), agents: BTreeMap::new(), nodenet, agent_flags, lab }))
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

    /// Starts again what of the operators has ended by itself, as kubelet does.
    ///
    /// # Errors
    /// When one does not start.
    pub fn revive_operators(&mut self) -> Result<(), LabError> {
        let ended: Vec<u16> = self
            .operators
            .iter_mut()
            .filter_map(|(number, process)| (!process.is_running()).then_some(*number))
            .collect();
        for number in ended {
            self.start_operator(number)?;
        }
        Ok(())
    }

    /// The replica that leads.
    ///
    /// # Errors
    /// When the Lease cannot be read or names none.
    pub fn leader(&self) -> Result<u16, Unmet> {
        let lease = self.lab.cluster().get(&["lease", "nodenet-operator", "-n", "nodenet-system"])?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let of = |number: &u16| holder.contains(&format!("nodenet-operator-{number}"));
        [0, 1].into_iter().find(of).ok_or_else(|| Unmet(format!("held by `{holder}`")))
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
        let started = self.place(node).spawn(exec, &format!("agent-{node}.log"))?;
        self.agents.insert(node.to_owned(), started);
        Ok(())
    }

    /// Ends an agent with a signal and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn end_agent(&mut self, node: &str, signal: Signal) -> Result<(), LabError> {
        let Some(agent) = self.agents.remove(node) else { return Ok(()) };
        agent.signal(signal)?;
        match agent.wait(Duration::from_secs(20))? {
            Some(_) => Ok(()),
            None => Err(LabError::Guest {
                operation: format!("end the agent of {node} by {signal}"),
                reason: "it runs on".into(),
            }),
        }
    }

    /// A NodeNetState.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn state(&self, node: &str) -> Result<Value, LabError> {
        self.lab.cluster().get(&["nns", node])
    }

    /// What a NodeNetState's status says of a virtual IP.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn on_node(&self, node: &str, virtual_ip: &str) -> Result<Value, Unmet> {
        let status = self.state(node)?["status"].clone();
        let all = status["virtualIPs"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|entry| entry["name"] == virtual_ip);
        found.ok_or_else(|| Unmet(format!("{node} says nothing of {virtual_ip}: {status}")))
    }

    /// A condition of an object, named as for `kubectl get`.
    ///
    /// # Errors
    /// When it has none of that type.
    pub fn condition(&self, object: &[&str], type_: &str) -> Result<Condition, Unmet> {
        let object = self.lab.cluster().get(object)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == type_);
        let found = found.ok_or_else(|| Unmet(format!("no condition {type_}: {}", object["status"])))?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        let generation = &object["metadata"]["generation"];
        if found["observedGeneration"].is_i64() && found["observedGeneration"] != *generation {
            return Err(Unmet(format!("not of generation {generation} yet: {found}")));
        }
        Ok(Condition { status: text("status"), reason: text("reason"), message: text("message") })
    }

    /// The notes of all Events with this reason.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn events(&self, reason: &str) -> Result<Vec<String>, LabError> {
        let list = self.lab.cluster().get(&["events", "-n", "default"])?;
        let all = list["items"].as_array().into_iter().flatten();
        let note = |event: &Value| {
            let about = event["involvedObject"]["name"].as_str().unwrap_or_default();
            format!("{about}: {}", event["message"].as_str().unwrap_or_default())
        };
        Ok(all.filter(|event| event["reason"] == reason).map(note).collect())
    }

    /// The addresses of an interface of a node: address with prefix length → whether it is secondary.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn addresses(&self, node: &str) -> Result<BTreeMap<String, bool>, Unmet> {
        let text = self.place(node).run(&["ip", "-json", "addr", "show", "dev", "ens33"])?;
        let links: Vec<Value> = serde_json::from_str(&text)?;
        let all = links.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        let entry = |address: &Value| {
            let plain = address["local"].as_str()?;
            Some((format!("{plain}/{}", address["prefixlen"]), address["secondary"] == true))
        };
        Ok(all.filter_map(entry).collect())
    }

    /// The nodes that have an address (with prefix length) on their interface.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn holders(&self, address: &str) -> Result<BTreeSet<String>, Unmet> {
        let mut holders = BTreeSet::new();
        for node in self.nodes() {
            if self.addresses(&node)?.contains_key(address) {
                holders.insert(node);
            }
        }
        Ok(holders)
    }

    /// What `ipvsadm -Ln` shows on a node: `TCP 10.0.0.1:80 rr` → its real servers' addresses with weight.
    ///
    /// # Errors
    /// When the guest fails.
    pub fn servers(&self, node: &str) -> Result<BTreeMap<String, BTreeMap<String, u32>>, LabError> {
        let text = self.place(node).run(&["ipvsadm", "-Ln"])?;
        let mut servers: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        let mut current = String::new();
        for line in text.lines().skip(3) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["->", real, _, weight, ..] => {
                    let weight = weight.parse().unwrap_or_default();
                    servers.entry(current.clone()).or_default().insert((*real).to_owned(), weight);
                }
                [protocol, address, scheduler, ..] => {
                    current = format!("{protocol} {address} {scheduler}");
                    servers.entry(current.clone()).or_default();
                }
                _ => {}
            }
        }
        Ok(servers)
    }

    /// A metric of a node's agent: of one set of labels where these are named, otherwise the sum over all.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metric(&self, node: &str, name: &str) -> Result<f64, LabError> {
        let text = self.place(node).run(&["curl", "-sf", "--max-time", "5", AGENT_METRICS])?;
        let of = |line: &&str| {
            line.split(['{', ' ']).next() == Some(name)
                || line.rsplit_once(' ').is_some_and(|(of, _)| of == name)
        };
        Ok(text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Asks so many times by TCP.
    ///
    /// # Errors
    /// When the guest fails; attempts without an answer are in the result.
    pub fn ask(&self, from: &str, to: &str, count: u32) -> Result<Vec<Attempt>, Unmet> {
        let target: SocketAddr = to.parse()?;
        Ok(self.place(from).ask(Transport::Tcp, target, count)?)
    }

    /// Asks, and wants just these answers.
    ///
    /// # Errors
    /// What came instead.
    pub fn answered(&self, from: &str, to: &str, expected: &[(&str, usize)]) -> Result<Vec<Attempt>, Unmet> {
        let count = expected.iter().map(|(_, times)| times).sum::<usize>();
        let attempts = self.ask(from, to, u32::try_from(count)?)?;
        let wanted: BTreeMap<String, usize> =
            expected.iter().map(|(name, times)| ((*name).to_owned(), *times)).collect();
        so(answers(&attempts) == wanted, format!("{from} asked {to}: {attempts:?}"))?;
        Ok(attempts)
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

/// The parts of a scenario: one that fails is told and the next is tried, for a lab is dear.
#[derive(Debug, Default)]
pub struct Steps {
    failed: Vec<String>,
}

impl Steps {
    /// Does one part; a panic in it is its failure.
    pub fn run(&mut self, name: &str, part: impl FnOnce()) {
        let begin = Instant::now();
        let result: Result<(), Box<dyn Any + Send>> = catch_unwind(AssertUnwindSafe(part));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("  {word} {name} ({:.1} s)", begin.elapsed().as_secs_f64());
        if result.is_err() {
            self.failed.push(name.to_owned());
        }
    }

    /// The names of the parts that failed.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }
}
