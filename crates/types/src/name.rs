use serde::{Deserialize, Serialize};

/// The name of a table of the lake: `schema.table`, each part lowercase letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    schema: String,
    table: String,
}

/// A name that is not `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a table name; write schema.table with lowercase letters, digits and underscores, beginning with a letter"
)]
pub struct InvalidTableName(pub String);

impl TableName {
    /// Builds a name from its two parts.
    pub fn new(schema: &str, table: &str) -> Result<Self, InvalidTableName> {
        if is_identifier(schema) && is_identifier(table) {
            Ok(Self { schema: schema.to_owned(), table: table.to_owned() })
        } else {
            Err(InvalidTableName(format!("{schema}.{table}")))
        }
    }

    /// The part before the dot: the layer of the lake.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The part after the dot.
    pub fn table(&self) -> &str {
        &self.table
    }
}

fn is_identifier(part: &str) -> bool {
    part.len() <= 128
        && part.starts_with(|c: char| c.is_ascii_lowercase())
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

impl std::str::FromStr for TableName {
    type Err = InvalidTableName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('.') {
            Some((schema, table)) => Self::new(schema, table),
            None => Err(InvalidTableName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for TableName {
    type Error = InvalidTableName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> Self {
        name.to_string()
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_two_plain_parts() {
        assert_eq!("core.orders".parse::<TableName>().unwrap().to_string(), "core.orders");
        for wrong in ["orders", "core.", ".orders", "Core.orders", "core.or ders", "core.1st", "a.b.c", "core/../x.y"] {
            assert!(wrong.parse::<TableName>().is_err(), "{wrong}");
        }
    }
}
