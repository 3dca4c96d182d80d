-- One row a household that has bought, up to now(): value, rhythm, assortment, prices, campaigns and what is known of the
-- people. A purchase is a basket. Spend is what the household paid: what the grocer received less manufacturers' coupons.
-- Windows end at now() and are counted back in days; days and hours are those of New York. The life cycle follows the
-- churn pack, with g = the usual gap between purchase days (median; 30 when there are fewer than three purchase days); the
-- first rule that holds decides:
--   churned  no purchase for more than max(90, 3 g) days
--   silent   no purchase for more than max(30, min(2 g, g + 30)) days
--   new      at most 3 purchases
--   mature   at least 10 purchases
--   growing  everybody else
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        not_in_future:    last_purchase_at <= now()
-- @expect     fail        known_stage:      lifecycle_stage in ('new', 'growing', 'mature', 'silent', 'churned')
-- @expect     warn        windows_nest:     purchases_30d <= purchases_90d and purchases_90d + purchases_prev_90d <= purchases
-- @expect     warn        shares_in_range:  own_brand_share_90d between 0 and 1 and discount_share_90d between 0 and 1 and promoted_share_90d between 0 and 1
-- @tag        pii(age_band)
-- @tag        pii(income_band)
-- @tag        pii(marital_status)
with known as (
    select
        *,
        purchased_at > now() - interval '90 days' as is_90d,
        purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days' as is_prev_90d,
        date_part('hour', purchased_at at time zone 'America/New_York') as local_hour,
        date_part('dow', purchased_at at time zone 'America/New_York') as local_weekday
    from core.baskets
    where customer_id is not null
        and purchased_at <= now()
),

summary as (
    select
        customer_id,
        min(purchased_at) as first_purchase_at,
        max(purchased_at) as last_purchase_at,
        max(week) as last_purchase_week,
        count(*) as purchases,
        count(*) filter (where purchased_at > now() - interval '30 days') as purchases_30d,
        count(*) filter (where purchased_at > now() - interval '60 days' and purchased_at <= now() - interval '30 days') as purchases_prev_30d,
        count(*) filter (where is_90d) as purchases_90d,
        count(*) filter (where is_prev_90d) as purchases_prev_90d,
        count(distinct store_id) as stores,
        sum(paid_amount) as spend,
        sum(case when purchased_at > now() - interval '30 days' then paid_amount else 0 end) as spend_30d,
        sum(case when is_90d then paid_amount else 0 end) as spend_90d,
        sum(case when is_prev_90d then paid_amount else 0 end) as spend_prev_90d,
        sum(case when purchased_at > now() - interval '365 days' then paid_amount else 0 end) as spend_365d,
        sum(fuel_value) as fuel_value,
        sum(case when is_90d then sales_value - fuel_value else 0 end) as goods_90d,
        sum(case when is_90d then own_brand_value else 0 end) as own_brand_90d,
        sum(case when is_90d then list_amount else 0 end) as list_90d,
        sum(case when is_90d then loyalty_discount + coupon_match_discount else 0 end) as discount_90d,
        sum(coupon_discount) as coupon_discount,
        count(*) filter (where is_90d and local_weekday in (0, 6)) as weekend_purchases_90d,
        count(*) filter (where is_90d and (local_hour >= 22 or local_hour < 6)) as night_purchases_90d
    from known
    group by customer_id
),

purchase_days as (
    select distinct
        customer_id,
        purchase_date
    from known
),

gaps as (
    select
        customer_id,
        purchase_date,
        purchase_date - lag(purchase_date) over (
            partition by customer_id
            order by purchase_date
        ) as gap_days
    from purchase_days
),

rhythm as (
    select
        customer_id,
        count(*) as purchase_days,
        max(purchase_date) as last_purchase_date,
        max(gap_days) as longest_gap_days,
        case when count(*) >= 3 then median(cast(gap_days as double)) else 30.0 end as usual_gap_days
    from gaps
    group by customer_id
),

assortment as (
    select
        customer_id,
        count(distinct product_id) as products,
        count(distinct case when purchased_at > now() - interval '90 days' then department end) as departments_90d,
        count(distinct case when purchased_at > now() - interval '90 days' then product_category end) as categories_90d,
        count(distinct case
            when purchased_at > now() - interval '180 days' and purchased_at <= now() - interval '90 days' then product_category
        end) as categories_prev_90d,
        count(*) filter (
            where purchased_at > now() - interval '90 days' and (is_displayed or is_mailed)
        ) as promoted_lines_90d,
        count(*) filter (where purchased_at > now() - interval '90 days' and is_displayed is not null) as watched_lines_90d
    from core.transactions
    where customer_id is not null
        and purchased_at <= now()
    group by customer_id
),

campaigns as (
    select
        customer_id,
        count(*) as campaigns,
        count(*) filter (where ended_on >= cast((now() - interval '90 days') at time zone 'UTC' at time zone 'America/New_York' as date)) as campaigns_90d,
        count(*) filter (where campaign_type = 'Type A') as personal_campaigns
    from core.campaign_touches
    where customer_id is not null
        and started_on <= cast(now() at time zone 'UTC' at time zone 'America/New_York' as date)
    group by customer_id
),

redemptions as (
    select
        customer_id,
        count(*) as redemptions,
        count(*) filter (where redeemed_on > cast((now() - interval '90 days') at time zone 'UTC' at time zone 'America/New_York' as date)) as redemptions_90d,
        max(redeemed_on) as last_redemption_on
    from core.coupon_redemptions
    where customer_id is not null
        and redeemed_on <= cast(now() at time zone 'UTC' at time zone 'America/New_York' as date)
    group by customer_id
),

households as (
    select *
    from core.households
    where customer_id is not null
    qualify row_number() over (
        partition by customer_id
        order by household_id
    ) = 1
),

profiles as (
    select
        summary.*,
        rhythm.purchase_days,
        rhythm.longest_gap_days,
        rhythm.usual_gap_days,
        cast(now() at time zone 'UTC' at time zone 'America/New_York' as date) - rhythm.last_purchase_date as days_since_purchase
    from summary
    inner join rhythm on rhythm.customer_id = summary.customer_id
)

select
    profiles.customer_id as customer_id,                                   -- Unified customer id of the household
    profiles.first_purchase_at as first_purchase_at,                       -- First purchase
    profiles.last_purchase_at as last_purchase_at,                         -- Last purchase
    profiles.last_purchase_week as last_purchase_week,                     -- Week of the last purchase, 1 to 53
    case
        when profiles.days_since_purchase > greatest(90.0, 3 * profiles.usual_gap_days) then 'churned'
        when profiles.days_since_purchase > greatest(30.0, least(2 * profiles.usual_gap_days, profiles.usual_gap_days + 30)) then 'silent'
        when profiles.purchases <= 3 then 'new'
        when profiles.purchases >= 10 then 'mature'
        else 'growing'
    end as lifecycle_stage,                                                -- new, growing, mature, silent, churned
    profiles.days_since_purchase as days_since_purchase,                   -- Days since the last purchase day
    profiles.purchase_days as purchase_days,                               -- Days with a purchase
    profiles.purchase_days >= 3 as has_personal_gap,                       -- Whether the usual gap is the household's own, not the default
    profiles.usual_gap_days as usual_gap_days,                             -- Usual days between purchase days; 30 by default
    profiles.longest_gap_days as longest_gap_days,                         -- Longest days between purchase days; null with one purchase day
    profiles.days_since_purchase / profiles.usual_gap_days as overdue_ratio, -- Days since the last purchase over the usual gap; 1 is on time
    profiles.purchases as purchases,                                       -- Purchases
    profiles.purchases_30d as purchases_30d,                               -- Purchases, last 30 days
    profiles.purchases_prev_30d as purchases_prev_30d,                     -- Purchases, the 30 days before
    profiles.purchases_90d as purchases_90d,                               -- Purchases, last 90 days
    profiles.purchases_prev_90d as purchases_prev_90d,                     -- Purchases, the 90 days before the last 90
    profiles.stores as stores,                                             -- Different stores
    'USD' as currency,                                                     -- ISO 4217 code of all amounts in the row
    cast(profiles.spend as decimal(18, 2)) as spend,                       -- Spend
    cast(profiles.spend_30d as decimal(18, 2)) as spend_30d,               -- Spend, last 30 days
    cast(profiles.spend_90d as decimal(18, 2)) as spend_90d,               -- Spend, last 90 days
    cast(profiles.spend_prev_90d as decimal(18, 2)) as spend_prev_90d,     -- Spend, the 90 days before
    cast(profiles.spend_365d as decimal(18, 2)) as spend_365d,             -- Spend, last 365 days
    cast(profiles.spend_90d as double) / nullif(profiles.purchases_90d, 0) as average_basket_90d, -- Spend a purchase, last 90 days; null without purchases
    cast(profiles.spend_prev_90d as double) / nullif(profiles.purchases_prev_90d, 0) as average_basket_prev_90d, -- Spend a purchase, the 90 days before
    cast(profiles.fuel_value as decimal(18, 2)) as fuel_value,             -- Fuel bought
    coalesce(assortment.products, 0) as products,                          -- Different products
    coalesce(assortment.departments_90d, 0) as departments_90d,            -- Different departments, last 90 days
    coalesce(assortment.categories_90d, 0) as categories_90d,              -- Different product categories, last 90 days
    coalesce(assortment.categories_prev_90d, 0) as categories_prev_90d,    -- Different product categories, the 90 days before
    cast(profiles.own_brand_90d as double) / nullif(cast(profiles.goods_90d as double), 0) as own_brand_share_90d, -- The grocer's own brand as a share of goods, last 90 days
    cast(profiles.discount_90d as double) / nullif(cast(profiles.list_90d as double), 0) as discount_share_90d, -- Discounts of the grocer as a share of shelf prices, last 90 days
    cast(assortment.promoted_lines_90d as double) / nullif(assortment.watched_lines_90d, 0) as promoted_share_90d, -- Share of lines on display or in the mailer, last 90 days; null outside watched stores
    cast(profiles.coupon_discount as decimal(18, 2)) as coupon_discount,   -- Paid by manufacturers' coupons
    cast(profiles.weekend_purchases_90d as double) / nullif(profiles.purchases_90d, 0) as weekend_purchase_share_90d, -- Share of purchases on Saturday and Sunday, last 90 days
    cast(profiles.night_purchases_90d as double) / nullif(profiles.purchases_90d, 0) as night_purchase_share_90d, -- Share of purchases from 22 to 6 o'clock, last 90 days
    coalesce(campaigns.campaigns, 0) as campaigns,                         -- Campaigns the household was in
    coalesce(campaigns.campaigns_90d, 0) as campaigns_90d,                 -- Of these, running within the last 90 days
    coalesce(campaigns.personal_campaigns, 0) as personal_campaigns,       -- Of these, with coupons chosen for the household
    coalesce(redemptions.redemptions, 0) as redemptions,                   -- Coupons of campaigns redeemed
    coalesce(redemptions.redemptions_90d, 0) as redemptions_90d,           -- Coupons of campaigns redeemed, last 90 days
    redemptions.last_redemption_on as last_redemption_on,                  -- Last day a coupon was redeemed; null without one
    households.age_band as age_band,                                       -- Age of the head, in years; null when not known
    households.income_band as income_band,                                 -- Income a year, thousands of USD; null when not known
    households.marital_status as marital_status,                           -- married, unmarried; null when not known
    households.home_ownership as home_ownership,                           -- homeowner, renter and probable ones; null when not known
    households.household_size as household_size,                           -- Persons: 1 to 4, 5+; null when not known
    households.household_composition as household_composition,             -- Adults and children, in words; null when not known
    households.children as children                                        -- Children: 0 to 2, 3+; null when not known
from profiles
left join assortment on assortment.customer_id = profiles.customer_id
left join campaigns on campaigns.customer_id = profiles.customer_id
left join redemptions on redemptions.customer_id = profiles.customer_id
left join households on households.customer_id = profiles.customer_id
