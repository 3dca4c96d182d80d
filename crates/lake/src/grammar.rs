//! How the types of columns are written in contracts.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

/// The widest decimal that Delta can hold.
const DECIMAL_PRECISION_MAX: u8 = 38;
/// Deeper than any record worth reading; keeps the parser's stack flat.
const DEPTH_MAX: usize = 16;

/// Every plain type name, for suggestions.
pub const TYPE_NAMES: [&str; 10] =
    ["string", "int32", "int64", "float64", "boolean", "date", "timestamp", "decimal", "list", "struct"];

/// What is wrong with a type, and at which byte of its text.
#[derive(Debug, PartialEq, Eq)]
pub struct TypeError {
    /// From the beginning of the text.
    pub offset: usize,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Reads `string`, `int32`, `int64`, `float64`, `boolean`, `date`, `timestamp`, `decimal(p,s)`, `list<T>` and
/// `struct<name T, …>`. Timestamps are UTC microseconds, as every Delta reader knows them.
///
/// # Errors
/// The place of the first mistake and its remedy.
pub fn parse_type(text: &str) -> Result<DataType, TypeError> {
    let mut parser = Parser { text, position: 0 };
    let data_type = parser.data_type(0)?;
    parser.blanks();
    if parser.position < text.len() {
        return Err(parser.error("the type ends here, but more text follows"));
    }
    Ok(data_type)
}

/// The type as a contract spells it.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::Int32 => "int32".to_owned(),
        DataType::Int64 => "int64".to_owned(),
        DataType::Float64 => "float64".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(_, _) => "timestamp".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{} {}", field.name(), type_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl Parser<'_> {
    fn data_type(&mut self, depth: usize) -> Result<DataType, TypeError> {
        if depth > DEPTH_MAX {
            return Err(self.error(&format!("a type nested deeper than {DEPTH_MAX} levels")));
        }
        self.blanks();
        let start = self.position;
        let name = self.word();
        Ok(match name {
            "string" => DataType::Utf8,
            "int32" => DataType::Int32,
            "int64" => DataType::Int64,
            "float64" => DataType::Float64,
            "boolean" => DataType::Boolean,
            "date" => DataType::Date32,
            "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            "decimal" => self.decimal()?,
            "list" => {
                self.expect('<')?;
                let item = self.data_type(depth + 1)?;
                self.expect('>')?;
                DataType::List(Arc::new(Field::new("element", item, true)))
            }
            "struct" => self.structure(depth)?,
            "" => return Err(self.error("a type is missing here")),
            other => {
                let message = match suggest(other, &TYPE_NAMES) {
                    Some(name) => format!("unknown type `{other}`; did you mean `{name}`?"),
                    None => format!("unknown type `{other}`; the types are {}", TYPE_NAMES.join(", ")),
                };
                return Err(TypeError { offset: start, message });
            }
        })
    }

    fn decimal(&mut self) -> Result<DataType, TypeError> {
        self.expect('(')?;
        let start = self.position;
        let precision = self.number()?;
        self.expect(',')?;
        let scale = self.number()?;
        self.expect(')')?;
        if precision == 0 || precision > DECIMAL_PRECISION_MAX || scale > precision {
            return Err(TypeError {
                offset: start,
                message: format!(
                    "decimal(precision, scale) has 1 to {DECIMAL_PRECISION_MAX} digits, and no more decimals than digits"
                ),
            });
        }
        let scale = i8::try_from(scale).map_err(|_| self.error("too many decimals"))?;
        Ok(DataType::Decimal128(precision, scale))
    }

    fn structure(&mut self, depth: usize) -> Result<DataType, TypeError> {
        self.expect('<')?;
        let mut fields: Vec<Field> = Vec::new();
        loop {
            self.blanks();
            let start = self.position;
            let name = self.word().to_owned();
            if name.is_empty() {
                return Err(self.error("a field's name is missing; write struct<name type, name type>"));
            }
            if fields.iter().any(|field| *field.name() == name) {
                return Err(TypeError { offset: start, message: format!("the struct has two fields named `{name}`") });
            }
            let data_type = self.data_type(depth + 1)?;
            fields.push(Field::new(name, data_type, true));
            self.blanks();
            if self.rest().starts_with(',') {
                self.position += 1;
            } else {
                break;
            }
        }
        self.expect('>')?;
        Ok(DataType::Struct(Fields::from(fields)))
    }

    fn number(&mut self) -> Result<u8, TypeError> {
        self.blanks();
        let length = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        let number = self.rest()[..length].parse().map_err(|_| self.error("a whole number up to 38 is expected"))?;
        self.position += length;
        Ok(number)
    }

    fn word(&mut self) -> &str {
        let rest = &self.text[self.position..];
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    fn expect(&mut self, wanted: char) -> Result<(), TypeError> {
        self.blanks();
        if self.rest().starts_with(wanted) {
            self.position += wanted.len_utf8();
            Ok(())
        } else {
            Err(self.error(&format!("`{wanted}` is expected here")))
        }
    }

    fn blanks(&mut self) {
        self.position += self.rest().len() - self.rest().trim_start().len();
    }

    fn rest(&self) -> &str {
        &self.text[self.position..]
    }

    fn error(&self, message: &str) -> TypeError {
        TypeError { offset: self.position, message: message.to_owned() }
    }
}

/// The known word that `given` was probably meant to be.
pub fn suggest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&given.to_lowercase(), &word.to_lowercase()), *word))
        .filter(|(distance, word)| *distance <= 1.max(word.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_types_are_read_and_spelled_back() {
        for text in [
            "string",
            "decimal(12,2)",
            "list<int32>",
            "struct<channel string, device struct<id string, type string>, seen list<timestamp>>",
        ] {
            assert_eq!(type_name(&parse_type(text).unwrap()), text);
        }
    }

    #[test]
    fn a_wrong_type_names_the_place_and_the_remedy() {
        let error = parse_type("struct<id strng>").unwrap_err();
        assert_eq!(error.offset, 10);
        assert!(error.message.contains("did you mean `string`"), "{}", error.message);
        assert!(parse_type("decimal(39,2)").is_err());
        assert!(parse_type("decimal(4,5)").is_err());
        assert!(parse_type("list<string").is_err());
        assert!(parse_type("string string").is_err());
        assert!(parse_type("struct<a string, a string>").is_err());
        assert!(parse_type(&format!("{}string{}", "list<".repeat(1_000), ">".repeat(1_000))).is_err());
    }
}
