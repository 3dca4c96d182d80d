-- One row a household that has bought: the numbers that churn models are trained on and scored with, as they were known at
-- event_timestamp = now(). A mean or share of nothing is null: models take that for what it is. What is known of the people
-- (age, income, marital status, home, household) is left out: a score must not treat people differently for it, and the data
-- does not say from when on it was known.
-- @stage      incremental key(customer_id)
-- @owner      data science
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        at_now:           event_timestamp = now()
select
    customer_id,                                                       -- Unified customer id
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as event_timestamp, -- The moment at which all values were known
    cast(days_since_purchase as double) as days_since_purchase,        -- Days since the last purchase day
    cast(cast(now() as date) - cast(first_purchase_at as date) as double) as tenure_days, -- Days since the first purchase
    usual_gap_days,                                                    -- Usual days between purchase days; 30 by default
    overdue_ratio,                                                     -- Days since the last purchase over the usual gap
    cast(purchases as double) as purchases,                            -- Purchases
    cast(purchases_30d as double) as purchases_30d,                    -- Purchases, last 30 days
    cast(purchases_prev_30d as double) as purchases_prev_30d,          -- Purchases, the 30 days before
    cast(purchases_90d as double) as purchases_90d,                    -- Purchases, last 90 days
    cast(purchases_prev_90d as double) as purchases_prev_90d,          -- Purchases, the 90 days before the last 90
    cast(stores as double) as stores,                                  -- Different stores
    cast(spend as double) as spend,                                    -- Spend, USD
    cast(spend_30d as double) as spend_30d,                            -- Spend, last 30 days, USD
    cast(spend_90d as double) as spend_90d,                            -- Spend, last 90 days, USD
    cast(spend_prev_90d as double) as spend_prev_90d,                  -- Spend, the 90 days before, USD
    average_basket_90d,                                                -- Spend a purchase, last 90 days, USD; null without purchases
    average_basket_prev_90d,                                           -- Spend a purchase, the 90 days before, USD
    cast(fuel_value as double) as fuel_value,                          -- Fuel bought, USD
    cast(products as double) as products,                              -- Different products
    cast(departments_90d as double) as departments_90d,                -- Different departments, last 90 days
    cast(categories_90d as double) as categories_90d,                  -- Different product categories, last 90 days
    cast(categories_prev_90d as double) as categories_prev_90d,        -- Different product categories, the 90 days before
    own_brand_share_90d,                                               -- The grocer's own brand as a share of goods, last 90 days
    discount_share_90d,                                                -- Discounts of the grocer as a share of shelf prices, last 90 days
    promoted_share_90d,                                                -- Share of lines on display or in the mailer, last 90 days
    cast(coupon_discount as double) as coupon_discount,                -- Paid by manufacturers' coupons, USD
    weekend_purchase_share_90d,                                        -- Share of purchases on Saturday and Sunday, last 90 days
    night_purchase_share_90d,                                          -- Share of purchases from 22 to 6 o'clock, last 90 days
    cast(campaigns as double) as campaigns,                            -- Campaigns the household was in
    cast(campaigns_90d as double) as campaigns_90d,                    -- Of these, running within the last 90 days
    cast(redemptions as double) as redemptions,                        -- Coupons of campaigns redeemed
    cast(redemptions_90d as double) as redemptions_90d                 -- Coupons of campaigns redeemed, last 90 days
from profile.customer_360
