//! Our interface.

use nodenet_agent::{
    kernel::{Class, KernelError},
    state::Operation,
};

use crate::support::{addresses, commit, commit_all, has_dummy, in_namespace, kernel, run};

fn add() -> Vec<Operation> {
    vec![Operation::AddLink("nodenet0".to_owned())]
}

#[test]
fn our_interface_is_up_and_knows_no_arp() {
    in_namespace(|| {
        if !has_dummy() {
            return;
        }
        let mut kernel = kernel();
        commit_all(&mut kernel, add());
        let link = addresses(&mut kernel).links["nodenet0"].clone();
        assert_eq!((link.kind.as_str(), link.up), ("dummy", true));
        assert!(run("ip", "link show nodenet0").contains("NOARP,UP"));
        run("ip", "link set nodenet0 down");
        assert!(!addresses(&mut kernel).links["nodenet0"].up);
        commit_all(&mut kernel, add());
        assert!(addresses(&mut kernel).links["nodenet0"].up);
        commit_all(&mut kernel, vec![Operation::DeleteLink("nodenet0".to_owned())]);
        assert!(!addresses(&mut kernel).links.contains_key("nodenet0"));
    });
}

#[test]
fn a_foreign_interface_of_our_name_is_left_alone() {
    in_namespace(|| {
        run("ip", "link add nodenet0 type veth peer name other");
        let mut kernel = kernel();
        let committed = commit(&mut kernel, add());
        let error = committed.failed[0].1.to_string();
        assert!(error.contains("a veth of this name is there already"), "{error}");
        let committed = commit(&mut kernel, vec![Operation::DeleteLink("nodenet0".to_owned())]);
        assert!(committed.failed[0].1.to_string().contains("not ours"));
        let link = addresses(&mut kernel).links["nodenet0"].clone();
        assert_eq!((link.kind.as_str(), link.up), ("veth", false));
    });
}

#[test]
fn a_kernel_without_dummy_interfaces_is_told_with_the_remedy_and_routes_over_it_are_not_tried() {
    in_namespace(|| {
        let mut kernel = kernel();
        let route = nodenet_agent::state::LocalRoute {
            range: "10.96.0.0/12".parse().unwrap(),
            interface: "nodenet0".to_owned(),
        };
        let mut operations = add();
        operations.push(Operation::AddRoute(route));
        let committed = commit(&mut kernel, operations);
        if committed.failed.is_empty() {
            println!("SKIP: this kernel has dummy interfaces");
            return;
        }
        assert_eq!((committed.done, committed.failed.len()), (0, 1));
        let error = &committed.failed[0].1;
        assert!(matches!(error, KernelError::Missing { .. }) && error.class() == Class::Fatal);
        assert!(error.to_string().contains("modprobe dummy"), "{error}");
    });
}
