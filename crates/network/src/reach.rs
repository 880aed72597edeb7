//! Which addresses no sandbox may reach, whatever its policy says.

use std::net::Ipv4Addr;

/// A range of addresses: its first one and the length of its prefix in bits.
type Range = (Ipv4Addr, u8);

/// What the operator has opened of [`Reach::DENIED`].
#[derive(Debug, Clone, Default)]
pub struct Reach {
    opened: Vec<Range>,
}

impl Reach {
    /// This network, private, shared, loopback, link-local (cloud metadata among them), protocol assignments, our own
    /// slots, multicast and reserved. The documentation ranges stay open: networks behind inspecting gateways are seen
    /// to use them.
    pub const DENIED: &[(Ipv4Addr, u8)] = &[
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];

    #[must_use]
    pub fn new(opened: Vec<(Ipv4Addr, u8)>) -> Self {
        Self { opened }
    }

    /// Reads `10.1.0.0/16`, or one address.
    ///
    /// # Errors
    /// In words for whoever wrote it.
    pub fn parse_range(text: &str) -> Result<(Ipv4Addr, u8), String> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        match (address.parse(), bits.parse()) {
            (Ok(address), Ok(bits)) if bits <= 32 => Ok((address, bits)),
            _ => Err(format!("{text:?} is no range of IPv4 addresses; write 10.1.0.0/16 or 10.1.2.3")),
        }
    }

    /// What is denied and what is opened of it, as the firewall writes ranges.
    pub(crate) fn as_text(&self) -> (String, String) {
        let text = |ranges: &[Range]| {
            let ranges: Vec<_> = ranges.iter().map(|(first, bits)| format!("{first}/{bits}")).collect();
            ranges.join(", ")
        };
        (text(Self::DENIED), text(&self.opened))
    }

    #[must_use]
    pub fn allows(&self, address: Ipv4Addr) -> bool {
        self.is_opened(address) || !Self::DENIED.iter().any(|range| is_in(address, *range))
    }

    /// Whether the operator named it, so that even an address of this host is meant.
    #[must_use]
    pub fn is_opened(&self, address: Ipv4Addr) -> bool {
        self.opened.iter().any(|range| is_in(address, *range))
    }
}

fn is_in(address: Ipv4Addr, (first, bits): Range) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
    (address.to_bits() & mask) == (first.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(reach: &Reach, address: &str) -> bool {
        reach.allows(address.parse().unwrap())
    }

    #[test]
    fn private_and_special_ranges_are_denied_to_their_last_address() {
        let reach = Reach::default();
        for denied in [
            "0.0.0.0",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!allows(&reach, denied), "{denied}");
        }
        for open in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.0",
            "192.0.2.1",
            "198.20.0.0",
            "203.0.113.9",
        ] {
            assert!(allows(&reach, open), "{open}");
        }
    }

    #[test]
    fn an_operator_opens_ranges_and_single_addresses() {
        let reach = Reach::new(vec![("10.1.0.0".parse().unwrap(), 16), ("192.168.7.7".parse().unwrap(), 32)]);
        assert!(allows(&reach, "10.1.2.3") && allows(&reach, "192.168.7.7"));
        assert!(!allows(&reach, "10.2.0.0") && !allows(&reach, "192.168.7.8"));
        assert!(allows(&Reach::new(vec![("0.0.0.0".parse().unwrap(), 0)]), "10.0.0.1"));
    }
}
