-- Tills number their receipts anew, so a receipt is known by store, till, local day and number together; a line that
-- was sent twice counts once. Tills report in CNY.
-- @stage      incremental key(receipt_id)
-- @owner      store data
-- @expect     quarantine  sane_quantity:  quantity <> 0 and abs(quantity) < 10000
-- @expect     warn        sign_agrees:    line_amount = 0 or (line_amount > 0) = (quantity > 0)
with keyed as (
    select
        *,
        concat_ws(
            '/',
            store_code,
            till_no,
            cast(cast(sold_at at time zone '+08:00' as date) as varchar),
            receipt_no
        ) as receipt_id,
        coalesce(
            identifier_token('member_id', member_card),
            identifier_token('phone', mobile)
        ) as token
    from raw.receipts
    where receipt_no is not null
        and line_no is not null
),

latest as (
    select *
    from keyed
    qualify row_number() over (
        partition by receipt_id, line_no
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.receipt_id as receipt_id,
    latest.line_no as line_no,
    latest.sold_at as sold_at,
    latest.store_code as store_code,
    latest.till_no as till_no,
    latest.sku_code as product_id,
    sku_map.product_key as product_key,
    lower(trim(latest.category)) as category,
    latest.quantity as quantity,
    'CNY' as currency,
    latest.unit_price as unit_price,
    latest.line_amount as line_amount,
    lower(trim(latest.tender)) as tender
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.sold_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.sold_at < identifiers.valid_to)
left join core.sku_map as sku_map
    on sku_map.system = 'till'
    and sku_map.code = upper(trim(latest.sku_code))
