//! Identifiers: parsed once at the rim, trusted inside.

use std::fmt;
use std::sync::Arc;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must match {pattern}")]
pub struct BadId {
    /// What the text should have been.
    pub what: &'static str,
    /// The pattern that it has to match.
    pub pattern: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $pattern:literal, $max:literal, $byte:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Reads a text that matches `", $pattern, "`.")]
            pub fn parse(text: &str) -> Result<Self, BadId> {
                let ok: fn(u8) -> bool = $byte;
                if text.is_empty() || text.len() > $max || !text.bytes().all(ok) {
                    return Err(BadId { what: $what, pattern: $pattern });
                }
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

const fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

text_id!(
    /// A sale, as the shop names it.
    SaleId, "sale", "^[A-Za-z0-9_-]{1,64}$", 64, word
);
text_id!(
    /// A thing that is sold.
    SkuId, "sku", "^[A-Za-z0-9_-]{1,64}$", 64, word
);
text_id!(
    /// A buyer: the `sub` of a verified JWT, never anything that a client claims.
    UserId, "user", "^[!-~]{1,128}$", 128, |byte| byte.is_ascii_graphic()
);
text_id!(
    /// One start of one edge.
    InstanceId, "instance", "^[A-Za-z0-9_.-]{1,96}$", 96, |byte| word(byte) || byte == b'.'
);

/// An order: minted with its sale token, and its idempotency key from there to the books.
///
/// Written as 32 hex digits of a UUID v7 (RFC 9562), `-`, the sale's number in base 36, `-`, the
/// segment, so that any edge finds its slot in Redis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId {
    /// The UUID: what the order is called inside its segment.
    pub uuid: [u8; 16],
    /// The number of its sale (PostgreSQL counts them).
    pub sale: u32,
    /// The segment of the sale that holds the buyer's marks.
    pub segment: u16,
}

impl OrderId {
    /// A new order of a sale segment.
    pub fn mint(sale: u32, segment: u16) -> Self {
        Self { uuid: *uuid::Uuid::now_v7().as_bytes(), sale, segment }
    }

    /// The 32 hex digits: the order's field in its segment's hash.
    pub fn field(&self) -> String {
        hex::encode(self.uuid)
    }

    /// Reads the text form; upper case, a sign or a leading zero are refused, so that an order has
    /// exactly one spelling.
    pub fn parse(text: &str) -> Option<Self> {
        let (uuid, rest) = text.split_once('-')?;
        let (sale, segment) = rest.split_once('-')?;
        let canonical = |part: &str, max: usize| {
            (1..=max).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
                && (part == "0" || !part.starts_with('0'))
        };
        if !canonical(sale, 7) || !canonical(segment, 5) {
            return None;
        }
        Some(Self {
            uuid: parse_field(uuid)?,
            sale: u32::from_str_radix(sale, 36).ok()?,
            segment: segment.parse().ok()?,
        })
    }
}

/// Reads the 32 lower-case hex digits of an order's field.
pub fn parse_field(text: &str) -> Option<[u8; 16]> {
    let lower = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut uuid = [0; 16];
    (lower && hex::decode_to_slice(text, &mut uuid).is_ok()).then_some(uuid)
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0_u8; 32];
        // Cannot fail: 16 bytes make 32 digits.
        hex::encode_to_slice(self.uuid, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)?;
        let (mut base36, mut at, mut rest) = ([0_u8; 7], 7, self.sale);
        loop {
            at -= 1;
            base36[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        write!(f, "-{}-{}", std::str::from_utf8(&base36[at..]).map_err(|_| fmt::Error)?, self.segment)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for OrderId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for OrderId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an order id"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_order_id_reads_back_what_it_wrote() {
        for (sale, segment) in [(0, 0), (1, 0), (35, 7), (36, 12), (u32::MAX, u16::MAX)] {
            let id = OrderId::mint(sale, segment);
            assert_eq!(OrderId::parse(&id.to_string()), Some(id));
        }
    }

    #[test]
    fn an_order_has_exactly_one_spelling() {
        let id = OrderId::mint(40, 0).to_string();
        assert!(id.ends_with("-14-0"));
        for bad in [id.to_uppercase(), id.replace("-14-", "-014-"), id.replace("-0", "-+0"), format!("{id} ")]
        {
            assert_eq!(OrderId::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_keep_to_their_alphabet() {
        assert!(SkuId::parse("phone_X-1").is_ok());
        for bad in ["", "1}{x", "a:b", "a b", "é", &"a".repeat(65)] {
            assert!(SkuId::parse(bad).is_err(), "{bad}");
        }
        assert!(UserId::parse("a|b{c}").is_ok());
        for bad in ["", "a b", "a\u{0}", &"a".repeat(129)] {
            assert!(UserId::parse(bad).is_err(), "{bad}");
        }
    }
}
