-- One row an invoice. What an invoice is, by the first rule that holds:
--   cancellation  its number begins with C: money given back; the data does not say for which invoice
--   adjustment    its number begins with A: bad debt, nobody's purchase
--   no_charge     nothing is to be paid: goods written off, found or given away
--   sale          everything else
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_invoice:         invoice_no is not null
-- @expect     fail        unique_invoice:      count(*) = count(distinct invoice_no)
-- @expect     fail        known_type:          invoice_type in ('sale', 'cancellation', 'adjustment', 'no_charge')
-- @expect     quarantine  one_customer:        is_consistent
-- @expect     warn        sale_is_positive:    invoice_type <> 'sale' or net_amount > 0
-- @expect     warn        cancelled_is_back:   invoice_type <> 'cancellation' or net_amount < 0
with products as (
    select
        invoice_no,
        line_type,
        stock_code,
        min(customer_id) as customer_min,
        max(customer_id) as customer_max,
        min(country) as country_min,
        max(country) as country_max,
        min(invoiced_at) as invoiced_at,
        count(*) as lines,
        sum(cast(quantity as bigint)) as quantity,
        sum(line_amount) as line_amount
    from core.invoice_lines
    group by invoice_no, line_type, stock_code
),

invoices as (
    select
        invoice_no,
        min(customer_min) as customer_id,
        min(country_min) as country,
        coalesce(min(customer_min) = max(customer_max), true)
        and coalesce(min(country_min) = max(country_max), true) as is_consistent,
        min(invoiced_at) as invoiced_at,
        sum(lines) as lines,
        count(*) filter (where line_type = 'goods') as products,
        sum(case when line_type = 'goods' then quantity else 0 end) as pieces,
        sum(case when line_type = 'goods' then line_amount else 0 end) as goods_amount,
        sum(case when line_type = 'delivery' then line_amount else 0 end) as delivery_amount,
        sum(line_amount) as net_amount
    from products
    group by invoice_no
)

select
    customer_id,                                                -- Unified customer id; null when nobody is known
    invoice_no,                                                 -- The shop's number of the invoice
    invoiced_at,                                                -- When it was written; the earliest of its lines
    cast(invoiced_at at time zone 'Europe/London' as date) as invoice_date, -- The day in the UK
    case
        when invoice_no like 'C%' then 'cancellation'
        when invoice_no like 'A%' then 'adjustment'
        when net_amount = 0 then 'no_charge'
        else 'sale'
    end as invoice_type,                                        -- sale, cancellation, adjustment, no_charge
    country,                                                    -- Country of the buyer
    is_consistent,                                              -- Whether all its lines name the same customer and country
    lines,                                                      -- Lines
    products,                                                   -- Different products
    pieces,                                                     -- Pieces of goods
    'GBP' as currency,                                          -- ISO 4217 code of all amounts in the row
    cast(goods_amount as decimal(18, 3)) as goods_amount,       -- Of the amount for goods
    cast(delivery_amount as decimal(18, 3)) as delivery_amount, -- Of the amount for delivery
    cast(net_amount as decimal(18, 3)) as net_amount            -- The sum of its lines; negative when given back
from invoices
