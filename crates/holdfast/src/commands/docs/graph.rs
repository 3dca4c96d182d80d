//! The stages as a picture: inputs on the left, who reads them on the right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use holdfast_types::TableName;

use super::Site;
use super::page::{escaped, file_name};

const ROW: usize = 30;
const BOX: usize = 22;
/// The width of a letter, on average, and a little more.
const LETTER: usize = 7;
const GAP: usize = 70;
/// How often the rows are put in order after their neighbours'.
const SWEEPS: usize = 4;

struct Layout {
    /// The names of each column, from above.
    columns: Vec<Vec<TableName>>,
    edges: Vec<(TableName, TableName)>,
}

/// The picture, as SVG.
pub(super) fn svg(site: &Site<'_>) -> String {
    let stages: BTreeSet<&TableName> = site.inspection.stages.iter().map(|stage| &stage.stage.name).collect();
    let layout = Layout::of(site);
    let widths: Vec<usize> = layout
        .columns
        .iter()
        .map(|names| names.iter().map(|name| name.to_string().len()).max().unwrap_or(0) * LETTER + 16)
        .collect();
    let mut places: BTreeMap<&TableName, (usize, usize, usize)> = BTreeMap::new();
    let mut left = 8;
    for (names, width) in layout.columns.iter().zip(&widths) {
        for (row, name) in names.iter().enumerate() {
            places.insert(name, (left, 8 + row * ROW, *width));
        }
        left += width + GAP;
    }
    let width = left.saturating_sub(GAP) + 8;
    let height = layout.columns.iter().map(Vec::len).max().unwrap_or(0) * ROW + 16;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"group\" aria-label=\"Which table is made from which; the list below says the same\">"
    );
    for (from, to) in &layout.edges {
        let (Some((x, y, width)), Some((to_x, to_y, _))) = (places.get(from), places.get(to)) else { continue };
        let (x, y, to_y) = (x + width, y + BOX / 2, to_y + BOX / 2);
        let bend = to_x.saturating_sub(x) / 2;
        let _ = writeln!(
            text,
            "<path d=\"M{x} {y} C{} {y} {} {to_y} {to_x} {to_y}\"/>",
            x + bend,
            to_x.saturating_sub(bend)
        );
    }
    for (name, (x, y, width)) in &places {
        let shown = escaped(&name.to_string());
        let drawn = format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BOX}\" rx=\"4\"/><text x=\"{}\" y=\"{}\">{shown}</text>",
            x + 8,
            y + 15
        );
        let _ = match stages.contains(name) {
            true => writeln!(text, "<a href=\"{}\">{drawn}</a>", file_name(name)),
            false => writeln!(text, "<g class=\"source\">{drawn}</g>"),
        };
    }
    text.push_str("</svg>\n");
    text
}

impl Layout {
    fn of(site: &Site<'_>) -> Self {
        let mut edges = Vec::new();
        let mut rank: BTreeMap<TableName, usize> = BTreeMap::new();
        // Stages come after their inputs, so that one pass is enough.
        for stage in &site.inspection.stages {
            let name = &stage.stage.name;
            let mut own = 0;
            for input in stage.stage.inputs.keys() {
                edges.push((input.clone(), name.clone()));
                own = own.max(*rank.entry(input.clone()).or_insert(0) + 1);
            }
            rank.insert(name.clone(), own);
        }
        let mut columns: Vec<Vec<TableName>> = vec![Vec::new(); rank.values().max().map_or(0, |last| last + 1)];
        for (name, rank) in rank {
            columns[rank].push(name);
        }
        let mut layout = Self { columns, edges };
        for sweep in 0..SWEEPS {
            layout.untangle(sweep % 2 == 0);
        }
        layout
    }

    /// Puts the names of each column in the order of the middle of their inputs (or of their readers).
    fn untangle(&mut self, by_inputs: bool) {
        let mut neighbours: BTreeMap<&TableName, Vec<&TableName>> = BTreeMap::new();
        for (from, to) in &self.edges {
            let (name, neighbour) = if by_inputs { (to, from) } else { (from, to) };
            neighbours.entry(name).or_default().push(neighbour);
        }
        let mut order: BTreeMap<TableName, usize> = BTreeMap::new();
        for names in &self.columns {
            order.extend(names.iter().cloned().enumerate().map(|(row, name)| (name, row)));
        }
        let count = self.columns.len();
        let indices: Vec<usize> = if by_inputs { (0..count).collect() } else { (0..count).rev().collect() };
        for index in indices {
            let names = &mut self.columns[index];
            let middle = |name: &TableName| {
                let rows: Vec<usize> =
                    neighbours.get(name).into_iter().flatten().filter_map(|name| order.get(*name).copied()).collect();
                // In thousandths, so that it can be compared; a table without neighbours stays where it is.
                match rows.len() {
                    0 => order.get(name).copied().unwrap_or(0) * 1000,
                    count => rows.iter().sum::<usize>() * 1000 / count,
                }
            };
            names.sort_by_cached_key(|name| (middle(name), name.clone()));
            for (row, name) in names.iter().enumerate() {
                order.insert(name.clone(), row);
            }
        }
    }
}
