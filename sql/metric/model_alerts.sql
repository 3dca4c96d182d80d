-- One row an alert about a trained model that is open: what the newest watch of its champion found beyond a bar, and what to
-- do. Watches add rows with `holdfast models watch`; the bars stand in the model's file.
-- @stage      full
-- @owner      data science
-- @expect     fail        has_key:       model is not null and subject is not null and measure is not null
-- @expect     warn        nothing_open:  count(*) = 0
with newest as (
    select
        metric.model_quality.model as model,
        max(metric.model_quality.watched_at) as watched_at
    from metric.model_quality
    group by metric.model_quality.model
)

select
    metric.model_quality.model as model,             -- The model: its file in the pipeline
    metric.model_quality.version as version,         -- The version that was champion
    metric.model_quality.kind as kind,               -- labels, score_drift, feature_drift, volume
    metric.model_quality.subject as subject,         -- score, a feature, or customers
    metric.model_quality.measure as measure,         -- auc, ece_10_bins, accuracy_at_0.50, psi, missing_share, count
    metric.model_quality.moment as moment,           -- Customers as of when
    metric.model_quality.customers as customers,     -- How many
    metric.model_quality.value as value,             -- What was measured
    metric.model_quality.low as low,                 -- Lower end of its 95 % interval; null where there is none
    metric.model_quality.high as high,               -- Upper end
    metric.model_quality.expected as expected,       -- The same when the version was judged; of psi what chance alone gives
    metric.model_quality.allowed as allowed,         -- The bar
    metric.model_quality.message as message,         -- What is wrong and what to do
    metric.model_quality.watched_at as watched_at    -- When it was looked
from metric.model_quality
inner join newest
    on newest.model = metric.model_quality.model
    and newest.watched_at = metric.model_quality.watched_at
where metric.model_quality.is_alert
