//! IPv4 blocks. Parsed once at the door; whoever holds a [`Cidr`] holds a valid one.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An IPv4 block with no host bit set (RFC 4632, 3.1). Built only by parsing or from parts that are checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: u32,
    prefix_bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is not an IPv4 block of the form a.b.c.d/n")]
    Form(String),
    #[error("{0:?} has host bits set")]
    HostBits(String),
}

impl Cidr {
    pub const ALL: Cidr = Cidr { base: 0, prefix_bits: 0 };

    /// The block of `prefix_bits` that contains `addr`; host bits of `addr` are dropped.
    pub fn containing(addr: Ipv4Addr, prefix_bits: u8) -> Cidr {
        let prefix_bits = prefix_bits.min(32);
        Cidr { base: u32::from(addr) & mask(prefix_bits), prefix_bits }
    }

    pub fn host(addr: Ipv4Addr) -> Cidr {
        Cidr::containing(addr, 32)
    }

    pub fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    pub fn prefix_bits(self) -> u8 {
        self.prefix_bits
    }

    /// The highest address of the block.
    pub fn last(self) -> Ipv4Addr {
        (self.base | !mask(self.prefix_bits)).into()
    }

    pub fn contains(self, addr: Ipv4Addr) -> bool {
        u32::from(addr) & mask(self.prefix_bits) == self.base
    }

    pub fn covers(self, other: Cidr) -> bool {
        self.prefix_bits <= other.prefix_bits && self.contains(other.base())
    }

    pub fn overlaps(self, other: Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Addresses in the block, up to 2^32.
    pub fn size(self) -> u64 {
        1u64 << (32 - self.prefix_bits)
    }

    /// The first usable address, which the cloud keeps for the gateway.
    pub fn gateway(self) -> Ipv4Addr {
        self.base.wrapping_add(1).into()
    }

    /// Addresses a user may hold in a primary range: without the first two and the last two.
    /// Source: VPC "Unusable addresses in IPv4 subnet ranges".
    pub fn usable(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = u64::from(self.base) + 2;
        let end = (u64::from(self.base) + self.size()).saturating_sub(2);
        (first..end).map(|a| Ipv4Addr::from(u32::try_from(a).expect("inside the block, which ends at 2^32")))
    }

    pub fn is_usable(self, addr: Ipv4Addr) -> bool {
        let a = u64::from(u32::from(addr));
        let base = u64::from(self.base);
        self.contains(addr) && a >= base + 2 && a + 2 < base + self.size()
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (addr, bits) = text.split_once('/').unwrap_or((text, "32"));
        let addr: Ipv4Addr = addr.parse().map_err(|_| form())?;
        if bits.is_empty() || bits.len() > 2 || !bits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        let prefix_bits: u8 = bits.parse().map_err(|_| form())?;
        if prefix_bits > 32 {
            return Err(form());
        }
        let block = Cidr::containing(addr, prefix_bits);
        if block.base() != addr {
            return Err(CidrError::HostBits(text.to_owned()));
        }
        Ok(block)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Cidr, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(c: Cidr) -> String {
        c.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix_bits)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_with_host_bits_is_refused_rather_than_rounded() {
        assert_eq!("10.0.0.1/24".parse::<Cidr>(), Err(CidrError::HostBits("10.0.0.1/24".into())));
        for bad in ["10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "", "::/0", "10.0.0.0/8 "] {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError::Form(bad.into())), "{bad:?}");
        }
    }

    #[test]
    fn four_addresses_of_a_primary_range_are_not_for_users() {
        let addrs: Vec<_> = cidr("10.0.3.0/29").usable().collect();
        assert_eq!(addrs, ["10.0.3.2", "10.0.3.3", "10.0.3.4", "10.0.3.5"].map(|a| a.parse::<Ipv4Addr>().unwrap()));
        assert!(!cidr("10.0.3.0/29").is_usable("10.0.3.1".parse().unwrap()));
        assert!(!cidr("10.0.3.0/29").is_usable("10.0.3.6".parse().unwrap()));
        assert_eq!(cidr("255.255.255.248/29").usable().count(), 4);
    }

    #[test]
    fn overlap_is_symmetric_and_means_a_shared_address() {
        assert!(cidr("10.0.0.0/16").overlaps(cidr("10.0.3.0/24")));
        assert!(cidr("10.0.3.0/24").overlaps(cidr("10.0.0.0/16")));
        assert!(!cidr("10.0.0.0/24").overlaps(cidr("10.0.1.0/24")));
        assert!(Cidr::ALL.covers(cidr("10.0.1.0/24")));
    }
}
