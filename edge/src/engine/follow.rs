//! Orders that somebody watches, and the channels that tell of them and of units that came back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId, parse_field};
use sluice_shared::keys::{SALES_CHANNEL, sale_channel};
use sluice_shared::record::Record;
use sluice_shared::redis::{Fault, Redis};
use tokio::sync::{Notify, watch};

use super::core::Core;
use super::desk::until;
use super::sales::Book;
use super::{EngineFault, Reader};

/// How often a watched order is read although nobody told of a change: a message may be lost.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the channels are compared with what is wanted.
const LOOK: Duration = Duration::from_millis(250);
/// Between two subscriptions, however many sales are watched for the first time.
const APART: Duration = Duration::from_millis(50);
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
    /// A sale has got its first follower.
    first: Notify,
}

#[derive(Debug, Default)]
struct Open {
    topics: HashMap<[u8; 16], Topic>,
    /// How many of them are of each sale.
    sales: BTreeMap<SaleId, usize>,
    followers: usize,
}

impl Topics {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default(), first: Notify::new() }
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
        let Open { topics, sales, .. } = &mut *open;
        let topic = topics.entry(order.uuid).or_insert_with(|| {
            let count = sales.entry(sale.clone()).or_default();
            *count += 1;
            if *count == 1 {
                self.first.notify_one();
            }
            Topic { news: watch::channel(None).0, sale, followers: 0 }
        });
        topic.followers += 1;
        Some(topic.news.subscribe())
    }

    fn leave(&self, order: &OrderId) {
        let mut open = self.open();
        open.followers = open.followers.saturating_sub(1);
        let Some(topic) = open.topics.get_mut(&order.uuid) else { return };
        topic.followers -= 1;
        if topic.followers > 0 {
            return;
        }
        if let Some(topic) = open.topics.remove(&order.uuid)
            && let Some(count) = open.sales.get_mut(&topic.sale)
        {
            *count -= 1;
            if *count == 0 {
                open.sales.remove(&topic.sale);
            }
        }
    }

    fn tell(&self, uuid: &[u8; 16], record: Record) {
        if let Some(topic) = self.open().topics.get(uuid) {
            topic.news.send_replace(Some(Arc::new(record)));
        }
    }

    /// These sales are heard from now on: what was told before is to be read.
    fn look_again(&self, sales: &BTreeSet<SaleId>) {
        for topic in self.open().topics.values().filter(|topic| sales.contains(&topic.sale)) {
            topic.news.send_replace(None);
        }
    }

    /// The sales that somebody watches an order of.
    fn sales(&self) -> Vec<SaleId> {
        self.open().sales.keys().cloned().collect()
    }
}

/// The changes of one order.
#[derive(Debug)]
pub struct Follower {
    order: OrderId,
    news: watch::Receiver<Option<Arc<Record>>>,
    last: Option<Record>,
    /// The record is to be read: it may have changed while nobody listened.
    due: bool,
    topics: Arc<Topics>,
    reader: Reader,
}

impl Follower {
    pub(crate) fn new(topics: &Arc<Topics>, order: OrderId, sale: SaleId, reader: Reader) -> Option<Self> {
        let news = topics.join(&order, sale)?;
        Some(Self { order, news, last: None, due: true, topics: Arc::clone(topics), reader })
    }

    /// The next record that differs from the last one given; the first is the present one, where Redis
    /// has it. Pends while nothing changes, and while Redis cannot be read. `None` when the engine has
    /// ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            let told = if self.due { None } else { self.told().await? };
            let (record, told) = match told {
                Some(record) => (Some(record), true),
                None => {
                    self.due = true;
                    let read = self.read().await?;
                    self.due = false;
                    (read, false)
                }
            };
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

    /// The record that somebody tells; `Some(None)` where it is time to read it, `None` when the engine
    /// has ended.
    async fn told(&mut self) -> Option<Option<Record>> {
        match tokio::time::timeout(AGAIN, self.news.changed()).await {
            Ok(Ok(())) => Some(self.news.borrow_and_update().as_deref().cloned()),
            Ok(Err(_)) => None,
            Err(_) => Some(None),
        }
    }

    /// The caller has shown this record already: [`Self::next`] gives only others.
    pub fn knows(&mut self, record: &Record) {
        self.last = Some(record.clone());
    }

    /// Whether no record was shown or given so far.
    pub fn knows_nothing(&self) -> bool {
        self.last.is_none()
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

/// What is heard on some channels. The next subscription stands before the last one goes, so nothing is
/// missed where they are renewed or others are wanted; it may be heard twice.
#[derive(Default)]
struct Ear {
    news: Option<BoxStream<'static, (String, String)>>,
    born: Option<Instant>,
    /// The one before, and how long what it was sent may be on its way.
    former: Option<(BoxStream<'static, (String, String)>, Instant)>,
    /// It broke, and something may have been missed.
    broke: bool,
}

impl Ear {
    /// Subscribes to other channels, or to the same ones anew; meanwhile the old ones are heard.
    async fn tune(
        &mut self,
        url: &str,
        channels: &[String],
        mut hear: impl FnMut(&str, &str),
    ) -> Result<(), Fault> {
        let mut fresh = pin!(async {
            match channels.is_empty() {
                true => Ok(None),
                false => Redis::subscribe(url, channels).await.map(|news| Some(news.boxed())),
            }
        });
        let fresh = loop {
            tokio::select! {
                fresh = &mut fresh => break fresh?,
                told = self.next(), if self.news.is_some() => {
                    if let Some((channel, payload)) = told { hear(&channel, &payload) }
                }
            }
        };
        let now = Instant::now();
        self.former = std::mem::replace(&mut self.news, fresh).map(|news| (news, now + PAUSE));
        self.born = Some(now);
        Ok(())
    }

    /// Whether it is time for the next subscription.
    fn is_old(&self, age: Duration) -> bool {
        self.news.is_some() && self.born.is_none_or(|born| born.elapsed() >= age)
    }

    /// The next message; `None` when the subscription is broken. Pends where there is none.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.former.as_ref().map(|(_, end)| *end);
            tokio::select! {
                told = next(self.former.as_mut().map(|(news, _)| news)) => match told {
                    Some(told) => return Some(told),
                    None => self.former = None,
                },
                told = next(self.news.as_mut()) => {
                    if told.is_none() {
                        (self.news, self.broke) = (None, true);
                    }
                    return told;
                }
                () = until(end) => self.former = None,
            }
        }
    }
}

async fn next(news: Option<&mut BoxStream<'static, (String, String)>>) -> Option<(String, String)> {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}

/// Listens to the sale list's channel for as long as the engine runs.
pub(crate) async fn list(core: Arc<Core>) {
    let (mut ear, channels) = (Ear::default(), [SALES_CHANNEL.to_owned()]);
    loop {
        let mut gap = ear.news.is_none();
        let tuned = ear.tune(&core.config.redis_url, &channels, |_, told| ring(&core, told)).await;
        gap |= std::mem::take(&mut ear.broke);
        match tuned {
            // What was told while nobody listened is in the list by now.
            Ok(()) if gap => core.read_all(),
            Ok(()) => {}
            Err(why) => tracing::debug!(%why, "the sale list's channel is not heard"),
        }
        if ear.news.is_none() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let hear = async {
            while let Some((_, told)) = ear.next().await {
                ring(&core, &told);
            }
        };
        // Renewed in time, or broken.
        let _ = tokio::time::timeout(core.config.listen_for, hear).await;
    }
}

fn ring(core: &Core, told: &str) {
    core.rung().ring(told);
    core.refresh.notify_one();
}

/// The channels that are worth listening to: of sales with watched orders, and of sold-out ones.
fn wanted(book: &Book, topics: &Topics, now: Millis) -> BTreeSet<SaleId> {
    let sales = book.now();
    let empty = sales.all().filter(|sale| sale.sells(now) && sale.latch().wants_to_listen());
    let empty = empty.map(|sale| sale.view.sale.clone());
    topics.sales().into_iter().filter(|sale| book.sale(sale.as_str()).is_some()).chain(empty).collect()
}

/// Listens to sales' channels for as long as the engine runs: to further ones as soon as they are
/// wanted, and to those that are wanted no more until the next subscription.
pub(crate) async fn orders(core: Arc<Core>, book: Arc<Book>, topics: Arc<Topics>) {
    let (mut heard, mut ear) = (BTreeSet::new(), Ear::default());
    loop {
        let want = wanted(&book, &topics, core.clock.now());
        if !want.is_subset(&heard) || ear.is_old(core.config.listen_for) {
            let channels: Vec<String> = want.iter().map(sale_channel).collect();
            let hear = |channel: &str, payload: &str| spread(&book, &topics, channel, payload);
            let tuned = ear.tune(&core.config.redis_url, &channels, hear).await;
            deaf(&mut ear, &mut heard, &book);
            match tuned {
                Ok(()) => {
                    let further = want.difference(&heard).cloned().collect();
                    heard = want;
                    tell_latches(&book, &heard);
                    topics.look_again(&further);
                }
                Err(why) => tracing::debug!(%why, "sales' channels are not heard"),
            }
        }
        let now = Instant::now();
        let (mut first, end) = (pin!(first(&core, &topics, now + APART)), now + LOOK);
        loop {
            tokio::select! {
                told = ear.next() => match told {
                    Some((channel, payload)) => spread(&book, &topics, &channel, &payload),
                    None => {
                        deaf(&mut ear, &mut heard, &book);
                        tokio::time::sleep(PAUSE).await;
                        break;
                    }
                },
                () = &mut first => break,
                () = until(Some(end)) => break,
            }
        }
    }
}

/// Where the subscription broke, nothing is heard of releases until the next one stands.
fn deaf(ear: &mut Ear, heard: &mut BTreeSet<SaleId>, book: &Book) {
    if std::mem::take(&mut ear.broke) {
        heard.clear();
        tell_latches(book, heard);
    }
}

/// Somebody wants to hear of a sale that nobody asked for before.
async fn first(core: &Core, topics: &Topics, soonest: Instant) {
    tokio::select! {
        () = core.listen.notified() => {}
        () = topics.first.notified() => {}
    }
    until(Some(soonest)).await;
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
        let open = topics.open();
        assert!(open.topics.is_empty() && open.sales.is_empty() && open.followers == 0);
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
