-- @stage      incremental key(customer_id)
-- @owner      digital data
-- @expect     warn        not_endless:  ended_at < started_at + interval '24 hours'
select
    customer_id,
    session_id,
    min(occurred_at) as started_at,
    max(occurred_at) as ended_at,
    min(channel) as channel,
    count(*) filter (where event_type in ('page', 'screen') or event_name = 'Product Viewed') as pages,
    sum(coalesce(duration_ms, 0)) as dwell_ms,
    count(*) filter (where event_name = 'Products Searched') as searches,
    count(*) filter (where event_name = 'Product Added') as cart_adds,
    count(*) filter (where event_name = 'Product Removed') as cart_removals,
    count(*) filter (where event_name = 'Product Added to Wishlist') as wishlist_adds,
    count(*) filter (where event_name = 'Checkout Started') as checkouts,
    count(*) filter (where event_name = 'Order Completed') as orders
from core.events
where customer_id is not null
    and session_id is not null
group by
    customer_id,
    session_id
