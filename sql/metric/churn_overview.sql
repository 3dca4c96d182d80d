-- One row a life-cycle stage and risk band that has customers: how many, and what revenue depends on them. The revenue at
-- risk is the spend of the last 365 days weighted with the probability of losing it; negative spend counts as none.
-- @stage      full
-- @owner      retention
-- @expect     fail        has_key:     lifecycle_stage is not null and risk_band is not null
-- @expect     fail        unique_key:  count(*) = count(distinct lifecycle_stage || '/' || risk_band)
-- @expect     fail        some:        customers > 0
-- @expect     warn        not_empty:   count(*) > 0
with customers as (
    select
        lifecycle_stage,
        risk_band,
        is_valued,
        churn_probability,
        greatest(cast(spend_365d as double), 0.0) as spend_365d
    from risk.churn_score
)

select
    lifecycle_stage,                                                                -- new, growing, mature, silent, churned
    risk_band,                                                                      -- high, medium, low
    count(*) as customers,                                                          -- Customers
    count(*) filter (where is_valued) as valued_customers,                          -- Customers with 2000 CNY and more in 365 days
    round(avg(churn_probability), 4) as average_probability,                        -- Mean churn probability
    cast(sum(spend_365d) as decimal(18, 2)) as spend_365d,                          -- Net spend, last 365 days
    cast(sum(spend_365d * churn_probability) as decimal(18, 2)) as revenue_at_risk, -- Spend times probability, summed
    'CNY' as currency                                                               -- ISO 4217 code of all amounts in the row
from customers
group by
    lifecycle_stage,
    risk_band
