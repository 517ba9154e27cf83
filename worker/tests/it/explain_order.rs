//! One order's time-line.

use sluice_shared::ids::OrderId;
use sluice_worker::explain::time_line;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};

use crate::warden_world::Place;

#[tokio::test]
async fn a_time_line_goes_through_every_stage_in_the_order_of_time() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    let waiting = place.ask(&edge.instance, "eve").await.unwrap();
    let order = place.bought(&edge.instance, "bob").await;
    let notice = PaymentNotice {
        payment_id: "p-1".to_owned(),
        order: order.order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status: NoticeStatus::Succeeded,
    };
    place.db.store.notice(&notice).await.unwrap();
    let line = time_line(&place.db.store, &place.redis, &order.order).await.unwrap();
    assert!(line.known);
    let text = line.table();
    for word in [
        "token",
        "accepted: phone=1 for bob",
        "written: phone=1",
        "take 1 × phone",
        "sold 1 × phone",
        "payment p-1 of 15.00 EUR is captured",
        "order.created",
        "order.changed",
        "is paid",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(line.events.windows(2).all(|pair| match (&pair[0].at, &pair[1].at) {
        (Some(one), Some(next)) => one <= next,
        (None, Some(_)) => false,
        _ => true,
    }));
    let line = time_line(&place.db.store, &place.redis, &waiting.order).await.unwrap();
    assert!(line.table().contains("waits for the broker's confirm"), "{}", line.table());
    let nobody = OrderId::mint(place.number, 0);
    let line = time_line(&place.db.store, &place.redis, &nobody).await.unwrap();
    assert!(!line.known);
    assert_eq!(line.events.len(), 1);
}
