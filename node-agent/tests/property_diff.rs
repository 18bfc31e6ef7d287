//! Committing the difference converges from any starting state, whatever fails on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod convergence;

use convergence::{Case, FOREIGN_ADDRESSES, INTERFACE, ROUNDS, cases, check, check_from_here};
use nodenet_agent::diff::{Draining, Prune, diff};
use nodenet_agent::kernel::Kernel;
use nodenet_agent::kernel::fake::{FakeKernel, Fault};
use nodenet_agent::state::{Family, IpSet, Operation, Scope, SetEntry, SetKind, Transaction};
use proptest::prelude::*;

fn kernel() -> FakeKernel {
    let kernel = FakeKernel::new();
    kernel.add_link(INTERFACE, "");
    for address in FOREIGN_ADDRESSES {
        kernel.add_address(INTERFACE, address);
    }
    kernel
}

fn foreign_set() -> IpSet {
    let entries = [SetEntry::Ip([192, 0, 2, 77].into())].into();
    IpSet { kind: SetKind::HashIp, family: Family::V4, max_entries: 1024, entries }
}

fn faults() -> impl Strategy<Value = Vec<(usize, Fault)>> {
    let errno = proptest::sample::select(vec![
        libc::EEXIST,
        libc::ENOENT,
        libc::EBUSY,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EINVAL,
    ]);
    let fault = prop_oneof![errno.prop_map(Fault::Refused), Just(Fault::AnswerLost)];
    proptest::collection::vec((0usize..60, fault), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commit_of_the_difference_converges_and_leaves_the_foreign_alone(case in cases()) {
        let mut kernel = kernel();
        kernel.put_set("FOREIGN", foreign_set());
        check(&mut kernel, &case, ROUNDS).map_err(TestCaseError::fail)?;
        let sets = kernel.state().sets;
        prop_assert_eq!(sets.get("FOREIGN"), Some(&foreign_set()));
    }

    #[test]
    fn it_converges_on_kernels_that_do_not_keep_whose_an_address_is(case in cases()) {
        let mut kernel = kernel();
        kernel.lack_address_protocol();
        check(&mut kernel, &case, ROUNDS).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn it_converges_when_operations_and_looks_fail(
        case in cases(),
        faults in faults(),
        looks in proptest::collection::vec(0usize..6, 0..3),
    ) {
        let mut kernel = kernel();
        kernel.commit(&Transaction::new(case.start.clone()));
        for (nth, fault) in faults {
            kernel.fail_nth(nth, fault);
        }
        for nth in looks {
            kernel.fail_nth_observation(nth, libc::EINTR);
        }
        check_from_here(&mut kernel, &case, 24).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn nothing_is_removed_while_nothing_may_be(case in cases()) {
        let mut kernel = kernel();
        kernel.commit(&Transaction::new(case.start.clone()));
        let scope = Scope::all(&case.desired);
        let observed = kernel.observe(&scope).unwrap();
        let mut draining = Draining::default();
        let context = &mut convergence::context(&case.journal, Prune::default(), &mut draining);
        let outcome = diff(&case.desired, &observed, &scope, context);
        for operation in outcome.transaction.operations() {
            prop_assert!(!removes(operation, &case), "{operation:?}");
        }
    }

    #[test]
    fn the_phases_of_a_transaction_are_in_order(case in cases()) {
        let mut kernel = kernel();
        kernel.commit(&Transaction::new(case.start.clone()));
        let scope = Scope::all(&case.desired);
        let observed = kernel.observe(&scope).unwrap();
        let mut draining = Draining::default();
        let context = &mut convergence::context(&case.journal, Prune::ALL, &mut draining);
        let outcome = diff(&case.desired, &observed, &scope, context);
        let phases: Vec<_> = outcome.transaction.operations().iter().map(Operation::phase).collect();
        prop_assert!(phases.is_sorted());
    }
}

/// Whether an operation takes something away; an address that is wished for may be set again otherwise.
fn removes(operation: &Operation, case: &Case) -> bool {
    match operation {
        Operation::DeleteAddress(key, _) => !case.desired.addresses.contains_key(key),
        Operation::ReplaceRules(_, rules) => *rules == Default::default(),
        // A new virtual server forgets who sent to its address before.
        Operation::ForgetConnections(key, None) => !case.desired.virtual_servers.contains_key(key),
        Operation::DeleteLink(_)
        | Operation::DestroySet(_)
        | Operation::DeleteEntry(..)
        | Operation::DeleteRoute(_)
        | Operation::DeleteVirtualServer(_)
        | Operation::DeleteRealServer(..)
        | Operation::ForgetConnections(..) => true,
        _ => false,
    }
}
