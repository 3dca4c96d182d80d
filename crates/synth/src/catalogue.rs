//! The article list that ties the shop's product ids to the tills' SKU codes, and where it has holes.

use crate::calendar;
use crate::dice::Dice;
use crate::encode::Csv;
use crate::orders::push_product;
use crate::world::{Product, World};

/// Shares of products of which the list lacks the SKU code, or knows nothing at all. Both are sold all the same.
const WITHOUT_SKU: f64 = 0.02;
const UNLISTED: f64 = 0.01;

/// What the article list says of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Both codes.
    Complete,
    /// The shop's id alone: nobody has entered the SKU code.
    WithoutSku,
    /// Nothing: the shop sells it before it was entered.
    Unlisted,
}

impl Listing {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        match dice.unit() {
            share if share < UNLISTED => Self::Unlisted,
            share if share < UNLISTED + WITHOUT_SKU => Self::WithoutSku,
            _ => Self::Complete,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::WithoutSku => "without_sku",
            Self::Unlisted => "unlisted",
        }
    }
}

pub(crate) fn push_sku(out: &mut Vec<u8>, product: &Product) {
    out.extend_from_slice(b"SKU");
    calendar::push_padded(out, i64::from(product.sku), 7);
}

/// A row of the export; nothing for a product that is not listed.
pub(crate) fn write_product(out: &mut Vec<u8>, product: &Product, exported_at: i64) {
    Csv::line(out)
        .field(|out| {
            if product.listing == Listing::Complete {
                push_sku(out, product);
            }
        })
        .field(|out| push_product(out, product.code))
        .text(&product.name)
        .text(product.category)
        .text(product.brand)
        .cents(product.price_cents)
        .utc(exported_at);
}

/// Lines of `truth/products.csv`.
pub(crate) fn truth(world: &World) -> Vec<u8> {
    let mut out = Vec::new();
    for product in &world.products {
        Csv::line(&mut out)
            .field(|out| push_product(out, product.code))
            .field(|out| push_sku(out, product))
            .text(product.listing.name());
        out.push(b'\n');
    }
    out
}
