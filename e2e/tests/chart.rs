//! The Helm chart: what it makes of good values, what it says to bad ones.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use expect_test::expect;
use nodenet_e2e::lab::{cache::Cache, client_tools};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const NAMESPACE: &str = "some-where";
const NODES: &str = "nodenet-nodes";
/// The values without a default.
const REQUIRED: &[&str] = &[
    "apiServers={192.168.0.10:6443}",
    "serviceCIDRs={10.243.0.0/16}",
    "clusterCIDRs={10.244.0.0/16,10.70.0.0/16}",
];
const ADMISSION: &str = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy";

/// helm: named by the variable HELM, in PATH, or the lab's.
fn helm() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if let Some(named) = std::env::var_os("HELM").filter(|value| !value.is_empty()) {
            return Ok(named.into());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(helm) =
            std::env::split_paths(&path).map(|folder| folder.join("helm")).find(|p| p.is_file())
        {
            return Ok(helm);
        }
        let tools = Cache::open().and_then(|cache| client_tools::ensure(&cache));
        tools.map(|tools| tools.helm).map_err(|error| error.to_string())
    });
    match found {
        Ok(helm) => Some(helm),
        Err(error) => {
            println!("SKIP: no helm ({error}); set HELM to its path");
            None
        }
    }
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nodenet")
}

fn run(helm: &Path, arguments: &[&str]) -> Output {
    Command::new(helm).args(arguments).env_remove("KUBECONFIG").output().expect("helm starts")
}

/// `helm template` with values on top of the required ones.
fn template(helm: &Path, values: &[&str], more: &[&str]) -> Result<Vec<Value>, String> {
    let chart = chart();
    let mut arguments = vec!["template", "nodenet", chart.to_str().expect("UTF-8"), "--namespace", NAMESPACE];
    for value in REQUIRED.iter().chain(values) {
        arguments.extend(["--set", value]);
    }
    arguments.extend(more);
    let output = run(helm, &arguments);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let documents = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
        .filter(|value: &Value| !value.is_null())
        .collect();
    Ok(documents)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn kind(object: &Value) -> &str {
    text(object, "/kind")
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn words(value: &Value, pointer: &str) -> Vec<String> {
    list(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn find<'a>(objects: &'a [Value], wanted: &str, called: &str) -> &'a Value {
    let found = objects.iter().find(|object| kind(object) == wanted && name(object) == called);
    found.unwrap_or_else(|| panic!("no {wanted} {called}"))
}

/// Pod specs by the name of what makes the pods.
fn pods(objects: &[Value]) -> BTreeMap<&str, &Value> {
    let spec = |object: &'_ Value| match kind(object) {
        "Pod" => "/spec",
        "Deployment" | "DaemonSet" | "Job" => "/spec/template/spec",
        _ => "",
    };
    objects
        .iter()
        .filter(|object| !spec(object).is_empty())
        .map(|object| (name(object), object.pointer(spec(object)).expect("a pod spec")))
        .collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/initContainers").iter().chain(list(pod, "/containers"))
}

/// Sets of values that a user might have: nothing but the required ones, everything, IPv6, without the extras.
fn variants() -> Vec<Vec<&'static str>> {
    vec![
        vec![],
        vec![
            "scheduler=wrr",
            "masqueradeAll=true",
            "nodePortAddresses={192.168.0.0/24}",
            "externalIPCIDRs={203.0.113.0/24,2001:db8:2::/64}",
            "takeover=true",
            "excludeCIDRs={192.168.0.200/32}",
            "verifyPeriod=2m",
            "logLevel=debug",
            "nodeNamespace.name=leases",
            "image.operator.repository=registry.example.org:5000/nodenet/operator",
            "image.agent.tag=1.2.3",
            "image.pullSecrets[0].name=secret",
            "operator.replicas=1",
            "operator.hostNetwork=false",
            "operator.httpAddress=0.0.0.0:8080",
            "operator.affinity.nodeAffinity.x=1",
            "agent.httpAddress=[::]:9000",
            "agent.maxUnavailable=10%",
            "agent.affinity.nodeAffinity.x=1",
            "agent.podAnnotations.a=b",
            "agent.podLabels.c=d",
            "agent.resources.limits.memory=128Mi",
        ],
        vec![
            "apiServers={[2001:db8::10]:6443,api.example.org:443}",
            "serviceCIDRs={10.243.0.0/16,2001:db8:1::/108}",
            "clusterCIDRs=null",
            "serviceProxy=false",
            "removeServices=true",
        ],
        vec![
            "admissionPolicy=Off",
            "cleanup.enabled=false",
            "agent.kernelModules.load=false",
            "nodeNamespace.create=false",
            "operator.priorityClassName=",
            "agent.priorityClassName=",
            "operator.tolerations=null",
            "agent.tolerations=null",
        ],
    ]
}

#[test]
fn lint_finds_nothing() {
    let Some(helm) = helm() else { return };
    let chart = chart();
    for values in variants() {
        let mut arguments = vec!["lint", "--strict", "--quiet", chart.to_str().expect("UTF-8")];
        for value in REQUIRED.iter().chain(&values) {
            arguments.extend(["--set", value]);
        }
        let output = run(helm, &arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{values:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_variant_renders_without_holes() {
    let Some(helm) = helm() else { return };
    for values in variants() {
        for object in template(helm, &values, &["--api-versions", ADMISSION]).expect("renders") {
            let what = format!("{} {} with {values:?}", kind(&object), name(&object));
            assert!(!kind(&object).is_empty() && !name(&object).is_empty(), "{what}");
            assert!(!object.to_string().contains("<no value>"), "{what}");
            assert_eq!(text(&object, "/metadata/labels/app.kubernetes.io~1part-of"), "nodenet", "{what}");
        }
    }
}

#[test]
fn namespaced_objects_live_in_the_releases_namespace() {
    let Some(helm) = helm() else { return };
    let objects = template(helm, &[], &["--api-versions", ADMISSION]).expect("renders");
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for object in &objects {
        let place = match text(object, "/metadata/namespace") {
            "" => "(cluster)",
            namespace => namespace,
        };
        places.entry(place).or_default().push(format!("{} {}", kind(object), name(object)));
    }
    let mut shown = String::new();
    for (place, mut objects) in places {
        objects.sort();
        writeln!(shown, "{place}:\n  {}", objects.join("\n  ")).expect("fits");
    }
    expect![[r#"
        (cluster):
          ClusterRole nodenet-agent
          ClusterRole nodenet-cleanup
          ClusterRole nodenet-operator
          ClusterRoleBinding nodenet-agent
          ClusterRoleBinding nodenet-cleanup
          ClusterRoleBinding nodenet-operator
          Namespace nodenet-nodes
          ValidatingAdmissionPolicy nodenet-agent
          ValidatingAdmissionPolicyBinding nodenet-agent
        default:
          Role nodenet-agent-events
          RoleBinding nodenet-agent-events
        nodenet-nodes:
          Role nodenet-agent
          Role nodenet-operator
          RoleBinding nodenet-agent
          RoleBinding nodenet-operator
        some-where:
          ConfigMap nodenet-agent
          DaemonSet nodenet-agent
          Deployment nodenet-operator
          Job nodenet-cleanup
          Pod nodenet-test-cluster-ip
          PodDisruptionBudget nodenet-operator
          Role nodenet-agent
          Role nodenet-operator
          RoleBinding nodenet-agent
          RoleBinding nodenet-operator
          ServiceAccount nodenet-agent
          ServiceAccount nodenet-cleanup
          ServiceAccount nodenet-operator
    "#]]
    .assert_eq(&shown);
}

#[test]
fn pods_have_the_least_privileges() {
    let Some(helm) = helm() else { return };
    let objects = template(helm, &[], &[]).expect("renders");
    let mut shown = String::new();
    for (owner, pod) in pods(&objects) {
        let network = if pod["hostNetwork"] == true { "host" } else { "pod" };
        let user = &pod["securityContext"]["runAsUser"];
        assert_eq!(text(pod, "/securityContext/seccompProfile/type"), "RuntimeDefault", "{owner}");
        assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null(), "{owner}");
        writeln!(shown, "{owner}: {network} network, user {user}").expect("fits");
        for container in containers(pod) {
            let what = format!("{owner}/{}", name_of(container));
            let context = &container["securityContext"];
            assert!(context["privileged"].is_null(), "{what}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{what}");
            assert_eq!(words(context, "/capabilities/drop"), ["ALL"], "{what}");
            let added = words(context, "/capabilities/add").join(" ");
            writeln!(shown, "  container {}: {}", name_of(container), or(&added, "no capability"))
                .expect("fits");
            for mount in list(container, "/volumeMounts") {
                let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
                writeln!(shown, "    {} {mode}", text(mount, "/mountPath")).expect("fits");
            }
        }
        for volume in list(pod, "/volumes") {
            let what = match text(volume, "/hostPath/path") {
                "" => format!("ConfigMap {}", text(volume, "/configMap/name")),
                path => format!("host's {path}"),
            };
            writeln!(shown, "  {what}").expect("fits");
        }
    }
    expect![[r#"
        nodenet-agent: host network, user 0
          container kernel-modules: SYS_MODULE
            /lib/modules ro
          container agent: NET_ADMIN NET_RAW
            /etc/nodenet ro
            /var/lib/nodenet rw
            /run/nodenet rw
            /run/xtables.lock rw
            /host/proc/sys/net rw
            /lib/modules ro
          ConfigMap nodenet-agent
          host's /var/lib/nodenet
          host's /run/nodenet
          host's /run/xtables.lock
          host's /proc/sys/net
          host's /lib/modules
        nodenet-cleanup: host network, user 65532
          container cleanup: no capability
        nodenet-operator: host network, user 65532
          container operator: no capability
        nodenet-test-cluster-ip: pod network, user 65532
          container connect: no capability
    "#]]
    .assert_eq(&shown);
}

fn name_of(container: &Value) -> &str {
    text(container, "/name")
}

fn or<'a>(value: &'a str, otherwise: &'a str) -> &'a str {
    if value.is_empty() { otherwise } else { value }
}

#[test]
fn rights_are_exactly_these() {
    let Some(helm) = helm() else { return };
    let objects = template(helm, &[], &[]).expect("renders");
    let mut shown = String::new();
    for binding in objects.iter().filter(|object| kind(object).ends_with("RoleBinding")) {
        let role = objects.iter().find(|object| {
            kind(object) == text(binding, "/roleRef/kind")
                && name(object) == text(binding, "/roleRef/name")
                && text(object, "/metadata/namespace") == text(binding, "/metadata/namespace")
        });
        let role = role.unwrap_or_else(|| panic!("{} binds a role that is not there", name(binding)));
        let subjects = list(binding, "/subjects");
        assert_eq!(subjects.len(), 1, "{}", name(binding));
        assert_eq!(text(&subjects[0], "/kind"), "ServiceAccount");
        assert_eq!(text(&subjects[0], "/namespace"), NAMESPACE);
        let account = text(&subjects[0], "/name");
        find(&objects, "ServiceAccount", account);
        let place = or(text(binding, "/metadata/namespace"), "(cluster)");
        for rule in list(role, "/rules") {
            let groups = words(rule, "/apiGroups").join(",");
            let names = words(rule, "/resourceNames").join(",");
            let names = if names.is_empty() { names } else { format!(" called {names}") };
            let resources = words(rule, "/resources").join(", ");
            let verbs = words(rule, "/verbs").join(" ");
            writeln!(shown, "{account} in {place}: {verbs}: {resources} [{groups}]{names}").expect("fits");
        }
    }
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    expect![[r#"
        nodenet-agent in (cluster): list watch: nodenetstates, nodenetslices [nodenet.dev]
        nodenet-agent in (cluster): patch: nodenetstates/status [nodenet.dev]
        nodenet-agent in default: create patch: events [events.k8s.io]
        nodenet-agent in nodenet-nodes: create patch: leases [coordination.k8s.io]
        nodenet-agent in some-where: get: leases [coordination.k8s.io] called nodenet-operator
        nodenet-cleanup in (cluster): list delete: nodenetstates [nodenet.dev]
        nodenet-cleanup in (cluster): list patch delete: nodenetslices [nodenet.dev]
        nodenet-operator in (cluster): create: events [events.k8s.io]
        nodenet-operator in (cluster): get list watch create patch delete: nodenetstates [nodenet.dev]
        nodenet-operator in (cluster): get list watch create update patch delete: nodenetslices [nodenet.dev]
        nodenet-operator in (cluster): list watch: endpointslices [discovery.k8s.io]
        nodenet-operator in (cluster): list watch: nodes, services []
        nodenet-operator in (cluster): list watch: virtualips [nodenet.dev]
        nodenet-operator in (cluster): patch: virtualips/status [nodenet.dev]
        nodenet-operator in nodenet-nodes: list watch: leases [coordination.k8s.io]
        nodenet-operator in some-where: create: leases [coordination.k8s.io]
        nodenet-operator in some-where: get update: leases [coordination.k8s.io] called nodenet-operator"#]]
    .assert_eq(&lines.join("\n"));
    let roles = objects.iter().filter(|object| matches!(kind(object), "Role" | "ClusterRole")).count();
    let bindings = objects.iter().filter(|object| kind(object).ends_with("RoleBinding")).count();
    assert_eq!(roles, bindings, "a role without a binding");
}

#[test]
fn pods_run_under_their_own_accounts() {
    let Some(helm) = helm() else { return };
    let objects = template(helm, &[], &[]).expect("renders");
    let accounts: Vec<String> = pods(&objects)
        .iter()
        .map(|(owner, pod)| format!("{owner}: {}", or(text(pod, "/serviceAccountName"), "no token")))
        .collect();
    assert_eq!(
        accounts,
        [
            "nodenet-agent: nodenet-agent",
            "nodenet-cleanup: nodenet-cleanup",
            "nodenet-operator: nodenet-operator",
            "nodenet-test-cluster-ip: no token",
        ]
    );
    assert_eq!(pods(&objects)["nodenet-test-cluster-ip"]["automountServiceAccountToken"], false);
}

#[test]
fn programs_get_the_values_as_flags() {
    let Some(helm) = helm() else { return };
    let objects =
        template(helm, &["masqueradeAll=true", "agent.kernelModules.names={dummy}"], &[]).expect("renders");
    let pods = pods(&objects);
    assert_eq!(
        words(pods["nodenet-operator"], "/containers/0/args"),
        [
            "run",
            "--namespace=some-where",
            "--node-namespace=nodenet-nodes",
            "--api-server=192.168.0.10:6443",
            "--service-cidr=10.243.0.0/16",
            "--cluster-cidr=10.244.0.0/16",
            "--cluster-cidr=10.70.0.0/16",
            "--scheduler=rr",
            "--http-address=127.0.0.1:10357",
        ]
    );
    assert_eq!(
        words(pods["nodenet-agent"], "/containers/0/args"),
        [
            "run",
            "--node=$(NODE_NAME)",
            "--api-server=192.168.0.10:6443",
            "--node-namespace=nodenet-nodes",
            "--operator-namespace=some-where",
            "--http-address=127.0.0.1:10356",
            "--config=/etc/nodenet/agent.yaml",
        ]
    );
    assert_eq!(
        words(pods["nodenet-cleanup"], "/containers/0/args"),
        ["cleanup", "--api-server=192.168.0.10:6443"]
    );
    let modules = words(pods["nodenet-agent"], "/initContainers/0/args");
    assert_eq!(
        modules[1..],
        ["kernel-modules", "dummy", "ip_vs_rr"],
        "the scheduler's module comes by itself"
    );
}

/// The file that agents read.
fn configuration(objects: &[Value]) -> Value {
    let file = text(find(objects, "ConfigMap", "nodenet-agent"), "/data/agent.yaml").to_owned();
    serde_yaml_ng::from_str(&file).expect("YAML")
}

#[test]
fn agents_read_a_configuration_file_and_roll_when_it_changes() {
    let Some(helm) = helm() else { return };
    let values = ["masqueradeAll=true", "takeover=true", "excludeCIDRs={192.168.0.200/32}"];
    let objects = template(helm, &values, &[]).expect("renders");
    assert_eq!(
        configuration(&objects),
        serde_json::json!({
            "verifyPeriod": "30s", "minSyncPeriod": "0s", "drainTimeout": "15m", "healthzAddress": "0.0.0.0:10256",
            "serviceProxy": true, "removeServices": false, "takeover": true, "excludeCIDRs": ["192.168.0.200/32"],
            "scheduler": "rr", "masqueradeAll": true, "masqueradeBit": 14,
            "insideMark": {"base": 0x1000, "firstBit": 0, "bits": 12},
        }),
        "what is not said leaves the kernel as it is"
    );
    let checksum = |objects: &[Value]| {
        let set = find(objects, "DaemonSet", "nodenet-agent");
        set["spec"]["template"]["metadata"]["annotations"]["nodenet.dev/configuration"].clone()
    };
    let more = template(
        helm,
        &[
            "insideMark.base=268435456",
            "insideMark.firstBit=16",
            "masqueradeBit=31",
            "ipvs.udpTimeout=1m",
            "conntrack.maxPerCore=32768",
            "conntrack.tcpEstablishedTimeout=24h0m0s",
            "conntrack.tcpBeLiberal=true",
        ],
        &[],
    )
    .expect("renders");
    let file = configuration(&more);
    assert_eq!(file["insideMark"], serde_json::json!({"base": 0x1000_0000, "firstBit": 16, "bits": 12}));
    assert_eq!(file["ipvs"], serde_json::json!({"udpTimeout": "1m"}));
    let conntrack =
        serde_json::json!({"maxPerCore": 32768, "tcpBeLiberal": true, "tcpEstablishedTimeout": "24h0m0s"});
    assert_eq!(file["conntrack"], conntrack);
    assert_ne!(checksum(&objects), checksum(&more));
    let annotated = [&["agent.podAnnotations.a=b"], values.as_slice()].concat();
    let annotated = template(helm, &annotated, &[]).expect("renders");
    assert_eq!(checksum(&objects), checksum(&annotated));
}

#[test]
fn probes_ask_where_the_program_listens() {
    let Some(helm) = helm() else { return };
    let probe = |value: &str| {
        let objects = template(helm, &[value], &[]).expect("renders");
        let agent = pods(&objects)["nodenet-agent"].clone();
        let port = agent.pointer("/containers/0/ports/0/containerPort").cloned().unwrap_or_default();
        let probe = agent.pointer("/containers/0/livenessProbe/httpGet").cloned().unwrap_or_default();
        format!("{}{} port {port}", or(text(&probe, "/host"), "(pod)"), text(&probe, "/path"))
    };
    assert_eq!(probe("agent.httpAddress=127.0.0.1:1"), "127.0.0.1/livez port 1");
    assert_eq!(probe("agent.httpAddress=[::1]:2"), "::1/livez port 2");
    assert_eq!(probe("agent.httpAddress=0.0.0.0:3"), "(pod)/livez port 3");
    assert_eq!(probe("agent.httpAddress=[::]:4"), "(pod)/livez port 4");
}

#[test]
fn agents_are_pinned_where_the_api_server_can() {
    let Some(helm) = helm() else { return };
    let policies = |values: &[&str], more: &[&str]| {
        let objects = template(helm, values, more).expect("renders");
        objects.into_iter().filter(|object| kind(object).starts_with("ValidatingAdmissionPolicy")).collect()
    };
    let without: Vec<Value> = policies(&[], &[]);
    assert!(without.is_empty(), "{without:?}");
    let off: Vec<Value> = policies(&["admissionPolicy=Off"], &["--api-versions", ADMISSION]);
    assert!(off.is_empty(), "{off:?}");
    let with: Vec<Value> = policies(&[], &["--api-versions", ADMISSION]);
    assert_eq!(
        with.iter().map(kind).collect::<Vec<_>>(),
        ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]
    );
    assert_eq!(text(&with[1], "/spec/policyName"), name(&with[0]));
    assert!(with[0].to_string().contains("system:serviceaccount:some-where:nodenet-agent"), "{}", with[0]);
}

#[test]
fn every_value_of_the_schema_is_explained_in_values_yaml() {
    let schema = std::fs::read_to_string(chart().join("values.schema.json")).expect("readable");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let values = std::fs::read_to_string(chart().join("values.yaml")).expect("readable");
    let values: Value = serde_yaml_ng::from_str(&values).expect("YAML");
    compare("", &schema, &values);

    fn compare(path: &str, schema: &Value, values: &Value) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let there = values.as_object().expect("a map");
        for (key, property) in properties.iter().filter(|(key, _)| *key != "global") {
            let path = format!("{path}/{key}");
            let value = there.get(key).unwrap_or_else(|| panic!("values.yaml lacks {path}"));
            compare(&path, property, value);
        }
        if !path.is_empty() {
            assert_eq!(schema["additionalProperties"], false, "{path} takes anything");
        }
    }
}

#[test]
fn bad_values_are_refused_with_words() {
    let Some(helm) = helm() else { return };
    let cases: &[(&[&str], &str)] = &[
        (&["apiServers=null"], "apiServers is empty. Name the API servers' own addresses"),
        (&["serviceCIDRs=null"], "serviceCIDRs is empty. Name the range that ClusterIPs come from"),
        (&["apiServers={10.243.0.1:443}"], "10.243.0.1:443 lies in the service range 10.243.0.0/16"),
        (
            &[
                "apiServers={192.168.0.10:6443,10.111.255.255:443}",
                "serviceCIDRs={10.243.0.0/16,10.96.0.0/12}",
            ],
            "10.111.255.255:443 lies in the service range 10.96.0.0/12",
        ),
        (
            &["apiServers={[fd00:10:0:0::1]:443}", "serviceCIDRs={fd00:10::/108}"],
            "[fd00:10:0:0::1]:443 lies in the service range fd00:10::/108",
        ),
        (
            &["apiServers={kubernetes.default.svc:443}"],
            "is the Service `kubernetes`, which nodenet itself programs",
        ),
        (&["apiServers={https://192.168.0.10:6443}"], "at '/apiServers/0'"),
        (&["apiServers={192.168.0.10}"], "at '/apiServers/0'"),
        (&["apiServers={fd00::1:6443}"], "an IPv6 address stands in brackets"),
        (&["apiServers={192.168.0.10:70000}"], "192.168.0.10:70000 has no valid port"),
        (&["apiServers={192.168.0.300:6443}"], "192.168.0.300 is not an IPv4 address"),
        (&["serviceCIDRs={10.243.0.0}"], "at '/serviceCIDRs/0'"),
        (&["serviceCIDRs={10.243.0.0/33}"], "the prefix length of 10.243.0.0/33 is longer than the address"),
        (&["clusterCIDRs={fd00::1::2/64}"], "clusterCIDRs: fd00::1::2 is not an IPv6 address"),
        (&["scheduler=roundrobin"], "at '/scheduler': value must be one of 'rr'"),
        (&["verifyPeriod=soon"], "at '/verifyPeriod'"),
        (&["masqueradeBit=32"], "at '/masqueradeBit'"),
        (&["masqueradeBit=11"], "masqueradeBit 11 is one of the bits of insideMark"),
        (&["insideMark.base=16384"], "masqueradeBit 14 is one of the bits of insideMark"),
        (&["insideMark.base=2048"], "base 2048 has one of the 12 bits from bit 0 on"),
        (&["insideMark.firstBit=21"], "12 bits from bit 21 on do not fit in 32"),
        (&["ipvs.tcpTimeout=long"], "at '/ipvs/tcpTimeout'"),
        (&["conntrack.max=9"], "additional properties 'max' not allowed"),
        (&["agent.healthzAddress=10256"], "at '/agent/healthzAddress'"),
        (&["masqueradeAll=sometimes"], "at '/masqueradeAll': got string, want boolean"),
        (
            &["excludeCIDRs={192.168.0.200/33}"],
            "the prefix length of 192.168.0.200/33 is longer than the address",
        ),
        (&["removeServices=true"], "Set serviceProxy to false too"),
        (&["serviceProxy=false", "takeover=true"], "it takes none over"),
        (&["masquerade=true"], "additional properties 'masquerade' not allowed"),
        (&["agent.privileged=true"], "additional properties 'privileged' not allowed"),
        (&["operator.replicas=0"], "at '/operator/replicas'"),
        (
            &["operator.hostNetwork=false"],
            "cannot be reached without operator.hostNetwork. Use 0.0.0.0:10357",
        ),
        (&["nodeNamespace.name=some-where"], "agents could then write the operator's Lease"),
        (&["nodeNamespace.name=Not_A_Name"], "at '/nodeNamespace/name'"),
        (&["agent.kernelModules.names={ip_vs; reboot}"], "at '/agent/kernelModules/names/0'"),
        (&["logLevel=loud"], "at '/logLevel': value must be one of"),
    ];
    for (values, expected) in cases {
        match template(helm, values, &[]) {
            Ok(_) => panic!("{values:?} was taken"),
            Err(said) => assert!(said.contains(expected), "{values:?}: {said}"),
        }
    }
}

#[test]
fn an_api_server_beside_the_service_range_is_taken() {
    let Some(helm) = helm() else { return };
    for values in [
        ["apiServers={10.112.0.0:443}", "serviceCIDRs={10.96.0.0/12}"],
        ["apiServers={[fd00:10::1:0:1]:443}", "serviceCIDRs={fd00:10::/108}"],
        ["apiServers={[fd00:10::1]:443}", "serviceCIDRs={10.96.0.0/12}"],
        ["apiServers={api.example.org:443}", "serviceCIDRs={0.0.0.0/1}"],
    ] {
        template(helm, &values, &[]).unwrap_or_else(|error| panic!("{values:?}: {error}"));
    }
}

#[test]
fn the_kinds_come_with_the_chart() {
    let Some(helm) = helm() else { return };
    let chart = chart();
    let output = run(helm, &["show", "crds", chart.to_str().expect("UTF-8")]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    for plural in ["virtualips", "nodenetstates", "nodenetslices"] {
        assert!(said.contains(&format!("name: {plural}.nodenet.dev")), "{plural}");
    }
}

#[test]
fn leases_of_agents_are_out_of_the_operators_namespace() {
    let Some(helm) = helm() else { return };
    let objects = template(helm, &[], &[]).expect("renders");
    find(&objects, "Namespace", NODES);
    let none = template(helm, &["nodeNamespace.create=false"], &[]).expect("renders");
    assert!(!none.iter().any(|object| kind(object) == "Namespace"));
}
