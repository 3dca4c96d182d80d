-- One row a customer who is known as a person: the 360° profile. Each family comes from a stage of its own, where its rules
-- are written; here they stand side by side. Counts and amounts are 0 where a customer has no record of a kind; times,
-- means, shares and classes are null where there is nothing to take them from. Windows end at now() and are counted back
-- in days; "the 30 days before" is the window of the same length that ends where the named one begins. What changes every
-- day for everybody (days since the last purchase) is in profile.lifecycle, so that a row here changes with its customer.
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:        customer_id is not null
-- @expect     fail        unique_customer:     count(*) = count(distinct customer_id)
-- @expect     fail        known_stage:         lifecycle_stage in ('prospect', 'new', 'growing', 'mature', 'silent', 'churned')
-- @expect     fail        not_in_future:       last_purchase_at is null or last_purchase_at <= now()
-- @expect     warn        not_empty:           count(*) > 0
-- @expect     warn        spend_has_purchase:  spend = 0 or purchases > 0
-- @expect     warn        sane_age:            age_years is null or age_years between 10 and 110
-- @expect     warn        known_person:        has_phone or has_email or has_wechat or member_ids > 0
-- @tag        pii(gender, age_years, province, city)
select
    -- identity and contactability
    profile.identity_summary.customer_id as customer_id,                             -- Unified customer id
    profile.identity_summary.first_seen_at as first_seen_at,                         -- First record of the customer in any source
    profile.identity_summary.identifiers as identifiers,                             -- Identifiers of the customer's own
    profile.identity_summary.member_ids as member_ids,                               -- Member numbers; more than one is a double registration
    profile.identity_summary.devices as devices,                                     -- Devices
    profile.identity_summary.wechat_accounts > 0 as has_wechat,                      -- Whether a WeChat account is known
    profile.identity_summary.phones > 0 as has_phone,                                -- Whether a phone number of the customer's own is known
    profile.identity_summary.emails > 0 as has_email,                                -- Whether an e-mail address of the customer's own is known
    profile.contact.customer_id is not null as is_member,                            -- Whether the CRM knows the customer
    profile.contact.gender as gender,                                                -- female, male; null when not stated
    profile.contact.age_years as age_years,                                          -- Age in full years; null when not stated
    profile.contact.province as province,                                            -- Province of residence
    profile.contact.city as city,                                                    -- City of residence
    profile.contact.registered_at as registered_at,                                  -- First registration as a member
    profile.contact.registered_channel as registered_channel,                        -- Channel of registration
    -- consent and preference
    coalesce(profile.contact.has_sms_consent, false) as has_sms_consent,             -- May be addressed by SMS; no for non-members
    coalesce(profile.contact.has_email_consent, false) as has_email_consent,         -- May be addressed by e-mail; no for non-members
    coalesce(profile.contact.has_push_consent, false) as has_push_consent,           -- May be addressed by app push; no for non-members
    profile.campaign_summary.last_unsubscribed_at as last_unsubscribed_at,           -- Last unsubscription; null when never
    -- life cycle
    coalesce(profile.lifecycle.lifecycle_stage, 'prospect') as lifecycle_stage,      -- new, growing, mature, silent, churned, or prospect before the first purchase
    profile.lifecycle.usual_gap_days as usual_gap_days,                              -- Usual days between purchase days; 30 by default; null before the first purchase
    coalesce(profile.lifecycle.has_personal_gap, false) as has_personal_gap,         -- Whether that gap is the customer's own
    -- value
    profile.purchase_summary.first_purchase_at as first_purchase_at,                 -- First purchase
    profile.purchase_summary.last_purchase_at as last_purchase_at,                   -- Last purchase
    coalesce(profile.purchase_summary.purchases, 0) as purchases,                    -- Purchases, lifetime
    cast(coalesce(profile.purchase_summary.spend, 0) as decimal(18, 2)) as spend,    -- Net spend, lifetime, CNY
    cast(coalesce(profile.purchase_summary.spend_30d, 0) as decimal(18, 2)) as spend_30d, -- Net spend, last 30 days, CNY
    cast(coalesce(profile.purchase_summary.spend_90d, 0) as decimal(18, 2)) as spend_90d, -- Net spend, last 90 days, CNY
    cast(coalesce(profile.purchase_summary.spend_prev_90d, 0) as decimal(18, 2)) as spend_prev_90d, -- Net spend, the 90 days before the last 90, CNY
    cast(coalesce(profile.purchase_summary.spend_180d, 0) as decimal(18, 2)) as spend_180d, -- Net spend, last 180 days, CNY
    cast(coalesce(profile.purchase_summary.spend_365d, 0) as decimal(18, 2)) as spend_365d, -- Net spend, last 365 days, CNY
    'CNY' as currency,                                                               -- ISO 4217 code of all amounts in the row
    profile.purchase_summary.largest_purchase as largest_purchase,                   -- Largest single purchase, lifetime, CNY
    profile.purchase_summary.average_basket_90d as average_basket_90d,               -- Mean amount of a purchase, last 90 days, CNY; null without purchases
    profile.purchase_summary.average_basket_365d as average_basket_365d,             -- Mean amount of a purchase, last 365 days, CNY; null without purchases
    profile.purchase_summary.average_basket_90d - profile.purchase_summary.average_basket_prev_90d as average_basket_change_90d, -- Average basket of the last 90 days less that of the 90 before, CNY
    profile.purchase_summary.pieces_per_purchase_365d as pieces_per_purchase_365d,   -- Pieces a purchase, last 365 days
    -- rhythm
    coalesce(profile.purchase_summary.purchases_7d, 0) as purchases_7d,              -- Purchases, last 7 days
    coalesce(profile.purchase_summary.purchases_30d, 0) as purchases_30d,            -- Purchases, last 30 days
    coalesce(profile.purchase_summary.purchases_prev_30d, 0) as purchases_prev_30d,  -- Purchases, the 30 days before the last 30
    coalesce(profile.purchase_summary.purchases_90d, 0) as purchases_90d,            -- Purchases, last 90 days
    coalesce(profile.purchase_summary.purchases_90d - profile.purchase_summary.purchases_prev_90d, 0) as purchases_change_90d, -- Purchases of the last 90 days less those of the 90 before
    coalesce(profile.purchase_summary.purchases_180d, 0) as purchases_180d,          -- Purchases, last 180 days
    coalesce(profile.purchase_summary.purchases_365d, 0) as purchases_365d,          -- Purchases, last 365 days
    profile.purchase_rhythm.longest_gap_days as longest_gap_days,                    -- Longest days between purchase days; null with one purchase day
    profile.purchase_rhythm.gap_variation as gap_variation,                          -- Standard deviation of the gaps over their mean; null with fewer than three gaps
    profile.purchase_summary.night_purchase_share_365d as night_purchase_share_365d, -- Share of purchases from 22 to 6 o'clock, China time, last 365 days
    profile.purchase_summary.weekend_purchase_share_365d as weekend_purchase_share_365d, -- Share of purchases on Saturday and Sunday, China time, last 365 days
    -- category
    profile.category_summary.top_category_365d as top_category_365d,                 -- Category with the highest amount, last 365 days
    profile.category_summary.top_category_share_365d as top_category_share_365d,     -- Its share of the amount, 0 to 1
    coalesce(profile.category_summary.categories_365d, 0) as categories_365d,        -- Categories bought, last 365 days
    coalesce(profile.category_summary.categories_90d, 0) as categories_90d,          -- Categories bought, last 90 days
    coalesce(profile.category_summary.categories_lost_90d, 0) as categories_lost_90d, -- Categories bought before but not in the last 90 days
    profile.category_summary.category_drift_90d as category_drift_90d,               -- How far the mix of the last 90 days is from the mix before, 0 to 1
    -- price
    coalesce(profile.price_summary.price_sensitivity, 'low') as price_sensitivity,   -- low, medium, high
    coalesce(profile.price_summary.coupons_claimed_30d, 0) as coupons_claimed_30d,   -- Coupons claimed, last 30 days
    coalesce(profile.price_summary.coupons_claimed_365d, 0) as coupons_claimed_365d, -- Coupons claimed, last 365 days
    coalesce(profile.price_summary.coupons_redeemed_365d, 0) as coupons_redeemed_365d, -- Coupons redeemed, last 365 days
    coalesce(profile.price_summary.coupons_expired_365d, 0) as coupons_expired_365d, -- Coupons that lapsed unused, last 365 days
    profile.price_summary.coupon_redemption_rate_365d as coupon_redemption_rate_365d, -- Redeemed over claimed, last 365 days; null without claims
    profile.price_summary.discount_share_365d as discount_share_365d,                -- Discount as a share of list price, last 365 days, 0 to 1
    profile.price_summary.full_price_share_365d as full_price_share_365d,            -- Share of purchases without any discount, last 365 days
    -- channel
    coalesce(profile.purchase_summary.store_purchases_365d, 0) as store_purchases_365d, -- Purchases in stores, last 365 days
    coalesce(profile.purchase_summary.web_purchases_365d, 0) as web_purchases_365d,  -- Purchases in the web shop, last 365 days
    coalesce(profile.purchase_summary.app_purchases_365d, 0) as app_purchases_365d,  -- Purchases in the app, last 365 days
    coalesce(profile.purchase_summary.mini_program_purchases_365d, 0) as mini_program_purchases_365d, -- Purchases in the mini-program, last 365 days
    coalesce(profile.purchase_summary.purchase_channels_90d, 0) as purchase_channels_90d, -- Channels bought in, last 90 days
    coalesce(profile.purchase_summary.purchase_channels_90d - profile.purchase_summary.purchase_channels_prev_90d, 0) as purchase_channels_change_90d, -- Channels bought in, last 90 days, less those of the 90 before
    profile.purchase_summary.last_store_purchase_at as last_store_purchase_at,       -- Last purchase in a store
    profile.purchase_summary.last_online_purchase_at as last_online_purchase_at,     -- Last purchase online
    -- behaviour
    profile.behaviour_summary.last_session_at as last_session_at,                    -- Start of the last visit online, within 365 days
    coalesce(profile.behaviour_summary.sessions_7d, 0) as sessions_7d,               -- Visits, last 7 days
    coalesce(profile.behaviour_summary.sessions_30d, 0) as sessions_30d,             -- Visits, last 30 days
    coalesce(profile.behaviour_summary.sessions_90d, 0) as sessions_90d,             -- Visits, last 90 days
    coalesce(profile.behaviour_summary.sessions_365d, 0) as sessions_365d,           -- Visits, last 365 days
    coalesce(profile.behaviour_summary.sessions_30d - profile.behaviour_summary.sessions_prev_30d, 0) as sessions_change_30d, -- Visits of the last 30 days less those of the 30 before
    coalesce(profile.behaviour_summary.active_days_30d, 0) as active_days_30d,       -- Days with a visit, last 30 days
    profile.behaviour_summary.pages_per_session_30d as pages_per_session_30d,        -- Pages a visit, last 30 days; null without visits
    profile.behaviour_summary.pages_per_session_prev_30d as pages_per_session_prev_30d, -- Pages a visit, the 30 days before the last 30
    coalesce(profile.behaviour_summary.dwell_minutes_30d, 0) as dwell_minutes_30d,   -- Minutes on pages, last 30 days
    coalesce(profile.behaviour_summary.searches_30d, 0) as searches_30d,             -- Searches, last 30 days
    coalesce(profile.behaviour_summary.cart_adds_30d, 0) as cart_adds_30d,           -- Products put into the cart, last 30 days
    coalesce(profile.behaviour_summary.cart_removals_30d, 0) as cart_removals_30d,   -- Products taken out of the cart, last 30 days
    coalesce(profile.behaviour_summary.cart_removals_30d - profile.behaviour_summary.cart_removals_prev_30d, 0) as cart_removals_change_30d, -- Products taken out of the cart in the last 30 days less those of the 30 before
    profile.behaviour_summary.cart_abandonment_90d as cart_abandonment_90d,          -- Share of carts left without an order, last 90 days; null without carts
    profile.behaviour_summary.last_abandoned_cart_at as last_abandoned_cart_at,      -- Last visit that filled the cart and did not order
    profile.behaviour_summary.night_session_share_90d as night_session_share_90d,    -- Share of visits from 22 to 6 o'clock, China time, last 90 days
    -- service
    coalesce(profile.service_summary.tickets_90d, 0) as tickets_90d,                 -- Requests to the service desk, last 90 days
    coalesce(profile.service_summary.tickets_365d, 0) as tickets_365d,               -- Requests to the service desk, last 365 days
    coalesce(profile.service_summary.complaints_365d, 0) as complaints_365d,         -- Complaints, last 365 days
    coalesce(profile.service_summary.open_tickets, 0) as open_tickets,               -- Requests not solved
    coalesce(profile.service_summary.open_complaints, 0) as open_complaints,         -- Complaints not solved
    profile.service_summary.oldest_open_complaint_at as oldest_open_complaint_at,    -- When the oldest unsolved complaint was made
    coalesce(profile.service_summary.messages_90d, 0) as messages_90d,               -- Messages written to the service desk, last 90 days
    coalesce(profile.service_summary.waiting_tickets, 0) as waiting_tickets,         -- Requests not solved whose last word is the customer's
    profile.service_summary.waiting_since as waiting_since,                          -- Last word of the request that waits longest for an answer
    profile.service_summary.first_response_minutes_365d as first_response_minutes_365d, -- Mean minutes to the first answer, last 365 days
    profile.service_summary.resolution_hours_365d as resolution_hours_365d,          -- Mean hours to the solution, last 365 days
    profile.service_summary.csat_365d as csat_365d,                                  -- Mean satisfaction 1 to 5, last 365 days
    profile.service_summary.nps_365d as nps_365d,                                    -- Mean willingness to recommend 0 to 10, last 365 days
    -- payment and refunds
    coalesce(profile.payment_summary.failed_payments_30d, 0) as failed_payments_30d, -- Payments that failed, last 30 days
    coalesce(profile.payment_summary.refunds_365d, 0) as refunds_365d,               -- Refunds asked for, last 365 days
    cast(coalesce(profile.payment_summary.refunded_amount_365d, 0) as decimal(18, 2)) as refunded_amount_365d, -- Paid back, last 365 days, CNY
    coalesce(profile.payment_summary.refunds_overdue, 0) as refunds_overdue,         -- Refunds not paid out though promised by now
    coalesce(profile.payment_summary.refunds_late_365d, 0) as refunds_late_365d,     -- Refunds later than promised, last 365 days
    coalesce(profile.purchase_summary.returned_orders_365d, 0) as returned_orders_365d, -- Orders that came back whole, placed in the last 365 days
    -- fulfilment
    coalesce(profile.fulfilment_summary.parcels_365d, 0) as parcels_365d,            -- Parcels sent, last 365 days
    profile.fulfilment_summary.late_share_365d as late_share_365d,                   -- Share of parcels later than promised, last 365 days
    coalesce(profile.fulfilment_summary.parcels_overdue, 0) as parcels_overdue,      -- Parcels not delivered though promised by now
    coalesce(profile.fulfilment_summary.parcel_exceptions_365d, 0) as parcel_exceptions_365d, -- Parcels with an exception, last 365 days
    profile.fulfilment_summary.delivery_days_365d as delivery_days_365d,             -- Mean days from sending to delivery, last 365 days
    -- voice
    profile.voice_summary.has_reviewed_first_order as has_reviewed_first_order,      -- Whether the first order was reviewed; null without an order
    coalesce(profile.voice_summary.reviews_365d, 0) as reviews_365d,                 -- Reviews, last 365 days
    profile.voice_summary.average_stars_365d as average_stars_365d,                  -- Mean stars 1 to 5, last 365 days
    profile.voice_summary.stars_change_90d as stars_change_90d,                      -- Mean stars of the last 90 days less those of the 275 days before
    coalesce(profile.voice_summary.low_reviews_90d, 0) as low_reviews_90d,           -- Reviews of 1 or 2 stars, last 90 days
    coalesce(profile.voice_summary.posts_365d, 0) as posts_365d,                     -- Public posts that name the shop, last 365 days
    coalesce(profile.voice_summary.post_reach_365d, 0) as post_reach_365d,           -- People those posts reached
    -- campaign
    coalesce(profile.campaign_summary.campaign_messages_30d, 0) as campaign_messages_30d, -- Messages sent, last 30 days
    coalesce(profile.campaign_summary.campaign_messages_90d, 0) as campaign_messages_90d, -- Messages sent, last 90 days
    profile.campaign_summary.campaign_open_rate_90d as campaign_open_rate_90d,       -- Opened over sent, last 90 days; null without messages
    profile.campaign_summary.campaign_click_rate_90d as campaign_click_rate_90d,     -- Clicked over sent, last 90 days
    coalesce(profile.campaign_summary.campaign_participations_90d, 0) as campaign_participations_90d, -- Participations, last 90 days
    profile.campaign_summary.last_participated_at as last_participated_at,           -- Last participation in a campaign
    coalesce(profile.campaign_summary.campaign_messages_unanswered, 0) as campaign_messages_unanswered, -- Messages sent since the last open, click or participation, within 365 days
    -- loyalty
    profile.loyalty_summary.loyalty_tier as loyalty_tier,                            -- Tier after the last entry that states one; null outside the scheme
    coalesce(profile.loyalty_summary.points_balance, 0) as points_balance,           -- Points left
    coalesce(profile.loyalty_summary.points_earned_90d, 0) as points_earned_90d,     -- Points earned, last 90 days
    coalesce(profile.loyalty_summary.points_burnt_365d, 0) as points_burnt_365d,     -- Points used, last 365 days
    coalesce(profile.loyalty_summary.points_expired_365d, 0) as points_expired_365d, -- Points lapsed, last 365 days
    profile.loyalty_summary.last_tier_down_at as last_tier_down_at                   -- Last fall in tier; null when never
from profile.identity_summary
left join profile.contact on profile.contact.customer_id = profile.identity_summary.customer_id
left join profile.purchase_summary on profile.purchase_summary.customer_id = profile.identity_summary.customer_id
left join profile.purchase_rhythm on profile.purchase_rhythm.customer_id = profile.identity_summary.customer_id
left join profile.lifecycle on profile.lifecycle.customer_id = profile.identity_summary.customer_id
left join profile.category_summary on profile.category_summary.customer_id = profile.identity_summary.customer_id
left join profile.price_summary on profile.price_summary.customer_id = profile.identity_summary.customer_id
left join profile.behaviour_summary on profile.behaviour_summary.customer_id = profile.identity_summary.customer_id
left join profile.service_summary on profile.service_summary.customer_id = profile.identity_summary.customer_id
left join profile.payment_summary on profile.payment_summary.customer_id = profile.identity_summary.customer_id
left join profile.fulfilment_summary on profile.fulfilment_summary.customer_id = profile.identity_summary.customer_id
left join profile.voice_summary on profile.voice_summary.customer_id = profile.identity_summary.customer_id
left join profile.campaign_summary on profile.campaign_summary.customer_id = profile.identity_summary.customer_id
left join profile.loyalty_summary on profile.loyalty_summary.customer_id = profile.identity_summary.customer_id
