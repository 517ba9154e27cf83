-- An order whose money went back may be paid again. Its refund is then due anew, in the next round: what is
-- told of an earlier one, late or twice, is known by that.
ALTER TABLE orders ADD COLUMN refund_round integer NOT NULL DEFAULT 1 CHECK (refund_round > 0);
