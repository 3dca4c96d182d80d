-- One row a line of an invoice, as the shop wrote it: sales, cancellations (invoice numbers with C), adjustments of bad debt
-- (with A) and goods written off. Lines of nobody known stay here without a customer, so that sums are the shop's. Equal
-- lines of one invoice are several lines: the shop scanned a product twice. A day's file counts as it was last delivered.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_key:               invoice_no is not null and line_no is not null
-- @expect     fail        unique_line:           count(*) = count(distinct invoice_no || '/' || cast(line_no as varchar))
-- @expect     fail        exact_amount:          line_amount = quantity * unit_price
-- @expect     quarantine  has_time:              invoiced_at is not null
-- @expect     quarantine  has_amount:            line_amount is not null
-- @expect     warn        cancelled_is_negative: not is_cancellation or quantity < 0
-- @expect     warn        mostly_known:          count(customer_id) * 2 >= count(*)
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
    identifiers.customer_id as customer_id,              -- Unified customer id; null when the shop did not write down who it was
    delivered.invoice_no as invoice_no,                  -- The shop's number of the invoice; C… cancels, A… adjusts
    delivered.line_no as line_no,                        -- Line number within the invoice, in the order of the files
    delivered.invoiced_at as invoiced_at,                -- When it was written
    delivered.product_code as stock_code,                -- Product, in capitals (the shop writes 85123A and 85123a)
    trim(delivered.description) as description,          -- Product name, or a note on goods written off
    case
        when delivered.product_code in ('POST', 'DOT', 'C2') then 'delivery'
        when delivered.product_code = 'D' then 'discount'
        when delivered.product_code = 'S' then 'sample'
        when delivered.product_code = 'M' then 'manual'
        when delivered.product_code in ('AMAZONFEE', 'BANK CHARGES', 'CRUK', 'B') then 'fee'
        when delivered.product_code like 'GIFT\_%' escape '\' then 'voucher'
        else 'goods'
    end as line_type,                                    -- goods, delivery, discount, sample, manual, fee, voucher
    delivered.invoice_no like 'C%' as is_cancellation,   -- Whether the line takes back what an earlier invoice sold
    delivered.quantity as quantity,                      -- Pieces; negative when goods go back or are written off
    'GBP' as currency,                                   -- ISO 4217 code of all amounts in the row
    delivered.unit_price as unit_price,                  -- Price of a piece; 0 for goods written off or given away
    cast(delivered.quantity * delivered.unit_price as decimal(18, 3)) as line_amount, -- Quantity times price; negative when taken back
    delivered.country as country                         -- Country of the buyer, as the shop writes it
from delivered
left join identity.identifiers on identity.identifiers.token = delivered.token
