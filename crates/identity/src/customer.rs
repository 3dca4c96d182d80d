use std::fmt;
use std::str::FromStr;

/// A customer's id as it is written: `c` and 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomerId(u64);

impl CustomerId {
    /// The id that is made from a founding identifier's token; the next attempt when that one was given before.
    pub(crate) fn from_founder(token: u128, attempt: u32) -> Self {
        let hash = blake3::hash(format!("holdfast customer v1 {token:032x} {attempt}").as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:016x}", self.0)
    }
}

impl fmt::Debug for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no customer id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a customer id is c and 16 hexadecimal digits")]
pub struct NoCustomerId;

impl FromStr for CustomerId {
    type Err = NoCustomerId;

    fn from_str(text: &str) -> Result<Self, NoCustomerId> {
        let digits = text.strip_prefix('c').filter(|digits| digits.len() == 16).ok_or(NoCustomerId)?;
        let is_canonical = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(digits, 16).ok().filter(|_| is_canonical).map(Self).ok_or(NoCustomerId)
    }
}

impl serde::Serialize for CustomerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = CustomerId::from_founder(7, 0);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, CustomerId::from_founder(7, 1));
        for text in ["", "c12", "d0000000000000000", "c000000000000000G", "c+00000000000000f", "cABCDEF0000000000"] {
            assert_eq!(text.parse::<CustomerId>(), Err(NoCustomerId), "{text}");
        }
    }
}
