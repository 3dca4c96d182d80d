//! How what DataFusion does not know travels. Functions: by name and parameters; an executor makes them anew, and the scheduler, which runs none, passes them on. The engine's
//! operator that writes files: in its own words, with the table's columns and the conditions on rows as DataFusion writes them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{FunctionRegistry, TaskContext};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{
    PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::{self, PhysicalExprNode};
use holdfast_engine::{OwnFunction, WriteFilesExec, built_in_function};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::options::known_functions;

/// What the failure of a plan says for whose function an executor has nothing, so that it is known for that wherever it comes out.
pub(crate) const NO_FUNCTION: &str = "no function for this plan:";

/// What an operator that writes files begins with in a plan. Ballista's own are messages of protobuf, none of which begins with this letter.
const WRITES_FILES: &[u8] = b"holdfast writes files\n";

/// An operator that writes files, in a plan.
#[derive(Clone, PartialEq, Message)]
struct WrittenFiles {
    #[prost(bytes = "vec", tag = "1")]
    words: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    table_schema: Option<protobuf::Schema>,
    #[prost(message, repeated, tag = "3")]
    conditions: Vec<PhysicalExprNode>,
}

/// How a function of ours is written into a plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Written {
    parameters: String,
    returns: String,
}

/// Which program reads and writes plans.
#[derive(Debug)]
enum Side {
    /// It has these functions, and DataFusion's by these names.
    Driver {
        own: HashMap<String, OwnFunction>,
        known: HashSet<String>,
    },
    Scheduler,
    /// It has these beside those that the engine brings.
    Executor {
        own: Vec<OwnFunction>,
    },
}

/// Ballista's own codec, and our functions.
#[derive(Debug)]
pub(crate) struct FunctionCodec {
    side: Side,
    ballista: BallistaPhysicalExtensionCodec,
}

impl FunctionCodec {
    pub(crate) fn of_driver(own: &[OwnFunction]) -> Self {
        let own = own.iter().map(|own| (own.function.name().to_owned(), own.clone())).collect();
        Self::of(Side::Driver { own, known: known_functions().udfs() })
    }

    pub(crate) fn of_scheduler() -> Self {
        Self::of(Side::Scheduler)
    }

    pub(crate) fn of_executor(own: Vec<OwnFunction>) -> Self {
        Self::of(Side::Executor { own })
    }

    fn of(side: Side) -> Self {
        Self { side, ballista: BallistaPhysicalExtensionCodec::default() }
    }
}

impl PhysicalExtensionCodec for FunctionCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(sent) = buf.strip_prefix(WRITES_FILES) else {
            return self.ballista.try_decode(buf, inputs, ctx, proto_converter);
        };
        let damaged = || DataFusionError::Internal("an operator that writes files came damaged".to_owned());
        let sent = WrittenFiles::decode(sent).map_err(|_| damaged())?;
        let (Some(schema), [input]) = (&sent.table_schema, inputs) else { return Err(damaged()) };
        let schema = Arc::new(Schema::try_from(schema)?);
        let context = PhysicalPlanDecodeContext::new(ctx, self);
        let conditions = sent.conditions.iter();
        let conditions =
            conditions.map(|condition| proto_converter.proto_to_physical_expr(condition, &schema, &context));
        let conditions = conditions.collect::<Result<_>>()?;
        Ok(Arc::new(WriteFilesExec::from_words(Arc::clone(input), &sent.words, Arc::clone(&schema), conditions)?))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(writer) = node.downcast_ref::<WriteFilesExec>() else {
            return self.ballista.try_encode(node, buf, proto_converter);
        };
        let conditions = writer.conditions().map(|condition| proto_converter.physical_expr_to_proto(condition, self));
        let sent = WrittenFiles {
            words: writer.in_words()?,
            table_schema: Some(writer.table_schema().as_ref().try_into()?),
            conditions: conditions.collect::<Result<_>>()?,
        };
        buf.extend_from_slice(WRITES_FILES);
        sent.encode(buf).map_err(|error| DataFusionError::External(Box::new(error)))
    }

    fn try_encode_udf(&self, node: &ScalarUDF, buf: &mut Vec<u8>) -> Result<()> {
        let written = match &self.side {
            Side::Driver { own, known } => match own.get(node.name()) {
                Some(function) => Written {
                    parameters: function.parameters.clone(),
                    returns: node.inner().return_type(&[])?.to_string(),
                },
                // By its name alone.
                None if known.contains(node.name()) => return Ok(()),
                None => {
                    return Err(DataFusionError::Plan(format!("executors do not know the function `{}`", node.name())));
                }
            },
            Side::Scheduler | Side::Executor { .. } => {
                match (node.inner().as_ref() as &dyn Any).downcast_ref::<PassedOn>() {
                    Some(passed_on) => passed_on.written.clone(),
                    None => return Ok(()),
                }
            }
        };
        serde_json::to_writer(buf, &written).map_err(|error| DataFusionError::External(Box::new(error)))
    }

    fn try_decode_udf(&self, name: &str, buf: &[u8]) -> Result<Arc<ScalarUDF>> {
        let Ok(written) = serde_json::from_slice::<Written>(buf) else {
            return Err(DataFusionError::Plan(format!("there is no function `{name}`")));
        };
        if let Side::Executor { own } = &self.side {
            if let Some(function) = built_in_function(name, &written.parameters) {
                return Ok(function);
            }
            if let Some(own) =
                own.iter().find(|own| own.function.name() == name && own.parameters == written.parameters)
            {
                return Ok(Arc::clone(&own.function));
            }
        }
        Ok(Arc::new(ScalarUDF::from(PassedOn::new(name, written)?)))
    }
}

/// A function that is only carried: the scheduler has it in plans, and an executor in the place of one that it does not have.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PassedOn {
    name: String,
    written: Written,
    returns: DataType,
    signature: Signature,
}

impl PassedOn {
    fn new(name: &str, written: Written) -> Result<Self> {
        let returns = written.returns.parse().map_err(|error| DataFusionError::ArrowError(Box::new(error), None))?;
        Ok(Self { name: name.to_owned(), written, returns, signature: Signature::variadic_any(Volatility::Immutable) })
    }
}

impl ScalarUDFImpl for PassedOn {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        // Planners try functions on literals; a literal's value must not get into the message.
        Err(DataFusionError::Execution(format!(
            "{NO_FUNCTION} an executor does not have `{}` as the driver has it: start executors with the project's folder and identity key",
            self.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::Field;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::PhysicalExpr;
    use datafusion::physical_expr::expressions::{binary, col, lit};
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion_proto::physical_plan::AsExecutionPlan;
    use datafusion_proto::protobuf::PhysicalPlanNode;

    use super::*;

    fn own(name: &str, parameters: &str) -> OwnFunction {
        OwnFunction { function: built_in_function(name, parameters).unwrap(), parameters: parameters.to_owned() }
    }

    #[test]
    fn a_function_reaches_executors_through_the_scheduler_with_its_parameters() {
        let driver = FunctionCodec::of_driver(&[own("customer_bucket", "7")]);
        let mut sent = Vec::new();
        driver.try_encode_udf(&own("customer_bucket", "7").function, &mut sent).unwrap();

        let scheduler = FunctionCodec::of_scheduler();
        let passed_on = scheduler.try_decode_udf("customer_bucket", &sent).unwrap();
        let mut sent_on = Vec::new();
        scheduler.try_encode_udf(&passed_on, &mut sent_on).unwrap();
        assert_eq!(sent, sent_on);

        let executor = FunctionCodec::of_executor(Vec::new());
        let made = executor.try_decode_udf("customer_bucket", &sent_on).unwrap();
        assert_eq!(made, own("customer_bucket", "7").function);
        assert_ne!(made, own("customer_bucket", "8").function);
    }

    #[test]
    fn what_an_executor_does_not_have_fails_by_name_when_it_runs_and_not_before() {
        // Of the same name, with other parameters: another key.
        let executor = FunctionCodec::of_executor(vec![OwnFunction {
            function: own("json_field", "").function,
            parameters: "key 1".to_owned(),
        }]);
        let sent = serde_json::to_vec(&Written { parameters: "key 2".to_owned(), returns: "Utf8".to_owned() }).unwrap();
        let function = executor.try_decode_udf("json_field", &sent).unwrap();
        assert_eq!(function.inner().return_type(&[]).unwrap(), DataType::Utf8);
        assert!((function.inner().as_ref() as &dyn Any).is::<PassedOn>());
    }

    #[test]
    fn functions_that_nobody_else_knows_are_not_sent() {
        let driver = FunctionCodec::of_driver(&[]);
        let mut sent = Vec::new();
        assert!(driver.try_encode_udf(&own("json_field", "").function, &mut sent).is_err());
        let lower = datafusion::functions::string::lower();
        driver.try_encode_udf(&lower, &mut sent).unwrap();
        assert!(sent.is_empty(), "by name alone");
    }
    #[test]
    fn an_operator_that_writes_files_is_the_same_at_the_end_of_its_way() {
        let spend = Field::new("spend", DataType::Int64, true)
            .with_metadata(HashMap::from([("pii".to_owned(), "true".to_owned())]));
        let schema = Arc::new(Schema::new(vec![spend]));
        let condition =
            || -> Result<Arc<dyn PhysicalExpr>> { binary(col("spend", &schema)?, Operator::GtEq, lit(0_i64), &schema) };
        let words = br#"{"rows":{"table":"profile.spend","partition_columns":[],"store":"s3://shop/","prefix":"lake/profile/spend","attempt":"01890a5d-ac96-774b-bcce-b302099a8057","at":"2025-06-30T00:00:00Z"},"refused":null,"expectations":[{"name":"sane","severity":"fail","condition":"spend >= 0"}]}"#;
        let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let writer = WriteFilesExec::from_words(input, words, Arc::clone(&schema), vec![condition().unwrap()]).unwrap();
        let said = writer.in_words().unwrap();

        let context = TaskContext::default();
        let mut plan: Arc<dyn ExecutionPlan> = Arc::new(writer);
        for (from, to) in [
            (FunctionCodec::of_driver(&[]), FunctionCodec::of_scheduler()),
            (FunctionCodec::of_scheduler(), FunctionCodec::of_executor(Vec::new())),
        ] {
            let sent = PhysicalPlanNode::try_from_physical_plan(plan, &from).unwrap();
            plan = sent.try_into_physical_plan(&context, &to).unwrap();
        }
        let writer = plan.downcast_ref::<WriteFilesExec>().unwrap();
        assert_eq!(writer.in_words().unwrap(), said);
        assert_eq!(writer.table_schema(), &schema);
        let conditions: Vec<_> = writer.conditions().cloned().collect();
        assert_eq!(conditions, [condition().unwrap()]);

        // Conditions and expectations belong together.
        let alone = WriteFilesExec::from_words(Arc::clone(&plan), words, schema, Vec::new());
        assert!(alone.is_err());
    }
}
