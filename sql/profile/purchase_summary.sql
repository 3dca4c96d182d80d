-- One row a customer who has bought: value, frequency and channels of the purchases up to now(). Windows end at now() and
-- are counted back in days. Amounts are CNY; purchases in other currencies are counted but their amounts are not added,
-- since no rates are known here. Money given back (refunds, goods brought back to a till) reduces the net spend at the time
-- it was given back and does not count as a purchase, so a window can be negative.
-- @stage      incremental key(customer_id)
-- @owner      commerce data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        not_in_future:    last_purchase_at <= now()
-- @expect     warn        windows_nest:     purchases_30d <= purchases_90d and purchases_90d <= purchases_365d and purchases_365d <= purchases
-- @expect     warn        sane_spend:       spend_365d between -100000 and 10000000
with known as (
    select
        *,
        not is_return as is_purchase,
        case when currency = 'CNY' then net_amount else 0 end as net_cny,
        case when currency = 'CNY' then list_amount else 0 end as list_cny,
        case when currency = 'CNY' then discount_amount else 0 end as discount_cny,
        date_part('hour', purchased_at at time zone '+08:00') as local_hour,
        date_part('dow', purchased_at at time zone '+08:00') as local_weekday
    from core.purchases
    where customer_id is not null
        and purchased_at <= now()
),

summary as (
    select
        customer_id,
        min(purchased_at) filter (where is_purchase) as first_purchase_at,
        max(purchased_at) filter (where is_purchase) as last_purchase_at,
        max(purchased_at) filter (where is_purchase and channel = 'store') as last_store_purchase_at,
        max(purchased_at) filter (where is_purchase and channel <> 'store') as last_online_purchase_at,
        count(*) filter (where is_purchase) as purchases,
        count(*) filter (where is_purchase and purchased_at > now() - interval '7 days') as purchases_7d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '30 days') as purchases_30d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '60 days' and purchased_at <= now() - interval '30 days') as purchases_prev_30d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '90 days') as purchases_90d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days') as purchases_prev_90d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '180 days') as purchases_180d,
        count(*) filter (where is_purchase and purchased_at > now() - interval '365 days') as purchases_365d,
        count(*) filter (where is_purchase and currency <> 'CNY') as foreign_currency_purchases,
        sum(net_cny) as spend,
        sum(case when purchased_at > now() - interval '30 days' then net_cny else 0 end) as spend_30d,
        sum(case when purchased_at > now() - interval '90 days' then net_cny else 0 end) as spend_90d,
        sum(case when purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days' then net_cny else 0 end) as spend_prev_90d,
        sum(case when purchased_at > now() - interval '180 days' then net_cny else 0 end) as spend_180d,
        sum(case when purchased_at > now() - interval '365 days' then net_cny else 0 end) as spend_365d,
        max(net_cny) filter (where is_purchase) as largest_purchase,
        avg(cast(net_amount * 100 as bigint)) filter (where is_purchase and currency = 'CNY' and purchased_at > now() - interval '90 days') / 100.0 as average_basket_90d,
        avg(cast(net_amount * 100 as bigint)) filter (where is_purchase and currency = 'CNY' and purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days') / 100.0 as average_basket_prev_90d,
        avg(cast(net_amount * 100 as bigint)) filter (where is_purchase and currency = 'CNY' and purchased_at > now() - interval '365 days') / 100.0 as average_basket_365d,
        sum(case when purchased_at > now() - interval '365 days' then list_cny else 0 end) as list_365d,
        sum(case when purchased_at > now() - interval '365 days' then discount_cny else 0 end) as discount_365d,
        sum(case when is_purchase and purchased_at > now() - interval '365 days' then pieces else 0 end) as pieces_365d,
        count(*) filter (where is_purchase and has_coupon and purchased_at > now() - interval '365 days') as coupon_purchases_365d,
        count(*) filter (where is_purchase and not has_discount and purchased_at > now() - interval '365 days') as full_price_purchases_365d,
        count(*) filter (where is_returned and purchased_at > now() - interval '365 days') as returned_orders_365d,
        count(*) filter (where is_purchase and channel = 'store' and purchased_at > now() - interval '365 days') as store_purchases_365d,
        count(*) filter (where is_purchase and channel = 'web' and purchased_at > now() - interval '365 days') as web_purchases_365d,
        count(*) filter (where is_purchase and channel = 'app' and purchased_at > now() - interval '365 days') as app_purchases_365d,
        count(*) filter (where is_purchase and channel = 'mini_program' and purchased_at > now() - interval '365 days') as mini_program_purchases_365d,
        count(distinct case when is_purchase and purchased_at > now() - interval '90 days' then channel end) as purchase_channels_90d,
        count(distinct case when is_purchase and purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days' then channel end) as purchase_channels_prev_90d,
        count(distinct case when is_purchase and purchased_at > now() - interval '365 days' then store_code end) as stores_365d,
        count(*) filter (where is_purchase and (local_hour >= 22 or local_hour < 6) and purchased_at > now() - interval '365 days') as night_purchases_365d,
        count(*) filter (where is_purchase and local_weekday in (0, 6) and purchased_at > now() - interval '365 days') as weekend_purchases_365d
    from known
    group by customer_id
)

select
    customer_id,                                                  -- Unified customer id
    first_purchase_at,                                            -- First purchase
    last_purchase_at,                                             -- Last purchase
    last_store_purchase_at,                                       -- Last purchase in a store
    last_online_purchase_at,                                      -- Last purchase online
    purchases,                                                    -- Purchases, lifetime
    purchases_7d,                                                 -- Purchases, last 7 days
    purchases_30d,                                                -- Purchases, last 30 days
    purchases_prev_30d,                                           -- Purchases, the 30 days before the last 30
    purchases_90d,                                                -- Purchases, last 90 days
    purchases_prev_90d,                                           -- Purchases, the 90 days before the last 90
    purchases_180d,                                               -- Purchases, last 180 days
    purchases_365d,                                               -- Purchases, last 365 days
    foreign_currency_purchases,                                   -- Purchases in other currencies than CNY, lifetime; not in any amount
    'CNY' as currency,                                            -- ISO 4217 code of all amounts in the row
    cast(spend as decimal(18, 2)) as spend,                       -- Net spend, lifetime
    cast(spend_30d as decimal(18, 2)) as spend_30d,               -- Net spend, last 30 days
    cast(spend_90d as decimal(18, 2)) as spend_90d,               -- Net spend, last 90 days
    cast(spend_prev_90d as decimal(18, 2)) as spend_prev_90d,     -- Net spend, the 90 days before the last 90
    cast(spend_180d as decimal(18, 2)) as spend_180d,             -- Net spend, last 180 days
    cast(spend_365d as decimal(18, 2)) as spend_365d,             -- Net spend, last 365 days
    cast(largest_purchase as decimal(18, 2)) as largest_purchase, -- Largest single purchase, lifetime
    average_basket_90d,                                           -- Mean amount of a purchase, last 90 days; null without purchases
    average_basket_prev_90d,                                      -- Mean amount of a purchase, the 90 days before
    average_basket_365d,                                          -- Mean amount of a purchase, last 365 days
    cast(pieces_365d as double) / nullif(purchases_365d, 0) as pieces_per_purchase_365d, -- Pieces a purchase, last 365 days
    case when list_365d > 0 then cast(discount_365d as double) / cast(list_365d as double) end as discount_share_365d, -- Discount as a share of list price, last 365 days, 0 to 1
    coupon_purchases_365d,                                        -- Purchases with a coupon, last 365 days
    full_price_purchases_365d,                                    -- Purchases without any discount, last 365 days
    returned_orders_365d,                                         -- Orders that came back whole, placed in the last 365 days
    store_purchases_365d,                                         -- Purchases in stores, last 365 days
    web_purchases_365d,                                           -- Purchases in the web shop, last 365 days
    app_purchases_365d,                                           -- Purchases in the app, last 365 days
    mini_program_purchases_365d,                                  -- Purchases in the mini-program, last 365 days
    purchase_channels_90d,                                        -- Channels bought in, last 90 days
    purchase_channels_prev_90d,                                   -- Channels bought in, the 90 days before
    stores_365d,                                                  -- Different stores bought in, last 365 days
    cast(night_purchases_365d as double) / nullif(purchases_365d, 0) as night_purchase_share_365d, -- Share of purchases from 22 to 6 o'clock, China time, last 365 days
    cast(weekend_purchases_365d as double) / nullif(purchases_365d, 0) as weekend_purchase_share_365d -- Share of purchases on Saturday and Sunday, China time, last 365 days
from summary
where purchases > 0
