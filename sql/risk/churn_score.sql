-- One row a customer who has bought: how likely it is that they have left or are leaving, from a scorecard, with the three
-- strongest reasons. Points add up; 20 points double the odds; 100 points are even odds:
--   churn_probability = 1 / (1 + 2 ^ ((100 - points) / 20))
-- Everybody starts with 22 points (6 %). The main rule follows from how people buy: when purchases come at random with a
-- median gap g, staying away for r gaps happens with probability 2 ^ -r, so each gap of silence doubles the odds that the
-- customer is gone, which would be 20 points. Purchases come in clumps, so a gap counts for 15, and for 12 where the gap is
-- the default and not the customer's own: from one gap early (taken off) to seven gaps late. The other rules are
-- touchpoints and indicators of the churn domain, with points in the order of the risk reported for them. Bands: high from
-- 0.70, medium from 0.40, low below.
-- docs/churn_pack.md lists every rule with its source; a change of points is a new model_version.
-- @stage      incremental key(customer_id)
-- @feature    online
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        is_probability:   churn_probability > 0 and churn_probability < 1
-- @expect     fail        known_band:       risk_band in ('high', 'medium', 'low')
-- @expect     fail        high_has_reason:  risk_band <> 'high' or reason_1 is not null
-- @expect     warn        plausible_share:  count(*) < 100 or count(*) filter (where risk_band = 'high') between count(*) / 50 and count(*) * 2 / 3
with measures as (
    select
        profile.lifecycle.customer_id,
        profile.lifecycle.lifecycle_stage,
        profile.lifecycle.days_since_purchase,
        profile.lifecycle.usual_gap_days,
        profile.lifecycle.has_personal_gap,
        profile.lifecycle.overdue_ratio,
        profile.purchase_summary.purchases,
        profile.purchase_summary.purchases_90d,
        profile.purchase_summary.purchases_prev_90d,
        profile.purchase_summary.spend,
        profile.purchase_summary.spend_365d,
        profile.purchase_summary.average_basket_90d,
        profile.purchase_summary.average_basket_prev_90d,
        cast(now() as date) - cast(profile.behaviour_summary.last_session_at as date) as days_since_session,
        coalesce(profile.behaviour_summary.sessions_30d, 0) as sessions_30d,
        coalesce(profile.behaviour_summary.sessions_prev_30d, 0) as sessions_prev_30d,
        coalesce(profile.behaviour_summary.sessions_90d, 0) as sessions_90d,
        coalesce(profile.behaviour_summary.sessions_prev_90d, 0) as sessions_prev_90d,
        profile.behaviour_summary.pages_per_session_30d,
        profile.behaviour_summary.pages_per_session_prev_30d,
        coalesce(profile.behaviour_summary.cart_removals_30d, 0) as cart_removals_30d,
        coalesce(profile.behaviour_summary.cart_removals_prev_30d, 0) as cart_removals_prev_30d,
        coalesce(profile.service_summary.open_complaints, 0) as open_complaints,
        cast(now() as date) - cast(profile.service_summary.oldest_open_complaint_at as date) as complaint_open_days,
        coalesce(profile.service_summary.complaints_90d, 0) as complaints_90d,
        profile.service_summary.lowest_csat_90d,
        coalesce(profile.payment_summary.refunds_late_90d, 0) as refunds_late_90d,
        coalesce(profile.fulfilment_summary.parcels_late_90d, 0) as parcels_late_90d,
        coalesce(profile.fulfilment_summary.parcels_90d, 0) as parcels_90d,
        coalesce(profile.voice_summary.low_reviews_90d, 0) as low_reviews_90d,
        profile.voice_summary.lowest_stars_90d,
        profile.voice_summary.has_reviewed_first_order,
        coalesce(profile.campaign_summary.campaign_messages_90d, 0) as messages_90d,
        coalesce(profile.campaign_summary.campaign_participations_90d, 0) as participations_90d,
        coalesce(profile.campaign_summary.campaign_opens_90d, 0) as opens_90d,
        cast(now() as date) - cast(profile.campaign_summary.last_unsubscribed_at as date) as days_since_unsubscribed,
        coalesce(profile.price_summary.coupons_claimed_30d, 0) as coupons_claimed_30d,
        coalesce(profile.loyalty_summary.tier_downs_180d, 0) as tier_downs_180d
    from profile.lifecycle
    inner join profile.purchase_summary on profile.purchase_summary.customer_id = profile.lifecycle.customer_id
    left join profile.behaviour_summary on profile.behaviour_summary.customer_id = profile.lifecycle.customer_id
    left join profile.service_summary on profile.service_summary.customer_id = profile.lifecycle.customer_id
    left join profile.payment_summary on profile.payment_summary.customer_id = profile.lifecycle.customer_id
    left join profile.fulfilment_summary on profile.fulfilment_summary.customer_id = profile.lifecycle.customer_id
    left join profile.voice_summary on profile.voice_summary.customer_id = profile.lifecycle.customer_id
    left join profile.campaign_summary on profile.campaign_summary.customer_id = profile.lifecycle.customer_id
    left join profile.price_summary on profile.price_summary.customer_id = profile.lifecycle.customer_id
    left join profile.loyalty_summary on profile.loyalty_summary.customer_id = profile.lifecycle.customer_id
),

-- Each rule says in one place when it holds, what it adds and how it is told. Rules that take points away have no words.
signals as (
    select
        customer_id,
        unnest(make_array(
            named_struct(
                'rule', 1,
                'points', cast(round(
                    case when has_personal_gap then 15 else 12 end * greatest(-1.0, least(7.0, overdue_ratio - 1))
                ) as bigint),
                'reason', 'no purchase for ' || cast(days_since_purchase as varchar) || ' days, usual gap '
                || cast(cast(round(usual_gap_days) as bigint) as varchar) || ' days'
            ),
            named_struct(
                'rule', 2,
                'points', case
                    when sessions_90d = 0 and days_since_session is not null then 25
                    when sessions_30d = 0 and sessions_prev_30d > 0 then 20
                    when sessions_30d = 0 and sessions_90d > 0 then 10
                    when sessions_30d * 2 <= sessions_prev_30d and sessions_prev_30d >= 4 then 10
                    when sessions_30d >= sessions_prev_30d and sessions_30d >= 2 then -10
                    else 0
                end,
                'reason', case
                    when sessions_30d > 0 or sessions_prev_30d > 0
                        then 'visits in 30 days down from ' || cast(sessions_prev_30d as varchar)
                            || ' to ' || cast(sessions_30d as varchar)
                    else 'no visit online for ' || cast(days_since_session as varchar) || ' days'
                end
            ),
            named_struct(
                'rule', 3,
                'points', case when pages_per_session_30d * 2 <= pages_per_session_prev_30d then 6 else 0 end,
                'reason', 'pages a visit down from ' || cast(round(pages_per_session_prev_30d, 1) as varchar)
                || ' to ' || cast(round(pages_per_session_30d, 1) as varchar)
            ),
            named_struct(
                'rule', 4,
                'points', case when cart_removals_30d >= 3 and cart_removals_30d >= 2 * cart_removals_prev_30d then 6 else 0 end,
                'reason', 'took ' || cast(cart_removals_30d as varchar) || ' products out of the cart in 30 days, '
                || cast(cart_removals_prev_30d as varchar) || ' in the 30 before'
            ),
            named_struct(
                'rule', 5,
                'points', case
                    when open_complaints > 0 and complaint_open_days >= 30 then 35
                    when open_complaints > 0 then 20
                    else 0
                end,
                'reason', 'complaint open for ' || cast(complaint_open_days as varchar) || ' days'
            ),
            named_struct(
                'rule', 6,
                'points', case when open_complaints = 0 and complaints_90d > 0 then 8 else 0 end,
                'reason', 'complaints in 90 days: ' || cast(complaints_90d as varchar)
            ),
            named_struct(
                'rule', 7,
                'points', case when lowest_csat_90d <= 2 then 10 else 0 end,
                'reason', 'rated our service ' || cast(lowest_csat_90d as varchar) || ' of 5'
            ),
            named_struct(
                'rule', 8,
                'points', case when refunds_late_90d > 0 then 12 else 0 end,
                'reason', 'refunds later than promised in 90 days: ' || cast(refunds_late_90d as varchar)
            ),
            named_struct(
                'rule', 9,
                'points', case when parcels_late_90d > 0 then 6 else 0 end,
                'reason', cast(parcels_late_90d as varchar) || ' of ' || cast(parcels_90d as varchar)
                || ' parcels later than promised in 90 days'
            ),
            named_struct(
                'rule', 10,
                'points', case when low_reviews_90d > 0 then 12 else 0 end,
                'reason', 'reviewed with ' || cast(lowest_stars_90d as varchar) || ' of 5 stars'
            ),
            named_struct(
                'rule', 11,
                'points', case
                    when participations_90d > 0 then -8
                    when messages_90d >= 3 and opens_90d = 0 then 12
                    when messages_90d >= 3 then 5
                    else 0
                end,
                'reason', case
                    when opens_90d = 0
                        then 'opened none of ' || cast(messages_90d as varchar) || ' campaign messages in 90 days'
                    else 'took part in no campaign in 90 days, ' || cast(messages_90d as varchar) || ' messages sent'
                end
            ),
            named_struct(
                'rule', 12,
                'points', case when days_since_unsubscribed <= 90 then 15 else 0 end,
                'reason', 'unsubscribed ' || cast(days_since_unsubscribed as varchar) || ' days ago'
            ),
            named_struct(
                'rule', 13,
                'points', case
                    when purchases = 1 and days_since_purchase > 7 and not coalesce(has_reviewed_first_order, true) then 14
                    when purchases = 1 and days_since_purchase > 7 then 10
                    when purchases >= 10 then -10
                    else 0
                end,
                'reason', case
                    when not coalesce(has_reviewed_first_order, true)
                        then 'no second purchase ' || cast(days_since_purchase as varchar)
                            || ' days after the first, which was not reviewed'
                    else 'no second purchase ' || cast(days_since_purchase as varchar) || ' days after the first'
                end
            ),
            named_struct(
                'rule', 14,
                'points', case when purchases_prev_90d >= 2 and purchases_90d * 2 <= purchases_prev_90d then 10 else 0 end,
                'reason', 'purchases in 90 days down from ' || cast(purchases_prev_90d as varchar)
                || ' to ' || cast(purchases_90d as varchar)
            ),
            named_struct(
                'rule', 15,
                'points', case when average_basket_90d <= 0.6 * average_basket_prev_90d then 6 else 0 end,
                'reason', 'basket down from ' || cast(cast(round(average_basket_prev_90d) as bigint) as varchar)
                || ' to ' || cast(cast(round(average_basket_90d) as bigint) as varchar) || ' CNY'
            ),
            named_struct(
                'rule', 16,
                'points', case when coupons_claimed_30d > 3 then 6 else 0 end,
                'reason', 'claimed ' || cast(coupons_claimed_30d as varchar) || ' coupons in 30 days'
            ),
            named_struct(
                'rule', 17,
                'points', case when tier_downs_180d > 0 then 8 else 0 end,
                'reason', 'lost a loyalty tier in the last 180 days'
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
        22 + sum(points) as points,
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
    scores.churn_probability as churn_probability,                     -- Probability that the customer has left or is leaving, 0 to 1
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
    'scorecard-1' as model_version,                                    -- The version of rules and points
    measures.lifecycle_stage as lifecycle_stage,                       -- new, growing, mature, silent, churned
    measures.spend_365d as spend_365d,                                 -- Net spend, last 365 days
    'CNY' as currency,                                                 -- ISO 4217 code of the spend
    measures.spend_365d >= 2000 as is_valued                           -- Whether the net spend of the last 365 days reaches 2000 CNY
from scores
inner join measures on measures.customer_id = scores.customer_id
