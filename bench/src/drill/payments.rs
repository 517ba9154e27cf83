//! Payment notices of every kind: each is answered as the contract says, money and stock are right.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::record::OrderState;

use super::{Ask, Scene, Setting, wait_for};
use crate::admin::{CURRENCY, Offer, Row};
use crate::buyers::{Notice, signature};
use crate::client::Kind;
use crate::client::outcome::{ACCEPTED, OK, Outcome, UNAVAILABLE};
use crate::oracle::Rules;
use crate::report::Tally;
use crate::servers::Servers;

const BAD_SIGNATURE: Outcome = Outcome("bad_signature");
const BAD_REQUEST: Outcome = Outcome("bad_request");
const AMOUNT_MISMATCH: Outcome = Outcome("amount_mismatch");
const NOT_FOUND: Outcome = Outcome("not_found");

const PRICE: i64 = 19_900;
/// Seconds to pay: long enough for the scenes before, short enough to wait for.
const PAY_WITHIN: u32 = 12;
const STOCK: u32 = 50;
/// RabbitMQ stands still for so long while the notice of an unwritten order comes.
const STANDSTILL: Duration = Duration::from_secs(3);

/// What is asked for: nothing.
#[derive(Debug, Clone, clap::Args)]
pub struct Payments {
    /// Leave RabbitMQ running: the notice before the row is then a race
    #[arg(long)]
    pub race: bool,
}

/// Orders by what is to become of them.
struct Cast<'a> {
    scene: &'a Scene,
    tally: &'a mut Tally,
    next: u32,
    wrong: Vec<String>,
}

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Payments) -> Result<bool> {
    let offer = Offer { stock: STOCK, per_user: 1, price: PRICE, pay_within: PAY_WITHIN };
    let mut scene = Scene::open(setting, offer, STOCK)?;
    let mut tally = scene.tally("payments", 100)?;
    let mut cast = Cast { scene: &scene, tally: &mut tally, next: 0, wrong: Vec::new() };
    let unwritten = cast.before_the_row(ask.race)?;
    let late = cast.buy()?;
    let lasting = cast.signatures_and_bodies()?;
    let twice = cast.twice()?;
    let refunded = cast.refunded()?;
    let cancelled = cast.cancelled()?;
    cast.expired(&late)?;
    wait_for("the last order to expire", Duration::from_secs(40), || {
        if scene.admin.has(&scene.sale, OrderState::PendingPayment)? {
            bail!("one is unpaid")
        } else {
            Ok(())
        }
    })?;
    let paid = [unwritten, lasting, twice];
    cast.expect_all(&paid, OrderState::Paid, None)?;
    cast.expect_all(&[refunded], OrderState::Refunded, Some("done"))?;
    cast.expect_all(&[cancelled], OrderState::Cancelled, Some("done"))?;
    cast.expect_all(&[late], OrderState::Expired, Some("done"))?;
    let wrong = std::mem::take(&mut cast.wrong);
    if wrong.is_empty() {
        scene.verdicts.say(true, "every notice had its effect, once, and no other");
    }
    for what in wrong {
        scene.verdicts.say(false, what);
    }
    scene.audit("at rest", u64::from(STOCK))?;
    scene.close(tally, &Rules { stock: STOCK, per_user: 1, returns: true, taken: Some(3) })
}

/// An order with its buyer.
#[derive(Debug, Clone, Copy)]
struct Bought {
    buyer: u32,
    order: OrderId,
}

impl Cast<'_> {
    fn buy(&mut self) -> Result<Bought> {
        let buyer = self.next;
        self.next += 1;
        let expires = Millis(Millis::now().0 + 60_000);
        let (token, order) = self.scene.buyers.mint(buyer, expires).context("minting a token")?;
        let request = self.scene.buyers.order_request(buyer, &token, 1);
        let ask = Ask { buyer, order: &order, units: 1, request };
        let outcome = self.scene.ask(self.tally, Kind::Buy, &ask, &[ACCEPTED]).outcome();
        if outcome != ACCEPTED {
            bail!("an order that has to be accepted was answered {outcome}");
        }
        Ok(Bought { buyer, order })
    }

    fn send(&mut self, bought: &Bought, request: bytes::Bytes, allowed: &[Outcome]) -> Outcome {
        let ask = Ask { buyer: bought.buyer, order: &bought.order, units: 1, request };
        // Judged as looks: only what really pays an order is logged as a payment.
        self.scene.ask(self.tally, Kind::Look, &ask, allowed).outcome()
    }

    fn notice(&mut self, bought: &Bought, change: impl Fn(&mut Notice<'_>), allowed: &[Outcome]) -> Outcome {
        let payment = format!("p-{}", bought.order);
        let order = bought.order;
        let mut notice =
            Notice { payment: &payment, order, amount: PRICE, currency: CURRENCY, status: "succeeded" };
        change(&mut notice);
        let request = self.scene.buyers.notice_request(&notice);
        self.send(bought, request, allowed)
    }

    /// Sends a good notice until it is taken.
    fn pay(&mut self, bought: &Bought) -> Result<()> {
        wait_for("a payment to be taken", Duration::from_secs(20), || {
            match self.notice(bought, |_| {}, &[OK, UNAVAILABLE]) {
                OK => Ok(()),
                other => bail!("the notice was answered {other}"),
            }
        })
    }

    /// Money comes before the order is written: told to come again, never that there is no order.
    fn before_the_row(&mut self, race: bool) -> Result<Bought> {
        let servers = Servers::new(self.scene.setting.environment.directory.clone());
        if race {
            let bought = self.buy()?;
            self.pay(&bought)?;
            return Ok(bought);
        }
        servers.signal("rabbitmq", Signal::SIGSTOP)?;
        let tried = self.buy().map(|bought| (bought, self.notice(&bought, |_| {}, &[UNAVAILABLE])));
        std::thread::sleep(STANDSTILL);
        servers.signal("rabbitmq", Signal::SIGCONT)?;
        let (bought, told) = tried?;
        if told != UNAVAILABLE {
            self.wrong.push(format!("a notice for an order without a row was answered {told}"));
        }
        self.pay(&bought)?;
        Ok(bought)
    }

    /// What is wrong with a notice is found in the contract's order, and has no effect.
    fn signatures_and_bodies(&mut self) -> Result<Bought> {
        let bought = self.buy()?;
        let buyers = self.scene.buyers.clone();
        let payment = format!("p-{}", bought.order);
        let order = bought.order;
        let notice =
            Notice { payment: &payment, order, amount: PRICE, currency: CURRENCY, status: "succeeded" };
        let (body, now, secret) = (notice.body(), Millis::now().seconds(), buyers.payment_secret());
        let good = signature(secret, now, &body);
        let headers = [
            None,
            Some(String::new()),
            Some("nonsense".to_owned()),
            Some(format!("t={now}")),
            Some(format!("v1={good}")),
            Some(format!("t=x,v1={good}")),
            Some(format!("t={now},v1={}", good.replace(|letter: char| letter.is_ascii_digit(), "0"))),
            Some(format!("t={},v1={good}", now + 1)),
        ];
        for header in headers {
            self.send(&bought, buyers.notice_as(&body, header.as_deref()), &[BAD_SIGNATURE]);
        }
        for shift in [-302, 330, -86_400] {
            self.send(&bought, buyers.signed(&body, now + shift, secret), &[BAD_SIGNATURE]);
        }
        self.send(&bought, buyers.signed(&body, now, "a secret of nobody's"), &[BAD_SIGNATURE]);
        self.send(&bought, buyers.signed("{\"payment_id\":", now, "forged"), &[BAD_SIGNATURE]);
        for bad in [
            "",
            "[]",
            "{}",
            "{\"payment_id\":",
            &body.replace("succeeded", "stolen"),
            &body.replace("19900", "199.0"),
        ] {
            self.send(&bought, buyers.signed(bad, now, secret), &[BAD_REQUEST]);
        }
        let nowhere = OrderId::mint(bought.order.sale, 0);
        self.notice(&bought, |notice| notice.order = nowhere, &[NOT_FOUND]);
        self.expect_soon(&bought, OrderState::PendingPayment, None)?;
        for amount in [PRICE - 1, PRICE + 1, 0] {
            self.notice(&bought, |notice| notice.amount = amount, &[AMOUNT_MISMATCH, BAD_REQUEST]);
        }
        self.notice(&bought, |notice| notice.currency = "USD", &[AMOUNT_MISMATCH]);
        self.notice(&bought, |notice| notice.status = "failed", &[OK]);
        self.expect_soon(&bought, OrderState::PendingPayment, None)?;
        // Several signatures, one of them right: a provider that changes its secret.
        let header = format!("t={now},v1={},v1={good}", "0".repeat(64));
        let body = body.replace(&payment, &format!("{payment}-2"));
        let header = header.replace(&good, &signature(secret, now, &body));
        self.send(&bought, buyers.notice_as(&body, Some(&header)), &[OK]);
        Ok(bought)
    }

    /// The same notice twice pays once; a second payment of a paid order is paid back.
    fn twice(&mut self) -> Result<Bought> {
        let bought = self.buy()?;
        self.pay(&bought)?;
        self.notice(&bought, |_| {}, &[OK]);
        self.expect_soon(&bought, OrderState::Paid, None)?;
        let other = self.buy()?;
        self.notice(&other, |notice| notice.payment = "", &[BAD_REQUEST]);
        let taken = format!("p-{}", bought.order);
        let request = |order: OrderId, payment: &str, status: &str| {
            let notice = Notice { payment, order, amount: PRICE, currency: CURRENCY, status };
            self.scene.buyers.notice_request(&notice)
        };
        let stolen = request(other.order, &taken, "succeeded");
        let second = request(bought.order, &format!("{taken}-again"), "succeeded");
        let back = request(bought.order, &format!("{taken}-again"), "refunded");
        self.expect_soon(&other, OrderState::PendingPayment, None)?;
        self.send(&other, stolen, &[BAD_REQUEST]);
        self.send(&bought, second, &[OK]);
        self.expect_soon(&bought, OrderState::Paid, Some("due"))?;
        self.send(&bought, back, &[OK]);
        self.expect_soon(&bought, OrderState::Paid, Some("done"))?;
        Ok(bought)
    }

    /// The provider pays a paid order back: its unit returns.
    fn refunded(&mut self) -> Result<Bought> {
        let bought = self.buy()?;
        self.pay(&bought)?;
        self.expect_soon(&bought, OrderState::Paid, None)?;
        for _ in 0..2 {
            self.notice(&bought, |notice| notice.status = "refunded", &[OK]);
        }
        self.expect_soon(&bought, OrderState::Refunded, Some("done"))?;
        Ok(bought)
    }

    /// Money for an order that its buyer gave up is paid back.
    fn cancelled(&mut self) -> Result<Bought> {
        let bought = self.buy()?;
        let Bought { buyer, order } = bought;
        let request = self.scene.buyers.cancel_request(buyer, &order);
        let ask = Ask { buyer, order: &order, units: 1, request };
        self.scene.ask(self.tally, Kind::Cancel, &ask, &[OK]);
        self.expect_soon(&bought, OrderState::Cancelled, None)?;
        self.overdue(&bought, OrderState::Cancelled)?;
        Ok(bought)
    }

    /// Money for an order that has expired is paid back.
    fn expired(&mut self, bought: &Bought) -> Result<()> {
        let limit = Duration::from_secs(u64::from(PAY_WITHIN) + 30);
        wait_for("an order to expire", limit, || self.is(bought, OrderState::Expired, None))?;
        self.overdue(bought, OrderState::Expired)
    }

    fn overdue(&mut self, bought: &Bought, state: OrderState) -> Result<()> {
        for _ in 0..2 {
            self.notice(bought, |_| {}, &[OK]);
            self.expect_soon(bought, state, Some("due"))?;
        }
        for _ in 0..2 {
            self.notice(bought, |notice| notice.status = "refunded", &[OK]);
        }
        self.expect_soon(bought, state, Some("done"))
    }

    /// Whether the order is seen in this state by its buyer.
    fn is(&mut self, bought: &Bought, state: OrderState, refund: Option<&str>) -> Result<()> {
        let request = self.scene.buyers.look_request(bought.buyer, &bought.order);
        let ask = Ask { buyer: bought.buyer, order: &bought.order, units: 1, request };
        let reply = self.scene.ask(self.tally, Kind::Look, &ask, &[OK]);
        let (is, back) = (reply.member("state"), reply.member("refund"));
        if is.as_str() != Some(state.as_str()) || back.as_str() != refund {
            bail!("{} is {is}, refund {back}, and not {}, {refund:?}", bought.order, state.as_str());
        }
        Ok(())
    }

    /// Notes it as wrong when the order does not come to this state.
    fn expect_soon(&mut self, bought: &Bought, state: OrderState, refund: Option<&str>) -> Result<()> {
        let seen = wait_for(state.as_str(), Duration::from_secs(8), || self.is(bought, state, refund));
        if let Err(error) = seen {
            self.wrong.push(format!("{error:#}"));
        }
        Ok(())
    }

    /// The books say the same as the gate.
    fn expect_all(&mut self, all: &[Bought], state: OrderState, refund: Option<&str>) -> Result<()> {
        let rows = self.scene.admin.orders(&self.scene.sale)?;
        for bought in all {
            let row: Option<&Row> = rows.iter().find(|row| row.id == bought.order);
            let Some(row) = row else {
                self.wrong.push(format!("{} has no row", bought.order));
                continue;
            };
            let refunds = row.refund.as_deref() == refund || (refund.is_none() && state == OrderState::Paid);
            if row.state != state || !refunds {
                self.wrong.push(format!("{} is {}, refund {:?}", row.id, row.state.as_str(), row.refund));
            }
        }
        Ok(())
    }
}
