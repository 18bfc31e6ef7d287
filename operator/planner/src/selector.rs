//! Label selectors, as the API server matches them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use nodenet_crds::validate::{Problem, Violation};

/// Whether `labels` satisfy every requirement of `selector`. An empty selector matches everything; a requirement that
/// [`check`] refuses matches nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let values = e.values.as_deref().unwrap_or_default();
            let have = labels.get(&e.key);
            match e.operator.as_str() {
                "In" => have.is_some_and(|v| values.contains(v)),
                "NotIn" => have.is_none_or(|v| !values.contains(v)),
                "Exists" => have.is_some(),
                "DoesNotExist" => have.is_none(),
                _ => false,
            }
        })
}

/// What is wrong with the requirements of `selector`, which stands at `field`.
pub(crate) fn check(selector: &LabelSelector, field: &str) -> Vec<Violation> {
    let mut out = Vec::new();
    for (i, e) in selector.match_expressions.iter().flatten().enumerate() {
        let empty = e.values.as_ref().is_none_or(Vec::is_empty);
        let at = |leaf: &str| format!("{field}.matchExpressions[{i}].{leaf}");
        match e.operator.as_str() {
            "In" | "NotIn" if empty => {
                let problem = Problem::Rule("In and NotIn need at least one value: add it, or use Exists");
                out.push(Violation { field: at("values"), problem });
            }
            "Exists" | "DoesNotExist" if !empty => {
                let problem = Problem::Rule("Exists and DoesNotExist take no values: remove them, or use In");
                out.push(Violation { field: at("values"), problem });
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let what = "an operator; use In, NotIn, Exists or DoesNotExist";
                let problem = Problem::Name { value: other.to_owned(), what };
                out.push(Violation { field: at("operator"), problem });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "zone".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
        }
    }

    #[test]
    fn expressions_match_as_the_api_server_matches_them() {
        let a = labels(&[("zone", "a")]);
        let none = labels(&[]);
        for (operator, values, in_a, in_none) in [
            ("In", &["a", "b"][..], true, false),
            ("In", &["b"][..], false, false),
            ("NotIn", &["a"][..], false, true),
            ("NotIn", &["b"][..], true, true),
            ("Exists", &[][..], true, false),
            ("DoesNotExist", &[][..], false, true),
            ("Near", &[][..], false, false),
        ] {
            let selector = expression(operator, values);
            assert_eq!(matches(&selector, &a), in_a, "{operator} {values:?} on zone=a");
            assert_eq!(matches(&selector, &none), in_none, "{operator} {values:?} without the label");
        }
    }

    #[test]
    fn an_empty_selector_matches_every_node() {
        assert!(matches(&LabelSelector::default(), &labels(&[])));
    }

    #[test]
    fn what_cannot_match_is_named_with_its_field() {
        let found = check(&expression("Near", &[]), "spec.nodeSelector");
        assert_eq!(found[0].field, "spec.nodeSelector.matchExpressions[0].operator");
        assert_eq!(check(&expression("In", &[]), "s")[0].field, "s.matchExpressions[0].values");
        assert!(check(&expression("In", &["a"]), "s").is_empty());
    }
}
