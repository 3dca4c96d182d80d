-- One row a column of a batch that was stored: how often it was empty, and how often it was in up to 14 batches before.
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:     pipeline is not null and source is not null and batch is not null and column_name is not null
-- @expect     fail        sane_count:  nulls between 0 and rows_stored
with listed as (
    select
        pipeline,
        source,
        batch,
        finished_at,
        rows_stored,
        unnest(column_nulls) as counted
    from metric.ingest_batches
    where outcome = 'stored'
),

counted as (
    select
        pipeline,
        source,
        batch,
        finished_at,
        rows_stored,
        counted['column'] as column_name,
        counted['nulls'] as nulls
    from listed
)

select
    pipeline,                                                             -- Pipeline of the source
    source,                                                               -- Source of the batch
    batch,                                                                -- Batch, counted per source from 1
    column_name,                                                          -- Column in raw
    finished_at,                                                          -- When the batch was recorded
    rows_stored,                                                          -- Records of the batch in raw
    nulls,                                                                -- Of these, records in which the column is empty
    cast(nulls as double) / nullif(rows_stored, 0) as null_share,         -- Empty by stored records; null for a batch without any
    cast(sum(nulls) over before as double) / nullif(sum(rows_stored) over before, 0) as null_share_usual -- The same of up to 14 batches before
from counted
window before as (
    partition by pipeline, source, column_name
    order by batch
    rows between 14 preceding and 1 preceding
)
