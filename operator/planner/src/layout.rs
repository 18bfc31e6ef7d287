//! A plan of several parts whose endpoints change: each endpoint keeps its part, so that a change rewrites only the parts
//! that it touches.

use std::collections::{BTreeMap, BTreeSet};

use nodenet_crds::{Endpoint, Frontend, PortPlan, Protocol, TrafficPolicy};

use crate::parts::{ENDPOINTS_MAX, endpoint_bytes, fill, port_bytes, split};

/// Which endpoint of a port.
type Id<'a> = (&'a str, i32);

fn id(endpoint: &Endpoint) -> Id<'_> {
    (&endpoint.address, endpoint.port)
}

/// A port without its endpoints: all parts in which it stands must say the same of it.
fn head(port: &PortPlan) -> PortPlan {
    PortPlan { endpoints: Vec::new(), ..port.clone() }
}

/// One port in one part while a layout is kept.
struct Place {
    part: usize,
    at: usize,
    /// Nodes of the endpoints that left it.
    left: BTreeSet<Option<String>>,
}

/// Lays `ports` out as the parts `old` are: what stays keeps its part, what is new goes where something left, else where
/// something changes anyway, else where there is most room. `None` where that cannot be: more than endpoints changed,
/// there is no room for what came or for what is said of those that stay, or far too much.
pub(crate) fn keep(old: &[&[PortPlan]], ports: &[PortPlan], part_bytes: usize) -> Option<Vec<Vec<PortPlan>>> {
    let heads: Vec<PortPlan> = ports.iter().map(head).collect();
    let mut places: Vec<Vec<Place>> = ports.iter().map(|_| Vec::new()).collect();
    let mut parts: Vec<Vec<PortPlan>> = Vec::with_capacity(old.len());
    for (part, before) in old.iter().enumerate() {
        let mut now = Vec::with_capacity(before.len());
        for (at, port) in before.iter().enumerate() {
            let head = head(port);
            let index = heads.iter().position(|known| *known == head)?;
            places.get_mut(index)?.push(Place { part, at, left: BTreeSet::new() });
            now.push(head);
        }
        parts.push(now);
    }
    if places.iter().any(Vec::is_empty) {
        return None;
    }
    let mut changed = BTreeSet::new();
    let mut new: Vec<BTreeMap<Id<'_>, &Endpoint>> = Vec::with_capacity(ports.len());
    for (port, places) in ports.iter().zip(&mut places) {
        let mut rest: BTreeMap<Id<'_>, &Endpoint> = port.endpoints.iter().map(|e| (id(e), e)).collect();
        for place in places {
            let before = old.get(place.part)?.get(place.at)?;
            let now = parts.get_mut(place.part)?.get_mut(place.at)?;
            for endpoint in &before.endpoints {
                let Some(stays) = rest.remove(&id(endpoint)) else {
                    place.left.insert(endpoint.node.clone());
                    changed.insert(place.part);
                    continue;
                };
                if stays != endpoint {
                    changed.insert(place.part);
                }
                now.endpoints.push(stays.clone());
            }
        }
        new.push(rest);
    }
    let size = |part: &[PortPlan]| part.iter().map(port_bytes).sum::<usize>();
    let mut bytes: Vec<usize> = parts.iter().map(|part| size(part)).collect();
    if old.iter().zip(&bytes).any(|(before, now)| *now > part_bytes && *now > size(before)) {
        return None;
    }
    for (places, rest) in places.iter().zip(new) {
        for endpoint in rest.into_values() {
            let size = endpoint_bytes(endpoint);
            let room = |place: &&Place| {
                let count = parts.get(place.part).and_then(|p| p.get(place.at)).map(|p| p.endpoints.len());
                let used = bytes.get(place.part);
                count.is_some_and(|count| count < ENDPOINTS_MAX)
                    && used.is_some_and(|b| b + size <= part_bytes)
            };
            let best = places.iter().filter(room).min_by_key(|place| {
                let follows = place.left.contains(&endpoint.node);
                (!follows, !changed.contains(&place.part), bytes.get(place.part).copied())
            })?;
            changed.insert(best.part);
            *bytes.get_mut(best.part)? += size;
            parts.get_mut(best.part)?.get_mut(best.at)?.endpoints.push(endpoint.clone());
        }
    }
    let total: usize = bytes.iter().sum();
    let sparse = total * 2 <= fill(part_bytes) * old.len();
    (!sparse || split(ports.to_vec(), fill(part_bytes)).len() * 2 > old.len()).then_some(parts)
}

/// What must not be without endpoints for a moment: a port's addresses of one family, everywhere and, where nodes answer
/// by their own endpoints, on one node.
type Group<'a> = (&'a str, Protocol, &'a [Frontend], bool, Option<&'a str>);

fn groups<'a>(port: &'a PortPlan, endpoint: &'a Endpoint) -> impl Iterator<Item = Group<'a>> {
    let v6 = endpoint.address.contains(':');
    let of = move |node| (&*port.name, port.protocol, &*port.frontends, v6, node);
    let local = TrafficPolicy::Local;
    let each_node = port.internal_traffic_policy == local || port.external_traffic_policy == local;
    let node = endpoint.node.as_deref().filter(|_| each_node);
    [Some(of(None)), node.map(|node| of(Some(node)))].into_iter().flatten()
}

/// The groups that have an endpoint in `ports`. One of weight 0 takes no new connection: it serves nobody.
fn served(ports: &[PortPlan]) -> BTreeSet<Group<'_>> {
    let endpoints = ports.iter().flat_map(|port| port.endpoints.iter().map(move |endpoint| (port, endpoint)));
    let serving = endpoints.filter(|(_, endpoint)| endpoint.weight != Some(0));
    serving.flat_map(|(port, endpoint)| groups(port, endpoint)).collect()
}

/// Whether readers may see each part change by itself. `held` has for each part all that a reader may have of it. A part
/// changes as a whole, so it is safe where some one part serves a group in all its versions: whatever else a reader has,
/// it has one of these. A group that had none before, or is to have none, needs nothing.
pub(crate) fn is_safe(held: &[Vec<&[PortPlan]>], parts: &[Vec<PortPlan>]) -> bool {
    let differs =
        |(held, part): (&Vec<&[PortPlan]>, &Vec<PortPlan>)| held.iter().any(|h| *h != part.as_slice());
    if held.iter().zip(parts).filter(|pair| differs(*pair)).count() <= 1 {
        return true;
    }
    let (mut before, mut after, mut always) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (held, part) in held.iter().zip(parts) {
        let versions: Vec<BTreeSet<Group<'_>>> = held.iter().map(|version| served(version)).collect();
        let now = served(part);
        let in_all = |group: &&Group<'_>| versions.iter().all(|version| version.contains(*group));
        always.extend(now.iter().filter(in_all).copied());
        before.extend(versions.iter().flatten().copied());
        after.extend(now);
    }
    before.intersection(&after).all(|group| always.contains(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: usize, node: &str) -> Endpoint {
        Endpoint {
            address: format!("10.1.{}.{}", number / 250, 1 + number % 250),
            port: 8080,
            node: Some(node.to_owned()),
            ..Endpoint::default()
        }
    }

    fn port(endpoints: Vec<Endpoint>) -> PortPlan {
        PortPlan { name: "http".into(), endpoints, ..PortPlan::default() }
    }

    fn laid_out(count: usize) -> (Vec<Endpoint>, Vec<Vec<PortPlan>>) {
        let all: Vec<Endpoint> = (0..count).map(|i| endpoint(i, &format!("n{}", i % 7))).collect();
        let parts = split(vec![port(all.clone())], fill(4000));
        (all, parts)
    }

    fn kept(parts: &[Vec<PortPlan>], endpoints: Vec<Endpoint>) -> Option<Vec<Vec<PortPlan>>> {
        let old: Vec<&[PortPlan]> = parts.iter().map(Vec::as_slice).collect();
        keep(&old, &[port(endpoints)], 4000)
    }

    fn changed(a: &[Vec<PortPlan>], b: &[Vec<PortPlan>]) -> usize {
        a.iter().zip(b).filter(|(a, b)| a != b).count()
    }

    fn safe(a: &[Vec<PortPlan>], b: &[Vec<PortPlan>]) -> bool {
        let held: Vec<Vec<&[PortPlan]>> = a.iter().map(|part| vec![part.as_slice()]).collect();
        is_safe(&held, b)
    }

    #[test]
    fn a_change_of_one_endpoint_touches_one_part() {
        let (mut all, parts) = laid_out(300);
        assert!(parts.len() > 4);
        assert_eq!(kept(&parts, all.clone()).unwrap(), parts);
        all[77].terminating = true;
        assert_eq!(changed(&parts, &kept(&parts, all.clone()).unwrap()), 1);
        all[100] = endpoint(900, "n9");
        all.remove(77);
        let now = kept(&parts, all.clone()).unwrap();
        assert!(changed(&parts, &now) <= 2);
        let there: usize = now.iter().flatten().map(|port| port.endpoints.len()).sum();
        assert_eq!(there, all.len());
    }

    #[test]
    fn what_comes_goes_where_its_node_lost_one() {
        let (mut all, parts) = laid_out(300);
        all.retain(|e| e.address != "10.1.0.5" && e.address != "10.1.1.5");
        all.extend([endpoint(901, "n4"), endpoint(902, "n2")]);
        let now = kept(&parts, all).unwrap();
        assert_eq!(changed(&parts, &now), 2);
        assert!(safe(&parts, &now));
    }

    #[test]
    fn a_layout_that_is_full_or_empty_or_of_other_ports_is_given_up() {
        let (all, parts) = laid_out(300);
        let many = (0..600).map(|i| endpoint(i, "n1")).collect();
        assert_eq!(kept(&parts, many), None);
        assert_eq!(kept(&parts, all[..60].to_vec()), None);
        let old: Vec<&[PortPlan]> = parts.iter().map(Vec::as_slice).collect();
        let other = PortPlan { persistence_seconds: Some(5), ..port(all) };
        assert_eq!(keep(&old, &[other], 4000), None);
    }

    #[test]
    fn no_reader_is_left_without_an_endpoint_between_two_writes() {
        let (all, parts) = laid_out(300);
        let mut most = all;
        most.retain(|endpoint| !endpoint.address.ends_with('3'));
        assert!(safe(&parts, &kept(&parts, most).unwrap()), "most of them stay");
        let others: Vec<Endpoint> = (0..300).map(|i| endpoint(1000 + i, "n1")).collect();
        let now = kept(&parts, others).unwrap();
        assert!(safe(&parts, &now), "none stays, and each part has some at any time");
        let moved = |from: usize, to: usize| {
            let mut moved: Vec<Vec<PortPlan>> = parts.clone();
            let gone = |part: &mut Vec<PortPlan>| part[0].endpoints.clear();
            moved.iter_mut().enumerate().filter(|(at, _)| *at != to).for_each(|(_, part)| gone(part));
            moved[to][0].endpoints = parts[from][0].endpoints.clone();
            moved
        };
        assert!(!safe(&moved(0, 0), &moved(1, 1)), "one part has all, then another one");
        assert!(safe(&moved(0, 0), &moved(1, 0)), "one part changes as a whole");
        // Everywhere there are some, but on one node another part loses the last one than gets the first.
        let local = |parts: &[Vec<PortPlan>]| -> Vec<Vec<PortPlan>> {
            let mut parts = parts.to_vec();
            for port in parts.iter_mut().flatten() {
                port.external_traffic_policy = TrafficPolicy::Local;
            }
            parts
        };
        let (mut before, mut after) = (parts.clone(), parts);
        before[0][0].endpoints[0].node = Some("alone".into());
        after[1][0].endpoints[0].node = Some("alone".into());
        assert!(safe(&before, &after));
        assert!(!safe(&local(&before), &local(&after)));
        // In one part one follows another on that node.
        let mut follows = before.clone();
        follows[0][0].endpoints[0].address = "10.1.9.9".into();
        follows[1][0].endpoints[0].terminating = true;
        let (before, after, follows) = (local(&before), local(&after), local(&follows));
        assert!(safe(&before, &follows));
        let held: Vec<Vec<&[PortPlan]>> =
            before.iter().zip(&after).map(|(a, b)| vec![a.as_slice(), b.as_slice()]).collect();
        assert!(!is_safe(&held, &follows), "a reader may have what was put and never seen");
    }

    #[test]
    fn an_endpoint_of_weight_zero_takes_nobodys_place() {
        let (_, parts) = laid_out(300);
        let weighed = |serves: &dyn Fn(usize) -> bool| {
            let mut parts = parts.clone();
            for (at, part) in parts.iter_mut().enumerate() {
                for endpoint in part.iter_mut().flat_map(|port| &mut port.endpoints) {
                    endpoint.weight = Some(i32::from(serves(at)));
                }
            }
            parts
        };
        let (blue, green) = (weighed(&|at| at == 0), weighed(&|at| at == 1));
        assert!(!safe(&blue, &green), "between the two writes all would have weight 0");
        assert!(safe(&blue, &weighed(&|_| true)));
        assert!(safe(&blue, &weighed(&|_| false)), "that none serves is what is wanted");
        assert!(
            safe(&weighed(&|at| at < 2), &weighed(&|at| at == 1 || at == 2)),
            "one part serves all the time"
        );
    }

    #[test]
    fn a_part_that_what_stays_in_it_outgrows_is_given_up() {
        let (all, parts) = laid_out(300);
        let zones = |few: usize| -> Vec<Endpoint> {
            let zone = |(i, endpoint): (usize, &Endpoint)| Endpoint {
                for_zones: if i < few { vec!["europe-west3-a".to_owned(); 8] } else { Vec::new() },
                ..endpoint.clone()
            };
            all.iter().enumerate().map(zone).collect()
        };
        assert!(kept(&parts, zones(2)).is_some(), "there was room");
        assert_eq!(kept(&parts, zones(20)), None);
        // One that was too large already, and becomes no larger, is no reason.
        let old: Vec<&[PortPlan]> = parts.iter().map(Vec::as_slice).collect();
        let mut fewer = all;
        fewer.remove(0);
        assert!(keep(&old, &[port(fewer)], 2000).is_some());
    }
}
