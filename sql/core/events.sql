-- Senders repeat messages until they are acknowledged, so the same messageId arrives several times with the same
-- content: the first arrival counts and repeats change nothing.
-- @stage      incremental key(event_id)
-- @owner      digital data
-- @expect     warn        sane_duration:  duration_ms is null or duration_ms between 0 and 86400000
with first_arrivals as (
    select *
    from raw.events
    where "messageId" is not null
    qualify row_number() over (
        partition by "messageId"
        order by _batch, _source_file, _source_line
    ) = 1
),

shop_codes as (
    select code, product_key
    from core.sku_map
    where system = 'shop'
),

tokens as (
    select
        *,
        upper(trim(properties['product_id'])) as product_code,
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
    identifiers.customer_id as customer_id,
    tokens."messageId" as event_id,
    tokens.timestamp as occurred_at,
    lower(tokens.type) as event_type,
    tokens.event as event_name,
    tokens."userId" is not null as is_signed_in,
    lower(tokens.context['channel']) as channel,
    lower(tokens.context['device']['type']) as device_type,
    tokens.context['session_id'] as session_id,
    tokens.properties['url'] as url,
    tokens.properties['product_id'] as product_id,
    shop_codes.product_key as product_key,
    lower(trim(tokens.properties['category'])) as category,
    tokens.properties['price'] as price,
    tokens.properties['quantity'] as quantity,
    tokens.properties['query'] as search_query,
    tokens.properties['order_id'] as order_id,
    tokens.properties['cart_id'] as cart_id,
    tokens.properties['duration_ms'] as duration_ms
from shop_codes
right join (
    identity.identifiers
    right join tokens
        on tokens.token = identity.identifiers.token
        and (identifiers.valid_from is null or tokens.timestamp >= identifiers.valid_from)
        and (identifiers.valid_to is null or tokens.timestamp < identifiers.valid_to)
) on shop_codes.code = tokens.product_code
