-- One row a batch that was stored: what came, what was refused and moved on since, what came before or late, and how that is for its
-- source. What is usual is the mean of up to 14 batches before; with fewer than 5 of them nothing is compared. What somebody should
-- look at is in metric.alerts.
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:       pipeline is not null and source is not null and batch is not null
-- @expect     fail        unique_batch:  count(*) = count(distinct pipeline || '/' || source || '/' || cast(batch as varchar))
-- @expect     fail        nothing_lost:  rows_read = rows_stored + rows_quarantined
-- @expect     fail        moved_once:    rows_replayed <= rows_quarantined
-- @expect     warn        few_refused:   quarantined_share is null or quarantined_share <= 0.1
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

replayed as (
    select
        pipeline,
        source,
        batch,
        sum(rows_replayed) as rows_replayed
    from metric.ingest_replays
    group by pipeline, source, batch
),

judged as (
    select
        stored.*,
        coalesce(replayed.rows_replayed, 0) as rows_replayed,
        cast(stored.rows_quarantined as double) / nullif(stored.rows_read, 0) as quarantined_share,
        cast(stored.rows_late as double) / nullif(stored.rows_stored, 0) as late_share,
        cast(stored.duplicates_in_file + stored.duplicates_across_files as double)
            / nullif(stored.rows_stored, 0) as duplicate_share,
        case when batches_before >= 5 then stored.rows_read / nullif(stored.rows_usual, 0) end as volume_ratio,
        coalesce(stored.event_time_min < stored.event_time_reached, false) as has_late_rows
    from stored
    left join replayed
        on replayed.pipeline = stored.pipeline
        and replayed.source = stored.source
        and replayed.batch = stored.batch
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
    rows_stored,                                                             -- Records that went to raw at once
    rows_quarantined,                                                        -- Records that went to quarantine
    rows_replayed,                                                           -- Of these, records that replays have moved to raw since
    quarantined_share,                                                       -- Refused records by records read; null for an empty batch
    duplicates_in_file,                                                      -- Stored records whose key stands earlier in their file; null without a key
    duplicates_across_files,                                                 -- Stored records whose key came in another file; null without a key
    duplicate_share,                                                         -- Both by stored records
    event_time_min,                                                          -- Earliest event of the batch
    event_time_max,                                                          -- Latest event of the batch
    (date_part('epoch', finished_at) - date_part('epoch', event_time_max)) / 3600.0 as lag_hours, -- From the latest event to the record
    has_late_rows,                                                           -- Some events are older than what earlier batches had reached
    rows_late,                                                               -- Events older than that by more than the contract's late_after
    late_share,                                                              -- The same by stored records
    rows_usual,                                                              -- Mean records of up to 14 batches before
    volume_ratio                                                             -- Records read by the usual number; null with fewer than 5 batches before
from judged
