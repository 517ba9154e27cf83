//! Who is asking: the peer, or whom a trusted proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderName;

use crate::fields::Fields;

/// A network: an address and how many of its bits count. IPv4 lies at `::ffff:0:0/96`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: u128,
    mask: u128,
}

fn mapped(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Network {
    /// Reads `192.0.2.0/24`, `2001:db8::/32`, or an address alone.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = address.parse().ok()?;
        let width: u32 = if ip.is_ipv4() { 32 } else { 128 };
        let bits: u32 = bits.map_or(Some(width), |bits| bits.parse().ok())?;
        if bits > width {
            return None;
        }
        let mask = u128::MAX.checked_shl(width - bits).unwrap_or(0);
        Some(Self { base: mapped(ip) & mask, mask })
    }

    fn holds(&self, ip: IpAddr) -> bool {
        mapped(ip) & self.mask == self.base
    }
}

/// The proxies that may name the buyer, and the field they do it in.
#[derive(Debug, Clone)]
pub struct Networks {
    networks: Vec<Network>,
    header: HeaderName,
}

impl Networks {
    /// Networks, and the field that their proxies write.
    pub fn new(networks: Vec<Network>, header: HeaderName) -> Self {
        Self { networks, header }
    }

    /// Whether an address is one of our proxies.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(ip))
    }

    /// The buyer's address: the peer, or when that is a trusted proxy the right-most address of the
    /// field that is none. What a client writes there itself stands further left and counts nothing.
    pub fn client(&self, peer: IpAddr, fields: &(impl Fields + ?Sized)) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.networks.is_empty() || !self.trusts(client) {
            return client;
        }
        for value in fields.all(self.header.as_str()).rev() {
            for hop in value.rsplit(|byte| *byte == b',') {
                let Some(ip) = std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())) else {
                    return client;
                };
                client = ip.to_canonical();
                if !self.trusts(client) {
                    return client;
                }
            }
        }
        client
    }
}

/// An address with or without port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let socket = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    bare.unwrap_or(text).parse().ok().or_else(socket)
}

/// What a bucket knows an address by: all of IPv4, 64 bits of IPv6, because a household has those.
pub fn bucket_key(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn networks() -> Networks {
        let parse = |text: &&str| Network::parse(text).unwrap();
        let list = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"].iter().map(parse).collect();
        Networks::new(list, HeaderName::from_static("x-forwarded-for"))
    }

    fn client(peer: &str, fields: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append("x-forwarded-for", field.parse().unwrap());
        }
        networks().client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_buyer() {
        assert_eq!(client("10.1.1.1", &["6.6.6.6, 203.0.113.9, 10.2.2.2"]), "203.0.113.9");
        assert_eq!(client("10.1.1.1", &["6.6.6.6", "203.0.113.9", "192.0.2.7"]), "203.0.113.9");
        assert_eq!(client("fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(client("::ffff:10.1.1.1", &["203.0.113.9:1234"]), "203.0.113.9");
    }

    #[test]
    fn a_stranger_cannot_name_himself() {
        assert_eq!(client("203.0.113.1", &["1.2.3.4"]), "203.0.113.1");
        assert_eq!(client("::ffff:203.0.113.1", &["1.2.3.4"]), "203.0.113.1");
    }

    #[test]
    fn an_unreadable_hop_ends_the_trust() {
        assert_eq!(client("10.1.1.1", &["1.2.3.4, unknown, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(client("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn an_ipv6_household_shares_a_bucket() {
        let key = |text: &str| bucket_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn networks_are_read_exactly() {
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "x/8"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
        assert!(Network::parse("0.0.0.0/0").unwrap().holds("8.8.8.8".parse().unwrap()));
        assert!(!Network::parse("0.0.0.0/0").unwrap().holds("2001:db8::1".parse().unwrap()));
    }
}
