-- One row a customer who has bought: how likely it is that they buy nothing in the 90 days after now(), from a scorecard of
-- purchases alone; the shop's data holds nothing else. It is built like the churn pack's: points add up, 20 points double
-- the odds, 100 points are even odds, and the rules that added most, three at most, are the reasons:
--   churn_probability = 1 / (1 + 2 ^ ((100 - points) / 20))
-- Everybody starts with 74 points (29 %). The points are those of a logistic regression on who came back within 90 days of
-- 2011-04-03, rounded; docs/real_data.md has how they did on the customers of 2011-07-03. Fewer purchases in 90 days and
-- a narrower assortment said nothing beyond these rules and have no points. Bands: high from 0.70, medium from 0.40, low below.
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
    where purchases > 0
),

-- Each rule says in one place when it holds, what it adds and how it is told. Rules that take points away have no words.
signals as (
    select
        customer_id,
        unnest(make_array(
            named_struct(
                'rule', 1,
                'points', cast(round(
                    case when has_personal_gap then 5 else 4 end * greatest(-1.0, least(7.0, overdue_ratio - 1))
                ) as bigint),
                'reason', 'no purchase for ' || cast(days_since_purchase as varchar) || ' days, usual gap '
                || cast(cast(round(usual_gap_days) as bigint) as varchar) || ' days'
            ),
            named_struct(
                'rule', 2,
                'points', case
                    when purchases = 1 then 34
                    when purchases >= 10 then -57
                    when purchases >= 5 then -40
                    else 0
                end,
                'reason', 'bought once only, ' || cast(days_since_purchase as varchar) || ' days ago'
            ),
            named_struct(
                'rule', 3,
                'points', case when cancelled_90d > 0 and cancelled_90d * 4 >= spend_90d + cancelled_90d then 14 else 0 end,
                'reason', 'cancelled ' || cast(cast(round(cancelled_90d) as bigint) as varchar) || ' GBP in 90 days, bought for '
                || cast(cast(round(spend_90d + cancelled_90d) as bigint) as varchar)
            ),
            named_struct(
                'rule', 4,
                'points', case when average_basket_90d <= 0.6 * average_basket_prev_90d then 8 else 0 end,
                'reason', 'basket down from ' || cast(cast(round(average_basket_prev_90d) as bigint) as varchar)
                || ' to ' || cast(cast(round(average_basket_90d) as bigint) as varchar) || ' GBP'
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
        74 + sum(points) as points,
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
    scores.customer_id as customer_id,                                 -- Unified customer id
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as as_of, -- The moment the score is for
    scores.churn_probability as churn_probability,                     -- Probability that the customer buys nothing in the next 90 days, 0 to 1
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
    'uci-purchases-1' as model_version,                                    -- The version of rules and points
    measures.lifecycle_stage as lifecycle_stage,                       -- new, growing, mature, silent, churned
    measures.spend_365d as spend_365d,                                 -- Net spend, last 365 days
    'GBP' as currency,                                                 -- ISO 4217 code of the spend
    measures.spend_365d >= 600 as is_valued                            -- Whether the net spend of the last 365 days reaches 600 GBP, the median
from scores
inner join measures on measures.customer_id = scores.customer_id
