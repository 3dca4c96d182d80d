-- One row a customer in the loyalty scheme: points, tier and use, from the ledger up to now(). The balance is what the
-- entries add up to: it is lower than the real one where the ledger begins after the customer did, and can be negative.
-- @stage      incremental key(customer_id)
-- @owner      loyalty
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        sane_balance:     abs(points_balance) < 10000000
with known as (
    select *
    from core.loyalty_ledger
    where customer_id is not null
        and occurred_at <= now()
),

latest as (
    select
        customer_id,
        tier
    from known
    where tier is not null
    qualify row_number() over (
        partition by customer_id
        order by occurred_at desc, entry_id desc
    ) = 1
),

summary as (
    select
        customer_id,
        min(occurred_at) as joined_loyalty_at,
        max(occurred_at) as last_loyalty_entry_at,
        sum(points) as points_balance,
        sum(case when entry_type = 'earn' and occurred_at > now() - interval '90 days' then points else 0 end) as points_earned_90d,
        sum(case when entry_type = 'earn' and occurred_at > now() - interval '180 days' and occurred_at <= now() - interval '90 days' then points else 0 end) as points_earned_prev_90d,
        sum(case when entry_type = 'earn' and occurred_at > now() - interval '365 days' then points else 0 end) as points_earned_365d,
        -sum(case when entry_type = 'burn' and occurred_at > now() - interval '365 days' then points else 0 end) as points_burnt_365d,
        -sum(case when entry_type = 'expire' and occurred_at > now() - interval '365 days' then points else 0 end) as points_expired_365d,
        max(occurred_at) filter (where entry_type = 'burn') as last_burnt_at,
        max(occurred_at) filter (where entry_type = 'tier_up') as last_tier_up_at,
        max(occurred_at) filter (where entry_type = 'tier_down') as last_tier_down_at,
        count(*) filter (where entry_type = 'tier_down' and occurred_at > now() - interval '180 days') as tier_downs_180d
    from known
    group by customer_id
)

select
    summary.customer_id as customer_id,                       -- Unified customer id
    latest.tier as loyalty_tier,                              -- Tier after the last entry that states one
    summary.joined_loyalty_at as joined_loyalty_at,           -- First entry
    summary.last_loyalty_entry_at as last_loyalty_entry_at,   -- Last entry
    summary.points_balance as points_balance,                 -- Points left: all entries added up
    summary.points_earned_90d as points_earned_90d,           -- Points earned, last 90 days
    summary.points_earned_prev_90d as points_earned_prev_90d, -- Points earned, the 90 days before the last 90
    summary.points_earned_365d as points_earned_365d,         -- Points earned, last 365 days
    summary.points_burnt_365d as points_burnt_365d,           -- Points used, last 365 days, as a positive number
    summary.points_expired_365d as points_expired_365d,       -- Points lapsed, last 365 days, as a positive number
    summary.last_burnt_at as last_points_burnt_at,            -- Last use of points
    summary.last_tier_up_at as last_tier_up_at,               -- Last rise in tier
    summary.last_tier_down_at as last_tier_down_at,           -- Last fall in tier
    summary.tier_downs_180d as tier_downs_180d                -- Falls in tier, last 180 days
from summary
left join latest on latest.customer_id = summary.customer_id
