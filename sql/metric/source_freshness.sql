-- One row a source: how old the newest event and the newest delivery are now, and how often deliveries usually come. A delivery is what
-- follows within an hour of what came before. metric.alerts tells when that is too old; this is for looking at all sources together.
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:        pipeline is not null and source is not null
-- @expect     fail        unique_source:  count(*) = count(distinct pipeline || '/' || source)
with arrived as (
    select
        pipeline,
        source,
        batch,
        rows_read,
        event_time_max,
        finished_at,
        lag(finished_at) over (partition by pipeline, source order by batch) as finished_before
    from metric.ingest_batches
    where outcome = 'stored'
        and rows_read > 0
        and finished_at <= now()
),

sources as (
    select
        pipeline,
        source,
        max(batch) as newest_batch,
        max(finished_at) as arrived_at,
        min(finished_at) as first_arrived_at,
        -- An event of the future says nothing about how fresh a source is.
        max(case when event_time_max is not null then least(event_time_max, finished_at) end) as event_time_reached,
        count(*) filter (
            where finished_before is null or finished_at >= finished_before + interval '1 hour'
        ) as deliveries
    from arrived
    group by pipeline, source
)

select
    pipeline,                                                                                          -- Pipeline of the source
    source,                                                                                            -- The source
    newest_batch,                                                                                      -- Newest batch with records
    arrived_at,                                                                                        -- When it was recorded
    event_time_reached,                                                                                -- Newest event that has come
    (date_part('epoch', now()) - date_part('epoch', event_time_reached)) / 3600.0 as freshness_hours,  -- Age of that event
    (date_part('epoch', now()) - date_part('epoch', arrived_at)) / 3600.0 as silence_hours,            -- Time since the newest batch with records
    deliveries,                                                                                        -- Deliveries so far
    case
        when deliveries >= 2
            then (date_part('epoch', arrived_at) - date_part('epoch', first_arrived_at)) / 3600.0 / (deliveries - 1)
    end as interval_usual_hours                                                                        -- Mean time between deliveries
from sources
