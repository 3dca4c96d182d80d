//! Nodes in the order that XGBoost expects: breadth first, so that a right child stands behind its sibling. XGBoost finds right children that way when it explains predictions, whatever the
//! file says of them; the engine numbers nodes in the order in which it made them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{ModelError, Result};

/// What a root says of its parent.
const NO_PARENT: u64 = 2_147_483_647;

/// One value a node.
const BY_NODE: [&str; 7] =
    ["base_weights", "default_left", "loss_changes", "split_conditions", "split_indices", "split_type", "sum_hessian"];

/// The JSON document of a model with the nodes of each tree breadth first. Trees mean what they meant.
///
/// # Errors
/// A document that is none of trees.
pub(crate) fn breadth_first(document: &[u8]) -> Result<Vec<u8>> {
    let mut root: Value = serde_json::from_slice(document).map_err(|error| unreadable(error.to_string()))?;
    let trees = root.pointer_mut("/learner/gradient_booster/model/trees").and_then(Value::as_array_mut);
    for tree in trees.ok_or_else(|| unreadable("it has no trees"))? {
        reorder(tree).ok_or_else(|| unreadable("a tree is not as XGBoost writes trees"))?;
    }
    serde_json::to_vec(&root).map_err(|error| unreadable(error.to_string()))
}

fn reorder(tree: &mut Value) -> Option<()> {
    let numbers = |key: &str| tree[key].as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
    let (left, right) = (numbers("left_children")?, numbers("right_children")?);
    let mut order: Vec<usize> = vec![0];
    let mut at = 0;
    while let Some(&node) = order.get(at) {
        if let (Ok(left), Ok(right)) = (usize::try_from(*left.get(node)?), usize::try_from(*right.get(node)?)) {
            order.extend([left, right]);
        }
        at += 1;
        if order.len() > left.len() {
            return None;
        }
    }
    if order.len() != left.len() {
        return None;
    }
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
    let moved = |child: i64| usize::try_from(child).map_or(-1, |child| i64::try_from(place[child]).unwrap_or(-1));
    let parents: Vec<u64> = {
        let parents = tree["parents"].as_array()?;
        let parent = |&old: &usize| match parents.get(old)?.as_u64()? {
            NO_PARENT => Some(NO_PARENT),
            parent => Some(*place.get(usize::try_from(parent).ok()?)? as u64),
        };
        order.iter().map(parent).collect::<Option<_>>()?
    };
    // Categories are kept beside the nodes, in the order of these.
    let by_category = ["categories_nodes", "categories_segments", "categories_sizes"].map(numbers);
    let [Some(nodes), Some(starts), Some(sizes)] = by_category else { return None };
    let all = tree["categories"].as_array()?.clone();
    let mut categories: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
    for ((node, start), size) in nodes.iter().zip(starts).zip(sizes) {
        let (start, size) = (usize::try_from(start).ok()?, usize::try_from(size).ok()?);
        let new = *place.get(usize::try_from(*node).ok()?)?;
        categories.insert(new, all.get(start..start + size)?.to_vec());
    }
    for key in BY_NODE {
        let values = tree[key].as_array()?;
        let ordered = order.iter().map(|&old| values.get(old).cloned()).collect::<Option<Vec<Value>>>()?;
        tree[key] = Value::Array(ordered);
    }
    tree["left_children"] = json!(order.iter().map(|&old| moved(left[old])).collect::<Vec<_>>());
    tree["right_children"] = json!(order.iter().map(|&old| moved(right[old])).collect::<Vec<_>>());
    tree["parents"] = json!(parents);
    let mut starts = Vec::with_capacity(categories.len());
    let mut end = 0;
    for of in categories.values() {
        starts.push(end);
        end += of.len();
    }
    tree["categories_nodes"] = json!(categories.keys().collect::<Vec<_>>());
    tree["categories_segments"] = json!(starts);
    tree["categories_sizes"] = json!(categories.values().map(Vec::len).collect::<Vec<_>>());
    tree["categories"] = json!(categories.values().flatten().collect::<Vec<_>>());
    Some(())
}

fn unreadable(problem: impl Into<String>) -> ModelError {
    ModelError::Artefact { what: "the model", problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_children_stand_behind_their_siblings_and_nothing_else_changes() {
        // 0 -> (2, 1); 2 -> (4, 3), by category; made in another order than breadth first.
        let tree = json!({
            "left_children": [2, -1, 4, -1, -1], "right_children": [1, -1, 3, -1, -1], "parents": [NO_PARENT, 0, 0, 2, 2],
            "base_weights": [0.5, 1.5, 2.5, 3.5, 4.5], "default_left": [1, 0, 0, 0, 0], "loss_changes": [9.0, 0.0, 8.0, 0.0, 0.0],
            "split_conditions": [0.25, -1.0, 0.0, -3.0, -4.0], "split_indices": [1, 0, 2, 0, 0], "split_type": [0, 0, 1, 0, 0],
            "sum_hessian": [10.0, 1.0, 9.0, 3.0, 6.0],
            "categories": [4, 5], "categories_nodes": [2], "categories_segments": [0], "categories_sizes": [2]
        });
        let document = json!({ "learner": { "gradient_booster": { "model": { "trees": [tree] } } } });
        let ordered = breadth_first(document.to_string().as_bytes()).unwrap();
        let ordered: Value = serde_json::from_slice(&ordered).unwrap();
        let tree = &ordered["learner"]["gradient_booster"]["model"]["trees"][0];
        assert_eq!(tree["left_children"], json!([1, 3, -1, -1, -1]));
        assert_eq!(tree["right_children"], json!([2, 4, -1, -1, -1]));
        assert_eq!(tree["parents"], json!([NO_PARENT, 0, 0, 1, 1]));
        assert_eq!(tree["split_conditions"], json!([0.25, 0.0, -1.0, -4.0, -3.0]));
        assert_eq!((&tree["categories_nodes"], &tree["categories"]), (&json!([1]), &json!([4, 5])));
        let broken = document.to_string().replace("[2,-1,4,-1,-1]", "[2,-1,0,-1,-1]");
        assert!(breadth_first(broken.as_bytes()).is_err(), "a circle is no tree");
    }
}
