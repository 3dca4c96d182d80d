-- One row a parcel, at its last known state. It belongs to the customer of its order, since a parcel may go to somebody
-- else; only where the order is unknown does the consignee's phone decide.
-- @stage      full
-- @owner      logistics
-- @expect     fail        has_shipment_id:  shipment_id is not null
-- @expect     fail        unique_shipment:  count(*) = count(distinct shipment_id)
-- @expect     quarantine  has_time:         shipped_at is not null
-- @expect     quarantine  ordered_times:    delivered_at is null or delivered_at >= shipped_at
-- @expect     warn        known_status:     status in ('in_transit', 'delivered', 'exception', 'returned')
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
    coalesce(core.orders.customer_id, identifiers.customer_id) as customer_id, -- Unified customer id; null when nobody is known
    latest.shipment_id as shipment_id,                                         -- The carrier's key
    latest.order_id as order_id,                                               -- Order it carries
    latest.carrier as carrier,                                                 -- Carrier
    latest.shipped_at as shipped_at,                                           -- When it left
    latest.promised_at as promised_at,                                         -- When it was promised
    latest.delivered_at as delivered_at,                                       -- When it arrived; null while on the way, or lost
    lower(trim(latest.status)) as status,                                      -- in_transit, delivered, exception, returned
    nullif(trim(latest.exception), '') as exception                            -- What went wrong; null when nothing did
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers on identity.identifiers.token = latest.token
