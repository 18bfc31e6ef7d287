//! Modules and settings of the running kernel, and other namespaces.

use nodenet_agent::{
    kernel::{
        Class, Kernel,
        netlink::{NetlinkKernel, Options},
    },
    state::{Operation, Scope},
};

use crate::support::{Neighbour, address, available, commit, commit_all, in_namespace, kernel, key, run};

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
