//! Behaviours over time: clients that go on asking while endpoints come and go.

use crate::table::{Objects, Slice};
use crate::world::Store;
use nix::sys::signal::Signal;
use nodenet_e2e::lab::scene::{Scene, Unmet, so};
use nodenet_e2e::lab::traffic::Probe;
use nodenet_e2e::tool::traffic::{Attempt, Transport};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// A behaviour over time.
#[derive(Clone, Copy)]
pub struct Lasting {
    /// In words; the name by which the documents speak of it.
    pub behaviour: &'static str,
    /// What kube-proxy may do instead, now and then.
    pub kube_proxy_may: Option<&'static str>,
    pub show: fn(&Scene, &Mutex<Store<'_>>) -> Result<(), Unmet>,
}

pub const LASTING: [Lasting; 2] = [
    Lasting {
        behaviour: "a UDP client that keeps its socket follows the endpoints",
        kube_proxy_may: None,
        show: kept_socket,
    },
    Lasting {
        behaviour: "a rolling update without a lost question",
        kube_proxy_may: Some("some questions are lost (69 of 10,364 when it was looked at)"),
        show: rolling_update,
    },
];

/// Whether the last answers are all from these, and from each of them.
fn now_from(probe: &Probe, pods: &[&str]) -> Result<(), Unmet> {
    let attempts = probe.attempts()?;
    let last: Vec<_> = attempts.iter().rev().take(10 * pods.len()).collect();
    let answer = |attempt: &&Attempt| attempt.answer.clone().unwrap_or_default();
    let only = last.iter().all(|attempt| pods.contains(&answer(attempt).as_str()));
    let each = pods.iter().all(|pod| last.iter().any(|attempt| answer(attempt) == *pod));
    so(last.len() == 10 * pods.len() && only && each, format!("{pods:?} and nobody else: {:?}", last.first()))
}

fn service(spec: Value, slices: &[Slice]) -> Objects {
    Objects { spec: Some(spec), slices: Some(slices.to_vec()), ..Objects::default() }
}

fn slice(port: &str, pods: &[&str]) -> Slice {
    Slice {
        ipv6: false,
        ports: [(String::new(), json!(port))].into(),
        pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
    }
}

fn kept_socket(scene: &Scene, store: &Mutex<Store<'_>>) -> Result<(), Unmet> {
    let name = "udp-cycle".to_owned();
    let spec = json!({"type": "NodePort", "clusterIP": "10.243.4.1",
        "ports": [{"protocol": "UDP", "port": 53, "targetPort": 8080, "nodePort": 30301}]});
    let put = |pods: &[&str]| {
        let slices: Vec<Slice> = if pods.is_empty() { Vec::new() } else { vec![slice("8080/UDP", pods)] };
        store.lock().unwrap().change(&[(&name, &service(spec.clone(), &slices))], &[])
    };
    put(&["a1"])?;
    let probes = [
        scene.place("client").keep_asking("192.168.0.11:30301".parse()?, 10)?,
        scene.place("a2").keep_asking("10.243.4.1:53".parse()?, 10)?,
    ];
    for pods in [&["a1"][..], &["b1"], &[], &["a1"]] {
        put(pods)?;
        for probe in &probes {
            scene.until(&format!("answers of {pods:?} on a kept socket"), || {
                if pods.is_empty() {
                    let attempts = probe.attempts()?;
                    let mut last = attempts.iter().rev().take(5);
                    return so(last.all(|attempt| attempt.error.is_some()), "still answered");
                }
                now_from(probe, pods)
            })?;
        }
    }
    Ok(())
}

fn rolling_update(scene: &Scene, store: &Mutex<Store<'_>>) -> Result<(), Unmet> {
    const PORT: u16 = 8090;
    let name = "rolling".to_owned();
    let spec = json!({"type": "NodePort", "clusterIP": "10.243.4.2",
        "ports": [{"port": 80, "targetPort": PORT, "nodePort": 30302}]});
    let put = |pods: &[&str]| {
        store
            .lock()
            .unwrap()
            .change(&[(&name, &service(spec.clone(), &[slice(&PORT.to_string(), pods)]))], &[])
    };
    let mut servers = BTreeMap::new();
    for pod in ["a1", "a2", "b1", "c1"] {
        servers.insert(pod, scene.place(pod).serve(pod, &[PORT])?);
    }
    put(&["a1", "b1"])?;
    scene.until("answers of the old pods", || {
        scene.answered("client", "192.168.0.11:30302", &[("a1", 2), ("b1", 2)])?;
        scene.answered("c1", "10.243.4.2:80", &[("a1", 2), ("b1", 2)])
    })?;
    let probes = [
        scene.place("client").probe(Transport::Tcp, "192.168.0.11:30302".parse()?, 50)?,
        scene.place("c1").probe(Transport::Tcp, "10.243.4.2:80".parse()?, 50)?,
    ];
    let all_from = |pods: &[&str]| {
        probes.iter().try_for_each(|probe| {
            scene.until(&format!("answers of {pods:?}"), || now_from(probe, pods)).map(drop)
        })
    };
    all_from(&["a1", "b1"])?;
    // One comes, one is told to go and goes when nobody is sent to it any more; as a Deployment does it.
    for (pods, answering, ended) in [
        (&["a1", "b1", "a2"][..], &["a1", "b1", "a2"][..], None),
        (&["a1 terminating", "b1", "a2"], &["b1", "a2"], Some("a1")),
        (&["b1", "a2", "c1"], &["b1", "a2", "c1"], None),
        (&["b1 terminating", "a2", "c1"], &["a2", "c1"], Some("b1")),
        (&["a2", "c1"], &["a2", "c1"], None),
    ] {
        put(pods)?;
        all_from(answering)?;
        if let Some(server) = ended.and_then(|pod| servers.remove(pod)) {
            server.signal(Signal::SIGKILL)?;
        }
    }
    for probe in probes {
        let attempts = probe.stop()?;
        let lost: Vec<_> = attempts.iter().filter(|attempt| attempt.error.is_some()).collect();
        so(
            lost.is_empty(),
            format!("{} of {} lost, the first: {:?}", lost.len(), attempts.len(), lost.first()),
        )?;
    }
    for server in servers.values() {
        server.signal(Signal::SIGKILL)?;
    }
    Ok(())
}
