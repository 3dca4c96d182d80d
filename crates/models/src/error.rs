use holdfast_types::ErrorKind;

/// What can go wrong with data, parameters and stored models. No message carries a value of a customer: rows are named by number.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Columns of one table differ in length.
    #[error("{what}: {got} values where {expected} are needed, one a row")]
    Length { what: &'static str, expected: usize, got: usize },

    /// There is nothing to learn from or to judge.
    #[error("{what} is empty: give at least one row")]
    Empty { what: &'static str },

    /// Neither a model nor a measure can be had from one class.
    #[error("{what} holds one class only: all {rows} labels are {label}; take a longer horizon or more customers")]
    OneClass { what: &'static str, rows: usize, label: u8 },

    /// A value that the row's column cannot have.
    #[error("{what}: row {row} {problem}")]
    Value { what: String, row: usize, problem: &'static str },

    /// A parameter out of its range.
    #[error("{name} = {value}: must be {range}")]
    Parameter { name: &'static str, value: f64, range: &'static str },

    /// A column that the model needs is not what it was trained on.
    #[error("the data does not fit the model's signature: {0}")]
    Signature(String),

    /// Two features of one name, or a name that the artefact's format cannot hold.
    #[error("feature {name:?}: {problem}")]
    FeatureName { name: String, problem: &'static str },

    /// A stored model that cannot be read: cut short, damaged, or of a kind that is not supported.
    #[error("{what} cannot be read: {problem}; write it again from its training run")]
    Artefact { what: &'static str, problem: String },

    /// Labels rise where scores fall.
    #[error("the score ranks backwards: labels are rarer where it is higher; look at what the label means")]
    Inverted,

    /// The engine answered something that is no number.
    #[error(
        "the model's prediction for row {row} is not a number; it must not be stored: train it again, or roll back"
    )]
    Prediction { row: usize },

    /// The search for the parameters with the highest likelihood did not settle.
    #[error("{model}: no maximum of the likelihood was found: {problem}; take more customers or a longer time")]
    NotConverged { model: &'static str, problem: &'static str },

    /// The engine refused what it was given although it was checked before.
    #[error("the boosting engine refused: {0}")]
    Engine(String),

    /// The library of the sequence model refused what it was given although it was checked before.
    #[error("the sequence model refused: {0}")]
    Network(String),
}

impl ModelError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Length { .. }
            | Self::Empty { .. }
            | Self::OneClass { .. }
            | Self::Value { .. }
            | Self::NotConverged { .. }
            | Self::Inverted
            | Self::Signature(_) => ErrorKind::InvalidInput,
            Self::Parameter { .. } | Self::FeatureName { .. } => ErrorKind::InvalidConfig,
            Self::Artefact { .. } | Self::Prediction { .. } => ErrorKind::CorruptData,
            Self::Engine(_) | Self::Network(_) => ErrorKind::Bug,
        }
    }
}
