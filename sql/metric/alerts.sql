-- One row an alert that is open: what about a source is not as its contract allows or as usual, since when, and what to do. Alerts are
-- opened and closed where batches are recorded, by the limits in the contract's section [quality].
-- @stage      full
-- @owner      data platform
-- @expect     fail        has_key:         pipeline is not null and source is not null and rule is not null
-- @expect     fail        known_severity:  severity in ('warning', 'critical')
-- @expect     warn        nothing_open:    count(*) = 0
with newest as (
    select *
    from metric.ingest_alerts
    qualify row_number() over (
        partition by pipeline, source, rule, column_name
        order by told desc
    ) = 1
)

select
    pipeline,    -- Pipeline of the source
    source,      -- The source
    rule,        -- refused_share, null_share, duplicate_share, late_share, freshness, volume
    column_name, -- Column that it is about; null for the source as a whole
    severity,    -- warning; critical when more than twice beyond the limit
    since,       -- Since when
    batch,       -- Newest batch that showed it when it was told
    value,       -- What was measured: a share, a part of what is usual, or seconds
    allowed,     -- What it may be
    message,     -- What was seen
    remedy       -- What to do about it
from newest
where state = 'open'
