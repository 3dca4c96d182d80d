use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_fixed_for_good() {
        assert_eq!(customer_bucket_of("c0123456789abcdef", 4), customer_bucket_of("c0123456789abcdef", 4));
        // Published value of FNV-1a 64 for "a" is af63dc4c8601ec8c.
        assert_eq!(customer_bucket_of("a", 1000), i32::try_from(0xaf63_dc4c_8601_ec8c_u64 % 1000).unwrap());
    }
}
