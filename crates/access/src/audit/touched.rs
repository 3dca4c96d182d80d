//! What a plan reads.

use std::collections::BTreeSet;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use holdfast_types::TableName;

/// Columns of one access that are written down; what reads more says so by `…`.
const COLUMNS_MAX: usize = 500;

/// Where tables are that describe others.
const SYSTEM_SCHEMAS: [&str; 2] = ["information_schema", "pg_catalog"];

/// Tables and columns that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Touched {
    /// The tables.
    pub tables: BTreeSet<TableName>,
    /// The columns, as `schema.table.column`.
    pub columns: BTreeSet<String>,
}

impl Touched {
    /// A table with all that is asked of it.
    pub fn table(name: &TableName, columns: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut touched = Self::default();
        touched.add(name, columns);
        touched
    }

    /// The same tables, without their columns.
    pub fn tables_alone(self) -> Self {
        Self { columns: BTreeSet::new(), ..self }
    }

    /// Whether they are system tables, which tell what there is, and no others.
    pub fn is_of_system_tables(&self) -> bool {
        let is_one = |table: &TableName| SYSTEM_SCHEMAS.contains(&table.schema());
        !self.tables.is_empty() && self.tables.iter().all(is_one)
    }

    /// One more table.
    pub fn add(&mut self, name: &TableName, columns: impl IntoIterator<Item = impl AsRef<str>>) {
        for column in columns {
            if self.columns.len() >= COLUMNS_MAX {
                self.columns.insert("…".to_owned());
                break;
            }
            self.columns.insert(format!("{name}.{}", column.as_ref()));
        }
        self.tables.insert(name.clone());
    }
}

/// What an optimised plan reads: of each table the columns that are left after pruning.
pub fn touched(plan: &LogicalPlan) -> Touched {
    let mut touched = Touched::default();
    // The walk itself cannot fail: nothing in it does.
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(schema) = scan.table_name.schema()
            && let Ok(name) = TableName::new(schema, scan.table_name.table())
        {
            let mut columns: BTreeSet<&str> =
                scan.projected_schema.fields().iter().map(|field| field.name().as_str()).collect();
            // A condition reads columns that nobody is given.
            columns
                .extend(scan.filters.iter().flat_map(|filter| filter.column_refs()).map(|column| column.name.as_str()));
            touched.add(&name, columns);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    touched
}

/// The hash of a statement without its literals and comments: it says which question was asked, and never of whom.
pub fn query_hash(sql: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    match Tokenizer::new(&GenericDialect {}, sql).tokenize() {
        Ok(tokens) => {
            for token in tokens {
                let text = match token {
                    Token::Whitespace(_) | Token::SemiColon => continue,
                    Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
                    Token::Word(word) => word.value,
                    Token::Number(..)
                    | Token::SingleQuotedString(_)
                    | Token::DollarQuotedString(_)
                    | Token::TripleSingleQuotedString(_)
                    | Token::TripleDoubleQuotedString(_)
                    | Token::EscapedStringLiteral(_)
                    | Token::UnicodeStringLiteral(_)
                    | Token::NationalStringLiteral(_)
                    | Token::SingleQuotedByteStringLiteral(_)
                    | Token::DoubleQuotedByteStringLiteral(_)
                    | Token::SingleQuotedRawStringLiteral(_)
                    | Token::DoubleQuotedRawStringLiteral(_)
                    | Token::HexStringLiteral(_) => "?".to_owned(),
                    other => other.to_string(),
                };
                hasher.update(text.as_bytes());
                hasher.update(b"\0");
            }
        }
        // What is no SQL could be anything.
        Err(_) => {
            hasher.update(b"not SQL");
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_comments_and_layout_are_no_part_of_a_statements_hash() {
        let one = query_hash("select name from core.customers where phone = '13812345678' and age > 30");
        let other = query_hash("SELECT name\nFROM core.customers -- of Ana\nWHERE phone = '1' AND age > 7;");
        assert_eq!(one, other);
        assert_ne!(one, query_hash("select phone from core.customers where phone = '1' and age > 7"));
        assert_eq!(query_hash("select 'open"), query_hash("'13812345678"));
    }
}
