-- One row a customer who has bought: how well the relationship is, 0 to 100, from six channels that each have 0 to 100 and
-- a weight. It is a rule for people, beside the probability: what is wrong is seen in the channel, and no label was learnt
-- from. 100 is a customer who buys in their rhythm, visits, has no trouble and answers.
--   buying 40      100 in the customer's rhythm, 50 at two usual gaps, 20 at four
--   visits 20      how long ago the last one was (half of 60 points a month), and 40 points as far as they are as many as the month before
--   service 15     less 40 for an open complaint, 15 for each complaint of 90 days up to two, 15 a star of satisfaction below 4
--   delivery 10    less 25 for each late parcel and each late refund, 10 for each payment that failed, two of each at most
--   voice 5        25 for each star of reviews above 1, less 20 for each low review of 90 days up to two
--   campaigns 10   50, plus 25 for each participation up to two, less 5 for each message unanswered up to eight, less 20 for a fall in tier
-- @stage      incremental key(customer_id)
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        in_range:         health_score between 0 and 100
with channels as (
    select
        features.churn_v1.customer_id,
        100.0 / (1.0 + power(greatest(features.churn_v1.overdue_ratio, 0.0) / 2.0, 2.0)) as buying,
        60.0 * power(0.5, features.churn_v1.days_since_session / 30.0)
            + 40.0 * least(1.0, (features.churn_v1.sessions_30d + 1.0) / (features.churn_v1.sessions_prev_30d + 1.0)) as visits,
        greatest(
            0.0,
            100.0
            - 40.0 * least(features.churn_v1.open_complaints, 1.0)
            - 15.0 * least(features.churn_v1.complaints_90d, 2.0)
            - case when features.churn_v1.tickets_90d > 0 then 15.0 * greatest(0.0, 4.0 - features.churn_v1.csat_365d) else 0.0 end
        ) as service,
        greatest(
            0.0,
            100.0
            - 25.0 * least(features.churn_v1.parcels_late_90d, 2.0)
            - 25.0 * least(features.churn_v1.refunds_late_90d, 2.0)
            - 10.0 * least(features.churn_v1.failed_payments_30d, 2.0)
        ) as delivery,
        greatest(
            0.0,
            25.0 * (features.churn_v1.average_stars_365d - 1.0) - 20.0 * least(features.churn_v1.low_reviews_90d, 2.0)
        ) as voice,
        least(100.0, greatest(
            0.0,
            50.0
            + 25.0 * least(features.churn_v1.campaign_participations_90d, 2.0)
            - 5.0 * least(features.churn_v1.campaign_messages_unanswered, 8.0)
            - 20.0 * least(features.churn_v1.tier_downs_180d, 1.0)
        )) as campaigns
    from features.churn_v1
)

select
    channels.customer_id as customer_id,         -- Unified customer id
    round(
        0.40 * channels.buying + 0.20 * channels.visits + 0.15 * channels.service
        + 0.10 * channels.delivery + 0.05 * channels.voice + 0.10 * channels.campaigns,
        1
    ) as health_score,                           -- 0 to 100, higher is better
    round(channels.buying, 1) as buying,         -- Purchases beside the customer's own rhythm, 0 to 100
    round(channels.visits, 1) as visits,         -- Visits online, 0 to 100
    round(channels.service, 1) as service,       -- Service desk, 0 to 100
    round(channels.delivery, 1) as delivery,     -- Parcels, refunds and payments, 0 to 100
    round(channels.voice, 1) as voice,           -- Reviews, 0 to 100
    round(channels.campaigns, 1) as campaigns    -- Campaigns and loyalty, 0 to 100
from channels
where channels.customer_id is not null
