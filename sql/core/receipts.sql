-- One row a line of a till receipt. Tills number their receipts anew, so a receipt is known by store, till, local day and
-- number together; a line that was sent twice counts once. Most receipts carry no card: their customer_id is null, and
-- they stay here for store figures. Negative quantities are goods brought back. Tills report in CNY.
-- @stage      full
-- @owner      store data
-- @expect     fail        has_receipt:    receipt_id is not null and line_no is not null
-- @expect     fail        unique_line:    count(*) = count(distinct receipt_id || '/' || cast(line_no as varchar))
-- @expect     quarantine  has_time:       sold_at is not null
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
    identifiers.customer_id as customer_id,   -- Unified customer id; null when no card was shown
    latest.receipt_id as receipt_id,          -- Store, till, local day and receipt number
    latest.line_no as line_no,                -- Line number within the receipt
    latest.sold_at as sold_at,                -- When the till closed the receipt
    latest.store_code as store_code,          -- Store
    latest.till_no as till_no,                -- Till
    latest.sku_code as product_id,            -- Product, in the tills' numbering
    lower(trim(latest.category)) as category, -- Product category
    latest.quantity as quantity,              -- Pieces; negative for goods brought back
    'CNY' as currency,                        -- ISO 4217 code of all amounts in the row
    latest.unit_price as unit_price,          -- Price of a piece
    latest.line_amount as line_amount,        -- What the line cost; negative for goods brought back
    lower(trim(latest.tender)) as tender      -- cash, card, wechat_pay, alipay
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
