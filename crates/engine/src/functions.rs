use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::cast::as_string_array;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

/// The bucket of rows whose customer is unknown.
const UNKNOWN_CUSTOMER: i32 = -1;

/// The bucket of a customer: FNV-1a (64 bit) of the id's UTF-8 bytes, modulo the lake's number of buckets. Fixed for good: data is stored by it.
pub fn customer_bucket_of(customer_id: &str, buckets: u32) -> i32 {
    let hash = customer_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    i32::try_from(hash % u64::from(buckets.max(1))).unwrap_or(0)
}

/// `customer_bucket(customer_id)`: the partition of a customer's rows; -1 for rows of nobody known.
pub(crate) fn customer_bucket_function(buckets: u32) -> ScalarUDF {
    ScalarUDF::from(CustomerBucket {
        buckets,
        signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CustomerBucket {
    buckets: u32,
    signature: Signature,
}

impl ScalarUDFImpl for CustomerBucket {
    fn name(&self) -> &'static str {
        "customer_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let ids = as_string_array(&arrays[0])?;
        let buckets: Int32Array =
            ids.iter().map(|id| Some(id.map_or(UNKNOWN_CUSTOMER, |id| customer_bucket_of(id, self.buckets)))).collect();
        debug_assert_eq!(buckets.len(), ids.len());
        Ok(ColumnarValue::Array(Arc::new(buckets) as ArrayRef))
    }
}

/// `json_field(object, name)`: a member of a JSON object as text. Null when there is none, when it is null, and when the text is no
/// object. A string is given without its quotes and escapes, everything else as it is written, so that numbers keep their digits. Of
/// members with the same name the first counts.
pub(crate) fn json_field_function() -> ScalarUDF {
    ScalarUDF::from(JsonField { signature: Signature::exact(vec![DataType::Utf8; 2], Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonField {
    signature: Signature,
}

impl ScalarUDFImpl for JsonField {
    fn name(&self) -> &'static str {
        "json_field"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let (objects, names) = (as_string_array(&arrays[0])?, as_string_array(&arrays[1])?);
        let fields: StringArray = objects.iter().zip(names).map(|(object, name)| json_field(object?, name?)).collect();
        Ok(ColumnarValue::Array(Arc::new(fields) as ArrayRef))
    }
}

fn json_field<'a>(object: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    let mut rest = object.trim_start().strip_prefix('{')?.trim_start();
    while rest.starts_with('"') {
        let (name, after) = rest.split_at_checked(end_of_value(rest)?)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = value.split_at_checked(end_of_value(value)?)?;
        if unquoted(name)? == wanted {
            let value = value.trim_end();
            return if value.starts_with('"') {
                unquoted(value)
            } else {
                Some(value).filter(|v| *v != "null").map(Cow::Borrowed)
            };
        }
        rest = after.trim_start().strip_prefix(',')?.trim_start();
    }
    None
}

/// Where the JSON value at the beginning of the text ends: before a comma or bracket that is not its own.
fn end_of_value(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return Some(at + 1);
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(text).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_json_objects_are_found_as_they_are_written() {
        let object = r#"{"who.age":7,"price" : 1.50,"note":"a \"b\", {c}","tags":[1,{"price":2}],"\u00e9":true,"none":null,"price":9}"#;
        for (name, value) in [
            ("who.age", Some("7")),
            ("price", Some("1.50")),
            ("note", Some("a \"b\", {c}")),
            ("tags", Some(r#"[1,{"price":2}]"#)),
            ("é", Some("true")),
            ("none", None),
            ("other", None),
        ] {
            assert_eq!(json_field(object, name).as_deref(), value, "{name}");
        }
        for broken in ["", "7", "[1]", "{", r#"{"a""#, r#"{"a":"#, r#"{"a":1"#, r#"{a:1}"#, "{}"] {
            assert_eq!(json_field(broken, "a"), None, "{broken}");
        }
    }

    #[test]
    fn buckets_are_fixed_for_good() {
        assert_eq!(customer_bucket_of("c0123456789abcdef", 4), customer_bucket_of("c0123456789abcdef", 4));
        // Published value of FNV-1a 64 for "a" is af63dc4c8601ec8c.
        assert_eq!(customer_bucket_of("a", 1000), i32::try_from(0xaf63_dc4c_8601_ec8c_u64 % 1000).unwrap());
    }
}
