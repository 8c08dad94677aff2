//! Blocks of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits of an address: 32 or 128.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// `4` or `6`, the ending of our sets' names.
    #[must_use]
    pub const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// Why a text is no block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is not an address with an optional prefix length.
    #[error("must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32, got {got:?}")]
    Malformed {
        /// The text, shortened to 80 characters.
        got: String,
    },
    /// The prefix is longer than an address.
    #[error("the prefix length of {got:?} must be at most {max}")]
    Prefix {
        /// The text.
        got: String,
        /// 32 or 128.
        max: u8,
    },
    /// Bits after the prefix are set: probably a mistake, and the kernel would show another text.
    #[error("{got:?} has bits set after its prefix; hint: {network}")]
    HostBits {
        /// The text.
        got: String,
        /// The network that was probably meant.
        network: Cidr,
    },
}

/// A block of addresses in canonical form: no bit after the prefix is set (RFC 4632, RFC 4291).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Parses `address` or `address/prefix`. IPv4 mapped into IPv6 is refused as malformed.
    ///
    /// # Errors
    /// [`CidrError`].
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let got = || text.chars().take(80).collect::<String>();
        let malformed = || CidrError::Malformed { got: got() };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_invalid| malformed())?;
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(malformed());
        }
        let max = Family::of(address).bits();
        let prefix = match prefix {
            None => max,
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_overflow| malformed())?
            }
            Some(_) => return Err(malformed()),
        };
        if prefix > max {
            return Err(CidrError::Prefix { got: got(), max });
        }
        let network = Self::containing(address, prefix);
        if network.address == address {
            Ok(network)
        } else {
            Err(CidrError::HostBits { got: got(), network })
        }
    }

    /// The block of `prefix` bits in which an address lies; a prefix beyond the family's bits counts as
    /// all of them.
    #[must_use]
    pub fn containing(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(Family::of(address).bits());
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { address, prefix }
    }

    /// The block's first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Bits that are fixed.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The family.
    #[must_use]
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }

    /// Whether an address lies in the block.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && Self::containing(address, self.prefix) == self
    }

    /// Whether the two have an address in common: one then lies in the other.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Cidr {
    /// `address/prefix`, always with the prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let shown = Cidr::parse(text).map_or_else(|error| error.to_string(), |c| c.to_string());
        assert_eq!(shown, expected);
    }

    #[test]
    fn blocks_are_canonical_or_refused() {
        check("192.0.2.7", "192.0.2.7/32");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("2001:db8::/32", "2001:db8::/32");
        check("192.0.2.7/24", "\"192.0.2.7/24\" has bits set after its prefix; hint: 192.0.2.0/24");
        check("10.0.0.0/33", "the prefix length of \"10.0.0.0/33\" must be at most 32");
        let malformed =
            "must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32, got";
        for text in ["", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/", "::ffff:10.0.0.1", "a b"] {
            check(text, &format!("{malformed} {text:?}"));
        }
    }

    #[test]
    fn overlap_is_containment_in_one_direction() {
        let cidr = |text: &str| Cidr::parse(text).expect("valid");
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.1.0.0/16")));
        assert!(cidr("10.1.0.0/16").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.0.0.0/9").overlaps(cidr("10.128.0.0/9")));
        assert!(!cidr("0.0.0.0/0").overlaps(cidr("::/0")));
    }
}
