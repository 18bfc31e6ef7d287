use super::*;

const MAC: &str = "02:00:00:00:00:01";

fn key() -> AddressKey {
    AddressKey { interface: "eth0".into(), address: "192.168.0.15".parse().unwrap() }
}

fn vip(active: bool) -> Vec<Assigned> {
    vec![Assigned { name: "web".into(), active, keys: vec![key()] }]
}

fn held(h: &Holding) -> bool {
    h.yielded().is_none()
}

/// One that holds the address since before.
fn holder(now: Instant) -> Holding {
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Api, Some(1), |_| true, now);
    assert!(held(&h) && h.next(None).is_none());
    h
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[test]
fn what_the_node_has_is_kept_without_a_question() {
    holder(Instant::now());
}

#[test]
fn after_a_lapse_an_older_word_of_the_api_server_is_no_answer() {
    let now = Instant::now();
    let mut h = holder(now);
    assert_eq!(h.lapsed(now), ["web"]);
    // It was on its way while this process did not run.
    h.assign(vip(true), Origin::Api, Some(2), |_| false, now);
    assert!(!held(&h));
    assert_eq!(h.probes(Some(now), now), [key()]);
    h.answer(&key(), None, now);
    assert!(held(&h));
}

#[test]
fn what_the_node_never_had_is_asked_for_once() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
    assert!(!held(&h));
    assert_eq!(h.words("web"), None, "a question is no fault");
    assert_eq!(h.probes(Some(now), now), [key()]);
    h.answer(&key(), None, now);
    assert!(held(&h));
    h.assign(vip(true), Origin::Api, Some(2), |_| false, now);
    assert!(held(&h), "another hand may have removed it, but it was given to this node");
    h.assign(vip(false), Origin::Api, Some(3), |_| false, now);
    h.assign(vip(true), Origin::Api, Some(4), |_| false, now);
    assert!(!held(&h), "another node had it meanwhile");
}

#[test]
fn an_address_that_is_answered_for_is_not_taken_and_asked_for_again_less_and_less() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
    let mut at = now;
    let mut waits = Vec::new();
    for turn in 0..6 {
        assert_eq!(h.probes(Some(now), at), [key()]);
        h.answer(&key(), Some(MAC.into()), at);
        assert!(!held(&h));
        let words = h.words("web");
        assert_eq!(words.is_some(), turn > 0, "the last holder may be about to yield");
        assert!(words.is_none_or(|(why, words)| why == "AddressTaken" && words.contains(MAC)));
        let next = h.next(Some(now)).unwrap();
        waits.push((next - at).as_millis());
        at = next;
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000]);
    assert_eq!(h.probes(Some(now), at), [key()]);
    h.answer(&key(), None, at);
    assert!(held(&h));
}

#[test]
fn an_address_that_is_added_is_asked_for_and_the_others_stay() {
    let now = Instant::now();
    let mut h = holder(now);
    let added = AddressKey { address: "192.168.0.16".parse().unwrap(), ..key() };
    let both = vec![Assigned { keys: vec![key(), added.clone()], ..vip(true).remove(0) }];
    h.assign(both.clone(), Origin::Api, Some(2), |_| false, now);
    assert!(held(&h));
    assert_eq!(h.withheld(), [added.clone()].into());
    assert_eq!(h.probes(Some(now), now), std::slice::from_ref(&added));
    h.answer(&added, Some(MAC.into()), now);
    h.probes(Some(now), now + secs(1));
    h.answer(&added, Some(MAC.into()), now + secs(1));
    assert!(held(&h) && h.words("web").is_some());
    // What is not there any more is not asked for.
    h.assign(vip(true), Origin::Api, Some(3), |_| false, now);
    assert!(h.withheld().is_empty() && h.words("web").is_none());
}

#[test]
fn an_interface_that_comes_late_is_asked_too() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    let nowhere = vec![Assigned { keys: Vec::new(), ..vip(true).remove(0) }];
    h.assign(nowhere, Origin::Api, Some(1), |_| false, now);
    assert_eq!(h.probes(Some(now), now), []);
    h.resolved(vip(true), now);
    assert!(!held(&h));
    assert_eq!(h.probes(Some(now), now), [key()]);
}

#[test]
fn who_is_about_to_take_it_gets_a_moment_for_that_when_no_api_server_is_in_reach() {
    let now = Instant::now();
    let mut h = holder(now);
    assert_eq!(h.asked(&key(), MAC, true, now), None);
    assert!(held(&h), "the API server's word counts");
    assert_eq!(h.asked(&key(), MAC, false, now).as_deref(), Some("web"));
    assert!(!held(&h));
    assert_eq!(h.probes(None, now + secs(2)), []);
    assert_eq!(h.probes(None, now + secs(3)), [key()]);
    h.answer(&key(), None, now + secs(3));
    assert!(held(&h), "it was not taken");
    h.asked(&key(), MAC, false, now + secs(9));
    h.probes(None, now + secs(12));
    h.answer(&key(), Some(MAC.into()), now + secs(12));
    assert!(!held(&h), "it was");
}

#[test]
fn what_ran_out_is_asked_for_before_it_is_taken_again() {
    let now = Instant::now();
    let mut h = holder(now);
    assert_eq!(h.lapsed(now), ["web"]);
    assert!(!held(&h), "the word that gave it is older than its fence");
    assert_eq!(h.lapsed(now), Vec::<String>::new(), "once");
    assert_eq!(h.probes(Some(now), now), [key()]);
    h.answer(&key(), Some(MAC.into()), now);
    assert!(!held(&h), "the next holder has it");
    assert_eq!(h.probes(Some(now), now + secs(10)), [key()]);
    h.answer(&key(), None, now + secs(10));
    assert!(held(&h), "nobody has it");
}

#[test]
fn the_disks_word_keeps_what_is_there_and_asks_before_it_takes() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Disk, Some(1), |_| true, now);
    assert!(held(&h), "what is in the kernel is kept");
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
    assert!(!held(&h));
    assert_eq!(h.probes(None, now + secs(4)), []);
    assert_eq!(h.probes(None, now + secs(5)), [key()]);
    h.answer(&key(), None, now + secs(6));
    assert!(held(&h));
}

#[test]
fn the_disks_word_yields_to_an_owner_and_to_the_api() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
    h.probes(None, now + secs(5));
    h.answer(&key(), Some(MAC.into()), now + secs(5));
    assert_eq!(h.words("web").unwrap().0, "AddressTaken");
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
    h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
    h.probes(Some(now), now);
    h.answer(&key(), None, now);
    assert!(held(&h));
}

#[test]
fn without_the_api_another_owner_is_yielded_to_and_with_it_not() {
    let now = Instant::now();
    let mut h = holder(now);
    assert_eq!(h.heard(&key(), MAC, true), None);
    assert!(held(&h));
    assert_eq!(h.heard(&key(), MAC, false).as_deref(), Some("web"));
    assert!(!held(&h));
    assert_eq!(h.heard(&key(), MAC, false), None, "said once");
    // Alone, time brings nothing back.
    assert_eq!(h.probes(None, now + secs(3600)), []);
    // The API server is back and has nothing else to say.
    assert_eq!(h.probes(Some(now), now + secs(5)), []);
    assert_eq!(h.probes(Some(now), now + secs(10)), [key()]);
    h.answer(&key(), Some(MAC.into()), now + secs(10));
    assert!(!held(&h));
    assert_eq!(h.probes(Some(now), now + secs(20)), [key()]);
    h.answer(&key(), None, now + secs(21));
    assert!(held(&h));
}

#[test]
fn a_new_word_of_the_operator_brings_it_back_after_a_probe() {
    let now = Instant::now();
    let mut h = holder(now);
    h.heard(&key(), MAC, false);
    h.assign(vip(true), Origin::Api, Some(2), |_| false, now);
    assert!(!held(&h), "not before the probe");
    assert_eq!(h.probes(Some(now), now), [key()]);
    h.answer(&key(), None, now);
    assert!(held(&h));
}

#[test]
fn backup_ends_every_doubt() {
    let now = Instant::now();
    let mut h = holder(now);
    h.heard(&key(), MAC, false);
    h.assign(vip(false), Origin::Api, Some(2), |_| false, now);
    assert!(h.yielded().is_none() && h.words("web").is_none());
}

#[test]
fn a_link_that_comes_back_is_probed_first() {
    let now = Instant::now();
    let mut h = holder(now);
    let down = BTreeSet::from(["eth0".to_owned()]);
    h.links(&down, now);
    assert_eq!(h.words("web").unwrap().1, "interface eth0 is down or has no carrier");
    assert_eq!(h.probes(Some(now), now + secs(60)), []);
    h.links(&BTreeSet::new(), now);
    assert_eq!(h.probes(None, now), [key()]);
    h.answer(&key(), None, now);
    assert!(held(&h));
}

#[test]
fn a_probe_without_any_answer_is_asked_again() {
    let now = Instant::now();
    let mut h = Holding::new(Times::default());
    h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
    assert_eq!(h.probes(None, now + secs(5)), [key()]);
    assert_eq!(h.probes(None, now + secs(6)), []);
    assert_eq!(h.probes(None, now + secs(8)), [key()]);
}
