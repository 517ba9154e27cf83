//! Freezing: a script that may not run does nothing and says why.

use std::time::Duration;

use sluice_shared::redis::{Fault, cmd};
use sluice_shared::script::{Frozen, Preload, Preloaded, Raised, Reserved, SegmentScripts};

use crate::segment::{Sale, ask, edge};

#[tokio::test]
async fn after_a_restart_the_scripts_are_gone_and_the_data_is_not() {
    let sale = Sale::open(&[("phone", 2, 1)]).await;
    sale.reserve(&ask("u", "phone=1")).await;
    let before = sale.whole().await;
    assert!(sale.scripts.loaded(&sale.redis).await.unwrap());
    sale.server.lock().unwrap().crash_and_restart();
    let probe = async || sale.scripts.reserve(&sale.redis, &edge(), &[ask("v", "phone=1")]).await;
    let mut answer = probe().await;
    while matches!(answer, Err(Fault::Unknown { .. })) {
        answer = probe().await;
    }
    assert_eq!(answer, Err(Fault::NoScript { doing: "reserving" }));
    assert!(!sale.scripts.loaded(&sale.redis).await.unwrap());
    assert_eq!(sale.whole().await, before);
}

#[tokio::test]
async fn scripts_of_another_epoch_are_fenced() {
    let sale = Sale::open(&[("phone", 3, 1)]).await;
    sale.reserve(&ask("s", "phone=1")).await;
    let raised = sale.warden.raise(&sale.redis, &sale.segment, 7, 40).await.unwrap();
    assert_eq!(raised, Raised::Raised);
    assert_eq!(sale.reserved(&[ask("u", "phone=1")]).await, Reserved::Frozen(Frozen::Fenced(8)));
    let next = SegmentScripts::new(sale.segment.clone(), 8);
    next.load(&sale.redis).await.unwrap();
    let lapsed = next.reserve(&sale.redis, &edge(), &[ask("u", "phone=1")]).await.unwrap();
    assert_eq!(lapsed, Reserved::Frozen(Frozen::Because("lease".to_owned())));
    let long = Duration::from_secs(60);
    sale.warden.lease(&sale.redis, &sale.segment, 8, long, &[], &[]).await.unwrap().unwrap();
    let answer = next.reserve(&sale.redis, &edge(), &[ask("u", "phone=1")]).await.unwrap();
    let Reserved::Answers(answers) = answer else { panic!("{answer:?}") };
    assert_eq!(answers.epoch, 8);
    assert_eq!(sale.whole().await.journal[1].0, "8-41");
    let again = sale.warden.raise(&sale.redis, &sale.segment, 7, 0).await.unwrap();
    assert_eq!(again, Raised::Raised, "a repeat says so and changes nothing");
    assert_eq!(sale.whole().await.seq, 41);
}

#[tokio::test]
async fn a_lapsed_lease_freezes_and_a_renewed_one_thaws() {
    let sale = Sale::open(&[("phone", 2, 1)]).await;
    sale.set(&sale.segment.meta(), "lease", "1").await;
    let lapsed = Reserved::Frozen(Frozen::Because("lease".to_owned()));
    assert_eq!(sale.reserved(&[ask("u", "phone=1")]).await, lapsed);
    sale.lease(Duration::from_secs(60)).await;
    assert!(matches!(sale.reserved(&[ask("u", "phone=1")]).await, Reserved::Answers(_)));
}

#[tokio::test]
async fn an_edge_that_was_not_admitted_sells_nothing() {
    let sale = Sale::open(&[("phone", 2, 1)]).await;
    let before = sale.whole().await;
    let span = Duration::from_secs(60);
    let struck = [edge()];
    sale.warden.lease(&sale.redis, &sale.segment, 7, span, &[], &struck).await.unwrap().unwrap();
    assert_eq!(sale.reserved(&[ask("u", "phone=1")]).await, Reserved::UnknownEdge);
    assert_eq!(sale.whole().await, before);
}

#[tokio::test]
async fn a_missing_key_freezes_the_sale_and_is_never_sold_out() {
    for key in ["meta", "stock", "orders", "journal"] {
        let sale = Sale::open(&[("phone", 2, 1)]).await;
        sale.reserve(&ask("u", "phone=1")).await;
        let name = format!("sluice:{{demo:0}}:{key}");
        sale.redis.run::<u64>("test", cmd("DEL").arg(name)).await.unwrap();
        let answer = sale.reserved(&[ask("v", "phone=1")]).await;
        assert!(matches!(answer, Reserved::Frozen(Frozen::Because(_))), "{key}: {answer:?}");
    }
}

#[tokio::test]
async fn a_key_of_the_wrong_type_refuses_before_any_write() {
    for key in ["meta", "stock", "orders", "journal"] {
        let sale = Sale::open(&[("phone", 2, 1)]).await;
        sale.reserve(&ask("u", "phone=1")).await;
        let name = format!("sluice:{{demo:0}}:{key}");
        sale.redis.run::<String>("test", cmd("SET").arg(&name).arg("x")).await.unwrap();
        let answer = sale.scripts.reserve(&sale.redis, &edge(), &[ask("v", "phone=1")]).await;
        assert!(matches!(answer, Err(Fault::Refused { .. })), "{key}: {answer:?}");
        for other in ["stock", "orders"].into_iter().filter(|other| *other != key) {
            let count = cmd("HLEN").arg(format!("sluice:{{demo:0}}:{other}")).to_owned();
            let expected = if other == "stock" { 1 } else { 2 };
            assert_eq!(sale.redis.run::<u64>("test", &count).await.unwrap(), expected);
        }
    }
}

#[tokio::test]
async fn a_torn_number_in_meta_freezes_before_any_write() {
    for field in ["starts", "ends", "lease", "seq", "jmax"] {
        let sale = Sale::open(&[("phone", 2, 1)]).await;
        let before = sale.whole().await;
        sale.set(&sale.segment.meta(), field, "soon").await;
        let answer = sale.reserved(&[ask("v", "phone=1")]).await;
        assert_eq!(answer, Reserved::Frozen(Frozen::Because("meta".to_owned())), "{field}");
        if field != "seq" {
            assert_eq!(sale.whole().await, before);
        }
    }
}

#[tokio::test]
async fn a_journal_of_a_later_epoch_refuses_and_leaves_nothing_behind() {
    let sale = Sale::open(&[("phone", 2, 1)]).await;
    let foreign = cmd("XADD").arg(sale.segment.journal()).arg("8-1").arg("o").arg("x").to_owned();
    sale.redis.run::<String>("test", &foreign).await.unwrap();
    let before = sale.whole().await;
    let answer = sale.scripts.reserve(&sale.redis, &edge(), &[ask("v", "phone=1")]).await;
    assert!(matches!(answer, Err(Fault::Refused { .. })), "{answer:?}");
    assert_eq!(sale.whole().await, before);
}

#[tokio::test]
async fn a_preload_never_writes_over_a_sale() {
    let sale = Sale::open(&[("phone", 2, 1)]).await;
    let before = sale.whole().await;
    let preload = Preload {
        epoch: 9,
        step: sluice_shared::sale::SaleStep::Preloaded,
        starts_at: sluice_shared::clock::Millis(0),
        ends_at: sluice_shared::clock::Millis(1),
        cfg: 9,
        journal_max: 1,
        items: vec![(crate::segment::sku("phone"), 99, 9)],
    };
    let again = sale.warden.preload(&sale.redis, &sale.segment, &preload).await.unwrap();
    assert_eq!(again, Preloaded::Exists("demo:0:7".to_owned()));
    assert_eq!(sale.whole().await, before);
    let meta = cmd("DEL").arg(sale.segment.meta()).to_owned();
    sale.redis.run::<u64>("test", &meta).await.unwrap();
    let half = sale.warden.preload(&sale.redis, &sale.segment, &preload).await.unwrap();
    assert!(matches!(half, Preloaded::Corrupt(_)), "{half:?}");
}
