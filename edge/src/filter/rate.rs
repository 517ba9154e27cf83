//! Token buckets of addresses, users, sales and of everything.

use std::net::IpAddr;
use std::time::Duration;

use governor::clock::MonotonicClock;
use http::HeaderValue;
use sluice_shared::ids::UserId;
use sluice_shared::verdict::{Code, Extra, Rejection};

use super::address::bucket_key;
use crate::buckets::{Buckets, Taken};
use crate::config::{Rate, Rates};

/// Sales are few.
const SALE_SLOTS: usize = 1024;

/// All buckets of an edge.
#[derive(Debug)]
pub struct Limits {
    address: Buckets,
    user: Buckets,
    sale: Buckets,
    total: Buckets,
    policy: Option<HeaderValue>,
}

/// What is left in a request's buckets, for its answer.
#[derive(Debug, Clone, Default)]
pub struct Left {
    address: Option<u32>,
    user: Option<u32>,
    policy: Option<HeaderValue>,
}

impl Left {
    /// `RateLimit` and `RateLimit-Policy`, on limited calls only.
    pub fn fields(&self) -> Option<(HeaderValue, &HeaderValue)> {
        let policy = self.policy.as_ref()?;
        let mut text = String::with_capacity(48);
        for (name, left) in [("\"address\";r=", self.address), ("\"user\";r=", self.user)] {
            if let Some(left) = left {
                text.push_str(if text.is_empty() { "" } else { ", " });
                text.push_str(name);
                text.push_str(itoa::Buffer::new().format(left));
            }
        }
        Some((HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()?, policy))
    }
}

impl Limits {
    /// Buckets as configured.
    pub fn new(rates: &Rates) -> Self {
        let buckets = |rate, slots| Buckets::new(rate, slots, MonotonicClock);
        Self {
            address: buckets(rates.address, rates.slots),
            user: buckets(rates.user, rates.slots),
            sale: buckets(rates.sale, SALE_SLOTS),
            total: buckets(rates.total, 1),
            policy: policy(rates),
        }
    }

    /// Takes one from an address' bucket.
    pub fn address(&self, ip: IpAddr, left: &mut Left) -> Result<(), Rejection> {
        judge(self.address.take(bucket_key(ip)), "address", &mut left.address)
    }

    /// Takes one from a user's bucket, then from its sale's and the total one.
    pub fn user(&self, user: &UserId, sale: Option<u32>, left: &mut Left) -> Result<(), Rejection> {
        judge(self.user.take(user.as_str()), "user", &mut left.user)?;
        if let Some(sale) = sale {
            judge(self.sale.take(sale), "sale", &mut None)?;
            judge(self.total.take(()), "gate", &mut None)?;
        }
        Ok(())
    }

    /// The answer shall tell what is left.
    pub fn tell(&self, left: &mut Left) {
        left.policy.clone_from(&self.policy);
    }

    /// Buckets that were given up while they still limited somebody.
    pub fn evicted(&self) -> u64 {
        self.address.evicted() + self.user.evicted() + self.sale.evicted()
    }
}

fn judge(taken: Taken, whose: &str, left: &mut Option<u32>) -> Result<(), Rejection> {
    match taken {
        Taken::Unlimited => Ok(()),
        Taken::Left(n) => {
            *left = Some(n);
            Ok(())
        }
        Taken::Wait(wait) => {
            *left = Some(0);
            let detail = format!("too many requests for this {whose}; wait and try again");
            Err(Rejection::new(Code::RateLimited, detail).with(Extra::RetryAfter(whole_seconds(wait))))
        }
    }
}

fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

/// `"address";q=2000;w=2, "user";q=2000;w=2`: a quota, and the seconds in which it fills again.
fn policy(rates: &Rates) -> Option<HeaderValue> {
    let one = |name: &str, rate: Rate| {
        (rate.per_second > 0)
            .then(|| format!("\"{name}\";q={};w={}", rate.burst, rate.burst.div_ceil(rate.per_second)))
    };
    let parts: Vec<String> =
        [one("address", rates.address), one("user", rates.user)].into_iter().flatten().collect();
    (rates.fields && !parts.is_empty()).then(|| HeaderValue::from_str(&parts.join(", ")).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limits(sale: u32) -> Limits {
        let rate = |per_second, burst| Rate { per_second, burst };
        Limits::new(&Rates {
            address: rate(10, 20),
            proxied: true,
            user: rate(1, 3),
            sale: rate(sale, 1),
            total: rate(0, 1),
            slots: 1024,
            fields: true,
        })
    }

    #[test]
    fn the_answer_tells_quota_and_rest() {
        let (limits, mut left) = (limits(0), Left::default());
        limits.address("192.0.2.1".parse().unwrap(), &mut left).unwrap();
        limits.user(&UserId::parse("alice").unwrap(), Some(1), &mut left).unwrap();
        assert!(left.fields().is_none());
        limits.tell(&mut left);
        let (rest, policy) = left.fields().unwrap();
        assert_eq!(rest, "\"address\";r=19, \"user\";r=2");
        assert_eq!(policy, "\"address\";q=20;w=2, \"user\";q=3;w=3");
    }

    #[test]
    fn a_refusal_names_whole_seconds() {
        let (limits, mut left) = (limits(1), Left::default());
        let (alice, bob) = (UserId::parse("alice").unwrap(), UserId::parse("bob").unwrap());
        limits.user(&alice, Some(7), &mut left).unwrap();
        let refused = limits.user(&bob, Some(7), &mut left).unwrap_err();
        assert_eq!((refused.code, refused.retry_after()), (Code::RateLimited, Some(1)));
        limits.user(&bob, Some(8), &mut left).unwrap();
    }
}
