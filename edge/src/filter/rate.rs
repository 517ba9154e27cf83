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
/// Addresses that payment notices come from are few.
const NOTICE_SLOTS: usize = 4096;

/// All buckets of an edge.
#[derive(Debug)]
pub struct Limits {
    address: Buckets,
    user: Buckets,
    sale: Buckets,
    total: Buckets,
    notices: Buckets,
    policy: Option<HeaderValue>,
}

/// What is left in a request's buckets, for its answer.
#[derive(Debug, Clone, Default)]
pub struct Left {
    address: Option<u32>,
    user: Option<u32>,
    sale: Option<u32>,
    gate: Option<u32>,
    policy: Option<HeaderValue>,
}

impl Left {
    /// `RateLimit` and `RateLimit-Policy`, on limited calls and on every refusal by a bucket.
    pub fn fields(&self) -> Option<(HeaderValue, &HeaderValue)> {
        let policy = self.policy.as_ref()?;
        let mut text = String::with_capacity(48);
        let all = [
            ("\"address\";r=", self.address),
            ("\"user\";r=", self.user),
            ("\"sale\";r=", self.sale),
            ("\"gate\";r=", self.gate),
        ];
        for (name, left) in all {
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
            notices: buckets(rates.notices, NOTICE_SLOTS),
            policy: policy(rates),
        }
    }

    /// Takes one from an address' bucket.
    pub fn address(&self, ip: IpAddr, left: &mut Left) -> Result<(), Rejection> {
        let taken = self.address.take(bucket_key(ip));
        self.judge(taken, "address", left, |left| &mut left.address)
    }

    /// Takes one from the bucket that an address has for payment notices.
    pub fn notice(&self, ip: IpAddr, left: &mut Left) -> Result<(), Rejection> {
        let taken = self.notices.take(bucket_key(ip));
        self.judge(taken, "address", left, |left| &mut left.address)
    }

    /// Takes one from a user's bucket, then from its sale's and the total one.
    pub fn user(&self, user: &UserId, sale: Option<u32>, left: &mut Left) -> Result<(), Rejection> {
        self.judge(self.user.take(user.as_str()), "user", left, |left| &mut left.user)?;
        if let Some(sale) = sale {
            self.shared(self.sale.take(sale), "sale", left, |left| &mut left.sale)?;
            self.shared(self.total.take(()), "gate", left, |left| &mut left.gate)?;
        }
        Ok(())
    }

    /// A bucket that many take from: what is left in it is told to whom it refuses, and those do not come
    /// back all at once.
    fn shared(
        &self,
        taken: Taken,
        whose: &str,
        left: &mut Left,
        of: impl Fn(&mut Left) -> &mut Option<u32>,
    ) -> Result<(), Rejection> {
        match taken {
            Taken::Unlimited | Taken::Left(_) => Ok(()),
            Taken::Wait(wait) => {
                let refused = self.judge(taken, whose, left, of);
                refused.map_err(|rejection| rejection.after(whole_seconds(wait)))
            }
        }
    }

    fn judge(
        &self,
        taken: Taken,
        whose: &str,
        left: &mut Left,
        of: impl Fn(&mut Left) -> &mut Option<u32>,
    ) -> Result<(), Rejection> {
        match taken {
            Taken::Unlimited => Ok(()),
            Taken::Left(n) => {
                *of(left) = Some(n);
                Ok(())
            }
            Taken::Wait(wait) => {
                *of(left) = Some(0);
                self.tell(left);
                let detail = format!("too many requests for this {whose}; wait and try again");
                let rejection = Rejection::new(Code::RateLimited, detail);
                Err(rejection.with(Extra::RetryAfter(whole_seconds(wait))))
            }
        }
    }

    /// The answer shall tell what is left.
    pub fn tell(&self, left: &mut Left) {
        left.policy.clone_from(&self.policy);
    }

    /// Buckets that were given up while they still limited somebody.
    pub fn evicted(&self) -> u64 {
        self.address.evicted() + self.user.evicted() + self.sale.evicted() + self.notices.evicted()
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
    let (address, user) = (one("address", rates.address), one("user", rates.user));
    let all = [address, user, one("sale", rates.sale), one("gate", rates.total)];
    let parts: Vec<String> = all.into_iter().flatten().collect();
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
            notices: rate(1000, 1000),
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
        assert!(refused.code == Code::RateLimited && (1..=2).contains(&refused.retry_after().unwrap()));
        limits.user(&bob, Some(8), &mut left).unwrap();
    }

    #[test]
    fn every_refusal_tells_what_is_left() {
        let (limits, alice) = (limits(1), UserId::parse("alice").unwrap());
        let mut told = Vec::new();
        for _ in 0..21 {
            let mut left = Left::default();
            if let Err(refused) = limits.address("192.0.2.1".parse().unwrap(), &mut left) {
                told.push((refused.retry_after().unwrap(), left.fields().unwrap().0));
            }
        }
        assert_eq!(told, [(1, HeaderValue::from_static("\"address\";r=0"))]);
        limits.notice("192.0.2.1".parse().unwrap(), &mut Left::default()).unwrap();
        let mut left = Left::default();
        limits.user(&alice, Some(7), &mut left).unwrap();
        limits.user(&alice, Some(7), &mut left).unwrap_err();
        let (rest, policy) = left.fields().unwrap();
        assert_eq!(rest, "\"user\";r=1, \"sale\";r=0");
        assert_eq!(policy, "\"address\";q=20;w=2, \"user\";q=3;w=3, \"sale\";q=1;w=1");
    }
}
