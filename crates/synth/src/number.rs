//! The few narrowing conversions, each with the reason why nothing is lost.

/// The whole part of `value`, saturating at the ends of the type.
#[expect(
    clippy::cast_possible_truncation,
    reason = "float to integer casts saturate, which is what a draw out of range should do"
)]
pub(crate) fn whole(value: f64) -> i64 {
    value as i64
}

/// The lowest 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the caller wants the low bits only")]
pub(crate) fn low32(value: u64) -> u32 {
    value as u32
}

/// The lowest 8 bits.
#[expect(clippy::cast_possible_truncation, reason = "the caller wants the low bits only")]
pub(crate) fn low8(value: u64) -> u8 {
    value as u8
}

/// `value` as an index; every caller has bounded it by a length in memory.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the length of something in memory")]
pub(crate) fn index(value: u64) -> usize {
    value as usize
}

/// `value` as 32 bits, at most `u32::MAX`.
pub(crate) fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The highest 64 of 128 bits.
pub(crate) fn high64(value: u128) -> u64 {
    (value >> 64) as u64
}
