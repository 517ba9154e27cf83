//! Where things go: which segment of a sale serves a user, how stock is shared out, and which write queue
//! an order takes.

use crate::ids::UserId;

/// The segment where a user's marks live: he never leaves it (FNV-1a over his id, modulo `segments`).
pub fn segment_of(user: &UserId, segments: u16) -> u16 {
    let hash = user.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u16::try_from(hash % u64::from(segments.max(1))).unwrap_or(0)
}

/// A stock shared out over segments: they add up to it exactly, the remainder goes to the first ones.
pub fn shares(stock: u64, segments: u16) -> Vec<u64> {
    let n = u64::from(segments.max(1));
    (0..n).map(|segment| stock / n + u64::from(segment < stock % n)).collect()
}

/// The write shard of an order: its last random bytes, modulo the shards.
pub fn write_shard(uuid: &[u8; 16], shards: u16) -> u16 {
    u16::from_be_bytes([uuid[14], uuid[15]]) % shards.max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn t12_no_unit_is_lost_when_stock_is_shared_out() {
        for stock in [0, 1, 9, 10, 11, 1_000_003] {
            for segments in [1, 2, 7, 10, 16] {
                let shares = shares(stock, segments);
                assert_eq!(shares.len(), usize::from(segments));
                assert_eq!(shares.iter().sum::<u64>(), stock);
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn t10_users_of_one_sale_use_every_segment() {
        let mut seen = [0_u32; 10];
        for n in 0..10_000 {
            let user = UserId::parse(&format!("user-{n}")).unwrap();
            seen[usize::from(segment_of(&user, 10))] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }

    #[test]
    fn t11_every_segment_that_is_filled_is_one_that_is_asked() {
        for segments in [1, 3, 10] {
            let filled = shares(100, segments).len();
            for n in 0..1_000 {
                let user = UserId::parse(&format!("u{n}")).unwrap();
                assert!(usize::from(segment_of(&user, segments)) < filled);
            }
        }
    }

    #[test]
    fn every_shard_gets_orders_and_every_order_has_a_shard() {
        let mut seen = [0_u32; 4];
        for _ in 0..4_000 {
            let id = crate::ids::OrderId::mint(1, 0);
            seen[usize::from(write_shard(&id.uuid, 4))] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
    }
}
