/// Random numbers that are the same for the same seed on every machine: Steele and others, Fast splittable pseudorandom number
/// generators, 2014.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to one below `limit`; 0 when that is 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        let number = self.any();
        if limit == 0 { 0 } else { number % limit }
    }

    /// True in `percent` of a hundred cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them, each as likely.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let length = u64::try_from(of.len()).unwrap_or(u64::MAX);
        &of[usize::try_from(self.below(length)).unwrap_or(0)]
    }

    /// Numbers of their own, so that what is drawn there changes nothing here.
    pub const fn fork(&mut self) -> Self {
        Self(self.any())
    }
}
