-- One row a field that records of a source have and its contract has not: how many rows had it, and since when. Its values
-- are kept in raw.<source>._unknown; a column of that name in the contract takes what comes from then on.
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:       pipeline is not null and source is not null and field is not null
-- @expect     fail        unique_field:  count(*) = count(distinct pipeline || '/' || source || '/' || field)
with stored as (
    select
        pipeline,
        source,
        batch,
        max(batch) over (partition by pipeline, source) as newest_batch
    from metric.ingest_batches
    where outcome = 'stored'
)

select
    noted.pipeline as pipeline,               -- Pipeline of the source
    noted.source as source,                   -- Source
    noted.field as field,                     -- Field, with dots into structs; (other) for what cannot be named
    sum(noted.rows) as rows,                  -- Rows that have it
    count(*) as batches,                      -- Batches with such rows
    min(noted.batch) as first_batch,          -- The first of them
    min(noted.seen_at) as first_seen_at,      -- When that was read
    max(noted.seen_at) as last_seen_at,       -- When the last of them was read
    max(noted.batch) = max(stored.newest_batch) as is_current -- Whether the newest batch of the source has it
from metric.ingest_unknown_fields as noted
inner join stored
    on stored.pipeline = noted.pipeline
    and stored.source = noted.source
    and stored.batch = noted.batch
group by noted.pipeline, noted.source, noted.field
