-- lib/record: the record of one order, and what a release reads of it.

-- STATE|epoch|seq|accepted_ms|updated_ms|pay_before_ms|refund|lines|user, as a table; nil when torn.
local function decode(text)
  local state, units, epoch, seq, accepted, pay_before, refund, lines, user =
    string.match(text, '^(%u)(%l)|(%d+)|(%d+)|(%d+)|%d+|(%d+)|([^|]*)|([^|]*)|(.*)$')
  if not state then return nil end
  return {state = state, units = units, epoch = epoch, seq = seq, accepted = accepted,
    pay_before = pay_before, refund = refund, lines = lines, user = user}
end

local function encode(r, now)
  return table.concat({r.state .. r.units, r.epoch, r.seq, r.accepted, now, r.pay_before, r.refund,
    r.lines, r.user}, '|')
end
