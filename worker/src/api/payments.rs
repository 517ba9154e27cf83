//! Payment notices: signature, body, order, amount, in this order; then the books decide.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use ring::hmac;
use serde_json::json;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::verdict::{Code, Rejection};
use tokio::time::sleep;

use super::Api;
use super::call::Call;
use super::json::Members;
use super::locate::Located;
use super::order_sheet::OrderSheet;
use super::reply::{self, Answer, no_such_order};
use crate::store::payments::{NoticeOutcome, NoticeStatus, PaymentNotice};

const SIGNATURE: &str = "x-payment-signature";
/// Seconds that a notice's time may differ from ours.
const STALE: i64 = 300;
/// Signatures that are tried, so that a header full of them costs little.
const SIGNATURES_MAX: usize = 8;
/// When a notice looks again for an order that is on its way into the books: a second in all, and
/// few looks, because the books are busiest just then.
const LOOKS_MS: [u64; 4] = [50, 150, 300, 500];

/// `POST /internal/v1/payments/callback`
pub async fn callback(api: Arc<Api>, call: Call) -> Answer {
    let secret = api.payment_secret.reveal().as_bytes();
    judge_signature(secret, &call.headers, &call.body, Millis::now())?;
    let notice = read(&call)?;
    let (mut looks, mut on_its_way) = (LOOKS_MS.into_iter(), false);
    loop {
        match api.notices.ask(notice.clone()).await? {
            NoticeOutcome::Noted(row) => {
                let shown = OrderSheet::of_row(&row);
                return reply::json(200, &json!({ "payment_id": notice.payment_id, "order": shown }));
            }
            NoticeOutcome::AmountMismatch => {
                return Err(Rejection::new(
                    Code::AmountMismatch,
                    "amount or currency differ from the order's",
                ));
            }
            NoticeOutcome::OtherOrder => {
                return Err(Rejection::field("payment_id", "this payment belongs to another order"));
            }
            NoticeOutcome::UnknownOrder => {
                if !on_its_way && matches!(api.locator.find(&notice.order).await?, Located::Nowhere) {
                    return Err(no_such_order());
                }
                on_its_way = true;
            }
        }
        let Some(pause) = looks.next() else {
            let detail = "the order is accepted but not written yet; send the notice again";
            return Err(Rejection::new(Code::Unavailable, detail));
        };
        sleep(Duration::from_millis(pause)).await;
    }
}

fn bad_signature(detail: &'static str) -> Rejection {
    Rejection::new(Code::BadSignature, detail)
}

/// `t=UNIX,v1=HEX`, any number of `v1`, other names ignored; HEX is that of HMAC-SHA256 over
/// `UNIX.body`.
fn judge_signature(secret: &[u8], headers: &HeaderMap, body: &[u8], now: Millis) -> Result<(), Rejection> {
    let mut fields = headers.get_all(SIGNATURE).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return Err(bad_signature("send one X-Payment-Signature: t=UNIX,v1=HEX"));
    };
    let malformed = || bad_signature("X-Payment-Signature must be t=UNIX,v1=HEX");
    let (mut time, mut signatures) = (None, Vec::new());
    for part in field.to_str().map_err(|_| malformed())?.split(',') {
        let (name, value) = part.trim().split_once('=').ok_or_else(malformed)?;
        match name {
            "t" if time.is_some() => return Err(malformed()),
            "t" => time = Some(value),
            "v1" if signatures.len() < SIGNATURES_MAX => signatures.push(value),
            _ => {}
        }
    }
    let told = time.ok_or_else(malformed)?;
    let digits = (1..=18).contains(&told.len()) && told.bytes().all(|byte| byte.is_ascii_digit());
    let at: i64 = told.parse().ok().filter(|_| digits).ok_or_else(malformed)?;
    if (now.seconds() - at).abs() > STALE {
        return Err(bad_signature("the notice is more than 300 seconds from now"));
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signed = [told.as_bytes(), b".", body].concat();
    let good = |signature: &&str| {
        let lower = signature.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        lower && hex::decode(signature).is_ok_and(|mac| hmac::verify(&key, &signed, &mac).is_ok())
    };
    if signatures.iter().any(good) { Ok(()) } else { Err(bad_signature("no signature fits the body")) }
}

/// The notice. Providers add members as they please: unknown ones are ignored.
fn read(call: &Call) -> Result<PaymentNotice, Rejection> {
    let names = ["payment_id", "order_id", "amount", "currency", "status"];
    let mut body = Members::of_known(&call.body, &names)?;
    let payment_id = body.parsed("payment_id", "must match ^[!-~]{1,128}$", |text| {
        let good = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| text.to_owned())
    })?;
    let payment_id = body.need("payment_id", payment_id)?;
    let order = body.text("order_id")?;
    let order = body.need("order_id", order)?;
    let amount = body.integer("amount", 0..=i64::MAX)?;
    let amount = body.need("amount", amount)?;
    let currency = body.parsed("currency", "must be a code such as EUR", |text| {
        let good = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
        good.then(|| text.to_owned())
    })?;
    let currency = body.need("currency", currency)?;
    let status = body.parsed("status", "must be succeeded, failed or refunded", |text| match text {
        "succeeded" => Some(NoticeStatus::Succeeded),
        "failed" => Some(NoticeStatus::Failed),
        "refunded" => Some(NoticeStatus::Refunded),
        _ => None,
    })?;
    let status = body.need("status", status)?;
    // What is not even an id of ours names an order that nobody knows.
    let order = OrderId::parse(&order).ok_or_else(no_such_order)?;
    Ok(PaymentNotice { payment_id, order, amount, currency, status })
}
