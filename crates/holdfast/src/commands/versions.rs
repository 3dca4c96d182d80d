//! What `holdfast models` tells of versions: a list, all of one, two side by side.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::{print, print_json};
use crate::error::CliError;
use crate::models::fit::MeasureRow;
use crate::models::kind::Kind;
use crate::models::registry::{CHALLENGER, CHAMPION, Move, Registry, Version, profile_of, standing};
use crate::models::train::method;

/// The measures that are shown without being asked for.
const SHOWN: [&str; 9] = [
    "auc",
    "pr_auc",
    "brier",
    "brier_skill",
    "ece_10_bins",
    "accuracy_at_0.50",
    "lift_at_10_percent",
    "precision_at_0.70",
    "flagged_at_0.70",
];

#[derive(Debug, Serialize)]
struct Listed {
    model: String,
    version: i32,
    aliases: Vec<String>,
    trained_at: chrono::DateTime<chrono::Utc>,
    rounds: i32,
    dataset_id: String,
    auc: Option<f64>,
    auc_low: Option<f64>,
    auc_high: Option<f64>,
}

pub(crate) async fn list(registry: &Registry, model: Option<&str>, json: bool) -> Result<(), CliError> {
    let (versions, moves) = (registry.versions(model).await?, registry.moves(model).await?);
    let listed: Vec<Listed> = versions.iter().map(|version| listed(version, &moves)).collect();
    if json {
        return print_json(&listed);
    }
    if listed.is_empty() {
        return print("No version yet: `holdfast train --model NAME` makes one.\n");
    }
    let mut text = format!(
        "{:<16} {:>7}  {:<22} {:<17} {:>6}  {}\n",
        "model", "version", "alias", "trained", "rounds", "AUC out of time"
    );
    for row in listed {
        let auc = row.auc.zip(row.auc_low).zip(row.auc_high);
        let auc = auc
            .map_or_else(|| "not defined".to_owned(), |((auc, low), high)| format!("{auc:.3} ({low:.3} to {high:.3})"));
        text.push_str(&format!(
            "{:<16} {:>7}  {:<22} {:<17} {:>6}  {auc}\n",
            row.model,
            row.version,
            row.aliases.join(", "),
            row.trained_at.format("%Y-%m-%d %H:%M"),
            row.rounds
        ));
    }
    print(&text)
}

fn listed(version: &Version, moves: &[Move]) -> Listed {
    let auc = version.measures.iter().find(|row| row.judged_on == "out_of_time" && row.measure == "auc");
    Listed {
        model: version.model.clone(),
        version: version.version,
        aliases: aliases(version, moves),
        trained_at: version.trained_at,
        rounds: version.rounds,
        dataset_id: version.dataset_id.clone(),
        auc: auc.and_then(|row| row.value),
        auc_low: auc.and_then(|row| row.low),
        auc_high: auc.and_then(|row| row.high),
    }
}

fn aliases(version: &Version, moves: &[Move]) -> Vec<String> {
    let stands = |alias: &&str| standing(moves, &version.model, alias) == Some(version.version);
    [CHAMPION, CHALLENGER].into_iter().filter(stands).map(str::to_owned).collect()
}

pub(crate) async fn show(registry: &Registry, model: &str, version: Option<i32>, json: bool) -> Result<(), CliError> {
    let number = match version {
        Some(number) => number,
        None => registry.versions(Some(model)).await?.last().map_or(1, |version| version.version),
    };
    let version = registry.version(model, number).await?;
    let moves = registry.moves(Some(model)).await?;
    if json {
        return print_json(&shown(&version, &moves));
    }
    let mut notes: Value = serde_json::from_str(&version.notes).unwrap_or_default();
    let ablation = notes.pointer_mut("/sequence/ablation").map(Value::take);
    let aliases = aliases(&version, &moves);
    let (rounds, positives) = match version.kind() {
        Kind::Churn => ("trees ", "churned"),
        Kind::Sentiment => ("epochs", "positive"),
        Kind::Lifetime => ("rounds", "bought nothing"),
    };
    let mut text = format!(
        "{model} version {number}{}\n\n  trained at    {} by {}\n  learnt from   {} at version-pinned tables\n  dataset id    {}\n  rows          {}\n  moments       {}\n  {rounds}        {} ({}, {} bytes, blake3 {})\n  calibration   {}\n  notes         {}\n",
        if aliases.is_empty() { String::new() } else { format!(" ({})", aliases.join(", ")) },
        version.trained_at.to_rfc3339(),
        if version.trained_by.is_empty() { "nobody known" } else { &version.trained_by },
        version.feature_stage,
        version.dataset_id,
        version.rows,
        version.moments,
        version.rounds,
        version.engine,
        version.artefact_bytes,
        version.artefact_hash,
        method(&version.calibrator),
        notes,
    );
    text.push_str(&measures_table(&version.measures, positives));
    if let Some(ablation) = ablation.filter(|ablation| !ablation.is_null()) {
        text.push_str(&ablation_table(&ablation));
    }
    let profile = profile_of(&version);
    if !profile.is_empty() {
        text.push_str("\nFeatures when it learnt (missing, mean, deciles):\n");
    }
    for feature in profile {
        let mean = feature.mean.map_or_else(|| "text".to_owned(), |mean| format!("{mean:.2}"));
        let deciles: Vec<String> = feature.deciles.iter().map(|value| format!("{value:.1}")).collect();
        text.push_str(&format!(
            "  {:<32} {:>5.1} %  {mean:>10}  {}\n",
            feature.feature,
            feature.missing_share * 100.0,
            deciles.join(" ")
        ));
    }
    text.push_str("\nMoves of aliases:\n");
    for moved in &moves {
        text.push_str(&format!(
            "  {}  {} → version {} ({}){}\n",
            moved.moved_at.format("%Y-%m-%d %H:%M"),
            moved.alias,
            moved.version,
            moved.why,
            if moved.moved_by.is_empty() { String::new() } else { format!(" by {}", moved.moved_by) },
        ));
    }
    print(&text)
}

/// A version with what is JSON in it as JSON.
fn shown(version: &Version, moves: &[Move]) -> Value {
    let mut row = serde_json::to_value(version).unwrap_or_default();
    for name in ["tables", "moments", "signature", "calibrator", "profile", "notes", "rows"] {
        if let Some(text) = row[name].as_str().map(str::to_owned) {
            row[name] = serde_json::from_str(&text).unwrap_or(Value::String(text));
        }
    }
    row["aliases"] = json!(aliases(version, moves));
    row["moves"] = json!(moves);
    row
}

pub(crate) async fn compare(
    registry: &Registry,
    model: &str,
    first: i32,
    second: i32,
    json: bool,
) -> Result<(), CliError> {
    let (left, right) = (registry.version(model, first).await?, registry.version(model, second).await?);
    let tests = |version: &Version| serde_json::from_str::<Value>(&version.moments).unwrap_or_default()["test"].clone();
    let same = tests(&left) == tests(&right) && left.tables == right.tables;
    let by_measure = |version: &Version| -> BTreeMap<String, MeasureRow> {
        let rows = version.measures.iter().filter(|row| row.judged_on == "out_of_time");
        rows.map(|row| (row.measure.clone(), row.clone())).collect()
    };
    let (left_rows, right_rows) = (by_measure(&left), by_measure(&right));
    if json {
        return print_json(&json!({
            "model": model,
            "same_rows_judge": same,
            "versions": [first, second],
            "measures": left_rows.iter().map(|(name, row)| json!({
                "measure": name,
                "first": row,
                "second": right_rows.get(name),
            })).collect::<Vec<_>>(),
        }));
    }
    let mut text =
        format!("{:<22} {:>28} {:>28}\n", "out of time", format!("version {first}"), format!("version {second}"));
    for name in SHOWN {
        let cell = |rows: &BTreeMap<String, MeasureRow>| {
            rows.get(name).map_or_else(|| "-".to_owned(), |row| interval(row.value, row.low, row.high))
        };
        text.push_str(&format!("{name:<22} {:>28} {:>28}\n", cell(&left_rows), cell(&right_rows)));
    }
    let differs = |what: &str, left: &str, right: &str| {
        if left == right { String::new() } else { format!("  {what} differ\n") }
    };
    text.push_str(&differs("the files", &left.spec, &right.spec));
    text.push_str(&differs("the queries of features", &left.feature_fingerprint, &right.feature_fingerprint));
    text.push_str(if same {
        "\nBoth were judged by the same rows. Whether one is better than the other, `holdfast models show` tells of a version that was trained beside a champion (baseline champion).\n"
    } else {
        "\nThey were judged by other rows: the figures may differ for that alone.\n"
    });
    print(&text)
}

/// Trees that are told what a sequence model says beside trees that are not, for people.
pub(crate) fn ablation_table(ablation: &Value) -> String {
    let wins = ablation["hybrid_wins"] == true;
    let mut text = format!(
        "\nTold of a sequence model, or not, out of time: {}\n  {:<20} {:>24} {:>24} {:>26}\n",
        if wins {
            "told they are better, and so they score"
        } else {
            "told they are not surely better, and so trees score that are not"
        },
        "",
        "told",
        "not told",
        "difference"
    );
    for line in ablation["report"]["lines"].as_array().into_iter().flatten() {
        let Some(measure) = line["measure"].as_str().filter(|measure| SHOWN.contains(measure)) else { continue };
        let parts = |of: &str| ["value", "low", "high"].map(|part| line[of][part].as_f64());
        let ([value, low, high], [plain, plain_low, plain_high]) = (parts("model"), parts("baseline"));
        let [difference, from, to] = parts("difference");
        text.push_str(&format!(
            "  {measure:<20} {:>24} {:>24} {:>26}\n",
            interval(value, low, high),
            interval(plain, plain_low, plain_high),
            signed(difference, from, to)
        ));
    }
    if let Some(alone) = ablation["sequence_auc"].as_f64() {
        text.push_str(&format!("  the sequence model alone: AUC {alone:.3}\n"));
    }
    text
}

/// Measures beside those of all baselines, for people; what the labels that are true are called is said by `positives`.
pub(crate) fn measures_table(measures: &[MeasureRow], positives: &str) -> String {
    let mut text = String::new();
    for (judged_on, title) in [
        ("out_of_time", "Out of time"),
        ("unseen_customers", "Out of time, customers not seen before"),
        ("zh", "Out of time, in Chinese"),
        ("en", "Out of time, in English"),
    ] {
        let rows: Vec<&MeasureRow> = measures.iter().filter(|row| row.judged_on == judged_on).collect();
        let Some(first) = rows.first() else { continue };
        let mut baselines: Vec<&str> = Vec::new();
        for row in &rows {
            if !baselines.contains(&row.baseline.as_str()) {
                baselines.push(&row.baseline);
            }
        }
        text.push_str(&format!(
            "\n{title}: {} rows, {:.1} % {positives}; saying the same of all is right for {:.1} %\n",
            first.rows,
            first.base_rate * 100.0,
            first.majority_accuracy * 100.0
        ));
        text.push_str(&format!("  {:<20} {:>24}", "", "model"));
        for baseline in &baselines {
            text.push_str(&format!(" {baseline:>10} {:>26}", "model − baseline"));
        }
        text.push('\n');
        for measure in SHOWN {
            let of: Vec<&&MeasureRow> = rows.iter().filter(|row| row.measure == measure).collect();
            let Some(model) = of.first() else { continue };
            text.push_str(&format!("  {measure:<20} {:>24}", interval(model.value, model.low, model.high)));
            for row in of {
                let alone = row.baseline_value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
                let difference =
                    row.difference.map(|_| signed(row.difference, row.difference_low, row.difference_high));
                text.push_str(&format!(" {alone:>10} {:>26}", difference.unwrap_or_else(|| "-".to_owned())));
            }
            text.push('\n');
        }
    }
    text
}

fn interval(value: Option<f64>, low: Option<f64>, high: Option<f64>) -> String {
    match (value, low, high) {
        (Some(value), Some(low), Some(high)) => format!("{value:.3} ({low:.3} to {high:.3})"),
        _ => "-".to_owned(),
    }
}

fn signed(value: Option<f64>, low: Option<f64>, high: Option<f64>) -> String {
    match (value, low, high) {
        (Some(value), Some(low), Some(high)) => format!("{value:+.3} ({low:+.3} to {high:+.3})"),
        _ => "-".to_owned(),
    }
}
