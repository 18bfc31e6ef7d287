//! Looks at nodenet from all sides: its objects, its metrics, the kernels of the nodes, and what answers.

use super::error::LabError;
use super::scene::{Scene, Unmet, so};
use super::traffic::answers;
use crate::tool::traffic::{Attempt, Transport};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// An agent's metrics, in its node's namespace, by the chart's default.
const AGENT_METRICS: &str = "http://127.0.0.1:10356/metrics";

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

impl Scene {
    /// A NodeNetState.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn state(&self, node: &str) -> Result<Value, LabError> {
        self.lab().cluster().get(&["nns", node])
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
        let object = self.lab().cluster().get(object)?;
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
        let list = self.lab().cluster().get(&["events", "-n", "default"])?;
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
}
