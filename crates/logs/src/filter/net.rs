//! Subnets of both address families, for `ip_in_net`.

use std::net::IpAddr;

/// `10.0.0.0/8`, `fda3::/16`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net {
    base: IpAddr,
    bits: u32,
}

impl Net {
    pub(super) fn parse(text: &str) -> Option<Net> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base.parse().ok()?, bits.parse().ok()?),
            None => {
                let base: IpAddr = text.parse().ok()?;
                (base, width(base))
            }
        };
        (bits <= width(base)).then_some(Net { base, bits })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        width(address) == width(self.base)
            && (self.bits == 0
                || number(address) >> (width(address) - self.bits)
                    == number(self.base) >> (width(self.base) - self.bits))
    }

    /// An address, or a whole range, as a field holds it.
    pub(super) fn contains_text(&self, text: &str) -> bool {
        Net::parse(text).is_some_and(|inner| inner.bits >= self.bits && self.contains(inner.base))
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}
