-- One row a customer whose reviews or posts of the last 365 days a sentiment model has read: how content they are, by the
-- months (China time, UTC+8) in which they wrote; the month that has begun counts. Contentment is the mean score of a month,
-- moved from -1…1 to 0…1. A month falls when it is 5 % or more below the one before it in which the customer wrote: months
-- without a word say nothing. Two falls running ask for somebody to act.
-- @stage      incremental key(customer_id)
-- @owner      customer voice
-- @expect     fail        has_customer:          customer_id is not null
-- @expect     fail        unique_customer:       count(*) = count(distinct customer_id)
-- @expect     warn        contentment_in_range:  contentment between 0 and 1
with written as (
    select
        customer_id,
        cast(date_trunc('month', written_at + interval '8 hours') as date) as month,
        -- Sums of floats depend on the order of rows.
        cast(score as decimal(9, 6)) as score
    from profile.text_sentiment
    where score is not null
        and written_at <= now()
        and written_at > now() - interval '365 days'
),

months as (
    select
        customer_id,
        month,
        count(*) as texts,
        (1.0 + cast(sum(score) as double) / count(*)) / 2.0 as contentment
    from written
    group by
        customer_id,
        month
),

trend as (
    select
        customer_id,
        month,
        contentment,
        lag(contentment, 1) over (partition by customer_id order by month) as contentment_before,
        lag(contentment, 2) over (partition by customer_id order by month) as contentment_two_before,
        count(*) over (partition by customer_id) as months,
        sum(texts) over (partition by customer_id) as texts,
        row_number() over (partition by customer_id order by month desc) as place
    from months
)

select
    customer_id,                           -- Unified customer id
    texts as texts_365d,                   -- Reviews and posts that were read, last 365 days
    months as months_365d,                 -- Months in which the customer wrote, last 365 days
    month as last_month,                   -- First day of the last of them, China time
    contentment,                           -- Contentment of that month, 0 to 1; 0.5 is neither
    contentment_before,                    -- Of the month before it with a text; null with one month
    contentment_two_before,                -- Of the one before that; null with two
    coalesce(contentment <= 0.95 * contentment_before, false) as is_falling, -- Whether the last month is 5 % or more below the one before
    coalesce(
        contentment <= 0.95 * contentment_before
        and contentment_before <= 0.95 * contentment_two_before,
        false
    ) as is_falling_two_months             -- The same two months running: somebody should act
from trend
where place = 1
