//! The operator on top of a stage's plan that is run elsewhere: its rows are judged and written where they are worked out, and what comes back is what is in the files.
//!
//! It does what an embedded plan's rows are written by, `output::write_partition`, with a store that the executor opens. Nothing it writes is part of a table: the driver
//! commits the files that the rows of a plan that succeeded name, and no others.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::cast::as_string_array;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, OrderingRequirements, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::TryStreamExt;
use holdfast_lake::{FolderAddress, LakeError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::directive::Expectation;
use crate::expectation::RowRules;
use crate::output::{Destination, Staged, Target, Unwritten, write_partition};

/// What the failure of a plan says whose files cannot be written, so that it is known for that wherever it comes out.
pub const NOT_WRITTEN: &str = "the files of this plan are not written:";

/// Writes the rows of its input into files of a table. One row a partition tells what is in them.
pub struct WriteFilesExec {
    input: Arc<dyn ExecutionPlan>,
    target: Arc<RemoteTarget>,
    properties: Arc<PlanProperties>,
}

/// Where rows go and what is asked of them, for a process that has neither the lake nor the stage.
#[derive(Debug, Clone)]
struct RemoteTarget {
    rows: FolderAddress,
    refused: Option<FolderAddress>,
    schema: SchemaRef,
    rules: RowRules,
}

/// What of a [`RemoteTarget`] can be said in words.
#[derive(Serialize, Deserialize)]
struct InWords {
    rows: FolderAddress,
    refused: Option<FolderAddress>,
    expectations: Vec<Expectation>,
}

impl WriteFilesExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, target: &Target, attempt: Uuid) -> Self {
        let target = RemoteTarget {
            rows: target.table.folder_address(attempt),
            refused: target.quarantine.as_ref().map(|table| table.folder_address(attempt)),
            schema: Arc::clone(&target.schema),
            rules: target.rules.clone(),
        };
        Self::over(input, Arc::new(target))
    }

    fn over(input: Arc<dyn ExecutionPlan>, target: Arc<RemoteTarget>) -> Self {
        let partitions = Partitioning::UnknownPartitioning(input.output_partitioning().partition_count());
        let equivalences = EquivalenceProperties::new(schema_of_answers());
        let properties = PlanProperties::new(equivalences, partitions, EmissionType::Final, input.boundedness());
        Self { input, target, properties: Arc::new(properties) }
    }

    /// The columns of the table.
    pub fn table_schema(&self) -> &SchemaRef {
        &self.target.schema
    }

    /// What is asked of rows, over [`Self::table_schema`].
    pub fn conditions(&self) -> impl Iterator<Item = &Arc<dyn PhysicalExpr>> {
        self.target.rules.iter().map(|(_, condition)| condition)
    }

    /// All else, to be sent with the two. No secret is in it.
    ///
    /// # Errors
    /// None that is known.
    pub fn in_words(&self) -> Result<Vec<u8>> {
        let RemoteTarget { rows, refused, rules, .. } = self.target.as_ref();
        let expectations = rules.iter().map(|(expectation, _)| expectation.clone()).collect();
        let words = InWords { rows: rows.clone(), refused: refused.clone(), expectations };
        serde_json::to_vec(&words).map_err(|error| DataFusionError::External(Box::new(error)))
    }

    /// What was sent so.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_words(
        input: Arc<dyn ExecutionPlan>,
        words: &[u8],
        table_schema: SchemaRef,
        conditions: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self> {
        let words: InWords =
            serde_json::from_slice(words).map_err(|error| DataFusionError::External(Box::new(error)))?;
        if words.expectations.len() != conditions.len() {
            return Err(DataFusionError::Internal("expectations came without their conditions".to_owned()));
        }
        let rules = RowRules::new(words.expectations.into_iter().zip(conditions).collect());
        let target = RemoteTarget { rows: words.rows, refused: words.refused, schema: table_schema, rules };
        Ok(Self::over(input, Arc::new(target)))
    }
}

impl RemoteTarget {
    fn open(&self, runtime: &RuntimeEnv) -> Result<Destination, LakeError> {
        let open = |address: &FolderAddress| {
            let url = address.store_url()?;
            let store = runtime.object_store(&url).map_err(|error| LakeError::InvalidUrl {
                url: url.as_str().to_owned(),
                reason: error.strip_backtrace(),
            })?;
            address.open(store)
        };
        Ok(Destination {
            rows: open(&self.rows)?,
            refused: self.refused.as_ref().map(open).transpose()?,
            schema: Arc::clone(&self.schema),
            rules: self.rules.clone(),
        })
    }
}

impl fmt::Debug for WriteFilesExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for WriteFilesExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions: Vec<String> = self.conditions().map(ToString::to_string).collect();
        write!(f, "WriteFilesExec: conditions=[{}]", conditions.join(", "))
    }
}

impl ExecutionPlan for WriteFilesExec {
    fn name(&self) -> &'static str {
        "WriteFilesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// Files are to be in the order that the input has: whoever cuts the plan into tasks must not think that nobody needs it.
    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.input.output_ordering().cloned().map(OrderingRequirements::from)]
    }

    /// More partitions are more files.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.conditions(), f)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), None) = (children.pop(), children.pop()) else {
            return Err(DataFusionError::Internal("files are written from one input".to_owned()));
        };
        Ok(Arc::new(Self::over(input, Arc::clone(&self.target))))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (input, target) = (Arc::clone(&self.input), Arc::clone(&self.target));
        let written = async move {
            let work = async {
                let destination = target.open(&context.runtime_env())?;
                write_partition(|| input.execute(partition, context), &destination).await
            };
            answer(&work.await.map_err(told)?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema_of_answers(), futures::stream::once(written))))
    }
}

/// Why rows are not in files, as it travels. What befell the rows stays as it is: others tell by it who is lost.
fn told(error: Unwritten) -> DataFusionError {
    match error {
        Unwritten::Rows(error) => error,
        // It would be the same wherever it is written, and may quote a value.
        Unwritten::Files(error @ LakeError::Schema { .. }) => DataFusionError::External(Box::new(error)),
        Unwritten::Files(error) => DataFusionError::Execution(format!("{NOT_WRITTEN} {error}")),
    }
}

fn schema_of_answers() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("staged", DataType::Utf8, false)]))
}

fn answer(staged: &Staged) -> Result<RecordBatch> {
    let text = serde_json::to_string(staged).map_err(|error| DataFusionError::External(Box::new(error)))?;
    Ok(RecordBatch::try_new(schema_of_answers(), vec![Arc::new(StringArray::from(vec![text]))])?)
}

/// What all partitions of a [`WriteFilesExec`] left, under so many row rules.
///
/// # Errors
/// Those of the streams, and when one of them does not tell what is in its files.
pub(crate) async fn staged_by(answers: Vec<SendableRecordBatchStream>, rules: usize) -> Result<Staged> {
    let lost = |why: &str| DataFusionError::Internal(format!("what a task wrote is not known: {why}"));
    let mut staged = Staged::of_rules(rules);
    for mut answers in answers {
        let mut told = 0;
        while let Some(batch) = answers.try_next().await? {
            for text in as_string_array(batch.column(0))? {
                let text = text.ok_or_else(|| lost("it tells nothing"))?;
                let part: Staged = serde_json::from_str(text).map_err(|error| lost(&error.to_string()))?;
                if part.failed.len() != rules {
                    return Err(lost("it was asked for other expectations"));
                }
                staged.add(part);
                told += 1;
            }
        }
        if told == 0 {
            return Err(lost("it does not answer"));
        }
    }
    Ok(staged)
}
