/// SplitMix64 (Steele, Lea & Flood 2014), addressed by position: the n-th number does not depend on who asked for the others, so threads can share a
/// stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    seed: u64,
}

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The number at a position.
    pub(crate) fn at(self, position: u64) -> u64 {
        let mut z = self.seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is above 0 (Lemire's multiplication; its bias is below 2⁻³² for our limits).
    pub(crate) fn below(self, position: u64, limit: u32) -> u32 {
        let product = (self.at(position) >> 32) * u64::from(limit);
        u32::try_from(product >> 32).unwrap_or(u32::MAX)
    }
}
