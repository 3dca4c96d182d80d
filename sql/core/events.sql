-- One row a behaviour event (web, app, mini-program), flattened. Senders repeat messages until they are acknowledged, so
-- the same messageId arrives several times with the same content: the first arrival counts and repeats change nothing.
-- Anonymous visits belong to the customer whose device or WeChat account they came from, if identity knows it; otherwise
-- customer_id is null.
-- @stage      full
-- @owner      digital data
-- @expect     fail        has_event_id:    event_id is not null
-- @expect     fail        unique_event:    count(*) = count(distinct event_id)
-- @expect     quarantine  has_time:        occurred_at is not null
-- @expect     warn        sane_duration:   duration_ms is null or duration_ms between 0 and 86400000
-- @tag        pii(search_query)
with repeated as (
    select "messageId"
    from raw.events
    group by "messageId"
    having count(*) > 1
),

-- Few messages are repeated, and putting millions of events in order is what costs: only the repeated ones are.
arrivals as (
    select
        raw.events.*,
        repeated."messageId" is not null as is_repeated
    from repeated
    right join raw.events on raw.events."messageId" = repeated."messageId"
    where raw.events."messageId" is not null
),

first_arrivals as (
    select *
    from arrivals
    where not is_repeated
    union all
    select *
    from arrivals
    where is_repeated
    qualify row_number() over (
        partition by "messageId"
        order by _batch, _source_file, _source_line
    ) = 1
),

tokens as (
    select
        *,
        coalesce(
            identifier_token('member_id', "userId"),
            identifier_token('unionid', context['wechat']['unionid']),
            identifier_token('openid', context['wechat']['openid']),
            identifier_token('device', context['device']['id']),
            identifier_token('device', "anonymousId")
        ) as token
    from first_arrivals
)

select
    identifiers.customer_id as customer_id,                 -- Unified customer id; null for unknown visitors
    tokens."messageId" as event_id,                         -- The sender's key of the message
    tokens.timestamp as occurred_at,                        -- When it happened
    lower(tokens.type) as event_type,                       -- track, page, screen, identify
    tokens.event as event_name,                             -- Segment e-commerce v2 name, such as Product Added; null for pages
    tokens."userId" is not null as is_signed_in,            -- Whether the visitor was signed in
    lower(tokens.context['channel']) as channel,            -- web, app, mini_program
    lower(tokens.context['device']['type']) as device_type, -- Kind of device
    tokens.context['session_id'] as session_id,             -- The sender's session
    tokens.properties['url'] as url,                        -- Page
    tokens.properties['product_id'] as product_id,          -- Product seen, added or removed
    lower(trim(tokens.properties['category'])) as category, -- Category of the product
    tokens.properties['price'] as price,                    -- Price shown, in the shop's currency
    tokens.properties['quantity'] as quantity,              -- Pieces
    tokens.properties['query'] as search_query,             -- Words searched for, as typed
    tokens.properties['order_id'] as order_id,              -- Order completed
    tokens.properties['cart_id'] as cart_id,                -- Cart
    tokens.properties['duration_ms'] as duration_ms         -- Time on the page, milliseconds
from identity.identifiers
right join tokens on tokens.token = identity.identifiers.token
