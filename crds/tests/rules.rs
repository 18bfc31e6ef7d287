//! One table of cases through the schema's CEL rules and through `validate`: both must say the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use nodenet_crds::rules::RULES;
use nodenet_crds::{VirtualIPSpec, validate};
use serde_json::{Value, json};

/// Fragments merged over a valid VirtualIP, and the rule messages expected of it.
fn cases() -> Vec<(Value, Vec<&'static str>)> {
    let delay = RULES[0].message;
    let host_mask = RULES[1].message;
    vec![
        (json!({}), vec![]),
        (json!({"failover": {"preempt": true, "preemptDelaySeconds": 30}}), vec![]),
        (json!({"failover": {"preempt": false}}), vec![]),
        (json!({"failover": {"preempt": false, "preemptDelaySeconds": 0}}), vec![]),
        (json!({"failover": {"preempt": false, "preemptDelaySeconds": 30}}), vec![delay]),
        (json!({"addressRole": "Secondary"}), vec![]),
        (json!({"addressRole": "Primary", "addresses": ["192.168.0.15/32"]}), vec![]),
        (json!({"addressRole": "Secondary", "addresses": ["192.168.0.15/32"]}), vec![host_mask]),
        (json!({"addressRole": "Secondary", "addresses": ["2001:db8::15/128"]}), vec![]),
        (
            json!({"addressRole": "Secondary", "addresses": ["10.0.0.7/32"],
                   "failover": {"preempt": false, "preemptDelaySeconds": 1}}),
            vec![delay, host_mask],
        ),
    ]
}

fn spec(fragment: &Value) -> Value {
    let mut spec = json!({"addresses": ["192.168.0.15/24"]});
    for (key, value) in fragment.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Messages of the CEL rules that `object` breaks; objects that are absent have no rules to break.
fn broken_by_cel(object: &Value) -> Vec<&'static str> {
    let mut broken = Vec::new();
    for rule in RULES {
        let mut at = Some(object);
        for name in rule.path {
            at = at.and_then(|v| v.get(*name));
        }
        let Some(at) = at else { continue };
        let program = cel::Program::compile(rule.rule).unwrap_or_else(|e| panic!("{}: {e}", rule.rule));
        let mut context = cel::Context::default();
        context.add_variable("self", at.clone()).unwrap();
        match program.execute(&context).unwrap_or_else(|e| panic!("{} on {at}: {e}", rule.rule)) {
            cel::Value::Bool(true) => {}
            cel::Value::Bool(false) => broken.push(rule.message),
            other => panic!("{}: not a bool: {other:?}", rule.rule),
        }
    }
    broken
}

fn broken_by_validate(spec: &Value) -> Vec<&'static str> {
    let spec: VirtualIPSpec = serde_json::from_value(spec.clone()).unwrap();
    let mut broken: Vec<_> = validate::virtual_ip(&spec)
        .into_iter()
        .map(|v| match v.problem {
            validate::Problem::Rule(message) => message,
            other => panic!("{}: {other}", v.field),
        })
        .collect();
    broken.dedup();
    broken
}

#[test]
fn the_schema_and_the_operator_refuse_the_same_specs() {
    for (fragment, expected) in cases() {
        let spec = spec(&fragment);
        let object = json!({"spec": spec.clone()});
        let sorted = |mut v: Vec<&'static str>| {
            v.sort();
            v
        };
        let expected = sorted(expected);
        assert_eq!(sorted(broken_by_cel(&object)), expected, "CEL on {fragment}");
        assert_eq!(sorted(broken_by_validate(&spec)), expected, "validate on {fragment}");
    }
}

#[test]
fn a_violation_names_the_field_and_the_remedy() {
    let bad = [
        (json!({"addresses": []}), "spec.addresses: has 0 entries; allowed are 1 to 16"),
        (
            json!({"addresses": ["192.168.0.15"]}),
            "spec.addresses[0]: \"192.168.0.15\" is not an address with a prefix",
        ),
        (
            json!({"addresses": ["192.168.0.0/24"]}),
            "spec.addresses[0]: 192.168.0.0 is the network's own address",
        ),
        (json!({"addresses": ["192.168.0.255/24"]}), "the network's broadcast address"),
        (json!({"addresses": ["224.0.0.18/32"]}), "a multicast address"),
        (json!({"addresses": ["127.0.0.1/8"]}), "a loopback address"),
        (json!({"addresses": ["fe80::1/64"]}), "a link-local address"),
        (
            json!({"addresses": ["10.0.0.1/24", "10.0.0.1/16"]}),
            "spec.addresses[1]: 10.0.0.1/16 stands here twice",
        ),
        (json!({"interface": "eth 0"}), "spec.interface: \"eth 0\" is not an interface name"),
        (
            json!({"priorities": [{"nodeSelector": {}, "priority": 255}]}),
            "spec.priorities[0].priority: is 255",
        ),
        (
            json!({"announce": {"intervalMillis": 1}}),
            "spec.announce.intervalMillis: is 1; allowed are 10 to 10000",
        ),
        (
            json!({"services": [{"namespace": "A", "name": "b"}]}),
            "spec.services[0].namespace: \"A\" is not a name",
        ),
        (
            json!({"services": [{"namespace": "a", "name": "b"}, {"namespace": "a", "name": "b"}]}),
            "spec.services[1]: a/b stands here twice",
        ),
        (
            json!({"services": [{"namespace": "a", "name": "b", "ports": [0]}]}),
            "spec.services[0].ports[0]: is 0",
        ),
    ];
    for (fragment, expected) in bad {
        let spec: VirtualIPSpec = serde_json::from_value(spec(&fragment)).unwrap();
        let text: Vec<String> = validate::virtual_ip(&spec).iter().map(ToString::to_string).collect();
        assert!(text.iter().any(|t| t.contains(expected)), "{fragment}: {text:?} lacks {expected:?}");
    }
}
