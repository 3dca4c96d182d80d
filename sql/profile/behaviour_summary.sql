-- One row a customer with a visit in the last 365 days: what they do in the web shop, the app and the mini-program. Only
-- visits that had ended by now() count, so that nothing of a visit still going on is used.
-- @stage      incremental key(customer_id)
-- @owner      digital data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        not_in_future:    last_session_at <= now()
-- @expect     warn        windows_nest:     sessions_7d <= sessions_30d and sessions_30d <= sessions_90d and sessions_90d <= sessions_365d
with visits as (
    select
        *,
        started_at > now() - interval '30 days' as is_30d,
        started_at > now() - interval '60 days' and started_at <= now() - interval '30 days' as is_prev_30d,
        started_at > now() - interval '90 days' as is_90d,
        started_at > now() - interval '180 days' and started_at <= now() - interval '90 days' as is_prev_90d,
        date_part('hour', started_at at time zone '+08:00') as local_hour
    from core.sessions
    where ended_at <= now()
        and started_at > now() - interval '365 days'
),

summary as (
    select
        customer_id,
        max(started_at) as last_session_at,
        max(started_at) filter (where channel = 'app') as last_app_session_at,
        count(*) filter (where started_at > now() - interval '7 days') as sessions_7d,
        count(*) filter (where is_30d) as sessions_30d,
        count(*) filter (where is_prev_30d) as sessions_prev_30d,
        count(*) filter (where is_90d) as sessions_90d,
        count(*) filter (where is_prev_90d) as sessions_prev_90d,
        count(*) as sessions_365d,
        count(distinct case when is_30d then cast(started_at as date) end) as active_days_30d,
        count(distinct case when is_90d then channel end) as session_channels_90d,
        count(distinct case when is_prev_90d then channel end) as session_channels_prev_90d,
        sum(case when is_30d then pages else 0 end) as pages_30d,
        sum(case when is_prev_30d then pages else 0 end) as pages_prev_30d,
        sum(case when is_30d then dwell_ms else 0 end) as dwell_ms_30d,
        sum(case when is_prev_30d then dwell_ms else 0 end) as dwell_ms_prev_30d,
        sum(case when is_30d then searches else 0 end) as searches_30d,
        sum(case when is_prev_30d then searches else 0 end) as searches_prev_30d,
        sum(case when is_30d then cart_adds else 0 end) as cart_adds_30d,
        sum(case when is_prev_30d then cart_adds else 0 end) as cart_adds_prev_30d,
        sum(case when is_30d then cart_removals else 0 end) as cart_removals_30d,
        sum(case when is_prev_30d then cart_removals else 0 end) as cart_removals_prev_30d,
        sum(case when is_90d then wishlist_adds else 0 end) as wishlist_adds_90d,
        count(*) filter (where is_30d and cart_adds > 0) as cart_sessions_30d,
        count(*) filter (where is_90d and cart_adds > 0) as cart_sessions_90d,
        count(*) filter (where is_90d and cart_adds > 0 and orders = 0) as abandoned_carts_90d,
        max(started_at) filter (where cart_adds > 0 and orders = 0) as last_abandoned_cart_at,
        count(*) filter (where is_90d and (local_hour >= 22 or local_hour < 6)) as night_sessions_90d
    from visits
    group by customer_id
)

select
    customer_id,                                                                  -- Unified customer id
    last_session_at,                                                              -- Start of the last visit
    last_app_session_at,                                                          -- Start of the last visit in the app
    sessions_7d,                                                                  -- Visits, last 7 days
    sessions_30d,                                                                 -- Visits, last 30 days
    sessions_prev_30d,                                                            -- Visits, the 30 days before the last 30
    sessions_90d,                                                                 -- Visits, last 90 days
    sessions_prev_90d,                                                            -- Visits, the 90 days before the last 90
    sessions_365d,                                                                -- Visits, last 365 days
    active_days_30d,                                                              -- Days with a visit, last 30 days
    session_channels_90d,                                                         -- Online channels visited, last 90 days
    session_channels_prev_90d,                                                    -- Online channels visited, the 90 days before
    cast(pages_30d as double) / nullif(sessions_30d, 0) as pages_per_session_30d, -- Pages a visit, last 30 days; null without visits
    cast(pages_prev_30d as double) / nullif(sessions_prev_30d, 0) as pages_per_session_prev_30d, -- Pages a visit, the 30 days before
    dwell_ms_30d / 60000.0 as dwell_minutes_30d,                                  -- Minutes on pages, last 30 days
    dwell_ms_prev_30d / 60000.0 as dwell_minutes_prev_30d,                        -- Minutes on pages, the 30 days before
    searches_30d,                                                                 -- Searches, last 30 days
    searches_prev_30d,                                                            -- Searches, the 30 days before
    cart_adds_30d,                                                                -- Products put into the cart, last 30 days
    cart_adds_prev_30d,                                                           -- Products put into the cart, the 30 days before
    cart_removals_30d,                                                            -- Products taken out of the cart, last 30 days
    cart_removals_prev_30d,                                                       -- Products taken out of the cart, the 30 days before
    cast(cart_sessions_30d as double) / nullif(sessions_30d, 0) as cart_rate_30d, -- Share of visits that filled the cart, last 30 days
    abandoned_carts_90d,                                                          -- Visits that filled the cart and did not order, last 90 days
    cast(abandoned_carts_90d as double) / nullif(cart_sessions_90d, 0) as cart_abandonment_90d, -- Share of carts left without an order, last 90 days
    last_abandoned_cart_at,                                                       -- Last visit that filled the cart and did not order
    wishlist_adds_90d,                                                            -- Products put on the wish list, last 90 days
    cast(night_sessions_90d as double) / nullif(sessions_90d, 0) as night_session_share_90d -- Share of visits from 22 to 6 o'clock, China time, last 90 days
from summary
