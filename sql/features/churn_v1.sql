-- One row a customer who has bought: the numbers that churn models are trained on and scored with, as they were known at
-- event_timestamp = now(). Only numbers, and none is null: counts are 0 where nothing happened, means and shares have the
-- neutral value that their comment names, times have become days before now(). Left out on purpose: what is known only at
-- its last state without a time of its own (exceptions of a parcel, whether an order came back; refunds have a time and are
-- in the spend), sensitive traits (gender, age, place), and the scores of this pack. One such state remains: orders that
-- were cancelled in the end are no purchases at any moment, since the order system does not say when.
-- @stage      incremental key(customer_id)
-- @feature    online
-- @owner      data science
-- @expect     fail        has_customer:       customer_id is not null
-- @expect     fail        unique_customer:    count(*) = count(distinct customer_id)
-- @expect     fail        at_now:             event_timestamp = now()
-- @expect     fail        days_not_negative:  days_since_purchase >= 0 and days_since_session >= 0 and tenure_days >= 0
-- @expect     warn        sane_recency:       days_since_purchase < 3650
select
    profile.lifecycle.customer_id as customer_id,                                    -- Unified customer id
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as event_timestamp,     -- The moment at which all values were known
    cast(profile.lifecycle.days_since_purchase as double) as days_since_purchase,    -- Days since the last purchase
    profile.lifecycle.usual_gap_days as usual_gap_days,                              -- Usual days between purchase days; 30 by default
    case when profile.lifecycle.has_personal_gap then 1.0 else 0.0 end as has_personal_gap, -- 1 when that gap is the customer's own
    profile.lifecycle.overdue_ratio as overdue_ratio,                                -- Days since the last purchase over the usual gap
    coalesce(profile.purchase_rhythm.gap_variation, 1.0) as gap_variation,           -- Standard deviation of the gaps over their mean; 1 with fewer than three gaps
    cast(cast(now() as date) - cast(profile.purchase_summary.first_purchase_at as date) as double) as tenure_days, -- Days since the first purchase
    cast(profile.purchase_summary.purchases as double) as purchases,                 -- Purchases, lifetime
    cast(profile.purchase_summary.purchases_30d as double) as purchases_30d,         -- Purchases, last 30 days
    cast(profile.purchase_summary.purchases_90d as double) as purchases_90d,         -- Purchases, last 90 days
    cast(profile.purchase_summary.purchases_prev_90d as double) as purchases_prev_90d, -- Purchases, the 90 days before the last 90
    cast(profile.purchase_summary.purchases_365d as double) as purchases_365d,       -- Purchases, last 365 days
    cast(profile.purchase_summary.spend_90d as double) as spend_90d,                 -- Net spend, last 90 days, CNY
    cast(profile.purchase_summary.spend_prev_90d as double) as spend_prev_90d,       -- Net spend, the 90 days before the last 90, CNY
    cast(profile.purchase_summary.spend_365d as double) as spend_365d,               -- Net spend, last 365 days, CNY
    coalesce(profile.purchase_summary.average_basket_365d, 0.0) as average_basket_365d, -- Mean amount of a purchase, last 365 days, CNY; 0 without purchases
    coalesce(profile.purchase_summary.average_basket_90d - profile.purchase_summary.average_basket_prev_90d, 0.0) as average_basket_change_90d, -- Average basket of the last 90 days less that of the 90 before, CNY; 0 without both
    coalesce(profile.purchase_summary.discount_share_365d, 0.0) as discount_share_365d, -- Discount as a share of list price, last 365 days; 0 without purchases
    cast(profile.purchase_summary.purchase_channels_90d as double) as purchase_channels_90d, -- Channels bought in, last 90 days
    coalesce(cast(profile.purchase_summary.store_purchases_365d as double) / nullif(profile.purchase_summary.purchases_365d, 0), 0.0) as store_share_365d, -- Share of purchases in stores, last 365 days
    coalesce(cast(profile.category_summary.categories_90d as double), 0.0) as categories_90d, -- Categories bought, last 90 days
    coalesce(cast(profile.category_summary.categories_lost_90d as double), 0.0) as categories_lost_90d, -- Categories bought before but not in the last 90 days
    coalesce(cast(profile.price_summary.coupons_claimed_30d as double), 0.0) as coupons_claimed_30d, -- Coupons claimed, last 30 days
    coalesce(profile.price_summary.coupon_redemption_rate_365d, 0.0) as coupon_redemption_rate_365d, -- Redeemed over claimed, last 365 days; 0 without claims
    coalesce(cast(cast(now() as date) - cast(profile.behaviour_summary.last_session_at as date) as double), 365.0) as days_since_session, -- Days since the last visit online; 365 without one
    coalesce(cast(profile.behaviour_summary.sessions_7d as double), 0.0) as sessions_7d, -- Visits, last 7 days
    coalesce(cast(profile.behaviour_summary.sessions_30d as double), 0.0) as sessions_30d, -- Visits, last 30 days
    coalesce(cast(profile.behaviour_summary.sessions_prev_30d as double), 0.0) as sessions_prev_30d, -- Visits, the 30 days before the last 30
    coalesce(cast(profile.behaviour_summary.sessions_90d as double), 0.0) as sessions_90d, -- Visits, last 90 days
    coalesce(cast(profile.behaviour_summary.sessions_prev_90d as double), 0.0) as sessions_prev_90d, -- Visits, the 90 days before the last 90
    coalesce(profile.behaviour_summary.pages_per_session_30d, 0.0) as pages_per_session_30d, -- Pages a visit, last 30 days; 0 without visits
    coalesce(profile.behaviour_summary.pages_per_session_prev_30d, 0.0) as pages_per_session_prev_30d, -- Pages a visit, the 30 days before; 0 without visits
    coalesce(profile.behaviour_summary.dwell_minutes_30d, 0.0) as dwell_minutes_30d, -- Minutes on pages, last 30 days
    coalesce(profile.behaviour_summary.dwell_minutes_prev_30d, 0.0) as dwell_minutes_prev_30d, -- Minutes on pages, the 30 days before
    coalesce(cast(profile.behaviour_summary.searches_30d as double), 0.0) as searches_30d, -- Searches, last 30 days
    coalesce(cast(profile.behaviour_summary.cart_adds_30d as double), 0.0) as cart_adds_30d, -- Products put into the cart, last 30 days
    coalesce(cast(profile.behaviour_summary.cart_removals_30d as double), 0.0) as cart_removals_30d, -- Products taken out of the cart, last 30 days
    coalesce(profile.behaviour_summary.cart_abandonment_90d, 0.0) as cart_abandonment_90d, -- Share of carts left without an order, last 90 days; 0 without carts
    coalesce(cast(profile.service_summary.tickets_90d as double), 0.0) as tickets_90d, -- Requests to the service desk, last 90 days
    coalesce(cast(profile.service_summary.complaints_90d as double), 0.0) as complaints_90d, -- Complaints, last 90 days
    coalesce(cast(profile.service_summary.open_complaints as double), 0.0) as open_complaints, -- Complaints not solved
    coalesce(profile.service_summary.csat_365d, 3.0) as csat_365d,                   -- Mean satisfaction 1 to 5, last 365 days; 3 without an answer
    coalesce(cast(profile.payment_summary.failed_payments_30d as double), 0.0) as failed_payments_30d, -- Payments that failed, last 30 days
    coalesce(cast(profile.payment_summary.refunds_90d as double), 0.0) as refunds_90d, -- Refunds asked for, last 90 days
    coalesce(cast(profile.payment_summary.refunds_late_90d as double), 0.0) as refunds_late_90d, -- Refunds later than promised, asked for in the last 90 days
    coalesce(cast(profile.fulfilment_summary.parcels_late_90d as double), 0.0) as parcels_late_90d, -- Parcels later than promised, sent in the last 90 days
    coalesce(profile.fulfilment_summary.late_share_365d, 0.0) as late_share_365d,    -- Share of parcels later than promised, last 365 days; 0 without parcels
    coalesce(cast(profile.voice_summary.reviews_365d as double), 0.0) as reviews_365d, -- Reviews, last 365 days
    coalesce(profile.voice_summary.average_stars_365d, 3.0) as average_stars_365d,   -- Mean stars 1 to 5, last 365 days; 3 without a review
    coalesce(cast(profile.voice_summary.low_reviews_90d as double), 0.0) as low_reviews_90d, -- Reviews of 1 or 2 stars, last 90 days
    coalesce(cast(profile.campaign_summary.campaign_messages_90d as double), 0.0) as campaign_messages_90d, -- Messages sent, last 90 days
    coalesce(profile.campaign_summary.campaign_open_rate_90d, 0.0) as campaign_open_rate_90d, -- Opened over sent, last 90 days; 0 without messages
    coalesce(cast(profile.campaign_summary.campaign_participations_90d as double), 0.0) as campaign_participations_90d, -- Participations, last 90 days
    coalesce(cast(profile.campaign_summary.campaign_messages_unanswered as double), 0.0) as campaign_messages_unanswered, -- Messages since the last open, click or participation
    coalesce(cast(profile.loyalty_summary.points_balance as double), 0.0) as points_balance, -- Points left
    coalesce(cast(profile.loyalty_summary.points_earned_90d as double), 0.0) as points_earned_90d, -- Points earned, last 90 days
    coalesce(cast(profile.loyalty_summary.points_burnt_365d as double), 0.0) as points_burnt_365d, -- Points used, last 365 days
    coalesce(cast(profile.loyalty_summary.tier_downs_180d as double), 0.0) as tier_downs_180d -- Falls in tier, last 180 days
from profile.lifecycle
inner join profile.purchase_summary on profile.purchase_summary.customer_id = profile.lifecycle.customer_id
inner join profile.purchase_rhythm on profile.purchase_rhythm.customer_id = profile.lifecycle.customer_id
left join profile.category_summary on profile.category_summary.customer_id = profile.lifecycle.customer_id
left join profile.price_summary on profile.price_summary.customer_id = profile.lifecycle.customer_id
left join profile.behaviour_summary on profile.behaviour_summary.customer_id = profile.lifecycle.customer_id
left join profile.service_summary on profile.service_summary.customer_id = profile.lifecycle.customer_id
left join profile.payment_summary on profile.payment_summary.customer_id = profile.lifecycle.customer_id
left join profile.fulfilment_summary on profile.fulfilment_summary.customer_id = profile.lifecycle.customer_id
left join profile.voice_summary on profile.voice_summary.customer_id = profile.lifecycle.customer_id
left join profile.campaign_summary on profile.campaign_summary.customer_id = profile.lifecycle.customer_id
left join profile.loyalty_summary on profile.loyalty_summary.customer_id = profile.lifecycle.customer_id
