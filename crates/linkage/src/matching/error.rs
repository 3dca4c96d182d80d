/// What can go wrong in record linkage.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinkageError {
    /// The specification is not TOML of the expected shape; the text shows the place.
    #[error("linkage rules: {0}")]
    Syntax(String),
    /// A value of the specification that cannot be meant.
    #[error("linkage rules, {key}: {message}")]
    Rules {
        /// The key, such as `comparisons[2].levels[0].at_least`.
        key: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The records do not have what the specification or a model names.
    #[error("column {column}: {message}")]
    Column {
        /// Which.
        column: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing can be learnt from these records.
    #[error("cannot fit: {0}")]
    Fit(String),
}
