//! Identifiers that are unique without any shared counter: a counter is scrambled by a permutation, so that two
//! customers never get the same value and yet neighbours do not look alike.

use crate::number::low32;

/// What is numbered. Each kind has a permutation of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Member = 1,
    Crm,
    Phone,
    Email,
    Qq,
    Union,
    MiniOpenid,
    AccountOpenid,
    Device,
    Anonymous,
    Token,
    Order,
    Payment,
    Refund,
    Shipment,
    Receipt,
    Ticket,
    Session,
    Cart,
    Touch,
    Coupon,
    CouponEvent,
    Loyalty,
    Review,
    Post,
    Handle,
    Address,
    Sku,
    Landline,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids {
    seed: u64,
}

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A permutation of the numbers below `2^bits`: different counters give different values.
    pub(crate) fn scramble(self, kind: Kind, counter: u64, bits: u32) -> u64 {
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let mut key = mix(self.seed ^ mix(kind as u64));
        let mut value = counter & mask;
        // Adding, multiplying by an odd number and xor with a right shift can all be undone modulo 2^bits.
        for _ in 0..3 {
            value = value.wrapping_add(key) & mask;
            value = value.wrapping_mul(key | 1) & mask;
            value ^= value >> (bits / 2);
            key = mix(key);
        }
        value
    }

    /// The `number`th thing of a kind that belongs to one customer, in 48 bits.
    pub(crate) fn of_customer(self, kind: Kind, customer: u64, number: u32) -> u64 {
        self.scramble(kind, (customer << 16) | u64::from(number & 0xffff), 48)
    }

    /// Sixty-four bits that look random, for identifiers with room for all of them.
    pub(crate) fn wide(self, kind: Kind, customer: u64, number: u32) -> u64 {
        self.scramble(kind, (customer << 32) | u64::from(number), 64)
    }

    /// Eleven digits of a mainland mobile number; four for each customer, of which 0 and 1 are theirs, 2 belongs to the store of
    /// that number and 3 stands in for placeholders.
    pub(crate) fn phone(self, customer: u64, slot: u8) -> u64 {
        const PLACEHOLDERS: [u64; 2] = [13_800_138_000, 13_000_000_000];
        let number = self.phone_at(customer * 4 + u64::from(slot));
        if PLACEHOLDERS.contains(&number) { self.phone_at(customer * 4 + 3) } else { number }
    }

    fn phone_at(self, counter: u64) -> u64 {
        let value = self.scramble(Kind::Phone, counter, 32);
        let prefix = PHONE_PREFIXES[low32(value / 100_000_000) as usize];
        u64::from(prefix) * 100_000_000 + value % 100_000_000
    }
}

/// Forty-three prefixes, because 2^32 holds not quite forty-three times the 10^8 numbers behind one.
const PHONE_PREFIXES: [u16; 43] = [
    130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 150, 151, 152, 153, 155, 156, 157, 158, 159, 166, 173, 175, 176,
    177, 178, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 193, 195, 196, 197, 198, 199,
];

/// The finaliser of SplitMix64 (Steele and others, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn scrambled_counters_stay_different() {
        let ids = Ids::new(7);
        for bits in [12, 16, 17] {
            let seen: HashSet<u64> =
                (0..1u64 << bits).map(|counter| ids.scramble(Kind::Order, counter, bits)).collect();
            assert_eq!(seen.len(), 1 << bits);
        }
        let phones: HashSet<u64> =
            (0..20_000).flat_map(|customer| (0..3).map(move |slot| ids.phone(customer, slot))).collect();
        assert_eq!(phones.len(), 60_000);
    }
}
