-- One row a customer who has bought: RFM score of now(), 0 to 100. It is the churn pack's RFM-B without B, since the shop's
-- data says nothing about visits, campaigns or service; the weights keep their proportions:
--   rfm_score = (0.35 R + 0.30 F + 0.20 M) / 0.85
-- R and F read the bands of the churn pack. M has bands of its own, in GBP: most buyers are small shops, and the bounds lie near
-- the 10th, 25th, 50th, 75th and 90th percentile of what customers spent in the ten months. A band's points hold from its bound on:
--   R  days since the last purchase  <= 7: 100    <= 15: 85    <= 30: 70   <= 60: 45   <= 90: 25   <= 180: 10   else 0
--   F  purchases in 365 days         >= 12: 100   >= 8: 85     >= 5: 70    >= 3: 45    2: 25       1: 10        0: 0
--   M  net spend in 365 days, GBP    >= 3000: 100 >= 1500: 85  >= 600: 70  >= 300: 45  >= 150: 25  > 0: 10      else 0
-- An axis is high from 70 points.
-- @stage      incremental key(customer_id)
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        scores_in_range:  r_score between 0 and 100 and f_score between 0 and 100 and m_score between 0 and 100 and rfm_score between 0 and 100
-- @expect     fail        known_group:      rfm_group is not null
with scores as (
    select
        customer_id,
        days_since_purchase,
        purchases_365d,
        spend_365d,
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
            when spend_365d >= 3000 then 100.0
            when spend_365d >= 1500 then 85.0
            when spend_365d >= 600 then 70.0
            when spend_365d >= 300 then 45.0
            when spend_365d >= 150 then 25.0
            when spend_365d > 0 then 10.0
            else 0.0
        end as m_score
    from profile.customer_360
    where purchases > 0
)

select
    customer_id,         -- Unified customer id
    days_since_purchase, -- Days since the last purchase
    purchases_365d,      -- Purchases, last 365 days
    spend_365d,          -- Net spend, last 365 days
    'GBP' as currency,   -- ISO 4217 code of all amounts in the row
    r_score,             -- Recency, 0 to 100
    f_score,             -- Frequency, 0 to 100
    m_score,             -- Monetary, 0 to 100
    round((0.35 * r_score + 0.30 * f_score + 0.20 * m_score) / 0.85, 2) as rfm_score, -- The whole score, 0 to 100
    case
        when r_score >= 70 and f_score >= 70 and m_score >= 70 then 'important value'
        when r_score >= 70 and f_score < 70 and m_score >= 70 then 'important developing'
        when r_score < 70 and f_score >= 70 and m_score >= 70 then 'important keeping'
        when r_score < 70 and f_score < 70 and m_score >= 70 then 'important win-back'
        when r_score >= 70 and f_score >= 70 and m_score < 70 then 'general value'
        when r_score >= 70 and f_score < 70 and m_score < 70 then 'general developing'
        when r_score < 70 and f_score >= 70 and m_score < 70 then 'general keeping'
        when r_score < 70 and f_score < 70 and m_score < 70 then 'general win-back'
    end as rfm_group     -- One of eight groups: high or low on R, F and M
from scores
