-- The truth. Forward-only; a change is a new file: expand first, contract a release later.

CREATE TABLE sales (
    sale                text PRIMARY KEY CHECK (sale ~ '^[A-Za-z0-9_-]{1,64}$'),
    number              integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    step                text NOT NULL DEFAULT 'created'
                        CHECK (step IN ('created', 'preloaded', 'open', 'paused', 'closed')),
    -- The step a closed sale was closed from; reopen leads back there.
    closed_from         text CHECK (closed_from IN ('preloaded', 'open', 'paused')),
    starts_at           timestamptz NOT NULL,
    ends_at             timestamptz NOT NULL,
    mode                text NOT NULL CHECK (mode IN ('queued', 'direct', 'auto')),
    accept_after        text NOT NULL CHECK (accept_after IN ('journal', 'broker')),
    pay_within_seconds  integer NOT NULL CHECK (pay_within_seconds BETWEEN 1 AND 2592000),
    segments            smallint NOT NULL CHECK (segments BETWEEN 1 AND 64),
    -- Configuration version: grows with each change; the warden projects it into Redis.
    cfg                 bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    CHECK (starts_at < ends_at)
);

-- One SKU of a sale. `taken` is what live orders hold; the check makes overselling impossible
-- even when Redis was wrong.
CREATE TABLE offers (
    sale         text NOT NULL REFERENCES sales,
    sku          text NOT NULL CHECK (sku ~ '^[A-Za-z0-9_-]{1,64}$'),
    place        smallint NOT NULL,
    title        text NOT NULL,
    price        bigint NOT NULL CHECK (price >= 0),
    currency     text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    stock        bigint NOT NULL CHECK (stock >= 0),
    taken        bigint NOT NULL DEFAULT 0,
    per_user     integer NOT NULL CHECK (per_user >= 1),
    -- Head of the offer's hash-chained ledger.
    ledger_line  bigint NOT NULL DEFAULT 0,
    ledger_hash  bytea NOT NULL DEFAULT '\x',
    PRIMARY KEY (sale, sku),
    CHECK (taken BETWEEN 0 AND stock)
) WITH (fillfactor = 50);

-- The epoch of each sale segment: what scripts, messages and rows are fenced by.
CREATE TABLE segments (
    sale     text NOT NULL REFERENCES sales,
    segment  smallint NOT NULL,
    epoch    bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (sale, segment)
);

CREATE TABLE orders (
    id           text PRIMARY KEY,
    sale         text NOT NULL REFERENCES sales,
    user_id      text NOT NULL,
    state        text NOT NULL CHECK (state IN
                 ('pending_payment', 'paid', 'expired', 'cancelled', 'failed', 'refunded')),
    -- Whether its units count in offers.taken.
    live         boolean NOT NULL,
    amount       bigint NOT NULL,
    currency     text NOT NULL,
    -- 'sku=n,sku=n', sorted.
    lines        text NOT NULL,
    epoch        bigint NOT NULL,
    seq          bigint NOT NULL,
    refund       text NOT NULL DEFAULT '-' CHECK (refund IN ('-', 'due', 'done')),
    message      text,
    accepted_at  timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    pay_before   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);
CREATE INDEX orders_of_a_sale ON orders (sale, id);
CREATE INDEX orders_of_a_user ON orders (user_id, id);
CREATE INDEX orders_unpaid ON orders (pay_before) WHERE state = 'pending_payment';

-- Append-only, one hash chain an offer: hash = sha256(previous hash ‖ the line's text).
CREATE TABLE ledger (
    sale      text NOT NULL,
    sku       text NOT NULL,
    line      bigint NOT NULL,
    kind      text NOT NULL CHECK (kind IN
              ('preload', 'add', 'withdraw', 'take', 'release', 'sold', 'refund')),
    order_id  text,
    change    text,
    quantity  bigint NOT NULL CHECK (quantity >= 0),
    at        timestamptz NOT NULL,
    hash      bytea NOT NULL,
    PRIMARY KEY (sale, sku, line)
);
CREATE UNIQUE INDEX ledger_once ON ledger (order_id, sku, kind) WHERE order_id IS NOT NULL;

-- Events written with their cause, published after it. One row carries up to 100 events.
CREATE TABLE outbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic         text NOT NULL,
    payload       jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    published_at  timestamptz
);
CREATE INDEX outbox_unsent ON outbox (id) WHERE published_at IS NULL;

-- The purchase saga of each order, and what each step and undo did.
CREATE TABLE saga (
    order_id    text PRIMARY KEY,
    state       text NOT NULL DEFAULT 'running'
                CHECK (state IN ('running', 'committed', 'undoing', 'undone', 'stuck')),
    step        text NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);
CREATE TABLE saga_step (
    order_id  text NOT NULL,
    step      text NOT NULL,
    outcome   text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, step)
);

-- What the payment provider told. A provider's transaction belongs to one order for ever.
CREATE TABLE payments (
    payment_id  text PRIMARY KEY,
    order_id    text NOT NULL,
    amount      bigint NOT NULL,
    currency    text NOT NULL,
    -- captured: pays the order; surplus: money for an order that could not take it; refunded.
    state       text NOT NULL CHECK (state IN ('captured', 'surplus', 'refunded', 'failed')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payments_of_an_order ON payments (order_id);

-- Messages of an epoch that had ended: they leave no order.
CREATE TABLE fenced_messages (
    order_id  text NOT NULL,
    epoch     bigint NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, epoch)
);

-- A warden's barrier message came through this queue: all earlier ones are committed.
CREATE TABLE barriers (
    id     text NOT NULL,
    shard  smallint NOT NULL,
    at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, shard)
);

-- Edges that may hold accepted orders: a rebuild waits for each one not struck off.
CREATE TABLE edges (
    instance       text PRIMARY KEY,
    name           text NOT NULL,
    lock           text NOT NULL,
    start          bigint NOT NULL,
    registered_at  timestamptz NOT NULL DEFAULT now(),
    struck_at      timestamptz,
    struck_why     text
);
CREATE INDEX edges_registered ON edges (lock, start) WHERE struck_at IS NULL;

-- Stock changes by operators, idempotent by key; the warden finishes what a crash interrupted.
CREATE TABLE stock_changes (
    key          text NOT NULL,
    sale         text NOT NULL REFERENCES sales,
    sku          text NOT NULL,
    delta        bigint NOT NULL,
    reason       text NOT NULL,
    fingerprint  bytea NOT NULL,
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'refused')),
    answer       jsonb,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sale, key)
);
CREATE INDEX stock_changes_open ON stock_changes (created_at) WHERE state = 'pending';

-- Every write of the back office: who, what, before, after.
CREATE TABLE audit_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    who         text NOT NULL,
    role        text NOT NULL,
    action      text NOT NULL,
    target      text NOT NULL,
    before      jsonb,
    after       jsonb,
    request_id  text NOT NULL
);
CREATE INDEX audit_log_of_a_target ON audit_log (target, id);

-- Messages that no retry can mend, with the reason; the reservation itself is published anew by the warden.
CREATE TABLE parked (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue   text NOT NULL,
    reason  text NOT NULL,
    body    bytea NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
