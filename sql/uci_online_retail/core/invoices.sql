-- @stage      incremental key(invoice_no)
-- @owner      commerce data
-- @expect     quarantine  one_customer:       is_consistent
-- @expect     warn        sale_is_positive:   invoice_type <> 'sale' or net_amount > 0
-- @expect     warn        cancelled_is_back:  invoice_type <> 'cancellation' or net_amount < 0
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
    customer_id,
    invoice_no,
    invoiced_at,
    cast(invoiced_at at time zone 'Europe/London' as date) as invoice_date,
    case
        when invoice_no like 'C%' then 'cancellation'
        when invoice_no like 'A%' then 'adjustment'
        when net_amount = 0 then 'no_charge'
        else 'sale'
    end as invoice_type,
    country,
    is_consistent,
    lines,
    products,
    pieces,
    'GBP' as currency,
    cast(goods_amount as decimal(18, 3)) as goods_amount,
    cast(delivery_amount as decimal(18, 3)) as delivery_amount,
    cast(net_amount as decimal(18, 3)) as net_amount
from invoices
