-- One row a customer with coupons or purchases in the last 365 days: how much price decides. The class is high from 5
-- coupons claimed in 30 days or 60 % of purchases with a coupon, medium from 2 claims or 30 %, low otherwise.
-- @stage      incremental key(customer_id)
-- @owner      marketing
-- @expect     fail        has_customer:      customer_id is not null
-- @expect     fail        unique_customer:   count(*) = count(distinct customer_id)
-- @expect     fail        known_class:       price_sensitivity in ('low', 'medium', 'high')
-- @expect     warn        redeemed_claimed:  coupons_redeemed_365d <= coupons_claimed_365d + 10
with coupons as (
    select
        customer_id,
        count(*) filter (where action = 'issued') as issued_365d,
        count(*) filter (where action = 'claimed' and occurred_at > now() - interval '30 days') as claimed_30d,
        count(*) filter (where action = 'claimed' and occurred_at > now() - interval '90 days') as claimed_90d,
        count(*) filter (where action = 'claimed') as claimed_365d,
        count(*) filter (where action = 'redeemed' and occurred_at > now() - interval '90 days') as redeemed_90d,
        count(*) filter (where action = 'redeemed') as redeemed_365d,
        count(*) filter (where action = 'expired') as expired_365d,
        sum(case when action = 'redeemed' then face_value else 0 end) as redeemed_value_365d,
        max(occurred_at) filter (where action = 'claimed') as last_coupon_claimed_at
    from core.coupons
    where customer_id is not null
        and occurred_at <= now()
        and occurred_at > now() - interval '365 days'
    group by customer_id
),

joined as (
    select
        coalesce(profile.purchase_summary.customer_id, coupons.customer_id) as customer_id,
        coalesce(coupons.issued_365d, 0) as issued_365d,
        coalesce(coupons.claimed_30d, 0) as claimed_30d,
        coalesce(coupons.claimed_90d, 0) as claimed_90d,
        coalesce(coupons.claimed_365d, 0) as claimed_365d,
        coalesce(coupons.redeemed_90d, 0) as redeemed_90d,
        coalesce(coupons.redeemed_365d, 0) as redeemed_365d,
        coalesce(coupons.expired_365d, 0) as expired_365d,
        coalesce(coupons.redeemed_value_365d, 0) as redeemed_value_365d,
        coupons.last_coupon_claimed_at,
        profile.purchase_summary.discount_share_365d,
        cast(profile.purchase_summary.coupon_purchases_365d as double)
        / nullif(profile.purchase_summary.purchases_365d, 0) as coupon_purchase_share_365d,
        cast(profile.purchase_summary.full_price_purchases_365d as double)
        / nullif(profile.purchase_summary.purchases_365d, 0) as full_price_share_365d
    from profile.purchase_summary
    full join coupons on coupons.customer_id = profile.purchase_summary.customer_id
)

select
    customer_id,                                                               -- Unified customer id
    issued_365d as coupons_issued_365d,                                        -- Coupons issued, last 365 days
    claimed_30d as coupons_claimed_30d,                                        -- Coupons claimed, last 30 days
    claimed_90d as coupons_claimed_90d,                                        -- Coupons claimed, last 90 days
    claimed_365d as coupons_claimed_365d,                                      -- Coupons claimed, last 365 days
    redeemed_90d as coupons_redeemed_90d,                                      -- Coupons redeemed, last 90 days
    redeemed_365d as coupons_redeemed_365d,                                    -- Coupons redeemed, last 365 days
    expired_365d as coupons_expired_365d,                                      -- Coupons that lapsed unused, last 365 days
    'CNY' as currency,                                                         -- ISO 4217 code of all amounts in the row
    cast(redeemed_value_365d as decimal(18, 2)) as coupon_value_redeemed_365d, -- Face value of the coupons redeemed, last 365 days
    last_coupon_claimed_at,                                                    -- Last coupon claimed, within 365 days
    cast(redeemed_365d as double) / nullif(claimed_365d, 0) as coupon_redemption_rate_365d, -- Redeemed over claimed, last 365 days; null without claims
    discount_share_365d,                                                       -- Discount as a share of list price, last 365 days, 0 to 1
    coupon_purchase_share_365d,                                                -- Share of purchases with a coupon, last 365 days
    full_price_share_365d,                                                     -- Share of purchases without any discount, last 365 days
    case
        when claimed_30d >= 5 or coupon_purchase_share_365d >= 0.6 then 'high'
        when claimed_30d >= 2 or coupon_purchase_share_365d >= 0.3 then 'medium'
        else 'low'
    end as price_sensitivity                                                   -- low, medium, high
from joined
