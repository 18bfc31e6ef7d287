//! The cases that the fake kernel has to pass, on the real one: committing the difference converges, a second
//! comparison finds nothing, and what is foreign stays.

use nodenet_agent::{
    kernel::netlink::{NetlinkKernel, Options},
    state::{Family, Operation},
};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::{
    cases::{Case, FOREIGN_ADDRESSES, INTERFACE, ROUNDS, cases, check},
    rules::modes,
    support::{has_dummy, has_ipvs, in_namespace, run},
};

/// Cases where `PROPTEST_CASES` does not say otherwise: each takes some twenty runs of programs.
const CASES: u32 = 16;

fn converges(prepare: impl Fn(Case) -> Case + Sync) {
    let Some((infix, mode)) = modes().into_iter().next() else { return };
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let outcome = TestRunner::new(config).run(&cases(), |case| {
        let case = prepare(case);
        let mut outcome = Ok(());
        in_namespace(|| {
            run("ip", &format!("link add {INTERFACE} type veth peer name peer"));
            run("ip", &format!("link set {INTERFACE} up"));
            run("ip", "link set peer up");
            for address in FOREIGN_ADDRESSES {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                run("ip", &format!("address add {address} dev {INTERFACE} {nodad}"));
            }
            run("ipset", "create FOREIGN hash:ip");
            run("ipset", "add FOREIGN 192.0.2.77");
            run(&format!("iptables{infix}"), "-A INPUT -s 192.0.2.77/32 -j DROP");
            let mut kernel =
                NetlinkKernel::new(Options { packet_filter: mode, ..Options::default() }).unwrap();
            outcome = check(&mut kernel, &case, ROUNDS);
            let saved = run("ipset", "save FOREIGN");
            assert!(saved.contains("add FOREIGN 192.0.2.77"), "{saved}");
            let saved = run(&format!("iptables{infix}-save"), "");
            assert!(saved.contains("-A INPUT -s 192.0.2.77/32 -j DROP"), "{saved}");
        });
        outcome.map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn commit_of_the_difference_converges_and_leaves_the_foreign_alone() {
    if able() {
        converges(|case| case);
    }
}

/// Whether the kernel has all that the cases ask for; otherwise what it lacks is told.
fn able() -> bool {
    let mut able = false;
    in_namespace(|| able = has_ipvs() && has_dummy());
    able
}

/// What kernels without IPVS and dummy interfaces can do of it.
#[test]
fn without_ipvs_addresses_settings_sets_and_rules_converge() {
    if able() {
        println!("SKIP: this kernel has IPVS and dummy interfaces: it does the whole cases");
        return;
    }
    converges(|mut case| {
        case.start.retain(|operation| {
            !matches!(
                operation,
                Operation::LoadModule(_)
                    | Operation::AddLink(_)
                    | Operation::AddRoute(_)
                    | Operation::AddVirtualServer(..)
                    | Operation::AddRealServer(..)
            )
        });
        case.desired.modules.clear();
        case.desired.links.clear();
        case.desired.routes.clear();
        case.desired.virtual_servers.clear();
        assert!(case.desired.rules.keys().all(|family| *family == Family::V4));
        case
    });
}
