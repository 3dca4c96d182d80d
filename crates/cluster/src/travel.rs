//! Which plans can be run by a cluster with the right result. What Ballista 55 loses on the way, or would do twice, is run in the driver's process.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::window::{PlainAggregateWindowExpr, SlidingAggregateWindowExpr, WindowExpr};
use datafusion::physical_expr::{Partitioning, PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use holdfast_engine::{OwnFunction, without_quoted};

use crate::codec::FunctionCodec;
use crate::options::MESSAGE_BYTES_MAX;

/// The plan as it is sent.
///
/// # Errors
/// Why it cannot be run elsewhere, in words.
pub(crate) fn pack(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    own: &[OwnFunction],
) -> Result<Vec<u8>, String> {
    if let Some(reason) = stops(plan, own) {
        return Err(reason);
    }
    let codec = FunctionCodec::of_driver(own);
    let node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), &codec)
        .map_err(|error| unknown_part(plan, &codec).unwrap_or_else(|| without_quoted(&error.strip_backtrace())))?;
    let mut packed = Vec::new();
    node.try_encode(&mut packed).map_err(|error| error.strip_backtrace())?;
    if packed.len() > MESSAGE_BYTES_MAX as usize / 2 {
        return Err(format!("its plan takes {} MB, which is more than a cluster is sent at once", packed.len() >> 20));
    }
    // What cannot be read again here is not read there.
    node.try_into_physical_plan(context, &FunctionCodec::of_scheduler())
        .map_err(|error| format!("its plan cannot be sent: {}", without_quoted(&error.strip_backtrace())))?;
    Ok(packed)
}

/// Why a plan would not give its rows on a cluster.
fn stops(plan: &Arc<dyn ExecutionPlan>, own: &[OwnFunction]) -> Option<String> {
    stops_below(plan, false, own)
}

fn stops_below(plan: &Arc<dyn ExecutionPlan>, is_sorted_above: bool, own: &[OwnFunction]) -> Option<String> {
    // Ballista merges what such scans give as if it came in order, and it does not: wrong rows without a word.
    if plan.children().is_empty() && plan.output_ordering().is_some() {
        return Some("a scan of its plan claims an order of rows, which a cluster does not keep".to_owned());
    }
    if let Some(exchange) = plan.downcast_ref::<RepartitionExec>() {
        // A shuffle gives rows as they come. Where they are sorted next anyway nothing is lost.
        if exchange.preserve_order() || (plan.output_ordering().is_some() && !is_sorted_above) {
            return Some(
                "its plan hands on an order of rows from one step to the next, which a cluster does not keep"
                    .to_owned(),
            );
        }
        if let Partitioning::Hash(expressions, _) = exchange.partitioning()
            && let Some(name) = expressions.iter().find_map(|expression| own_function_in(expression, own))
        {
            return Some(format!("its plan groups rows by `{name}` while they are passed on, which cannot be sent"));
        }
    }
    // The one side is held by every task, and each would give the rows of it that met none, or one, of its own part of the other.
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>()
        && !is_right_driven(*join.join_type())
        && join.right().output_partitioning().partition_count() > 1
    {
        return Some(format!("its {} join has no equality to divide the work by", join.join_type()));
    }
    if let Some(what) = windows_of(plan).iter().find_map(lost_of_window) {
        return Some(format!("{what} of a window in its plan would be lost on the way"));
    }
    let sorts = plan.is::<SortExec>();
    plan.children().into_iter().find_map(|child| stops_below(child, sorts, own))
}

fn windows_of(plan: &Arc<dyn ExecutionPlan>) -> &[Arc<dyn WindowExpr>] {
    if let Some(windows) = plan.downcast_ref::<WindowAggExec>() {
        return windows.window_expr();
    }
    plan.downcast_ref::<BoundedWindowAggExec>().map_or(&[], BoundedWindowAggExec::window_expr)
}

/// What datafusion-proto 55 leaves out of a window, so that it gives other values without a word. What has no accessor is told by its debug output.
fn lost_of_window(window: &Arc<dyn WindowExpr>) -> Option<&'static str> {
    let written = format!("{window:?}");
    let plain = window.as_any().downcast_ref::<PlainAggregateWindowExpr>().map(|window| window.get_aggregate_expr());
    let sliding =
        || window.as_any().downcast_ref::<SlidingAggregateWindowExpr>().map(|window| window.get_aggregate_expr());
    match plain.or_else(sliding) {
        Some(_) if written.contains("filter: Some(") => Some("the filter"),
        Some(aggregate) if aggregate.is_reversed() || !aggregate.order_bys().is_empty() => {
            Some("the order of arguments")
        }
        None if written.contains("ignore_nulls: true") => Some("`ignore nulls`"),
        None if written.contains("is_reversed: true") => Some("the direction"),
        _ => None,
    }
}

/// Whether a join gives rows of its right side alone, or pairs.
const fn is_right_driven(join: JoinType) -> bool {
    matches!(join, JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark)
}

fn own_function_in<'a>(expression: &Arc<dyn PhysicalExpr>, own: &'a [OwnFunction]) -> Option<&'a str> {
    let mut found = None;
    let _ = expression.apply(|part| {
        if let Some(call) = part.downcast_ref::<ScalarFunctionExpr>()
            && let Some(own) = own.iter().find(|own| own.function.name() == call.name())
        {
            found = Some(own.function.name());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// The lowest part of a plan that cannot be written down.
fn unknown_part(plan: &Arc<dyn ExecutionPlan>, codec: &FunctionCodec) -> Option<String> {
    if let Some(below) = plan.children().into_iter().find_map(|child| unknown_part(child, codec)) {
        return Some(below);
    }
    let error = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), codec).err()?;
    let root = error.find_root().strip_backtrace();
    match root.split_once("executors do not know the function ") {
        Some((_, name)) => Some(format!("executors do not know the function {name}")),
        None => Some(format!("executors do not know {}, which is a part of its plan", plan.name())),
    }
}
