//! How times, places and names are written, in the file and on the command line.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use crate::resolve::schedulers;

/// A time with its unit: `30s`, `500ms`, `1h30m`; a number alone means seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Word("a time, as 30s", |text| duration(text).map(Self)))
    }
}

/// Reads a word within the deserializer, which then can say of which field an error is.
struct Word<T>(&'static str, fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }
}

/// Reads `30s`, `500ms`, `2m`, `1h30m` or a number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    loop {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(split);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "" if rest.len() == text.len() => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(format!("{text:?}: {unit:?} is no unit of time: write ms, s, m or h")),
        };
        let number: f64 =
            number.parse().map_err(|_| format!("{text:?} is no time: write for example 30s"))?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())?;
        sum = sum.checked_add(part).ok_or_else(|| format!("{text:?} is too long a time"))?;
        if tail.is_empty() {
            return Ok(sum);
        }
        rest = tail;
    }
}

/// As [`duration`], for what happens again and again: without a pause nothing else would.
pub fn period(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(NO_PAUSE.to_owned()),
        period => Ok(period),
    }
}

pub(super) const NO_PAUSE: &str = "must be more than 0: write for example 30s";

/// Where to listen, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub Option<SocketAddr>);

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Word("an address and a port, as 0.0.0.0:10256, or none", place))
    }
}

/// Reads an address and port, or `none`.
pub fn place(text: &str) -> Result<Place, String> {
    match text {
        "none" => Ok(Place(None)),
        text => text.parse().map(|address| Place(Some(address))).map_err(|_| {
            format!("{text:?}: write an address and a port, as 0.0.0.0:10256 or [::1]:10256, or none")
        }),
    }
}

/// Reads the name of a scheduler.
pub fn scheduler(text: &str) -> Result<String, String> {
    if schedulers().any(|known| known == text) {
        return Ok(text.to_owned());
    }
    let known: Vec<&str> = schedulers().collect();
    Err(format!("{text:?} is no scheduler of IPVS: write one of {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("24h0m0s"), Ok(Duration::from_secs(86400)));
        assert!(duration("3 days").unwrap_err().contains("no unit of time"));
        assert!(duration("1h30").is_err());
        assert!(duration("").is_err());
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(period("0s").unwrap_err().contains("more than 0") && period("1ms").is_ok());
    }
}
