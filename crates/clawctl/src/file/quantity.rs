//! Quantities as people write them: `2GiB`, `1.5` cores, `330s`.
//!
//! They come back exactly as they print. Ranges are the coordinator's business.

use std::fmt;
use std::time::Duration;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const BYTE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// An interval that has no end.
const NEVER: &str = "never";

/// Longest first where one unit ends like another.
const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    #[error("must be a size such as 2GiB, 768MiB or a number of bytes")]
    Bytes,
    #[error("must be cores such as 1.5, or thousandths such as 1500m")]
    Cpu,
    #[error("must be a time such as 500ms, 30s, 5m, 1h or 1m30s")]
    Duration,
    #[error("must be a time such as 15m, 12h or 7d, or never")]
    Interval,
}

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// A share of CPU in thousandths of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpu(pub(crate) u64);

/// A length of time, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A length of time after which something comes back; zero is `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval(pub(crate) Duration);

impl Bytes {
    pub(crate) fn parse(text: &str) -> Result<Self, QuantityError> {
        let text = text.trim();
        let (number, unit) = BYTE_UNITS
            .iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .or_else(|| text.strip_suffix('B').map(|number| (number, 1)))
            .unwrap_or((text, 1));
        scaled(number.trim(), unit).map(Self).ok_or(QuantityError::Bytes)
    }
}

impl Cpu {
    pub(crate) fn parse(text: &str) -> Result<Self, QuantityError> {
        let text = text.trim();
        let millis = match text.strip_suffix('m') {
            Some(millis) => scaled(millis, 1),
            None => scaled(text, 1000),
        };
        millis.map(Self).ok_or(QuantityError::Cpu)
    }
}

impl Span {
    /// From the parts of a `google.protobuf.Duration`; what is negative counts as zero.
    pub(crate) fn from_wire(seconds: i64, nanos: i32) -> Self {
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let nanos = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        Self(seconds.saturating_add(nanos))
    }
}

impl Interval {
    fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.trim() == NEVER {
            return Ok(Self(Duration::ZERO));
        }
        parse_duration(text).map(Self).map_err(|_| QuantityError::Interval)
    }

    /// From the parts of a `google.protobuf.Duration`; what is negative counts as zero.
    pub(crate) fn from_wire(seconds: i64, nanos: i32) -> Self {
        Self(Span::from_wire(seconds, nanos).0)
    }
}

/// A length of time such as `1m30s`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let mut rest = text.trim();
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').count();
        let (number, tail) = rest.split_at_checked(digits).ok_or(QuantityError::Duration)?;
        let letters = tail.chars().take_while(char::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at_checked(letters).ok_or(QuantityError::Duration)?;
        let unit = TIME_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, millis)| *millis);
        let part = unit.and_then(|unit| scaled(number, unit)).ok_or(QuantityError::Duration)?;
        millis = millis.checked_add(part).ok_or(QuantityError::Duration)?;
        rest = tail;
    }
    if text.trim().is_empty() {
        return Err(QuantityError::Duration);
    }
    Ok(Duration::from_millis(millis))
}

impl fmt::Display for Bytes {
    /// The largest binary unit that divides it, so that nothing is rounded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = |(suffix, unit): &&(&str, u64)| {
            suffix.ends_with("iB") && self.0 >= *unit && self.0.is_multiple_of(*unit)
        };
        match BYTE_UNITS.iter().find(binary) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) {
            write!(f, "{}s", millis / 1000)
        } else {
            write!(f, "{millis}ms")
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str(NEVER) } else { Span(self.0).fmt(f) }
    }
}

/// A decimal number times a unit; `None` unless the result is whole.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return if number.ends_with('.') { None } else { Some(whole) };
    }
    let denominator = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u64>().ok()?.checked_mul(unit)?;
    if part.is_multiple_of(denominator) { whole.checked_add(part / denominator) } else { None }
}

/// Reads a quantity from a text, or from a bare number where that has a meaning.
struct QuantityVisitor<T> {
    from_text: fn(&str) -> Result<T, QuantityError>,
    expected: QuantityError,
}

impl<T> Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.expected.to_string();
        f.write_str(text.strip_prefix("must be ").unwrap_or(&text))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.from_text)(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        (self.from_text)(&number.to_string())
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        (self.from_text)(&number.to_string())
            .map_err(|_| E::invalid_value(Unexpected::Float(number), &self))
    }
}

macro_rules! quantity {
    ($name:ident, $parse:expr, $expected:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let from_text: fn(&str) -> Result<Self, QuantityError> = $parse;
                deserializer.deserialize_any(QuantityVisitor { from_text, expected: $expected })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

quantity!(Bytes, Bytes::parse, QuantityError::Bytes);
quantity!(Cpu, Cpu::parse, QuantityError::Cpu);
quantity!(Span, |text| parse_duration(text).map(Span), QuantityError::Duration);
quantity!(Interval, Interval::parse, QuantityError::Interval);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let bytes = |text| Bytes::parse(text).map(|bytes| bytes.0);
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(bytes("768MiB"), Ok(768 << 20));
        assert_eq!(bytes("1GB"), Ok(1_000_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "GiB", "-1", "1.GiB", "0.3", "2gib", "1e9", "99999999999TiB", "1 2"] {
            assert_eq!(bytes(wrong), Err(QuantityError::Bytes), "{wrong}");
        }
    }

    #[test]
    fn cores_and_times() {
        assert_eq!(Cpu::parse("1.5"), Ok(Cpu(1500)));
        assert_eq!(Cpu::parse("250m"), Ok(Cpu(250)));
        assert_eq!(Cpu::parse("0.0001"), Err(QuantityError::Cpu));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "5", "s", "5 s x", "-5s", "5y", "5é"] {
            assert_eq!(parse_duration(wrong), Err(QuantityError::Duration), "{wrong}");
        }
    }

    #[test]
    fn intervals() {
        assert_eq!(Interval::parse("never"), Ok(Interval(Duration::ZERO)));
        assert_eq!(Interval::parse("0s"), Ok(Interval(Duration::ZERO)));
        assert_eq!(Interval::parse("7d"), Ok(Interval(Duration::from_secs(604_800))));
        assert_eq!(Interval(Duration::ZERO).to_string(), "never");
        assert_eq!(Interval(Duration::from_secs(86_400)).to_string(), "86400s");
        for wrong in ["", "Never", "no", "5"] {
            assert_eq!(Interval::parse(wrong), Err(QuantityError::Interval), "{wrong}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 3 << 20, (3 << 20) + 1, 5 << 30, u64::MAX] {
            assert_eq!(Bytes::parse(&Bytes(bytes).to_string()), Ok(Bytes(bytes)));
        }
        for millis in [0, 1, 999, 1000, 1500, 86_400_000] {
            let cpu = Cpu(millis);
            assert_eq!(Cpu::parse(&cpu.to_string()), Ok(cpu));
            let span = Span(Duration::from_millis(millis));
            assert_eq!(parse_duration(&span.to_string()), Ok(span.0));
        }
    }
}
