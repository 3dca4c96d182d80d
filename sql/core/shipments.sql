-- @stage      incremental key(shipment_id)
-- @owner      logistics
-- @expect     quarantine  ordered_times:  delivered_at is null or delivered_at >= shipped_at
with latest as (
    select
        *,
        identifier_token('phone', consignee['mobile']) as token
    from raw.shipments
    where shipment_id is not null
    qualify row_number() over (
        partition by shipment_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    coalesce(core.orders.customer_id, identifiers.customer_id) as customer_id,
    latest.shipment_id as shipment_id,
    latest.order_id as order_id,
    latest.carrier as carrier,
    latest.shipped_at as shipped_at,
    latest.promised_at as promised_at,
    latest.delivered_at as delivered_at,
    lower(trim(latest.status)) as status,
    nullif(trim(latest.exception), '') as exception
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.shipped_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.shipped_at < identifiers.valid_to)
