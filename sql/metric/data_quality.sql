-- One row a batch that was stored: what came, what was refused, how late it was, and whether that is usual for its source. What
-- is usual is the mean of up to 14 batches before; with fewer than 5 of them nothing is called unusual.
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:        pipeline is not null and source is not null and batch is not null
-- @expect     fail        unique_batch:   count(*) = count(distinct pipeline || '/' || source || '/' || cast(batch as varchar))
-- @expect     fail        nothing_lost:   rows_read = rows_stored + rows_quarantined
-- @expect     warn        few_refused:    quarantined_share is null or quarantined_share <= 0.1
with stored as (
    select
        *,
        avg(cast(rows_read as double)) over before as rows_usual,
        count(*) over before as batches_before,
        max(event_time_max) over (
            partition by pipeline, source
            order by batch
            rows between unbounded preceding and 1 preceding
        ) as event_time_reached
    from metric.ingest_batches
    where outcome = 'stored'
    window before as (
        partition by pipeline, source
        order by batch
        rows between 14 preceding and 1 preceding
    )
),

judged as (
    select
        *,
        cast(rows_quarantined as double) / nullif(rows_read, 0) as quarantined_share,
        case when batches_before >= 5 then rows_read / nullif(rows_usual, 0) end as volume_ratio,
        coalesce(event_time_min < event_time_reached, false) as has_late_rows
    from stored
)

select
    pipeline,                                                                -- Pipeline of the source
    source,                                                                  -- Source of the batch
    batch,                                                                   -- Batch, counted per source from 1
    finished_at,                                                             -- When the batch was recorded
    date_part('epoch', finished_at) - date_part('epoch', started_at) as seconds_taken, -- From the beginning of reading to the record
    files,                                                                   -- Files of the batch
    bytes,                                                                   -- Bytes of the files
    rows_read,                                                               -- Records read
    rows_stored,                                                             -- Records in raw
    rows_quarantined,                                                        -- Records in quarantine
    quarantined_share,                                                       -- Refused records by records read; null for an empty batch
    event_time_min,                                                          -- Earliest event of the batch
    event_time_max,                                                          -- Latest event of the batch
    (date_part('epoch', finished_at) - date_part('epoch', event_time_max)) / 3600.0 as lag_hours, -- From the latest event to the record
    has_late_rows,                                                           -- Some events are older than what earlier batches had reached
    rows_usual,                                                              -- Mean records of up to 14 batches before
    volume_ratio,                                                            -- Records read by the usual number; null with fewer than 5 batches before
    concat_ws(
        ', ',
        case when quarantined_share > 0.1 then 'many refused' end,
        case when volume_ratio < 0.5 then 'small' end,
        case when volume_ratio > 2.0 then 'large' end
    ) as alerts                                                              -- What somebody should look at: many refused, small, large; empty for none
from judged
