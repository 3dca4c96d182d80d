-- One row a visit of a known customer to the web shop, app or mini-program: the events of one session_id, counted once
-- here so that no later stage reads the events again. Two customers on one device have two rows. Events without a
-- session (sent by servers) and of unknown visitors are left out.
-- @stage      incremental key(customer_id)
-- @owner      digital data
-- @expect     fail        has_customer:    customer_id is not null
-- @expect     fail        has_session:     session_id is not null
-- @expect     fail        unique_session:  count(*) = count(distinct customer_id || '/' || session_id)
-- @expect     warn        not_endless:     ended_at < started_at + interval '24 hours'
select
    customer_id,                                                             -- Unified customer id
    session_id,                                                              -- The sender's session
    min(occurred_at) as started_at,                                          -- First event
    max(occurred_at) as ended_at,                                            -- Last event
    min(channel) as channel,                                                 -- web, app, mini_program
    count(*) filter (where event_type in ('page', 'screen') or event_name = 'Product Viewed') as pages, -- Pages and products looked at
    sum(coalesce(duration_ms, 0)) as dwell_ms,                               -- Time on its pages, milliseconds
    count(*) filter (where event_name = 'Products Searched') as searches,    -- Searches
    count(*) filter (where event_name = 'Product Added') as cart_adds,       -- Products put into the cart
    count(*) filter (where event_name = 'Product Removed') as cart_removals, -- Products taken out of the cart
    count(*) filter (where event_name = 'Product Added to Wishlist') as wishlist_adds, -- Products put on the wish list
    count(*) filter (where event_name = 'Checkout Started') as checkouts,    -- Checkouts begun
    count(*) filter (where event_name = 'Order Completed') as orders         -- Orders completed
from core.events
where customer_id is not null
    and session_id is not null
group by
    customer_id,
    session_id
