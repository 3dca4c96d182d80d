-- One row a customer who has bought: the extended RFM score of now(), 0 to 100, with behaviour as its fourth part:
--   rfm_b_score = 0.35 R + 0.30 F + 0.20 M + 0.15 B
-- R, F and M read fixed bands, so that a score means the same next month and equal customers have equal scores; ranks
-- within the shop would move when others do. A band's points hold from its bound on:
--   R  days since the last purchase   <= 7: 100   <= 15: 85   <= 30: 70   <= 60: 45   <= 90: 25   <= 180: 10   else 0
--   F  purchases in 365 days          >= 12: 100  >= 8: 85    >= 5: 70    >= 3: 45    2: 25       1: 10        0: 0
--   M  net spend in 365 days, CNY     >= 10000: 100  >= 5000: 85  >= 2000: 70  >= 1000: 45  >= 500: 25  > 0: 10  else 0
-- An axis is high from 70 points: within 30 days, 5 purchases, 2000 CNY, which are the defaults of the high-value rule.
-- B adds up what shows interest, in four parts:
--   browsing  up to 40: minutes on pages in 30 days, 20 and more give all
--   cart      up to 20: share of visits in 30 days that filled the cart, one half and more give all
--   campaign  up to 30: 15 for each participation in 90 days, at most two; without one, 5 when a message was opened
--   service   up to 10: 10 for contacts in 90 days that are all solved without a complaint, 5 without contacts, 0 otherwise
-- @stage      incremental key(customer_id)
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        scores_in_range:  r_score between 0 and 100 and f_score between 0 and 100 and m_score between 0 and 100 and b_score between 0 and 100 and rfm_b_score between 0 and 100
-- @expect     fail        known_group:      rfm_group is not null
-- @expect     warn        few_high_risk:    count(*) = 0 or count(*) filter (where is_high_value_high_risk) * 2 <= count(*)
with measures as (
    select
        profile.lifecycle.customer_id,
        profile.lifecycle.days_since_purchase,
        profile.purchase_summary.purchases_365d,
        profile.purchase_summary.spend_365d,
        coalesce(profile.behaviour_summary.dwell_minutes_30d, 0) as dwell_minutes_30d,
        coalesce(profile.behaviour_summary.cart_rate_30d, 0) as cart_rate_30d,
        coalesce(profile.campaign_summary.campaign_participations_90d, 0) as participations_90d,
        coalesce(profile.campaign_summary.campaign_opens_90d, 0) as opens_90d,
        coalesce(profile.service_summary.tickets_90d, 0) as tickets_90d,
        coalesce(profile.service_summary.complaints_90d, 0) as complaints_90d,
        coalesce(profile.service_summary.open_tickets, 0) as open_tickets
    from profile.lifecycle
    inner join profile.purchase_summary on profile.purchase_summary.customer_id = profile.lifecycle.customer_id
    left join profile.behaviour_summary on profile.behaviour_summary.customer_id = profile.lifecycle.customer_id
    left join profile.campaign_summary on profile.campaign_summary.customer_id = profile.lifecycle.customer_id
    left join profile.service_summary on profile.service_summary.customer_id = profile.lifecycle.customer_id
),

parts as (
    select
        *,
        case
            when days_since_purchase <= 7 then 100.0
            when days_since_purchase <= 15 then 85.0
            when days_since_purchase <= 30 then 70.0
            when days_since_purchase <= 60 then 45.0
            when days_since_purchase <= 90 then 25.0
            when days_since_purchase <= 180 then 10.0
            else 0.0
        end as r_score,
        case
            when purchases_365d >= 12 then 100.0
            when purchases_365d >= 8 then 85.0
            when purchases_365d >= 5 then 70.0
            when purchases_365d >= 3 then 45.0
            when purchases_365d = 2 then 25.0
            when purchases_365d = 1 then 10.0
            else 0.0
        end as f_score,
        case
            when spend_365d >= 10000 then 100.0
            when spend_365d >= 5000 then 85.0
            when spend_365d >= 2000 then 70.0
            when spend_365d >= 1000 then 45.0
            when spend_365d >= 500 then 25.0
            when spend_365d > 0 then 10.0
            else 0.0
        end as m_score,
        40.0 * least(1.0, dwell_minutes_30d / 20.0) as b_browsing,
        20.0 * least(1.0, cart_rate_30d / 0.5) as b_cart,
        case
            when participations_90d >= 2 then 30.0
            when participations_90d = 1 then 15.0
            when opens_90d > 0 then 5.0
            else 0.0
        end as b_campaign,
        case
            when open_tickets > 0 or complaints_90d > 0 then 0.0
            when tickets_90d > 0 then 10.0
            else 5.0
        end as b_service
    from measures
),

scores as (
    select
        *,
        round(b_browsing + b_cart + b_campaign + b_service, 2) as b_score
    from parts
)

select
    customer_id,                                 -- Unified customer id
    days_since_purchase,                         -- Days since the last purchase
    purchases_365d,                              -- Purchases, last 365 days
    spend_365d,                                  -- Net spend, last 365 days
    'CNY' as currency,                           -- ISO 4217 code of all amounts in the row
    r_score,                                     -- Recency, 0 to 100
    f_score,                                     -- Frequency, 0 to 100
    m_score,                                     -- Monetary, 0 to 100
    b_score,                                     -- Behaviour, 0 to 100
    round(b_browsing, 2) as b_browsing,          -- Of it for browsing, 0 to 40
    round(b_cart, 2) as b_cart,                  -- Of it for carts, 0 to 20
    b_campaign,                                  -- Of it for campaigns, 0 to 30
    b_service,                                   -- Of it for service contacts, 0 to 10
    round(0.35 * r_score + 0.30 * f_score + 0.20 * m_score + 0.15 * b_score, 2) as rfm_b_score, -- The whole score, 0 to 100
    case
        when r_score >= 70 and f_score >= 70 and m_score >= 70 then 'important value'
        when r_score >= 70 and f_score < 70 and m_score >= 70 then 'important developing'
        when r_score < 70 and f_score >= 70 and m_score >= 70 then 'important keeping'
        when r_score < 70 and f_score < 70 and m_score >= 70 then 'important win-back'
        when r_score >= 70 and f_score >= 70 and m_score < 70 then 'general value'
        when r_score >= 70 and f_score < 70 and m_score < 70 then 'general developing'
        when r_score < 70 and f_score >= 70 and m_score < 70 then 'general keeping'
        when r_score < 70 and f_score < 70 and m_score < 70 then 'general win-back'
    end as rfm_group,                            -- One of eight groups: high or low on R, F and M
    days_since_purchase <= 30
    and purchases_365d >= 5
    and spend_365d >= 2000
    and b_score <= 20 as is_high_value_high_risk -- Buys often, much and lately, but shows no interest any more
from scores
