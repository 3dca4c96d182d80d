-- One row a customer who has bought: the stage of their life cycle at now(), judged by their own rhythm. With
-- g = the usual gap between purchase days (profile.purchase_rhythm), the first rule that holds decides:
--   churned  no purchase for more than max(90, 3 g) days
--   silent   no purchase for more than max(30, min(2 g, g + 30)) days
--   new      at most 3 purchases
--   mature   at least 10 purchases, or a stable rhythm: at least 5 purchase days whose gaps vary by at most 50 %
--   growing  everybody else
-- 90 and 30 days, 3 and 10 purchases are the defaults of the churn pack; the multiples of g keep a customer who buys
-- twice a year from being called churned each time.
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        known_stage:      lifecycle_stage in ('new', 'growing', 'mature', 'silent', 'churned')
-- @expect     fail        silent_first:     silent_after_days < churned_after_days
-- @expect     warn        not_all_churned:  count(*) = 0 or count(*) filter (where lifecycle_stage = 'churned') < count(*)
with rhythm as (
    select
        profile.purchase_rhythm.customer_id,
        profile.purchase_rhythm.purchase_days,
        profile.purchase_rhythm.last_purchase_date,
        profile.purchase_rhythm.has_personal_gap,
        profile.purchase_rhythm.usual_gap_days,
        profile.purchase_rhythm.gap_variation,
        profile.purchase_summary.purchases,
        cast(now() + interval '8 hours' as date) - profile.purchase_rhythm.last_purchase_date as days_since_purchase,
        greatest(
            30.0,
            least(2 * profile.purchase_rhythm.usual_gap_days, profile.purchase_rhythm.usual_gap_days + 30)
        ) as silent_after_days,
        greatest(90.0, 3 * profile.purchase_rhythm.usual_gap_days) as churned_after_days
    from profile.purchase_rhythm
    inner join profile.purchase_summary
        on profile.purchase_summary.customer_id = profile.purchase_rhythm.customer_id
)

select
    customer_id,                                           -- Unified customer id
    case
        when days_since_purchase > churned_after_days then 'churned'
        when days_since_purchase > silent_after_days then 'silent'
        when purchases <= 3 then 'new'
        when purchases >= 10 then 'mature'
        when purchase_days >= 5 and gap_variation <= 0.5 then 'mature'
        else 'growing'
    end as lifecycle_stage,                                -- new, growing, mature, silent, churned
    purchases,                                             -- Purchases, lifetime
    days_since_purchase,                                   -- Days since the last purchase day, China time
    has_personal_gap,                                      -- Whether the usual gap is the customer's own, not the default
    usual_gap_days,                                        -- Usual days between purchase days
    days_since_purchase / usual_gap_days as overdue_ratio, -- Days since the last purchase over the usual gap; 1 is on time
    silent_after_days,                                     -- Silent when quiet for more days than this
    churned_after_days                                     -- Churned when quiet for more days than this
from rhythm
