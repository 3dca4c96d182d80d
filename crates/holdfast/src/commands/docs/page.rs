//! The pages. Everything that comes from files of the project is escaped.

use std::fmt::Write;

use holdfast_engine::{ColumnName, InspectedStage, StageKind, to_the_source};
use holdfast_lake::grammar::type_name;
use holdfast_types::{COMMENT_KEY, CUSTOMER_BUCKET, PII_KEY, TableName};

use super::{Site, graph};

pub(super) const STYLE: &str = "\
:root { color-scheme: light dark; --line: #8888; --ink: light-dark(#1b1f24, #e6e6e6); --link: light-dark(#0a58ca, #8ab4f8); --soft: light-dark(#f3f4f6, #24282e); }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); max-width: 75rem; margin: 0 auto; padding: 1rem; }
a { color: var(--link); }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: 0.95em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); }
th { background: var(--soft); }
.tag { border: 1px solid var(--line); border-radius: 0.6rem; padding: 0 0.5rem; font-size: 0.85em; white-space: nowrap; }
pre { background: var(--soft); padding: 0.8rem; overflow-x: auto; }
svg path { fill: none; stroke: var(--line); }
svg rect { fill: var(--soft); stroke: var(--link); }
svg .source rect { stroke: var(--line); stroke-dasharray: 4 2; }
svg text { fill: var(--ink); font: 12px ui-monospace, monospace; }
svg a:focus rect { stroke-width: 3; }
";

/// The text as it stands between tags and in attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Names of tables are letters, digits, underscores and a dot: they are names of files as they are.
pub(super) fn file_name(stage: &TableName) -> String {
    format!("{stage}.html")
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($part:tt)*) => {{ let _ = writeln!($out, $($part)*); }};
}

pub(super) fn index(site: &Site<'_>) -> String {
    let mut out = String::new();
    begin(&mut out, &format!("Stages of {}", site.pipeline));
    put!(out, "<main>\n<h1>Stages of <code>{}</code></h1>", escaped(site.pipeline));
    put!(out, "<p>{}</p>", escaped(&site.description));
    put!(out, "<h2 id=\"picture\">What is made from what</h2>");
    put!(out, "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-labelledby=\"picture\">");
    out.push_str(&graph::svg(site));
    put!(out, "</div>\n<h2 id=\"list\">The stages</h2>\n<div class=\"wide\"><table aria-labelledby=\"list\">");
    put!(
        out,
        "<thead><tr><th scope=\"col\">Table</th><th scope=\"col\">What it is</th><th scope=\"col\">Owner</th><th scope=\"col\">Reads</th></tr></thead>\n<tbody>"
    );
    let mut stages: Vec<&InspectedStage> = site.inspection.stages.iter().collect();
    stages.sort_by(|left, right| left.stage.name.cmp(&right.stage.name));
    for stage in stages {
        let inputs: Vec<String> = stage.stage.inputs.keys().map(|name| linked(site, name)).collect();
        let directives = &stage.stage.directives;
        put!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            linked(site, &stage.stage.name),
            escaped(first_sentence(&directives.description)),
            escaped(directives.owner.as_deref().unwrap_or("")),
            inputs.join(", ")
        );
    }
    put!(out, "</tbody></table></div>\n</main>");
    end(&mut out);
    out
}

pub(super) fn stage(site: &Site<'_>, inspected: &InspectedStage) -> String {
    let stage = &inspected.stage;
    let mut out = String::new();
    begin(&mut out, &stage.name.to_string());
    put!(out, "<nav><a href=\"index.html\">All stages</a></nav>\n<main>\n<h1><code>{}</code></h1>", stage.name);
    put!(out, "<p>{}</p>", escaped(&stage.directives.description));
    facts(&mut out, site, inspected);
    columns(&mut out, site, inspected);
    expectations(&mut out, inspected);
    cases(&mut out, site, inspected);
    lineage(&mut out, site, inspected);
    put!(out, "<h2>The query</h2>\n<pre tabindex=\"0\"><code>{}</code></pre>\n</main>", escaped(stage.text.trim_end()));
    end(&mut out);
    out
}

fn facts(out: &mut String, site: &Site<'_>, inspected: &InspectedStage) {
    let stage = &inspected.stage;
    put!(out, "<div class=\"wide\"><table>\n<tbody>");
    let mut fact = |name: &str, value: String| put!(out, "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>");
    if let Some(owner) = &stage.directives.owner {
        fact("Owner", escaped(owner));
    }
    let file = stage.file.strip_prefix(site.folder).unwrap_or(&stage.file);
    fact("File", format!("<code>{}</code>", escaped(&file.display().to_string())));
    if let Some(key) = &inspected.key {
        fact("Key", codes(key.iter().map(String::as_str)));
    }
    let kind = match &stage.directives.kind {
        StageKind::Full => "full".to_owned(),
        StageKind::Append => "append".to_owned(),
        StageKind::Incremental { key, .. } => format!("incremental, by {}", codes(key.iter().map(String::as_str))),
    };
    fact("Refresh", kind);
    if stage.depends_on_time {
        fact("Clock", "depends on the moment of the run".to_owned());
    }
    if let Some(contract) = &stage.contract {
        let file = contract.file.strip_prefix(site.folder).unwrap_or(&contract.file);
        fact(
            "Contract",
            format!("version {}, <code>{}</code>", contract.version, escaped(&file.display().to_string())),
        );
        fact("One row is", escaped(&contract.grain));
        if let Some(event_time) = &contract.event_time {
            fact("Event time", codes([event_time.as_str()]));
        }
        if !contract.identifiers.is_empty() {
            fact("Identifiers", codes(contract.identifiers.iter().map(String::as_str)));
        }
    }
    for source in &stage.directives.sources {
        fact("Source", escaped(source));
    }
    for (name, value) in &stage.directives.own {
        fact(&format!("@{}", escaped(name)), escaped(value));
    }
    put!(out, "</tbody></table></div>");
}

fn columns(out: &mut String, site: &Site<'_>, inspected: &InspectedStage) {
    let lineages = site.inspection.lineages();
    put!(out, "<h2 id=\"columns\">Columns</h2>\n<div class=\"wide\"><table aria-labelledby=\"columns\">");
    put!(
        out,
        "<thead><tr><th scope=\"col\">Column</th><th scope=\"col\">Type</th><th scope=\"col\">What it is</th><th scope=\"col\">From</th><th scope=\"col\">In the end from</th></tr></thead>\n<tbody>"
    );
    for field in inspected.schema.fields().iter().filter(|field| field.name() != CUSTOMER_BUCKET) {
        let mut tags = String::new();
        for tag in field.metadata().keys().filter(|key| *key != COMMENT_KEY).collect::<std::collections::BTreeSet<_>>()
        {
            let shown = if tag == PII_KEY { "personal data".to_owned() } else { escaped(tag) };
            let _ = write!(tags, " <span class=\"tag\">{shown}</span>");
        }
        let from = inspected.lineage.column(field.name()).into_iter().flatten();
        let top = ColumnName { table: inspected.stage.name.clone(), column: field.name().clone() };
        put!(
            out,
            "<tr><th scope=\"row\"><code>{}</code>{tags}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(field.name()),
            escaped(&type_name(field.data_type())),
            escaped(field.metadata().get(COMMENT_KEY).map_or("", String::as_str)),
            codes(from.map(ToString::to_string)),
            codes(to_the_source(&lineages, &top).iter().map(ToString::to_string))
        );
    }
    put!(out, "</tbody></table></div>");
}

fn expectations(out: &mut String, inspected: &InspectedStage) {
    put!(out, "<h2 id=\"expectations\">Expectations</h2>");
    let expectations = &inspected.stage.directives.expectations;
    if expectations.is_empty() {
        put!(out, "<p>None.</p>");
        return;
    }
    put!(out, "<div class=\"wide\"><table aria-labelledby=\"expectations\">");
    put!(
        out,
        "<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Otherwise</th><th scope=\"col\">Condition</th></tr></thead>\n<tbody>"
    );
    for expectation in expectations {
        put!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td><code>{}</code></td></tr>",
            escaped(&expectation.name),
            expectation.severity.as_str(),
            escaped(&expectation.condition)
        );
    }
    put!(out, "</tbody></table></div>");
}

fn cases(out: &mut String, site: &Site<'_>, inspected: &InspectedStage) {
    put!(out, "<h2>Cases</h2>");
    match site.cases.get(&inspected.stage.name).map(Vec::as_slice) {
        None | Some([]) => put!(out, "<p>None.</p>"),
        Some(names) => {
            put!(out, "<ul>");
            for name in names {
                put!(out, "<li>{}</li>", escaped(&name.replace('_', " ")));
            }
            put!(out, "</ul>");
        }
    }
}

fn lineage(out: &mut String, site: &Site<'_>, inspected: &InspectedStage) {
    let name = &inspected.stage.name;
    let list = |names: Vec<String>| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    let reads = inspected.stage.inputs.keys().map(|name| linked(site, name)).collect();
    let read_by = site.read_by.get(name).into_iter().flatten().map(|name| linked(site, name)).collect();
    put!(out, "<h2>Lineage</h2>\n<p>Reads {}.</p>\n<p>Read by {}.</p>", list(reads), list(read_by));
    if !inspected.lineage.rows.is_empty() {
        let rows = codes(inspected.lineage.rows.iter().map(ToString::to_string));
        put!(out, "<p>Which rows there are is decided by {rows}.</p>");
    }
}

fn codes(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    names.into_iter().map(|name| format!("<code>{}</code>", escaped(name.as_ref()))).collect::<Vec<_>>().join(", ")
}

/// A table's name, as a link where it has a page.
fn linked(site: &Site<'_>, name: &TableName) -> String {
    match site.inspection.stage(name) {
        Some(_) => format!("<a href=\"{}\"><code>{name}</code></a>", file_name(name)),
        None => format!("<code>{name}</code>"),
    }
}

fn first_sentence(text: &str) -> &str {
    text.split_inclusive(". ").next().unwrap_or_default().trim_end()
}

fn begin(out: &mut String, title: &str) {
    put!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<link rel=\"stylesheet\" href=\"style.css\">\n</head>\n<body>",
        escaped(title)
    );
}

fn end(out: &mut String) {
    put!(out, "</body>\n</html>");
}
