//! Rules between fields, as CEL for the API server. [`crate::validate`] states the same rules for everyone else; the
//! tests run one table of cases through both.

/// One CEL rule of a kind's schema.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Kind whose schema carries it.
    pub kind: &'static str,
    /// Object within the kind, as property names.
    pub path: &'static [&'static str],
    /// CEL text; true where the object is valid.
    pub rule: &'static str,
    /// What must change.
    pub message: &'static str,
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        kind: "VirtualIP",
        path: &["spec", "failover"],
        rule: "!has(self.preemptDelaySeconds) || self.preemptDelaySeconds == 0 || !has(self.preempt) || self.preempt",
        message: "preemptDelaySeconds does nothing without preempt: set preempt to true or remove the delay",
    },
    Rule {
        kind: "VirtualIP",
        path: &["spec"],
        rule: "!has(self.addressRole) || self.addressRole != 'Secondary' || self.addresses.all(a, !a.endsWith('/32'))",
        message: "a /32 is never a secondary address: write the prefix length of the interface's subnet, or use addressRole Primary",
    },
];
