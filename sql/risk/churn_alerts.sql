-- One row a customer whose trained score is an alert: how severe, by which threshold, and why. Thresholds have seasons and
-- segments (model.thresholds, from thresholds.toml in the pipeline): a customer's own segment, their stage of the life
-- cycle, counts before everybody's. The day is China's day of the features. A score on whose day no threshold holds stops
-- the stage, so that nobody is passed over in silence.
-- @stage      full
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        has_threshold:    threshold is not null
-- @expect     fail        is_reached:       probability >= threshold
with scored as (
    select
        risk.churn_probability.customer_id,
        risk.churn_probability.model,
        risk.churn_probability.model_version,
        risk.churn_probability.as_of,
        risk.churn_probability.probability,
        risk.churn_probability.raises_1,
        risk.churn_probability.raises_2,
        risk.churn_probability.raises_3,
        profile.lifecycle.lifecycle_stage,
        cast(risk.churn_probability.as_of + interval '8 hours' as date) as scored_on
    from risk.churn_probability
    left join profile.lifecycle on profile.lifecycle.customer_id = risk.churn_probability.customer_id
),

judged as (
    select
        scored.customer_id,
        scored.model,
        scored.model_version,
        scored.as_of,
        scored.probability,
        scored.raises_1,
        scored.raises_2,
        scored.raises_3,
        scored.lifecycle_stage,
        coalesce(own.segment, everybody.segment) as segment,
        coalesce(own.season, everybody.season) as season,
        coalesce(own.high, everybody.high) as high,
        coalesce(own.medium, everybody.medium) as medium,
        coalesce(own.version, everybody.version) as thresholds_version
    from scored
    left join model.thresholds as own
        on own.model = scored.model
        and own.segment = scored.lifecycle_stage
        and own.valid_from <= scored.scored_on
        and (own.valid_to is null or own.valid_to > scored.scored_on)
    left join model.thresholds as everybody
        on everybody.model = scored.model
        and everybody.segment = 'everybody'
        and everybody.valid_from <= scored.scored_on
        and (everybody.valid_to is null or everybody.valid_to > scored.scored_on)
)

select
    judged.customer_id as customer_id,                                           -- Unified customer id
    case when judged.probability >= judged.high then 'high' else 'medium' end as severity, -- high or medium
    judged.probability as probability,                                           -- Calibrated probability of churn, 0 to 1
    case when judged.probability >= judged.high then judged.high else judged.medium end as threshold, -- The threshold that it reached
    judged.segment as segment,                                                   -- Whose threshold: the stage of the life cycle, or everybody
    judged.season as season,                                                     -- What the days of the threshold are called
    judged.lifecycle_stage as lifecycle_stage,                                   -- new, growing, mature, silent, churned
    judged.raises_1 as raises_1,                                                 -- What raises the score most; null where nothing does
    judged.raises_2 as raises_2,                                                 -- Second
    judged.raises_3 as raises_3,                                                 -- Third
    judged.model as model,                                                       -- The model: its file in the pipeline
    judged.model_version as model_version,                                       -- The version that scored: model.versions
    judged.thresholds_version as thresholds_version,                             -- The version of the thresholds: model.thresholds
    judged.as_of as as_of                                                        -- The moment at which the features of the score were known
from judged
where judged.medium is null or judged.probability >= judged.medium
