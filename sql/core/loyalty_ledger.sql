-- One row an entry of the loyalty ledger: points earned, burnt or expired, and changes of tier.
-- @stage      full
-- @owner      loyalty
-- @expect     fail        has_entry_id:  entry_id is not null
-- @expect     fail        unique_entry:  count(*) = count(distinct entry_id)
-- @expect     quarantine  has_time:      occurred_at is not null
-- @expect     quarantine  known_type:    entry_type in ('earn', 'burn', 'expire', 'tier_up', 'tier_down')
-- @expect     warn        sign_agrees:   case entry_type when 'earn' then points >= 0 when 'burn' then points <= 0 when 'expire' then points <= 0 else true end
with latest as (
    select
        *,
        identifier_token('member_id', member_no) as token
    from raw.loyalty_ledger
    where entry_id is not null
    qualify row_number() over (
        partition by entry_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,       -- Unified customer id
    latest.entry_id as entry_id,                  -- The loyalty system's key
    latest.occurred_at as occurred_at,            -- When it was booked
    lower(trim(latest.entry_type)) as entry_type, -- earn, burn, expire, tier_up, tier_down
    coalesce(latest.points, 0) as points,         -- Points, signed
    lower(trim(latest.tier)) as tier,             -- Tier after this entry
    latest.order_id as order_id                   -- Order it belongs to, if any
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
