//! Numbers that name certificates and keys: serial numbers and key identifiers.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use rand::CryptoRng;

/// Longest serial number in bytes (RFC 5280, section 4.1.2.2).
const MAX_SERIAL: usize = 20;

/// A certificate's serial number, unique under its issuer; shown in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// Names the key that signed a certificate (RFC 5280, section 4.2.1.1); shown in lower-case hex.
///
/// Two generations of an authority differ in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Vec<u8>);

/// Why a text is no serial number or key identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 2 to 40 lower-case hex digits in pairs")]
pub struct SerialError;

impl Serial {
    /// 128 random bits, of which the first two are 01: positive and always 16 bytes.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0_u8; 16];
        rng.fill_bytes(&mut bytes);
        bytes[0] = (bytes[0] & 0x3f) | 0x40;
        Self(bytes.to_vec())
    }

    /// Big-endian bytes as they stand in a certificate; leading zeros are dropped.
    ///
    /// # Errors
    ///
    /// [`SerialError`] when more than 20 bytes remain, or none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        let start = bytes.iter().position(|byte| *byte != 0).ok_or(SerialError)?;
        let significant: Vec<u8> = bytes.iter().skip(start).copied().collect();
        if significant.len() > MAX_SERIAL {
            return Err(SerialError);
        }
        Ok(Self(significant))
    }

    /// Big-endian, without leading zeros.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl KeyId {
    /// The identifier as it stands in a certificate.
    ///
    /// # Errors
    ///
    /// [`SerialError`] when it is empty or longer than 20 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        if bytes.is_empty() || bytes.len() > MAX_SERIAL {
            return Err(SerialError);
        }
        Ok(Self(bytes.to_vec()))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex(&self.0))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex(&self.0))
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let serial = Self::from_bytes(&unhex(text)?)?;
        // One spelling only: leading zeros would make two names for one certificate.
        if serial.to_string() == text { Ok(serial) } else { Err(SerialError) }
    }
}

impl FromStr for KeyId {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let id = Self::from_bytes(&unhex(text)?)?;
        if id.to_string() == text { Ok(id) } else { Err(SerialError) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>, SerialError> {
    let digits = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(SerialError))
        .collect::<Result<Vec<u8>, SerialError>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SerialError);
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_serials_are_positive_and_come_back() {
        for _round in 0..100 {
            let serial = Serial::random(&mut rand::rng());
            assert_eq!(serial.as_bytes().len(), 16);
            assert!(serial.as_bytes()[0] < 0x80);
            assert_eq!(serial.to_string().parse(), Ok(serial));
        }
    }

    #[test]
    fn one_spelling_per_number() {
        assert_eq!(Serial::from_bytes(&[0, 0x0a, 0xbc]).unwrap().to_string(), "0abc");
        for text in ["", "a", "00", "00ab", "0ABC", "0x0abc", "zz", "+1", &"ab".repeat(21)] {
            assert_eq!(text.parse::<Serial>(), Err(SerialError), "{text}");
        }
    }
}
