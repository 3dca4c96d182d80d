-- One row a customer who has bought: the numbers that churn models are trained on and scored with, as they were known at
-- event_timestamp = now(). A mean of nothing is null: models take that for what it is. The country is left out: nine in ten
-- customers are in one.
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
    cast(purchase_days as double) as purchase_days,                    -- Days with a purchase
    case when has_personal_gap then 1.0 else 0.0 end as has_personal_gap, -- 1 when the usual gap is the customer's own
    usual_gap_days,                                                    -- Usual days between purchase days; 30 by default
    overdue_ratio,                                                     -- Days since the last purchase over the usual gap
    cast(purchases as double) as purchases,                            -- Purchases
    cast(purchases_30d as double) as purchases_30d,                    -- Purchases, last 30 days
    cast(purchases_90d as double) as purchases_90d,                    -- Purchases, last 90 days
    cast(purchases_prev_90d as double) as purchases_prev_90d,          -- Purchases, the 90 days before the last 90
    cast(spend as double) as spend,                                    -- Net spend, GBP
    cast(spend_90d as double) as spend_90d,                            -- Net spend, last 90 days, GBP
    cast(spend_prev_90d as double) as spend_prev_90d,                  -- Net spend, the 90 days before, GBP
    cast(largest_purchase as double) as largest_purchase,              -- Largest single purchase, GBP
    average_basket_90d,                                                -- Sales a purchase, last 90 days, GBP; null without purchases
    average_basket_365d,                                               -- Sales a purchase, last 365 days, GBP; null without purchases
    cast(delivery_365d as double) as delivery_365d,                    -- Paid for delivery, last 365 days, GBP
    cast(cancellations as double) as cancellations,                    -- Invoices that gave money back
    cast(cancelled_90d as double) as cancelled_90d,                    -- Given back, last 90 days, GBP
    cast(products as double) as products,                              -- Different products bought
    cast(products_90d as double) as products_90d,                      -- Different products bought, last 90 days
    cast(products_prev_90d as double) as products_prev_90d             -- Different products bought, the 90 days before
from profile.customer_360
where purchases > 0
