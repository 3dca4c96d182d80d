-- One row a step in a coupon's life: issued, claimed, redeemed or expired.
-- @stage      full
-- @owner      marketing
-- @expect     fail        has_event_id:   event_id is not null
-- @expect     fail        unique_event:   count(*) = count(distinct event_id)
-- @expect     quarantine  has_time:       occurred_at is not null
-- @expect     quarantine  known_action:   action in ('issued', 'claimed', 'redeemed', 'expired')
-- @expect     warn        sane_value:     face_value > 0
with latest as (
    select
        *,
        identifier_token('member_id', member_no) as token
    from raw.coupons
    where event_id is not null
    qualify row_number() over (
        partition by event_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id, -- Unified customer id
    latest.event_id as event_id,            -- The coupon system's key of the step
    latest.coupon_code as coupon_code,      -- Coupon
    latest.campaign_id as campaign_id,      -- Campaign that issued it
    lower(trim(latest.action)) as action,   -- issued, claimed, redeemed, expired
    latest.occurred_at as occurred_at,      -- When it happened
    'CNY' as currency,                      -- ISO 4217 code of all amounts in the row
    latest.face_value as face_value,        -- What it takes off
    latest.min_spend as min_spend,          -- Spend from which it is valid
    latest.valid_until as valid_until,      -- When it lapses
    latest.order_id as order_id             -- Order it was redeemed with; null otherwise
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
