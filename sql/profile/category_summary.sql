-- One row a customer who bought in the last 365 days: what they buy, from the lines of orders that were not cancelled and
-- of till receipts. Shares are of the amount paid in lines with a known category. Sums are of decimals: those of floats depend
-- on the order of rows.
-- @stage      incremental key(customer_id)
-- @owner      commerce data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        share_in_range:   top_category_share_365d is null or top_category_share_365d between 0 and 1.000001
-- @expect     warn        drift_in_range:   category_drift_90d is null or category_drift_90d between 0 and 1.000001
with lines as (
    select
        core.order_lines.customer_id,
        core.order_lines.category,
        core.order_lines.ordered_at as bought_at,
        core.order_lines.line_amount as amount
    from core.order_lines
    inner join core.orders
        on core.orders.customer_id = core.order_lines.customer_id
        and core.orders.order_id = core.order_lines.order_id
    where core.orders.status <> 'cancelled'
        and core.order_lines.category is not null
        and core.order_lines.ordered_at <= now()
        and core.order_lines.ordered_at > now() - interval '365 days'
    union all
    select
        customer_id,
        category,
        sold_at as bought_at,
        line_amount as amount
    from core.receipts
    where customer_id is not null
        and category is not null
        and quantity > 0
        and sold_at <= now()
        and sold_at > now() - interval '365 days'
),

categories as (
    select
        customer_id,
        category,
        sum(amount) as amount_365d,
        sum(case when bought_at > now() - interval '90 days' then amount else 0 end) as amount_90d,
        sum(case when bought_at <= now() - interval '90 days' then amount else 0 end) as amount_before,
        max(bought_at) as last_bought_at
    from lines
    group by
        customer_id,
        category
),

shares as (
    select
        customer_id,
        category,
        last_bought_at,
        amount_90d > 0 as is_bought_90d,
        amount_before > 0 as is_bought_before,
        cast(amount_365d as double) / cast(nullif(sum(amount_365d) over (partition by customer_id), 0) as double) as share_365d,
        cast(amount_90d as double) / cast(nullif(sum(amount_90d) over (partition by customer_id), 0) as double) as share_90d,
        cast(amount_before as double) / cast(nullif(sum(amount_before) over (partition by customer_id), 0) as double) as share_before,
        row_number() over (
            partition by customer_id
            order by amount_365d desc, category
        ) as rank_365d
    from categories
)

select
    customer_id,                                                             -- Unified customer id
    max(category) filter (where rank_365d = 1) as top_category_365d,         -- Category with the highest amount, last 365 days
    max(share_365d) filter (where rank_365d = 1) as top_category_share_365d, -- Its share of the amount, 0 to 1
    count(*) as categories_365d,                                             -- Categories bought, last 365 days
    count(*) filter (where is_bought_90d) as categories_90d,                 -- Categories bought, last 90 days
    count(*) filter (where is_bought_before and not is_bought_90d) as categories_lost_90d, -- Categories bought before but not in the last 90 days
    cast(sum(cast(abs(share_90d - share_before) as decimal(15, 12))) as double) / 2 as category_drift_90d             -- How far the mix of the last 90 days is from the mix before, 0 same, 1 nothing in common; null without both
from shares
group by customer_id
