//! Plays the endpoints controller: what it writes beside EndpointSlices for readers of the older kind.

use serde_json::{Value, json};

/// The Endpoints of a Service, made from its EndpointSlices (of one family): each slice is a subset.
/// Endpoints that are not ready stand apart, unless the Service publishes them; those that terminate are not in it.
pub fn of_slices(service: &Value, slices: &[Value]) -> Value {
    let publish = service["spec"]["publishNotReadyAddresses"] == true;
    let metadata = &service["metadata"];
    let mut labels = metadata["labels"].clone();
    if service["spec"]["clusterIP"] == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
        "subsets": slices.iter().filter_map(|slice| subset(slice, publish)).collect::<Vec<_>>()})
}

/// None where nobody is left: a subset without an address is refused.
fn subset(slice: &Value, publish: bool) -> Option<Value> {
    let all = slice["endpoints"].as_array().into_iter().flatten();
    let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
    for endpoint in all.filter(|endpoint| endpoint["conditions"]["terminating"] != true || publish) {
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        let entries = addresses.map(|address| json!({"ip": address, "nodeName": endpoint["nodeName"]}));
        let is_ready = publish || endpoint["conditions"]["ready"] != false;
        if is_ready { &mut ready } else { &mut not_ready }.extend(entries);
    }
    let ports: Vec<Value> = slice["ports"].as_array().into_iter().flatten().cloned().collect();
    let anybody = !ready.is_empty() || !not_ready.is_empty();
    anybody.then(|| json!({"addresses": ready, "notReadyAddresses": not_ready, "ports": ports}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_are_not_ready_stand_apart_unless_they_are_published() {
        let slice = json!({"ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "a", "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "nodeName": "b", "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "nodeName": "b",
             "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]});
        let mut service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {}});
        let subset = of_slices(&service, std::slice::from_ref(&slice))["subsets"][0].clone();
        assert_eq!(subset["addresses"], json!([{"ip": "10.0.0.1", "nodeName": "a"}]));
        assert_eq!(subset["notReadyAddresses"], json!([{"ip": "10.0.0.2", "nodeName": "b"}]));
        assert_eq!(subset["ports"], slice["ports"]);
        service["spec"]["publishNotReadyAddresses"] = json!(true);
        let subset = of_slices(&service, &[slice])["subsets"][0].clone();
        assert_eq!(subset["addresses"].as_array().map(Vec::len), Some(3));
    }
}
