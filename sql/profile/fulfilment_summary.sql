-- One row a customer with parcels: delivery promises kept or broken. A parcel delivered after now() is still on its way at
-- now(). Carriers do not date their exceptions: the counts of exceptions hold what is known of parcels shipped by now().
-- @stage      incremental key(customer_id)
-- @owner      logistics
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        late_is_part:     parcels_late_365d <= parcels_365d
with known as (
    select
        *,
        case when delivered_at <= now() then delivered_at end as known_delivered_at,
        coalesce(case when delivered_at <= now() then delivered_at end, now()) > promised_at as is_late
    from core.shipments
    where customer_id is not null
        and shipped_at <= now()
),

summary as (
    select
        customer_id,
        max(shipped_at) as last_shipped_at,
        count(*) filter (where shipped_at > now() - interval '90 days') as parcels_90d,
        count(*) filter (where shipped_at > now() - interval '365 days') as parcels_365d,
        count(*) filter (where is_late and shipped_at > now() - interval '90 days') as parcels_late_90d,
        count(*) filter (where is_late and shipped_at > now() - interval '365 days') as parcels_late_365d,
        count(*) filter (where is_late and known_delivered_at is null and shipped_at > now() - interval '90 days') as parcels_overdue,
        count(*) filter (where exception is not null and shipped_at > now() - interval '365 days') as parcel_exceptions_365d,
        avg(cast(date_part('epoch', known_delivered_at) - date_part('epoch', shipped_at) as bigint))
            filter (where shipped_at > now() - interval '365 days') / 86400.0 as delivery_days_365d,
        max((date_part('epoch', known_delivered_at) - date_part('epoch', promised_at)) / 86400.0)
            filter (where is_late and shipped_at > now() - interval '90 days') as worst_delay_days_90d
    from known
    group by customer_id
)

select
    customer_id,                                                                    -- Unified customer id
    last_shipped_at,                                                                -- Last parcel sent
    parcels_90d,                                                                    -- Parcels sent, last 90 days
    parcels_365d,                                                                   -- Parcels sent, last 365 days
    parcels_late_90d,                                                               -- Parcels later than promised, sent in the last 90 days
    parcels_late_365d,                                                              -- Parcels later than promised, sent in the last 365 days
    cast(parcels_late_365d as double) / nullif(parcels_365d, 0) as late_share_365d, -- Share of parcels later than promised, last 365 days
    parcels_overdue,                                                                -- Parcels of the last 90 days not delivered though promised by now
    parcel_exceptions_365d,                                                         -- Parcels with an exception, sent in the last 365 days
    delivery_days_365d,                                                             -- Mean days from sending to delivery, last 365 days
    worst_delay_days_90d                                                            -- Longest delay of a delivered parcel in days, sent in the last 90 days
from summary
