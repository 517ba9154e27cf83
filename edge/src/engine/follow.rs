//! Orders that somebody watches, and the channels that tell of them and of units that came back.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId, parse_field};
use sluice_shared::keys::{SALES_CHANNEL, sale_channel};
use sluice_shared::record::Record;
use sluice_shared::redis::Redis;
use tokio::sync::watch;

use super::core::Core;
use super::sales::Book;
use super::{EngineFault, Reader};

/// How often a watched order is read although nobody told of a change: a message may be lost.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the channels are compared with what is wanted.
const LOOK: Duration = Duration::from_millis(250);
/// After a broken subscription.
const PAUSE: Duration = Duration::from_millis(300);

/// Whom an order's changes are told.
#[derive(Debug)]
struct Topic {
    news: watch::Sender<Option<Arc<Record>>>,
    sale: SaleId,
    followers: usize,
}

/// All watched orders.
#[derive(Debug)]
pub(crate) struct Topics {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    topics: HashMap<[u8; 16], Topic>,
    followers: usize,
}

impl Topics {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, order: &OrderId, sale: SaleId) -> Option<watch::Receiver<Option<Arc<Record>>>> {
        let mut open = self.open();
        if open.followers >= self.most {
            return None;
        }
        open.followers += 1;
        let fresh = || Topic { news: watch::channel(None).0, sale, followers: 0 };
        let topic = open.topics.entry(order.uuid).or_insert_with(fresh);
        topic.followers += 1;
        Some(topic.news.subscribe())
    }

    fn leave(&self, order: &OrderId) {
        let mut open = self.open();
        open.followers = open.followers.saturating_sub(1);
        if let Some(topic) = open.topics.get_mut(&order.uuid) {
            topic.followers -= 1;
            if topic.followers == 0 {
                open.topics.remove(&order.uuid);
            }
        }
    }

    fn tell(&self, uuid: &[u8; 16], record: Record) {
        if let Some(topic) = self.open().topics.get(uuid) {
            topic.news.send_replace(Some(Arc::new(record)));
        }
    }

    /// The sales that somebody watches an order of.
    fn sales(&self) -> BTreeSet<SaleId> {
        self.open().topics.values().map(|topic| topic.sale.clone()).collect()
    }
}

/// The changes of one order.
#[derive(Debug)]
pub struct Follower {
    order: OrderId,
    news: watch::Receiver<Option<Arc<Record>>>,
    last: Option<Record>,
    begun: bool,
    topics: Arc<Topics>,
    reader: Reader,
}

impl Follower {
    pub(crate) fn new(topics: &Arc<Topics>, order: OrderId, sale: SaleId, reader: Reader) -> Option<Self> {
        let news = topics.join(&order, sale)?;
        Some(Self { order, news, last: None, begun: false, topics: Arc::clone(topics), reader })
    }

    /// The next record that differs from the last one given; the first is the present one, where Redis
    /// has it. Pends while nothing changes, and while Redis cannot be read. `None` when the engine has
    /// ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            let (record, told) = match self.begun {
                true => match tokio::time::timeout(AGAIN, self.news.changed()).await {
                    Ok(Ok(())) => (self.news.borrow_and_update().as_deref().cloned(), true),
                    Ok(Err(_)) => return None,
                    Err(_) => (self.read().await?, false),
                },
                false => (self.read().await?, false),
            };
            self.begun = true;
            // What is told may be older than what was read meanwhile.
            let news = |last: &Record, next: &Record| last != next && (!told || last.updated <= next.updated);
            if let Some(record) = record
                && self.last.as_ref().is_none_or(|last| news(last, &record))
            {
                self.last = Some(record.clone());
                return Some(record);
            }
        }
    }

    /// The caller has shown this record already: [`Self::next`] gives only others.
    pub fn knows(&mut self, record: &Record) {
        self.last = Some(record.clone());
    }

    /// The present record, if it can be had; `None` when the engine has ended.
    async fn read(&self) -> Option<Option<Record>> {
        match self.reader.record(&self.order).await {
            Ok(record) => Some(record),
            Err(EngineFault::NotRunning) => None,
            Err(EngineFault::Redis(why)) => {
                tracing::debug!(%why, "a watched order could not be read");
                Some(None)
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.topics.leave(&self.order);
    }
}

/// What a line on a sale's channel tells.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Released(SkuId),
    Order([u8; 16], Box<Record>),
}

fn parse(payload: &str) -> Option<Told> {
    let (word, rest) = payload.split_once(' ')?;
    match word {
        "release" => SkuId::parse(rest).ok().map(Told::Released),
        "order" => {
            let (uuid, record) = rest.split_once(' ')?;
            Some(Told::Order(parse_field(uuid)?, Box::new(Record::parse(record)?)))
        }
        _ => None,
    }
}

/// Listens to the sale list's channel for as long as the engine runs.
pub(crate) async fn list(core: Arc<Core>) {
    loop {
        match Redis::subscribe(&core.config.redis_url, &[SALES_CHANNEL.to_owned()]).await {
            Ok(mut news) => {
                // What was told while nobody listened is in the list by now.
                core.refresh.notify_one();
                while news.next().await.is_some() {
                    core.refresh.notify_one();
                }
            }
            Err(why) => tracing::debug!(%why, "the sale list's channel is not heard"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The channels that are worth listening to: of sales with watched orders, and of sold-out ones.
fn wanted(book: &Book, topics: &Topics, now: Millis) -> BTreeSet<SaleId> {
    let sales = book.now();
    let empty = sales.all().filter(|sale| sale.sells(now) && sale.latch().wants_to_listen());
    let empty = empty.map(|sale| sale.view.sale.clone());
    topics.sales().into_iter().filter(|sale| book.sale(sale.as_str()).is_some()).chain(empty).collect()
}

/// Listens to sales' channels for as long as the engine runs. The set changes with who watches; the new
/// subscription stands before the old one goes, so that nothing is missed by that.
pub(crate) async fn orders(core: Arc<Core>, book: Arc<Book>, topics: Arc<Topics>) {
    let (mut heard, mut news) = (BTreeSet::new(), None);
    loop {
        let want = wanted(&book, &topics, core.clock.now());
        if want != heard {
            let channels: Vec<String> = want.iter().map(sale_channel).collect();
            let fresh = match channels.is_empty() {
                true => Ok(None),
                false => Redis::subscribe(&core.config.redis_url, &channels).await.map(Some),
            };
            match fresh {
                Ok(fresh) => {
                    news = fresh;
                    heard = want;
                    tell_latches(&book, &heard);
                }
                Err(why) => tracing::debug!(%why, "sales' channels are not heard"),
            }
        }
        let end = tokio::time::Instant::now() + LOOK;
        if let Some(open) = &mut news {
            loop {
                tokio::select! {
                    message = open.next() => match message {
                        Some((channel, payload)) => spread(&book, &topics, &channel, &payload),
                        None => break,
                    },
                    () = tokio::time::sleep_until(end) => break,
                }
            }
            if tokio::time::Instant::now() < end {
                // Broken: nothing is heard of releases until the next subscription stands.
                (heard, news) = (BTreeSet::new(), None);
                tell_latches(&book, &heard);
                tokio::time::sleep(PAUSE).await;
            }
        } else {
            // Either way what is wanted is looked at again.
            let _ = tokio::time::timeout_at(end, core.listen.notified()).await;
        }
    }
}

fn tell_latches(book: &Book, heard: &BTreeSet<SaleId>) {
    for sale in book.now().all() {
        sale.latch().listen(heard.contains(&sale.view.sale));
    }
}

fn spread(book: &Book, topics: &Topics, channel: &str, payload: &str) {
    let Some(sale) = channel.strip_prefix("sluice:sale:").and_then(|id| book.sale(id)) else { return };
    for told in payload.lines().filter_map(parse) {
        match told {
            Told::Released(sku) => sale.latch().released(&sku),
            Told::Order(uuid, record) => {
                sale.latch().seen(&uuid, &record);
                topics.tell(&uuid, *record);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_a_channel_tells_is_read() {
        let record = "Ph|1|2|3|4|5|-|phone=1|a|c";
        let uuid = "0190163d8694739b9f8a1c5c2b2b2b2b";
        let told = parse(&format!("order {uuid} {record}"));
        let Some(Told::Order(id, read)) = told else { panic!("{told:?}") };
        assert_eq!((id, read.to_string()), (parse_field(uuid).unwrap(), record.to_owned()));
        assert_eq!(parse("release phone"), Some(Told::Released(SkuId::parse("phone").unwrap())));
        for other in ["soldout phone", "order x y", "release", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn followers_are_bounded_and_leave_nothing_behind() {
        let topics = Topics::new(2);
        let (order, sale) = (OrderId::mint(1, 0), SaleId::parse("s").unwrap());
        let first = topics.join(&order, sale.clone());
        let second = topics.join(&order, sale.clone());
        assert!(first.is_some() && second.is_some() && topics.join(&order, sale.clone()).is_none());
        topics.leave(&order);
        topics.leave(&order);
        assert!(topics.open().topics.is_empty() && topics.open().followers == 0);
    }

    #[test]
    fn every_follower_of_an_order_is_told() {
        let topics = Topics::new(9);
        let (order, sale) = (OrderId::mint(1, 0), SaleId::parse("s").unwrap());
        let both = [topics.join(&order, sale.clone()).unwrap(), topics.join(&order, sale).unwrap()];
        topics.tell(&order.uuid, Record::parse("Ph|1|2|3|4|5|-|phone=1|u").unwrap());
        assert!(both.iter().all(|news| news.borrow().is_some()));
    }
}
