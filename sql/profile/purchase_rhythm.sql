-- One row a customer who has bought: how regularly. Purchases of one day (China time, UTC+8) are one visit to the shop, since a
-- basket is often split into several orders. The usual gap is the median number of days between purchase days: unlike the
-- mean it survives one long holiday. Fewer than three purchase days say nothing about a person's rhythm; then the default
-- of 30 days stands in and has_personal_gap is false.
-- @stage      incremental key(customer_id)
-- @owner      commerce data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        positive_gap:     usual_gap_days > 0
-- @expect     warn        sane_variation:   gap_variation is null or gap_variation < 10
with purchase_days as (
    select distinct
        customer_id,
        cast(purchased_at + interval '8 hours' as date) as purchase_date
    from core.purchases
    where customer_id is not null
        and not is_return
        and purchased_at <= now()
),

gaps as (
    select
        customer_id,
        purchase_date,
        purchase_date - lag(purchase_date) over (
            partition by customer_id
            order by purchase_date
        ) as gap_days
    from purchase_days
),

rhythm as (
    select
        customer_id,
        count(*) as purchase_days,
        max(purchase_date) as last_purchase_date,
        median(cast(gap_days as double)) as median_gap_days,
        avg(cast(gap_days as double)) as mean_gap_days,
        -- Of sums of whole numbers, which are the same in any order of rows.
        case
            when count(gap_days) > 1 then sqrt(
                greatest(
                    cast(sum(gap_days * gap_days) as double)
                    - cast(sum(gap_days) as double) * cast(sum(gap_days) as double) / count(gap_days),
                    0.0
                )
                / (count(gap_days) - 1)
            )
        end as gap_deviation_days,
        max(gap_days) as longest_gap_days
    from gaps
    group by customer_id
)

select
    customer_id,                            -- Unified customer id
    purchase_days,                          -- Days with a purchase, lifetime
    last_purchase_date,                     -- Last day with a purchase, China time
    purchase_days >= 3 as has_personal_gap, -- Whether the gap is the customer's own, not the default
    case when purchase_days >= 3 then median_gap_days else 30.0 end as usual_gap_days, -- Usual days between purchase days; 30 by default
    mean_gap_days,                          -- Mean days between purchase days; null with one purchase day
    longest_gap_days,                       -- Longest days between purchase days; null with one purchase day
    case when purchase_days >= 4 then gap_deviation_days / mean_gap_days end as gap_variation -- Standard deviation of the gaps over their mean; null with fewer than three gaps
from rhythm
