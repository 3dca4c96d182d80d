-- One row an order of the shop's order system (web, app, mini-program), at the last status that arrived. The system
-- sends an order again whenever its status changes, with the same ordered_at, so arrival decides which is last. A guest
-- checkout belongs to the customer of the buyer's e-mail or phone; where those are unknown, customer_id is null.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_order_id:     order_id is not null
-- @expect     fail        unique_order:     count(*) = count(distinct order_id)
-- @expect     quarantine  has_time:         ordered_at is not null
-- @expect     quarantine  known_status:     status in ('paid', 'shipped', 'completed', 'cancelled', 'returned')
-- @expect     quarantine  sane_amount:      paid_amount >= 0 and paid_amount < 10000000
-- @expect     warn        known_channel:    channel in ('web', 'app', 'mini_program')
-- @tag        pii(province)
-- @tag        pii(city)
with latest as (
    select
        *,
        coalesce(
            identifier_token('member_id', member_no),
            identifier_token('unionid', wechat['unionid']),
            identifier_token('email', buyer['email']),
            identifier_token('phone', buyer['mobile']),
            identifier_token('openid', wechat['openid'])
        ) as token
    from raw.orders
    where order_id is not null
    qualify row_number() over (
        partition by order_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,                                         -- Unified customer id; null when nobody is known
    latest.order_id as order_id,                                                    -- The order system's key
    latest.ordered_at as ordered_at,                                                -- When the order was placed
    lower(trim(latest.status)) as status,                                           -- paid, shipped, completed, cancelled, returned
    lower(trim(latest.channel)) as channel,                                         -- web, app, mini_program
    latest.member_no is null as is_guest,                                           -- Whether it was placed without signing in
    upper(coalesce(trim(latest.currency), 'CNY')) as currency,                      -- ISO 4217 code of all amounts in the row
    latest.goods_amount as goods_amount,                                            -- Goods at list price
    cast(coalesce(latest.discount_amount, 0) as decimal(12, 2)) as discount_amount, -- Discounts and coupons taken off
    cast(coalesce(latest.shipping_fee, 0) as decimal(12, 2)) as shipping_fee,       -- Delivery charged
    latest.paid_amount as paid_amount,                                              -- What the customer paid
    nullif(trim(latest.coupon_code), '') as coupon_code,                            -- Coupon used; null when none
    latest.ship_to['province'] as province,                                         -- Province of delivery
    latest.ship_to['city'] as city                                                  -- City of delivery
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
