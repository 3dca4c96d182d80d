-- One row a household that has bought: how likely it is that it buys nothing in the 56 days after now(), from a scorecard of
-- purchases and campaigns. It is built like the churn pack's: points add up, 20 points double the odds, 100 points are
-- even odds, and the rules that added most, three at most, are the reasons:
--   churn_probability = 1 / (1 + 2 ^ ((100 - points) / 20))
-- Everybody starts with 53 points (16 %). The points are those of a logistic regression on who came back within 56 days of
-- 2017-07-31, rounded; docs/real_data.md has how they did on the households of 2017-11-06. Being in a campaign takes points
-- away, but the grocer chose its better customers for campaigns: it is a sign, not an effect.
-- Bands: high from 0.70, medium from 0.40, low below.
-- @stage      incremental key(customer_id)
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        is_probability:   churn_probability > 0 and churn_probability < 1
-- @expect     fail        known_band:       risk_band in ('high', 'medium', 'low')
-- @expect     fail        high_has_reason:  risk_band <> 'high' or reason_1 is not null
with measures as (
    select *
    from profile.customer_360
),

-- Each rule says in one place when it holds, what it adds and how it is told. Rules that take points away have no words.
signals as (
    select
        customer_id,
        unnest(make_array(
            named_struct(
                'rule', 1,
                'points', case
                    when has_personal_gap then cast(round(4 * greatest(-1.0, least(7.0, overdue_ratio - 1))) as bigint)
                    else 0
                end,
                'reason', 'no purchase for ' || cast(days_since_purchase as varchar) || ' days, usual gap '
                || cast(cast(round(usual_gap_days) as bigint) as varchar) || ' days'
            ),
            named_struct(
                'rule', 2,
                'points', case
                    when days_since_purchase > 56 then 38
                    when days_since_purchase > 28 then 26
                    when days_since_purchase > 14 then 18
                    else 0
                end,
                'reason', case
                    when days_since_purchase > 56 then 'no purchase for more than eight weeks'
                    when days_since_purchase > 28 then 'no purchase for more than four weeks'
                    else 'no purchase for more than two weeks'
                end
            ),
            named_struct(
                'rule', 3,
                'points', case when purchases_90d <= 3 then 15 else 0 end,
                'reason', 'purchases in 90 days: ' || cast(purchases_90d as varchar)
            ),
            named_struct(
                'rule', 4,
                'points', case
                    when purchases = 1 then 5
                    when purchases >= 10 then -56
                    when purchases >= 5 then -24
                    else 0
                end,
                'reason', 'bought once only'
            ),
            named_struct(
                'rule', 5,
                'points', case
                    when redemptions_90d > 0 then -30
                    when campaigns_90d > 0 then -15
                    else 0
                end,
                'reason', ''
            )
        )) as signal
    from measures
),

ranked as (
    select
        customer_id,
        signal['points'] as points,
        case when signal['points'] > 0 then signal['reason'] end as reason,
        case when signal['points'] > 0 then signal['points'] end as reason_points,
        row_number() over (
            partition by customer_id
            order by signal['points'] desc, signal['rule']
        ) as strength
    from signals
),

totals as (
    select
        customer_id,
        53 + sum(points) as points,
        max(reason) filter (where strength = 1) as reason_1,
        max(reason_points) filter (where strength = 1) as reason_1_points,
        max(reason) filter (where strength = 2) as reason_2,
        max(reason_points) filter (where strength = 2) as reason_2_points,
        max(reason) filter (where strength = 3) as reason_3,
        max(reason_points) filter (where strength = 3) as reason_3_points
    from ranked
    group by customer_id
),

scores as (
    select
        *,
        1.0 / (1.0 + power(2.0, (100 - points) / 20.0)) as churn_probability
    from totals
)

select
    scores.customer_id as customer_id,                                 -- Unified customer id of the household
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as as_of, -- The moment the score is for
    scores.churn_probability as churn_probability,                     -- Probability that the customer buys nothing in the next 56 days, 0 to 1
    case
        when scores.churn_probability >= 0.7 then 'high'
        when scores.churn_probability >= 0.4 then 'medium'
        else 'low'
    end as risk_band,                                                  -- high from 0.70, medium from 0.40, low below
    scores.points as points,                                           -- Points of the scorecard; 100 are even odds
    scores.reason_1 as reason_1,                                       -- Strongest reason, with the customer's own figures; null without any
    scores.reason_1_points as reason_1_points,                         -- What it added to the points
    scores.reason_2 as reason_2,                                       -- Second reason
    scores.reason_2_points as reason_2_points,                         -- What it added to the points
    scores.reason_3 as reason_3,                                       -- Third reason
    scores.reason_3_points as reason_3_points,                         -- What it added to the points
    'grocer-purchases-1' as model_version,                                    -- The version of rules and points
    measures.lifecycle_stage as lifecycle_stage,                       -- new, growing, mature, silent, churned
    measures.spend_365d as spend_365d,                                 -- Spend, last 365 days
    'USD' as currency,                                                 -- ISO 4217 code of the spend
    measures.spend_365d >= 1000 as is_valued                           -- Whether the spend of the last 365 days reaches 1000 USD
from scores
inner join measures on measures.customer_id = scores.customer_id
