-- One row a customer the shop has written an invoice for, up to now(). A purchase is an invoice of type sale. Cancellations
-- are no purchases: they reduce the net spend at the time they were written, so a window can be negative. Invoices without
-- a customer, adjustments and goods written off are left out. Windows end at now() and are counted back in days; days are
-- those of the UK. Customers of whom only cancellations are known (bought before the data begins) have no purchase and no
-- life-cycle stage. The stages follow the churn pack, with g = the usual gap between purchase days (median; 30 when there are fewer than
-- three purchase days); the first rule that holds decides:
--   churned  no purchase for more than max(90, 3 g) days
--   silent   no purchase for more than max(30, min(2 g, g + 30)) days
--   new      at most 3 purchases
--   mature   at least 10 purchases
--   growing  everybody else
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        not_in_future:    last_purchase_at <= now()
-- @expect     fail        known_stage:      lifecycle_stage in ('new', 'growing', 'mature', 'silent', 'churned')
-- @expect     fail        stage_if_bought:  (purchases > 0) = (lifecycle_stage is not null)
-- @expect     warn        windows_nest:     purchases_90d + purchases_prev_90d <= purchases
-- @expect     warn        spend_adds_up:    spend = sales_amount - cancelled_amount
with known as (
    select
        *,
        invoice_type = 'sale' as is_purchase,
        case when invoice_type = 'sale' then net_amount else 0 end as sold,
        case when invoice_type = 'cancellation' then -net_amount else 0 end as cancelled,
        invoiced_at > now() - interval '90 days' as is_90d,
        invoiced_at > now() - interval '180 days' and invoiced_at <= now() - interval '90 days' as is_prev_90d,
        invoiced_at > now() - interval '365 days' as is_365d
    from core.invoices
    where customer_id is not null
        and invoice_type <> 'adjustment'
        and invoiced_at <= now()
),

summary as (
    select
        customer_id,
        last_value(country order by invoiced_at, invoice_no) as country,
        min(invoiced_at) as first_seen_at,
        min(invoiced_at) filter (where is_purchase) as first_purchase_at,
        max(invoiced_at) filter (where is_purchase) as last_purchase_at,
        count(*) filter (where is_purchase) as purchases,
        count(*) filter (where is_purchase and invoiced_at > now() - interval '30 days') as purchases_30d,
        count(*) filter (where is_purchase and is_90d) as purchases_90d,
        count(*) filter (where is_purchase and is_prev_90d) as purchases_prev_90d,
        count(*) filter (where is_purchase and is_365d) as purchases_365d,
        sum(sold) as sales_amount,
        sum(cancelled) as cancelled_amount,
        sum(sold - cancelled) as spend,
        sum(case when is_90d then sold - cancelled else 0 end) as spend_90d,
        sum(case when is_prev_90d then sold - cancelled else 0 end) as spend_prev_90d,
        sum(case when is_365d then sold - cancelled else 0 end) as spend_365d,
        sum(case when is_90d then sold else 0 end) as sales_90d,
        sum(case when is_prev_90d then sold else 0 end) as sales_prev_90d,
        sum(case when is_365d then sold else 0 end) as sales_365d,
        sum(case when is_90d then cancelled else 0 end) as cancelled_90d,
        max(sold) as largest_purchase,
        count(*) filter (where invoice_type = 'cancellation') as cancellations,
        count(*) filter (where invoice_type = 'cancellation' and is_90d) as cancellations_90d,
        sum(case when is_purchase and is_365d then delivery_amount else 0 end) as delivery_365d
    from known
    group by customer_id
),

purchase_days as (
    select distinct
        customer_id,
        invoice_date
    from known
    where is_purchase
),

gaps as (
    select
        customer_id,
        invoice_date,
        invoice_date - lag(invoice_date) over (
            partition by customer_id
            order by invoice_date
        ) as gap_days
    from purchase_days
),

rhythm as (
    select
        customer_id,
        count(*) as purchase_days,
        max(invoice_date) as last_purchase_date,
        case when count(*) >= 3 then median(cast(gap_days as double)) else 30.0 end as usual_gap_days
    from gaps
    group by customer_id
),

assortment as (
    select
        customer_id,
        count(distinct stock_code) as products,
        count(distinct case when invoiced_at > now() - interval '90 days' then stock_code end) as products_90d,
        count(distinct case
            when invoiced_at > now() - interval '180 days' and invoiced_at <= now() - interval '90 days' then stock_code
        end) as products_prev_90d
    from core.invoice_lines
    where customer_id is not null
        and line_type = 'goods'
        and not is_cancellation
        and invoiced_at <= now()
    group by customer_id
),

profiles as (
    select
        summary.*,
        coalesce(rhythm.purchase_days, 0) as purchase_days,
        rhythm.usual_gap_days,
        cast(now() at time zone 'UTC' at time zone 'Europe/London' as date) - rhythm.last_purchase_date as days_since_purchase,
        coalesce(assortment.products, 0) as products,
        coalesce(assortment.products_90d, 0) as products_90d,
        coalesce(assortment.products_prev_90d, 0) as products_prev_90d
    from summary
    left join rhythm on rhythm.customer_id = summary.customer_id
    left join assortment on assortment.customer_id = summary.customer_id
)

select
    customer_id,                                                       -- Unified customer id
    country,                                                           -- Country on the last invoice
    first_seen_at,                                                     -- First invoice of any type
    first_purchase_at,                                                 -- First purchase; null without one
    last_purchase_at,                                                  -- Last purchase; null without one
    case
        when purchases = 0 then null
        when days_since_purchase > greatest(90.0, 3 * usual_gap_days) then 'churned'
        when days_since_purchase > greatest(30.0, least(2 * usual_gap_days, usual_gap_days + 30)) then 'silent'
        when purchases <= 3 then 'new'
        when purchases >= 10 then 'mature'
        else 'growing'
    end as lifecycle_stage,                                            -- new, growing, mature, silent, churned; null without a purchase
    days_since_purchase,                                               -- Days since the last purchase day
    purchase_days,                                                     -- Days with a purchase
    purchase_days >= 3 as has_personal_gap,                            -- Whether the usual gap is the customer's own, not the default
    usual_gap_days,                                                    -- Usual days between purchase days; 30 by default, null without a purchase
    days_since_purchase / usual_gap_days as overdue_ratio,             -- Days since the last purchase over the usual gap; 1 is on time
    purchases,                                                         -- Purchases
    purchases_30d,                                                     -- Purchases, last 30 days
    purchases_90d,                                                     -- Purchases, last 90 days
    purchases_prev_90d,                                                -- Purchases, the 90 days before the last 90
    purchases_365d,                                                    -- Purchases, last 365 days
    'GBP' as currency,                                                 -- ISO 4217 code of all amounts in the row
    cast(sales_amount as decimal(18, 3)) as sales_amount,              -- Sales before cancellations
    cast(cancelled_amount as decimal(18, 3)) as cancelled_amount,      -- Given back by cancellations, positive
    cast(spend as decimal(18, 3)) as spend,                            -- Net spend: sales less cancellations
    cast(spend_90d as decimal(18, 3)) as spend_90d,                    -- Net spend, last 90 days
    cast(spend_prev_90d as decimal(18, 3)) as spend_prev_90d,          -- Net spend, the 90 days before
    cast(spend_365d as decimal(18, 3)) as spend_365d,                  -- Net spend, last 365 days
    cast(largest_purchase as decimal(18, 3)) as largest_purchase,      -- Largest single purchase
    cast(sales_90d as double) / nullif(purchases_90d, 0) as average_basket_90d, -- Sales a purchase, last 90 days; null without purchases
    cast(sales_prev_90d as double) / nullif(purchases_prev_90d, 0) as average_basket_prev_90d, -- Sales a purchase, the 90 days before
    cast(sales_365d as double) / nullif(purchases_365d, 0) as average_basket_365d, -- Sales a purchase, last 365 days
    cast(delivery_365d as decimal(18, 3)) as delivery_365d,            -- Paid for delivery, last 365 days
    cancellations,                                                     -- Invoices that gave money back
    cancellations_90d,                                                 -- Invoices that gave money back, last 90 days
    cast(cancelled_90d as decimal(18, 3)) as cancelled_90d,            -- Given back, last 90 days
    products,                                                          -- Different products bought
    products_90d,                                                      -- Different products bought, last 90 days
    products_prev_90d                                                  -- Different products bought, the 90 days before
from profiles
