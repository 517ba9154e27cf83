//! A sale with many orders: nobody holds it in memory. `SLUICE_LARGE_SALE=2000000` tries it with more.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::lines::Lines;
use sluice_shared::record::{OrderState, Record, Refund};
use sluice_shared::redis::cmd;
use sluice_testkit::eventually;
use sluice_worker::store::ledger::LineText;
use sqlx::Row;
use tokio::process::Command;

use crate::warden_world::{Edge, PATIENCE, Place, Process, user};

/// Written at once.
const PAGE: usize = 10_000;
/// What a warden, or an audit, may take besides what it takes for nothing, however many orders there are.
const MORE_MIB: u64 = 36;

fn orders() -> usize {
    std::env::var("SLUICE_LARGE_SALE").map_or(60_000, |n| n.parse().expect("a number of orders"))
}

/// The end of an offer's chain.
struct Chain {
    line: i64,
    hash: Vec<u8>,
    at: Millis,
}

/// Lines of the ledger, in columns.
#[derive(Default)]
struct Ledger {
    line: Vec<i64>,
    kind: Vec<&'static str>,
    order: Vec<String>,
    hash: Vec<Vec<u8>>,
}

impl Chain {
    fn add(&mut self, kind: &'static str, order: &str, lines: &mut Ledger) {
        self.line += 1;
        let at_micros = i128::from(self.at.0) * 1000;
        let text = LineText {
            sale: "demo",
            sku: "phone",
            line: self.line,
            kind,
            about: order,
            quantity: 1,
            at_micros,
        };
        self.hash = text.hash(&self.hash).to_vec();
        lines.line.push(self.line);
        lines.kind.push(kind);
        lines.order.push(order.to_owned());
        lines.hash.push(self.hash.clone());
    }
}

/// Orders and their payments, in columns.
struct Rows {
    ids: Vec<String>,
    users: Vec<String>,
    states: Vec<&'static str>,
    seqs: Vec<i64>,
    payments: Vec<String>,
}

impl Rows {
    /// Writes them with their lines of the ledger, whose end is that of the chain.
    async fn write(self, place: &Place, epoch: u64, chain: &Chain, lines: Ledger) {
        let (written, at) = (self.ids.len(), chain.at);
        let mut writing = place.db.pool.begin().await.unwrap();
        let moment = "to_timestamp($1::float8 / 1000)";
        let orders = format!(
            "INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq,
                                 accepted_at, created_at, updated_at, pay_before)
             SELECT id, 'demo', who, state, true, 1500, 'EUR', 'phone=1', $2, seq,
                    {moment}, {moment}, {moment}, {moment} + interval '1 day'
             FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) AS row (id, who, state, seq)"
        );
        #[allow(clippy::cast_precision_loss)]
        let at = at.0 as f64;
        sqlx::query(sqlx::AssertSqlSafe(orders))
            .bind(at)
            .bind(i64::try_from(epoch).unwrap())
            .bind(self.ids)
            .bind(self.users)
            .bind(self.states)
            .bind(self.seqs)
            .execute(&mut *writing)
            .await
            .unwrap();
        let ledger = format!(
            "INSERT INTO ledger (sale, sku, line, kind, order_id, quantity, at, hash)
             SELECT 'demo', 'phone', line, kind, id, 1, {moment}, hash
             FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bytea[]) AS row (line, kind, id, hash)"
        );
        sqlx::query(sqlx::AssertSqlSafe(ledger))
            .bind(at)
            .bind(lines.line)
            .bind(lines.kind)
            .bind(lines.order)
            .bind(lines.hash)
            .execute(&mut *writing)
            .await
            .unwrap();
        sqlx::query(
            "INSERT INTO payments (payment_id, order_id, amount, currency, state)
             SELECT 'p-' || id, id, 1500, 'EUR', 'captured' FROM unnest($1::text[]) AS row (id)",
        )
        .bind(self.payments)
        .execute(&mut *writing)
        .await
        .unwrap();
        sqlx::query("UPDATE offers SET taken = taken + $1, ledger_line = $2, ledger_hash = $3")
            .bind(i64::try_from(written).unwrap())
            .bind(chain.line)
            .bind(&chain.hash)
            .execute(&mut *writing)
            .await
            .unwrap();
        writing.commit().await.unwrap();
    }
}

/// So many orders more, each of another buyer, the half of them paid: in both stores, as if they had been
/// bought some minutes ago.
async fn fill(place: &Place, count: usize) {
    place.db.run("UPDATE sales SET pay_within_seconds = 86400").await;
    let offer = sqlx::query("SELECT ledger_line, ledger_hash FROM offers").fetch_one(&place.db.pool).await;
    let offer = offer.unwrap();
    let at = Millis(place.redis.time().await.unwrap().0 - 300_000);
    let mut chain = Chain { line: offer.get(0), hash: offer.get(1), at };
    let first: u64 = place.meta("seq").await.unwrap().parse().unwrap();
    let epoch = place.epoch().await;
    for from in (0..count).step_by(PAGE) {
        let (mut ids, mut users, mut states, mut seqs) = (vec![], vec![], vec![], vec![]);
        let (mut lines, mut payments, mut set) = (Ledger::default(), vec![], cmd("HSET"));
        set.arg(place.segment.orders());
        for n in from..count.min(from + PAGE) {
            let (order, who) = (OrderId::mint(place.number, 0), format!("buyer-{n}"));
            let (id, seq) = (order.to_string(), first + 1 + n as u64);
            let state = if n % 2 == 0 { OrderState::Paid } else { OrderState::PendingPayment };
            chain.add("take", &id, &mut lines);
            if state == OrderState::Paid {
                chain.add("sold", &id, &mut lines);
                payments.push(id.clone());
            }
            let record = Record {
                state,
                released: false,
                epoch,
                seq,
                accepted: at,
                updated: at,
                pay_before: Some(Millis(at.0 + 86_400_000)),
                refund: Refund::None,
                lines: Lines::parse("phone=1").unwrap(),
                user: user(&who),
            };
            set.arg(order.field()).arg(record.to_string()).arg(format!("@{who}")).arg("phone=1");
            ids.push(id);
            users.push(who);
            states.push(state.as_str());
            seqs.push(i64::try_from(seq).unwrap());
        }
        let rows = Rows { ids, users, states, seqs, payments };
        rows.write(place, epoch, &chain, lines).await;
        let written = count.min(from + PAGE) - from;
        place.redis.run::<u64>("test", &set).await.unwrap();
        let (stock, taken) = (place.segment.stock(), written.to_string());
        place.run(&["HINCRBY", &stock, "phone", &format!("-{taken}")]).await;
        place.run(&["HINCRBY", &place.segment.meta(), "seq", &taken]).await;
    }
    place.db.run("ANALYZE").await;
}

/// MiB that this process takes now, and that it took at the most.
fn memory() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
    })
}

/// What something takes of this process' memory at the most, besides what was taken before.
struct Peak(u64);

impl Peak {
    fn begin() -> Self {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        Self(memory()[0])
    }

    fn end(self, what: &str) {
        let [_, most] = memory();
        let more = most.saturating_sub(self.0);
        println!("{what}: {most} MiB at the most, {more} more than before");
        assert!(more <= MORE_MIB, "{what}: {more} MiB more than before");
    }
}

async fn opened(count: usize) -> (Place, Process, Process, Edge) {
    let (place, warden, orders, edge) = Place::open(count as u64 + 100).await;
    fill(&place, count).await;
    (place, warden, orders, edge)
}

/// Redis' time on order maps since it started.
async fn spent(place: &Place) -> Duration {
    sluice_worker::warden::scan::time_spent(&place.redis).await.unwrap()
}

async fn rounds(warden: &Process) -> Option<f64> {
    let metrics = warden.metrics();
    let line = "sluice_warden_last_round_timestamp_seconds{sales=\"selling\"} ";
    metrics.lines().find_map(|text| text.strip_prefix(line))?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_of_the_reconciler_holds_no_sale() {
    let (place, warden, _orders, edge) = opened(orders()).await;
    warden.stop().await;
    // One more that has no row.
    let order = place.ask(&edge.instance, "eve").await.unwrap().order;
    let peak = Peak::begin();
    let (began, before) = (Instant::now(), spent(&place).await);
    let warden = place.warden("");
    let patience = PATIENCE + Duration::from_micros(orders() as u64 * 2_000);
    eventually("a whole round", patience, async || rounds(&warden).await.is_some()).await;
    let of_redis = spent(&place).await - before;
    let took = began.elapsed();
    println!("the first round: {took:?} after the start, {of_redis:?} of redis' time");
    let first = rounds(&warden).await;
    eventually("a second round", patience, async || rounds(&warden).await != first).await;
    let age = rounds(&warden).await.unwrap() - first.unwrap();
    println!(
        "the second one {age:.1} s after the first, {:?} of redis' time",
        spent(&place).await - before - of_redis
    );
    // Every ten seconds, however busy the machine is with a round.
    assert!(age <= 12.0 + 2.0 * took.as_secs_f64(), "{age}");
    peak.end("a warden");
    eventually("its row", PATIENCE, || place.written(&order)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_sale_is_opened_again_and_restored_by_pages() {
    let (mut place, _warden, _orders, edge) = opened(orders()).await;
    let patience = PATIENCE + Duration::from_micros(orders() as u64 * 2_000);
    let sells = async |place: &Place, epoch: u64| {
        eventually("it sells again", patience, async || {
            place.view().await.is_some_and(|view| view.epochs == [epoch])
        })
        .await;
    };
    let peak = Peak::begin();
    place.server.crash_and_restart();
    let began = Instant::now();
    sells(&place, 2).await;
    println!("{} orders: open again after {:?}", orders(), began.elapsed());
    let left = place.left().await;
    // A mark and a record are gone: it is restored from the books.
    place.run(&["HDEL", &place.segment.orders(), "@buyer-1", "@buyer-2"]).await;
    place.run(&["SCRIPT", "FLUSH"]).await;
    let began = Instant::now();
    sells(&place, 3).await;
    println!("{} orders: restored after {:?}", orders(), began.elapsed());
    peak.end("re-opening and restoring");
    assert_eq!(place.left().await, left);
    let marks: Vec<Option<String>> = place
        .redis
        .run("test", cmd("HMGET").arg(place.segment.orders()).arg(&["@buyer-1", "@buyer-2"]))
        .await
        .unwrap();
    assert_eq!(marks, [Some("phone=1".to_owned()), Some("phone=1".to_owned())]);
    place.until_sells(&edge).await;
    audited(&place, 0).await;
}

/// Audits in a process of its own, within bounds; its exit code.
async fn audited(place: &Place, code: i32) {
    let (began, before) = (Instant::now(), spent(place).await);
    // What a process takes for nothing, the pages, and 160 bytes an order.
    let memory = 72 + MORE_MIB + ((orders() as u64 * 160) >> 20);
    let [database, _, redis] = place.urls();
    let audit = Command::new(env!("CARGO_BIN_EXE_sluice-worker"))
        .args(["audit", "--sale", "demo", "--json", "--memory", &memory.to_string()])
        .envs([("SLUICE_DATABASE_URL", database), ("SLUICE_REDIS_URL", redis)])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let (report, words) = (String::from_utf8_lossy(&audit.stdout), String::from_utf8_lossy(&audit.stderr));
    println!(
        "an audit of {} orders within {memory} MiB: {:?}, {:?} of redis' time",
        orders(),
        began.elapsed(),
        spent(place).await - before
    );
    assert_eq!(audit.status.code(), Some(code), "{report} {words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_holds_little_of_a_sale() {
    let (place, warden, _orders, _edge) = opened(orders()).await;
    warden.stop().await;
    audited(&place, 0).await;
    place.run(&["HDEL", &place.segment.orders(), "@buyer-1"]).await;
    audited(&place, 1).await;
}
