-- A day's file counts as it was last delivered.
-- @stage      incremental key(invoice_no)
-- @owner      commerce data
-- @expect     fail        exact_amount:           line_amount = quantity * unit_price
-- @expect     warn        cancelled_is_negative:  not is_cancellation or quantity < 0
-- @expect     warn        mostly_known:           count(customer_id) * 2 >= count(*)
with newest as (
    select
        _source_file,
        max(_batch) as _batch
    from raw.invoice_lines
    group by _source_file
),

delivered as (
    select
        raw.invoice_lines.*,
        upper(trim(raw.invoice_lines.stock_code)) as product_code,
        identifier_token('member_id', regexp_replace(raw.invoice_lines.customer_no, '[.]0$', '')) as token,
        row_number() over (
            partition by raw.invoice_lines.invoice_no
            order by raw.invoice_lines._source_file, raw.invoice_lines._source_line
        ) as line_no
    from raw.invoice_lines
    inner join newest
        on newest._source_file = raw.invoice_lines._source_file
        and newest._batch = raw.invoice_lines._batch
    where raw.invoice_lines.invoice_no is not null
)

select
    identifiers.customer_id as customer_id,
    delivered.invoice_no as invoice_no,
    delivered.line_no as line_no,
    delivered.invoiced_at as invoiced_at,
    delivered.product_code as stock_code,
    trim(delivered.description) as description,
    case
        when delivered.product_code in ('POST', 'DOT', 'C2') then 'delivery'
        when delivered.product_code = 'D' then 'discount'
        when delivered.product_code = 'S' then 'sample'
        when delivered.product_code = 'M' then 'manual'
        when delivered.product_code in ('AMAZONFEE', 'BANK CHARGES', 'CRUK', 'B') then 'fee'
        when delivered.product_code like 'GIFT\_%' escape '\' then 'voucher'
        else 'goods'
    end as line_type,
    delivered.invoice_no like 'C%' as is_cancellation,
    delivered.quantity as quantity,
    'GBP' as currency,
    delivered.unit_price as unit_price,
    cast(delivered.quantity * delivered.unit_price as decimal(18, 3)) as line_amount,
    delivered.country as country
from delivered
left join identity.identifiers on identity.identifiers.token = delivered.token
