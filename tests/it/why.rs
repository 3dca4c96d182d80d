//! The rows behind a value: those that it was made from, at their versions, and no others.

use serde_json::Value;

use crate::increments::ORDERS;
use crate::stages::{SPEND, Shop};
use crate::succeed;

const LINES: &str = "-- @stage incremental key(order_id)\n-- @tag pii(amount)\n\
    select customer_id, order_id, amount, ordered_at\nfrom core.orders\n";

fn why(shop: &Shop, arguments: &[&str]) -> Vec<Value> {
    let output = succeed(shop.command(&["why", "--json"]).args(arguments));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["steps"].as_array().unwrap().clone()
}

#[test]
fn a_value_is_led_back_to_the_rows_it_was_made_from() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND), ("sql/profile/lines.sql", LINES)]);
    shop.write("sql/core/orders.sql", ORDERS);
    // An order outside of the window, one of somebody else, one that is corrected.
    shop.orders(
        "a",
        "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M1,2025-06-02T00:00:00Z,4.00\nold,M1,2025-01-01T00:00:00Z,50.00\n\
         o3,M2,2025-06-01T00:00:00Z,7.00\n",
    );
    shop.orders("b", "o1,M1,2025-06-01T00:00:00Z,11.00\n");
    shop.run();
    // What came later is not behind the value that is there.
    shop.write("in/orders/c.csv", "order_id,member,at,amount\no9,M1,2025-06-03T00:00:00Z,99.00\n");
    succeed(&mut shop.command(&["ingest", "--raw-only", "--from", "in"]));

    let steps = why(&shop, &["M1", "profile.spend.spend_90d"]);
    let tables: Vec<&str> = steps.iter().map(|step| step["table"].as_str().unwrap()).collect();
    assert_eq!(tables, ["profile.spend", "core.orders", "raw.orders"], "{steps:?}");
    assert_eq!((&steps[0]["row_count"], &steps[0]["rows"][0]["spend_90d"]), (&1.into(), &15.0.into()));
    let amounts = |step: &Value| {
        let mut amounts: Vec<f64> =
            step["rows"].as_array().unwrap().iter().map(|row| row["amount"].as_f64().unwrap()).collect();
        amounts.sort_by(f64::total_cmp);
        amounts
    };
    assert_eq!(amounts(&steps[1]), [4.0, 11.0], "{}", steps[1]);
    assert_eq!(steps[1]["for"], "profile.spend");
    // The row that was corrected was read as well.
    assert_eq!(amounts(&steps[2]), [4.0, 10.0, 11.0], "{}", steps[2]);
    assert!(steps[2]["rows"][0]["_source_line"].is_number(), "{}", steps[2]);
    assert!(steps.iter().all(|step| step["remark"].is_null()), "{steps:?}");

    let page = succeed(&mut shop.command(&["why", "M1", "profile.spend.spend_90d"])).stdout;
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("core.orders v") && page.contains(", for profile.spend: amount"), "{page}");
}

#[test]
fn personal_data_is_masked_and_wrong_names_are_told() {
    let shop = Shop::new(&[("sql/profile/lines.sql", LINES)]);
    shop.write("sql/core/orders.sql", ORDERS);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    shop.run();
    assert_eq!(why(&shop, &["M1", "profile.lines.amount"])[0]["rows"][0]["amount"], "•••");
    assert_eq!(why(&shop, &["M1", "profile.lines.amount", "--show-pii"])[0]["rows"][0]["amount"], 10.0);
    assert_eq!(why(&shop, &["nobody", "profile.lines.amount"])[0]["row_count"], 0);

    for (column, told) in [
        ("profile.lines.amont", "has no column `amont`"),
        ("profile.lins.amount", "no stage is called `profile.lins`"),
        ("amount", "write <schema>.<table>.<column>"),
    ] {
        let (code, said) = shop.fails(&["why", "M1", column]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(told), "{said}");
    }
}
