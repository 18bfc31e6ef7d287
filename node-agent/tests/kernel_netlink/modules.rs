//! Modules and settings of the running kernel, and other namespaces.

use nodenet_agent::{
    kernel::{
        Class, Kernel,
        netlink::{NetlinkKernel, Options},
    },
    state::{Operation, Scope},
};

use crate::support::{
    Neighbour, address, attempt, available, commit, commit_all, in_namespace, kernel, key, run,
};

#[test]
fn a_module_that_is_not_loaded_is_seen_loaded_and_seen_again() {
    in_namespace(|| {
        if !available("modprobe", "--dry-run xt_statistic", "this kernel loads no modules") {
            return;
        }
        // One that nothing else here needs.
        run("modprobe", "-r xt_statistic");
        let scope = Scope {
            modules: ["xt_statistic", "no_such_module"].map(str::to_owned).into(),
            ..Scope::default()
        };
        let mut kernel = kernel();
        let before = kernel.observe(&scope).unwrap().modules;
        assert!(before.values().all(|loaded| !loaded), "{before:?}");
        commit_all(&mut kernel, vec![Operation::LoadModule("xt_statistic".to_owned())]);
        assert!(kernel.observe(&scope).unwrap().modules["xt_statistic"]);
        let committed = commit(&mut kernel, vec![Operation::LoadModule("no_such_module".to_owned())]);
        let error = committed.failed[0].1.to_string();
        assert!(
            error.starts_with("load module no_such_module: modprobe ended with exit status: 1"),
            "{error}"
        );
    });
}

#[test]
fn what_is_no_name_of_a_module_is_never_given_to_a_program() {
    in_namespace(|| {
        let mut kernel = kernel();
        for name in ["", "-r", "../evil", "a b"] {
            let committed = commit(&mut kernel, vec![Operation::LoadModule(name.to_owned())]);
            let error = &committed.failed[0].1;
            // `-r` consists of letters that names have; it stands behind `--`.
            assert!(error.class() == Class::Invalid || name == "-r", "{error}");
        }
    });
}

#[test]
fn a_setting_is_written_once() {
    in_namespace(|| {
        let mut kernel = kernel();
        let name = "net.ipv4.conf.all.arp_announce".to_owned();
        let set = || vec![Operation::SetSysctl(name.clone(), "2".to_owned())];
        assert_eq!(commit_all(&mut kernel, set()).messages, 1);
        assert_eq!(commit_all(&mut kernel, set()).messages, 0);
        let scope =
            Scope { sysctls: [name.clone(), "net.no.such.thing".to_owned()].into(), ..Scope::default() };
        let found = kernel.observe(&scope).unwrap().sysctls;
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(name, "2".to_owned())]);
    });
}

#[test]
fn another_namespace_is_reached_by_its_path() {
    in_namespace(|| {
        let neighbour = Neighbour::new();
        neighbour.cable("eth0", "eth1");
        let mut there =
            NetlinkKernel::new(Options { namespace: neighbour.namespace(), ..Options::default() }).unwrap();
        commit_all(
            &mut there,
            vec![
                Operation::SetSysctl("net.ipv4.conf.eth1.promote_secondaries".to_owned(), "1".to_owned()),
                Operation::AddAddress(key("eth1", "192.168.0.15"), address(24)),
            ],
        );
        assert!(neighbour.run("ip", "address show eth1").contains("192.168.0.15/24"));
        let here = kernel().observe(&Scope { links: true, ..Scope::default() }).unwrap();
        assert!(here.links.contains_key("eth0") && !here.links.contains_key("eth1"));
        let missing = nodenet_agent::kernel::netlink::Namespace::at("/run/netns/no-such-namespace");
        let error = NetlinkKernel::new(Options { namespace: missing, ..Options::default() }).err().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("enter network namespace /run/netns/no-such-namespace: No such file")
        );
    });
}

#[test]
fn a_node_that_begins_to_forward_keeps_the_router_that_advertises_itself() {
    in_namespace(|| {
        let others = Neighbour::new();
        // A link with a router, one with a pod, one of the administrator's.
        for name in ["lan0", "pod0", "off0"] {
            others.cable(name, name);
        }
        let path = |name: &str| format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        std::fs::write(path("off0"), "0").unwrap();
        for (name, metric) in [("lan0", 1024), ("off0", 2048)] {
            run("ip", &format!("-6 route add default via fe80::1 dev {name} proto ra metric {metric}"));
        }
        let has_vlan = attempt("ip", "link add link lan0 name lan0.7 type vlan id 7", "").is_ok();
        let heeds = |name: &str| std::fs::read_to_string(path(name)).unwrap().trim().to_owned();
        let forward =
            || vec![Operation::SetSysctl("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned())];
        let mut kernel = kernel();
        assert_eq!(heeds("lan0"), "1", "as every interface does");
        commit_all(&mut kernel, forward());
        assert_eq!(heeds("lan0"), "2", "a node that forwards would lose its default route with 1");
        if has_vlan {
            assert_eq!(heeds("lan0.7"), "2", "a router may be there too");
        }
        assert_eq!(heeds("pod0"), "1", "pods advertise nothing to the node");
        assert_eq!(heeds("off0"), "0", "the administrator's word");
        assert_eq!(heeds("lo"), "1");

        std::fs::write(path("lan0"), "1").unwrap();
        commit_all(&mut kernel, forward());
        assert_eq!(heeds("lan0"), "1", "forwarding was on already: nothing is turned on, nothing is changed");
    });
}
