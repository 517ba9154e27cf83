//! Every key and channel in Redis. All keys of one sale segment carry its hash tag, so that they
//! share a slot of a cluster.

use crate::ids::SaleId;

/// Hash: sale → [`crate::sale::SaleView`] as JSON. Written by the warden.
pub const SALES: &str = "sluice:sales";
/// Counter: raised with each change of [`SALES`], in the same transaction. Written by the warden.
pub const GENERATION: &str = "sluice:generation";
/// Channel: after each change of [`SALES`] the new generation, and the sales that have changed where that
/// is known: `GENERATION SALE…`.
pub const SALES_CHANNEL: &str = "sluice:sales";
/// Hash: instance → [`crate::sale::Heartbeat`] as JSON. Written by edges.
pub const EDGES: &str = "sluice:edges";
/// Hash: instances that stand in PostgreSQL's register. Written by the warden, for edges to see.
pub const REGISTER: &str = "sluice:register";
/// Hash: `sale:segment` → epoch that is being closed. Written by the warden, answered in heartbeats.
pub const REOPENING: &str = "sluice:reopening";
/// String with a lease: which warden leads.
pub const WARDEN: &str = "sluice:warden";

/// One slice of a sale: one hash slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment {
    /// The sale.
    pub sale: SaleId,
    /// Which of its segments.
    pub index: u16,
}

impl Segment {
    /// A segment of a sale.
    pub fn new(sale: SaleId, index: u16) -> Self {
        Self { sale, index }
    }

    /// Hash: state, window, epoch, lease, sequence, limits, admitted edges.
    pub fn meta(&self) -> String {
        self.key("meta")
    }

    /// Hash: SKU → units left.
    pub fn stock(&self) -> String {
        self.key("stock")
    }

    /// Hash: `<32 hex>` → record, `@user` → mark.
    pub fn orders(&self) -> String {
        self.key("orders")
    }

    /// Stream: accepted and not yet confirmed by the broker; ids `epoch-sequence`, field `o`.
    pub fn journal(&self) -> String {
        self.key("journal")
    }

    /// `meta`, `stock`, `orders` and `journal` while they are made anew from the books, for an epoch:
    /// each is raised by one warden only, so that no two write here.
    pub fn staged(&self, epoch: u64) -> [String; 4] {
        ["meta", "stock", "orders", "journal"].map(|what| self.key(&format!("staged:{epoch}:{what}")))
    }

    /// The same as they were when they had lost data; kept for a day.
    pub fn lost(&self) -> [String; 4] {
        ["meta", "stock", "orders", "journal"].map(|what| self.key(&format!("lost:{what}")))
    }

    /// What the scripts of one epoch carry in their text.
    pub fn fence(&self, epoch: u64) -> String {
        format!("{}:{}:{epoch}", self.sale, self.index)
    }

    /// `sale:segment`, the field of [`REOPENING`] and of heartbeats.
    pub fn name(&self) -> String {
        format!("{}:{}", self.sale, self.index)
    }

    /// Reads [`Self::name`].
    pub fn parse(name: &str) -> Option<Self> {
        let (sale, index) = name.split_once(':')?;
        Some(Self { sale: SaleId::parse(sale).ok()?, index: index.parse().ok()? })
    }

    fn key(&self, what: &str) -> String {
        format!("sluice:{{{}:{}}}:{what}", self.sale, self.index)
    }
}

/// Channel of one sale, some lines a message: `release <sku>` when units came back, `order <32 hex>
/// <record>` when a record changed.
pub fn sale_channel(sale: &SaleId) -> String {
    format!("sluice:sale:{sale}")
}

/// The delay queue's keys: ready, processing, owner.
pub fn delay(n: u16) -> [String; 3] {
    ["ready", "processing", "owner"].map(|what| format!("sluice:delay:{{{n}}}:{what}"))
}
