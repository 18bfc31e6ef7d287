//! The table of behaviours as it stands in the files beside this one: for each behaviour the objects, step by step,
//! and what must be answered after each step.
//!
//! A probe is a line `FROM TRANSPORT TARGET -> EXPECTED`, where `every N s` may stand before the arrow. `TARGET` is
//! `address:port` or `node:port`; `EXPECTED` is
//! - the pods that answer, all of them and no other, each with `<` and whose address it saw where that matters
//!   (`a1<client b1<node-a`);
//! - `one of` and pods: always the same one of them;
//! - `refused`, `silence` (no answer), or `nothing` (either of them);
//! - a status code, with the transport `http`.

use nodenet_e2e::tool::traffic::{Attempt, Question, Transport};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// How long one attempt waits. What does not answer in this time is silent; what answers late is asked again.
const PATIENCE_MILLIS: u64 = 2000;

/// One behaviour.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// What happens, in words; the name by which the documents speak of it.
    pub behaviour: String,
    /// The oldest releases (minor versions) that know it.
    #[serde(default)]
    pub since: Since,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// Minor versions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Since {
    /// An older API server drops the field.
    pub api_server: u32,
    /// An older kube-proxy takes no notice.
    pub kube_proxy: u32,
}

/// Objects as they shall be from now on, and what is answered then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// By name; what a step does not mention stays.
    #[serde(default)]
    pub services: BTreeMap<String, Objects>,
    /// Services that go with all that is theirs.
    #[serde(default)]
    pub deleted: Vec<String>,
    /// Asked until all of them are answered so in one go.
    pub probes: Vec<Probe>,
}

/// A Service and what controllers write for it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    /// Of the Service, beside its name.
    pub labels: Option<BTreeMap<String, String>>,
    /// The Service's.
    pub spec: Option<Value>,
    /// Its EndpointSlices.
    pub slices: Option<Vec<Slice>>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Option<Value>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Name (of the Service's port) → number, with `/UDP` where it is not TCP.
    pub ports: BTreeMap<String, Value>,
    /// Whether it holds the pods' IPv6 addresses.
    #[serde(default)]
    pub ipv6: bool,
    /// Pods, each with what distinguishes it: `unready`, `terminating`, `zone=…` and `node=…` (whom it is meant for).
    pub pods: Vec<String>,
}

/// A question with the right answer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Probe {
    /// Both give it.
    Same(String),
    /// kube-proxy gives another one.
    Differs(Difference),
}

/// A question that kube-proxy answers otherwise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Difference {
    /// As in [`Probe::Same`].
    pub probe: String,
    /// Release (`1.20`, or `all`) → what it gives; a release that is not there gives what is right.
    pub kube_proxy: BTreeMap<String, String>,
    /// The reason.
    pub why: String,
}

/// Where the names of the table are.
#[derive(Debug, Default)]
pub struct Names(pub BTreeMap<String, Vec<IpAddr>>);

impl Names {
    fn of(&self, address: IpAddr) -> Option<&str> {
        self.0.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(name, _)| name.as_str())
    }

    /// The address by which it is known: the first of the family.
    pub fn address(&self, name: &str, ipv6: bool) -> Option<IpAddr> {
        self.0.get(name)?.iter().find(|address| address.is_ipv6() == ipv6).copied()
    }
}

/// Who is asked what, and what must come.
#[derive(Debug)]
pub struct Asked {
    /// The line of the table up to the arrow.
    pub text: String,
    /// Who asks.
    pub from: String,
    pub question: Question,
    pub expected: Expected,
}

/// What must come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Just these.
    All(BTreeSet<String>),
    /// Always the same of these.
    OneOf(BTreeSet<String>),
    /// Refused or silence.
    Nothing,
}

impl Probe {
    fn line(&self) -> &str {
        match self {
            Self::Same(line) => line,
            Self::Differs(difference) => &difference.probe,
        }
    }

    /// The reason why this release gives another answer, where it does.
    pub fn difference(&self, release: &str) -> Option<(&str, &str)> {
        let Self::Differs(difference) = self else { return None };
        let minor = release.rsplit_once('.').map_or(release, |(minor, _)| minor);
        let given = difference.kube_proxy.get(minor).or_else(|| difference.kube_proxy.get("all"))?;
        Some((given, &difference.why))
    }

    /// The question, with what must come: the right answer, or that of a release of kube-proxy.
    pub fn asked(&self, names: &Names, kube_proxy: Option<&str>) -> Result<Asked, String> {
        let line = self.line();
        let wrong = |what: &str| format!("`{line}`: {what}");
        let (text, right) = line.split_once(" -> ").ok_or_else(|| wrong("no arrow"))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let (from, transport, target, pause) = match *words.as_slice() {
            [from, transport, target] => (from, transport, target, 0),
            [from, transport, target, "every", seconds, "s"] => {
                (from, transport, target, seconds.parse::<u64>().map_err(|_| wrong("the seconds"))?)
            }
            _ => return Err(wrong("not `FROM TRANSPORT TARGET` or `FROM TRANSPORT TARGET every N s`")),
        };
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            "http" => Transport::Http,
            _ => return Err(wrong("an unknown transport")),
        };
        let target = match target
            .rsplit_once(':')
            .and_then(|(name, port)| Some((names.address(name, false)?, port)))
        {
            Some((address, port)) => SocketAddr::new(address, port.parse().map_err(|_| wrong("the port"))?),
            None => target.parse().map_err(|_| wrong("an unknown target"))?,
        };
        let given = kube_proxy.and_then(|release| self.difference(release)).map(|(given, _)| given);
        let expected = Expected::parse(given.unwrap_or(right));
        let question = Question {
            transport,
            target,
            count: expected.questions(),
            patience_millis: PATIENCE_MILLIS,
            pause_millis: 1000 * pause,
        };
        Ok(Asked { text: text.to_owned(), from: from.to_owned(), question, expected })
    }
}

impl Expected {
    fn parse(text: &str) -> Self {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        match text.strip_prefix("one of ") {
            Some(rest) => Self::OneOf(words(rest)),
            None if text == "nothing" => Self::Nothing,
            None => Self::All(words(text)),
        }
    }

    /// How often to ask: so that round robin comes by everybody twice.
    fn questions(&self) -> u32 {
        let answers = match self {
            Self::All(all) if all.iter().any(|word| word == "refused" || word == "silence") => return 1,
            Self::All(all) => all.len(),
            Self::OneOf(some) => 2 * some.len(),
            Self::Nothing => return 1,
        };
        u32::try_from(2 * answers).unwrap_or(u32::MAX)
    }

    /// Whether that came.
    pub fn is(&self, seen: &Seen) -> bool {
        let within = |some: &BTreeSet<String>| {
            let fits = |wanted: &String, (answer, source): &(String, String)| match wanted.split_once('<') {
                Some((name, from)) => name == answer && from == source,
                None => wanted == answer,
            };
            seen.0.iter().all(|came| some.iter().any(|wanted| fits(wanted, came)))
        };
        let answers: BTreeSet<&String> = seen.0.iter().map(|(answer, _)| answer).collect();
        match self {
            Self::All(all) => answers.len() == all.len() && within(all),
            Self::OneOf(some) => answers.len() == 1 && within(some),
            Self::Nothing => answers.iter().all(|answer| *answer == "refused" || *answer == "silence"),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(" ");
        match self {
            Self::All(all) => formatter.write_str(&join(all)),
            Self::OneOf(some) => write!(formatter, "one of {}", join(some)),
            Self::Nothing => formatter.write_str("nothing"),
        }
    }
}

/// What came: who answered, and whose address it saw; both in the table's words.
#[derive(Debug, Default)]
pub struct Seen(BTreeSet<(String, String)>);

impl Seen {
    /// In the table's words.
    pub fn new(attempts: &[Attempt], names: &Names) -> Self {
        Self(attempts.iter().map(|attempt| word(attempt, names)).collect())
    }
}

fn word(attempt: &Attempt, names: &Names) -> (String, String) {
    let source = attempt.source.map(|source| names.of(source).map_or(source.to_string(), str::to_owned));
    let answer = match (&attempt.answer, &attempt.error) {
        (Some(answer), _) => answer.clone(),
        (None, Some(error)) if error.contains("refused") => "refused".to_owned(),
        (None, Some(error)) if error.contains("timed out") || error.contains("os error 11") => {
            "silence".into()
        }
        (None, Some(error)) => error.replace(' ', "-"),
        (None, None) => "?".to_owned(),
    };
    (answer, source.unwrap_or_default())
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (answer, source)) in self.0.iter().enumerate() {
            let space = if number == 0 { "" } else { " " };
            let arrow = if source.is_empty() { "" } else { "<" };
            write!(formatter, "{space}{answer}{arrow}{source}")?;
        }
        Ok(())
    }
}

impl Slice {
    /// The object, as the EndpointSlice controller would write it.
    pub fn object(&self, service: &str, number: usize, publish: bool, names: &Names) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, port)| {
                let port = port.as_str().map_or(port.to_string(), str::to_owned);
                let (number, protocol) = port.split_once('/').unwrap_or((&port, "TCP"));
                json!({"name": name, "port": number.parse::<u16>().ok(), "protocol": protocol})
            })
            .collect();
        let endpoints: Vec<Value> =
            self.pods.iter().map(|pod| endpoint(pod, self.ipv6, publish, names)).collect();
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("{service}-{number}"), "namespace": "default",
                         "labels": {"kubernetes.io/service-name": service}},
            "ports": ports, "endpoints": endpoints})
    }
}

/// `a1`, with what distinguishes it.
fn endpoint(text: &str, ipv6: bool, publish: bool, names: &Names) -> Value {
    let mut words = text.split_whitespace();
    let pod = words.next().unwrap_or_default();
    let (mut ready, mut terminating, mut hints) = (true, false, json!({}));
    for word in words {
        match word.split_once('=') {
            Some(("zone", zone)) => hints["forZones"] = json!([{"name": zone}]),
            Some(("node", node)) => hints["forNodes"] = json!([{"name": node}]),
            None if word == "unready" => ready = false,
            None if word == "terminating" => terminating = true,
            _ => panic!("`{text}`: what is `{word}`?"),
        }
    }
    let address = names.address(pod, ipv6).unwrap_or_else(|| panic!("`{text}`: no pod {pod}"));
    // Pods are named after their nodes: a1 is on node-a. A node may be an endpoint itself.
    let node = if pod.starts_with("node-") { pod.to_owned() } else { format!("node-{}", &pod[..1]) };
    let mut endpoint = json!({
        "addresses": [address],
        "nodeName": node,
        "conditions": {"ready": (ready && !terminating) || publish, "serving": ready, "terminating": terminating},
    });
    if hints != json!({}) {
        endpoint["hints"] = hints;
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(answer: Option<&str>, source: Option<&str>, error: Option<&str>) -> Attempt {
        Attempt {
            begin_micros: 0,
            took_micros: 0,
            answer: answer.map(str::to_owned),
            source: source.map(|source| source.parse().unwrap()),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn what_came_is_compared_in_the_tables_words() {
        let names = Names([("client".to_owned(), vec!["192.168.0.100".parse().unwrap()])].into());
        let one = attempt(Some("a1"), Some("192.168.0.100"), None);
        let other = attempt(Some("b1"), Some("192.168.0.9"), None);
        let both = Seen::new(&[one.clone(), other], &names);
        assert_eq!(both.to_string(), "a1<client b1<192.168.0.9");
        assert!(Expected::parse("a1 b1").is(&both));
        assert!(Expected::parse("a1<client b1").is(&both));
        assert!(!Expected::parse("a1<node-a b1").is(&both));
        assert!(!Expected::parse("a1").is(&both));
        assert!(!Expected::parse("a1 b1 c1").is(&both));
        assert!(!Expected::parse("one of a1 b1").is(&both));
        assert!(Expected::parse("one of a1 b1").is(&Seen::new(&[one.clone(), one], &names)));
        let refused = Seen::new(&[attempt(None, None, Some("Connection refused (os error 111)"))], &names);
        assert!(Expected::parse("refused").is(&refused) && Expected::parse("nothing").is(&refused));
        assert!(!Expected::parse("silence").is(&refused));
    }
}
