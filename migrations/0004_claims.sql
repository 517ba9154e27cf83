-- Orders that were accepted and lost by every store, and could not be taken again when their buyers showed
-- the receipts. A row in `orders` resolves a claim, or else an operator's word.
CREATE TABLE claims (
    order_id       text PRIMARY KEY,
    sale           text NOT NULL REFERENCES sales,
    user_id        text NOT NULL,
    lines          text NOT NULL,
    -- Place and time of the acceptance, as the receipt tells them.
    epoch          bigint NOT NULL,
    seq            bigint NOT NULL,
    accepted_at    timestamptz NOT NULL,
    -- Why it was refused the last time: a code of the outside contract.
    reason         text NOT NULL CHECK (reason ~ '^[a-z_]{1,40}$'),
    times          bigint NOT NULL DEFAULT 1,
    claimed_at     timestamptz NOT NULL DEFAULT now(),
    last_at        timestamptz NOT NULL DEFAULT now(),
    resolved_at     timestamptz,
    resolved_why    text,
    CHECK ((resolved_at IS NULL) = (resolved_why IS NULL))
);
CREATE INDEX claims_of_a_sale ON claims (sale, order_id);
