-- One row a customer whom the trained model has scored: the feature view `churn`, so that `churn:score` is asked over Flight
-- and online as every other feature is. Written by `holdfast score`; who has been away for longer than the model's
-- observation window has no row, and nobody has one before a first champion has scored.
-- @stage      incremental key(customer_id)
-- @feature    online
-- @owner      data science
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        is_probability:   score > 0 and score < 1
select
    risk.churn_probability.customer_id as customer_id,         -- Unified customer id
    risk.churn_probability.as_of as event_timestamp,           -- The moment at which the features of the score were known
    risk.churn_probability.probability as score,               -- Calibrated probability of churn, 0 to 1
    risk.churn_probability.band as band,                       -- high, medium or low, by the bars of the model's file
    risk.churn_probability.model_version as model_version,     -- The version that scored: model.versions
    risk.churn_probability.raises_1 as raises_1,               -- What raises the score most; null where nothing does
    risk.churn_probability.raises_2 as raises_2,               -- Second
    risk.churn_probability.raises_3 as raises_3,               -- Third
    risk.churn_probability.lowers_1 as lowers_1,               -- What lowers the score most; null where nothing does
    risk.churn_probability.lowers_2 as lowers_2                -- Second
from risk.churn_probability
where risk.churn_probability.customer_id is not null
