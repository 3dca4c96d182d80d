use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int8Array, StringArray};
use arrow::datatypes::{DataType, Int8Type};

use crate::Result;

/// Why a value is there, or is not. The words are Feast's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i8)]
pub enum Status {
    /// There is a value.
    Present = 0,
    /// A row was found, its value is null. Said of values, never of a view.
    NullValue = 1,
    /// The key had no row that could be seen at that moment, or the latest one says that it was deleted.
    NotFound = 2,
    /// The latest row is older than the view's ttl.
    OutsideMaxAge = 3,
}

impl Status {
    /// All of them, by their code.
    pub const ALL: [Self; 4] = [Self::Present, Self::NullValue, Self::NotFound, Self::OutsideMaxAge];

    /// The word in a status column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NullValue => "NULL_VALUE",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
        }
    }

    /// Its byte in a status column.
    pub const fn code(self) -> i8 {
        self as i8
    }
}

/// The type of a status column: a byte a row and the four words once a batch. Their order is that of [`Status::ALL`], so the byte alone says which.
pub fn status_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))
}

/// The four words of a status column.
pub fn status_words() -> ArrayRef {
    Arc::new(StringArray::from_iter_values(Status::ALL.map(Status::as_str)))
}

/// A status column of these codes over [`status_words`].
///
/// # Errors
/// A code that is none of [`Status::ALL`].
pub fn status_column(codes: Int8Array, words: &ArrayRef) -> Result<ArrayRef> {
    Ok(Arc::new(DictionaryArray::<Int8Type>::try_new(codes, Arc::clone(words))?))
}
