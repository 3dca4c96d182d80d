-- @stage      incremental key(household_id)
-- @owner      marketing
-- @expect     warn        known_coupon:  products > 0
with redemptions as (
    select
        *,
        cast(redemption_date as date) as redeemed_on,
        identifier_token('member_id', cast(household_id as varchar)) as token
    from raw.coupon_redemptions
    where household_id is not null
        and coupon_upc is not null
        and campaign_id is not null
    qualify row_number() over (
        partition by household_id, coupon_upc, campaign_id, redemption_date
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
),

coupons as (
    select
        coupon_upc,
        campaign_id,
        count(distinct product_id) as products
    from raw.coupons
    group by coupon_upc, campaign_id
)

select
    identifiers.customer_id as customer_id,
    redemptions.household_id as household_id,
    redemptions.coupon_upc as coupon_upc,
    redemptions.campaign_id as campaign_id,
    redemptions.redeemed_on as redeemed_on,
    coalesce(coupons.products, 0) as products
from redemptions
left join coupons
    on coupons.coupon_upc = redemptions.coupon_upc
    and coupons.campaign_id = redemptions.campaign_id
left join identity.identifiers on identity.identifiers.token = redemptions.token
