use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_identity::{
    Decision, DecisionKind, Effects, Explained, Identifier, Inquiry, Quality, Shown, Subject, Wish, decisions,
};
use holdfast_lake::Lake;
use holdfast_types::{Clock, Progress, TableName};
use serde::Serialize;

use super::audit::written_down;
use super::ingest::{has_unified, run_options, unified_stages};
use super::unify::{learn_anew, resolve_identity};
use super::{grouped, print, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, user_name};

/// Ask who is who and why, and decide it: a customer is named by its id, by type:value, or by token:…
#[derive(Debug, clap::Args)]
pub(crate) struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, clap::Subcommand)]
enum IdentityCommand {
    Show(ShowArgs),
    Explain(ExplainArgs),
    /// Say of two that they are one customer, now and in every later run
    Link(PairArgs),
    /// Say of two that they are never one customer, now and in every later run
    Unlink(PairArgs),
    Block(BlockArgs),
    Withdraw(WithdrawArgs),
    Decisions(DecisionsArgs),
    Review(ReviewArgs),
    Learn(LearnArgs),
    Diff(DiffArgs),
    Quality(QualityArgs),
}

/// A customer: its identifiers, decisions about them, and what became of its id
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// A customer id, in use or not, or an identifier
    id: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Why two are one customer, or why not
#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// One
    a: String,
    /// The other
    b: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PairArgs {
    /// One: a customer id, type:value, or token:…
    a: String,
    /// The other
    b: String,
    #[command(flatten)]
    signed: SignedArgs,
}

/// Say that an identifier is nobody's, so that it joins nobody
#[derive(Debug, clap::Args)]
struct BlockArgs {
    /// Such as phone; or token
    #[arg(value_name = "TYPE")]
    identifier_type: String,
    /// Its value; or the token's 32 digits
    value: String,
    #[command(flatten)]
    signed: SignedArgs,
}

/// Take a decision back
#[derive(Debug, clap::Args)]
struct WithdrawArgs {
    /// Its number, as `decisions` has it
    decision: i64,
    #[command(flatten)]
    signed: SignedArgs,
}

#[derive(Debug, clap::Args)]
struct SignedArgs {
    /// The reason, for those who wonder later; without personal data
    #[arg(long, value_name = "TEXT", required = true)]
    why: String,
    /// Who decides [default: the user of this computer]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only tell what it would do
    #[arg(long)]
    dry_run: bool,
    /// Only keep the decision; the next ingestion acts on it
    #[arg(long, conflicts_with = "dry_run")]
    later: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What people have decided, taken back or not
#[derive(Debug, clap::Args)]
struct DecisionsArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Pairs of customers whose records are alike, for you to decide with link or unlink
#[derive(Debug, clap::Args)]
struct ReviewArgs {
    /// How many to show, the likeliest first
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Learn anew how records of one person differ, from all that are there now; everything is worked out again
#[derive(Debug, clap::Args)]
struct LearnArgs {}

/// What other rules would make of the same evidence; writes nothing
#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// The other identity.toml
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// How many of the changes to show
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    examples: usize,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Counts to judge identity by
#[derive(Debug, clap::Args)]
struct QualityArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl IdentityCommand {
    /// What the audit log calls it.
    fn action(&self) -> &'static str {
        match self {
            Self::Show(_) => "identity:show",
            Self::Explain(_) => "identity:explain",
            Self::Link(_) => "identity:link",
            Self::Unlink(_) => "identity:unlink",
            Self::Block(_) => "identity:block",
            Self::Withdraw(_) => "identity:withdraw",
            Self::Decisions(_) => "identity:decisions",
            Self::Review(_) => "identity:review",
            Self::Learn(_) => "identity:learn",
            Self::Diff(_) => "identity:diff",
            Self::Quality(_) => "identity:quality",
        }
    }
}

pub(crate) async fn run(project: &Project, args: &IdentityArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let tables = ["identifiers", "customers", "edges", "decisions", "history", "matches"];
    let tables: Vec<TableName> = tables.iter().filter_map(|table| TableName::new("identity", table).ok()).collect();
    written_down(project, args.command.action(), &tables, Box::pin(answer(project, args, terminal))).await
}

async fn answer(project: &Project, args: &IdentityArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        IdentityCommand::Show(args) => show(project, args, terminal).await,
        IdentityCommand::Explain(args) => explain(project, args, terminal).await,
        IdentityCommand::Link(args) => {
            let wish = |inquiry: &Inquiry| Ok(Wish::Link(inquiry.find(&args.a)?, inquiry.find(&args.b)?));
            Box::pin(decide(project, wish, &args.signed, terminal)).await
        }
        IdentityCommand::Unlink(args) => {
            let wish = |inquiry: &Inquiry| Ok(Wish::Unlink(inquiry.find(&args.a)?, inquiry.find(&args.b)?));
            Box::pin(decide(project, wish, &args.signed, terminal)).await
        }
        IdentityCommand::Block(args) => {
            let wish = |inquiry: &Inquiry| Ok(Wish::Block(blocked(inquiry, args)?));
            Box::pin(decide(project, wish, &args.signed, terminal)).await
        }
        IdentityCommand::Withdraw(args) => {
            let wish = |_: &Inquiry| Ok(Wish::Withdraw(args.decision));
            Box::pin(decide(project, wish, &args.signed, terminal)).await
        }
        IdentityCommand::Decisions(args) => list(project, args).await,
        IdentityCommand::Review(args) => review(project, args, terminal).await,
        IdentityCommand::Learn(LearnArgs {}) => Box::pin(learn(project, terminal)).await,
        IdentityCommand::Diff(args) => diff(project, args, terminal).await,
        IdentityCommand::Quality(args) => quality(project, args, terminal).await,
    }
}

/// Identity as it was resolved last; tells when the rules are others by now.
async fn inquire(project: &Project, lake: &Lake, terminal: &Terminal) -> Result<Inquiry, CliError> {
    let inquiry = Inquiry::open(lake, &project.session_settings(lake).await?, &project.tokens(lake).await?).await?;
    if !inquiry.is_by_todays_rules() {
        terminal.note("    Rules changed since identity was resolved: this is what the next ingestion will make of it");
    }
    Ok(inquiry)
}

async fn show(project: &Project, args: &ShowArgs, terminal: &Terminal) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let mut inquiry = inquire(project, &lake, terminal).await?;
    let subject = inquiry.find(&args.id)?;
    let shown = inquiry.show(&lake, &project.session_settings(&lake).await?, subject).await?;
    if args.json { print_json(&shown) } else { print(&shown_text(&shown)) }
}

fn shown_text(shown: &Shown) -> String {
    let mut text = String::new();
    match (shown.asked, shown.customer_id) {
        (Some(asked), Some(id)) if asked != id => line(&mut text, &format!("{asked} is out of use: it is {id} now")),
        (_, Some(id)) => line(&mut text, &id.to_string()),
        (Some(asked), None) => line(&mut text, &format!("{asked} is out of use: nothing is left of it")),
        (None, None) => line(&mut text, "nobody"),
    }
    if !shown.retired_ids.is_empty() {
        let ids: Vec<String> = shown.retired_ids.iter().map(ToString::to_string).collect();
        line(&mut text, &format!("was also {}", ids.join(", ")));
    }
    if !shown.owners.is_empty() {
        line(&mut text, "\nowners of this identifier");
    }
    for owner in &shown.owners {
        let id = owner.customer_id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
        line(&mut text, &format!("  {id}{}", period(owner.valid_from, owner.valid_to)));
    }
    line(&mut text, "\nidentifiers");
    for found in &shown.identifiers {
        let standing =
            if found.standing == "joins" { String::new() } else { format!(", {}: joins nobody", found.standing) };
        let standing = standing + &period(found.valid_from, found.valid_to);
        let records = u64::try_from(found.records).unwrap_or(0);
        line(
            &mut text,
            &format!(
                "  {}  {} to {}, {} records{standing}",
                found.identifier,
                day(found.first_seen_at),
                day(found.last_seen_at),
                grouped(records)
            ),
        );
    }
    if !shown.decisions.is_empty() {
        line(&mut text, "\ndecisions");
        shown.decisions.iter().for_each(|decision| line(&mut text, &format!("  {}", decision_text(decision))));
    }
    line(&mut text, "\nhistory");
    for past in &shown.history {
        let other = past.other_customer_id.as_ref();
        let what = match (past.kind.as_str(), other) {
            ("merged", Some(other)) => format!("{other} went up in {}", past.customer_id),
            ("split", Some(other)) => format!("{} was split from {other}", past.customer_id),
            ("moved", Some(other)) => format!("{} got identifiers of {other}", past.customer_id),
            ("ended", _) => format!("nothing was left of {}", past.customer_id),
            _ => format!("{} was given", past.customer_id),
        };
        line(&mut text, &format!("  {}  {what}{}", day(past.changed_at), because(past)));
    }
    text
}

/// For how long an identifier that changed hands was somebody's; empty for others.
fn period(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> String {
    let from = from.map(|from| format!(" from {}", from.date_naive())).unwrap_or_default();
    let to = to.map(|to| format!(" until {}", to.date_naive())).unwrap_or_default();
    if from.is_empty() && to.is_empty() { String::new() } else { format!(", theirs{from}{to}") }
}

fn because(past: &holdfast_identity::HistoryLine) -> String {
    let name = |identifier: &Option<Identifier>| identifier.as_ref().map(ToString::to_string);
    let names: Vec<String> =
        [name(&past.cause_identifier), name(&past.cause_other_identifier)].into_iter().flatten().collect();
    let names = names.join(" and ");
    let decision = past.decision_id.map(|id| format!(" (decision {id})")).unwrap_or_default();
    match (past.cause.as_deref(), &past.cause_source) {
        (Some("evidence"), Some(source)) => format!(", for {names} in {source}"),
        (Some("match"), Some(source)) => format!(", because records of {names} are alike, in {source}"),
        (Some("standing"), _) => format!(", because what {names} is has changed"),
        (Some("compared"), _) | (None, _) => format!(", for {names}"),
        (Some(cause), _) => format!(", by {cause} of {names}{decision}"),
    }
}

async fn explain(project: &Project, args: &ExplainArgs, terminal: &Terminal) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let inquiry = inquire(project, &lake, terminal).await?;
    let explained = inquiry.explain(inquiry.find(&args.a)?, inquiry.find(&args.b)?)?;
    if args.json { print_json(&explained) } else { print(&explained_text(&explained)) }
}

fn explained_text(explained: &Explained) -> String {
    let mut text = String::new();
    line(&mut text, &explained.summary);
    for step in &explained.steps {
        line(&mut text, &format!("  {}", step.words));
        if let Some(why) = &step.refused_because {
            line(&mut text, &format!("    does not join: {why}"));
        }
    }
    text
}

fn blocked(inquiry: &Inquiry, args: &BlockArgs) -> Result<Subject, CliError> {
    let BlockArgs { identifier_type, value, .. } = args;
    Ok(if identifier_type == "token" {
        inquiry.find(&format!("token:{value}"))?
    } else {
        inquiry.find_value(identifier_type, value)?
    })
}

#[derive(Debug, Serialize)]
struct Decided {
    dry_run: bool,
    decision: Decision,
    /// What it does, or would do.
    effects: Effects,
    /// Whether identity and core were brought up to date.
    applied: bool,
}

async fn decide(
    project: &Project,
    wish: impl FnOnce(&Inquiry) -> Result<Wish, CliError>,
    args: &SignedArgs,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    if args.why.trim().is_empty() {
        return Err(CliError::Argument("say why with --why: a decision is kept for good".to_owned()));
    }
    let by = args.by.clone().unwrap_or_else(user_name);
    if by.trim().is_empty() {
        return Err(CliError::Argument("say with --by who decides: this computer does not tell".to_owned()));
    }
    // Mistakes in stages and rules are told before anything is written.
    let stages = project.stages()?;
    project.identity_rules()?;
    let lake = if args.dry_run { project.open_lake().await? } else { project.open_lake_to_write().await? };
    let (tokens, settings) = (project.tokens(&lake).await?, project.session_settings(&lake).await?);
    let mut inquiry = inquire(project, &lake, terminal).await?;
    inquiry.catch_up(&lake, &settings).await?;
    let wish = wish(&inquiry)?;
    let (decision, effects) = inquiry.decide(wish, by.trim(), args.why.trim(), SystemClock.now())?;
    // Frees the memory of the graph before it is loaded again.
    drop(inquiry);
    tell_effects(&effects, args.dry_run, terminal);
    let mut decided = Decided { dry_run: args.dry_run, decision, effects, applied: false };
    if !args.dry_run {
        Inquiry::record(&lake, &decided.decision).await?;
        let kind = decided.decision.kind.as_str();
        tracing::info!(decision = decided.decision.decision_id, kind, "decision stored");
        terminal.note(&format!("   Decided {}: {}", decided.decision.decision_id, decision_words(&decided.decision)));
        if args.later {
            terminal.note("           the next ingestion acts on it");
        } else {
            resolve_identity(project, &lake, &tokens, terminal).await?;
            if has_unified(&stages) {
                let runner = project.runner(lake, stages, settings).await?;
                let run = runner.run(&run_options(project, None, unified_stages(), false), terminal.as_ref()).await?;
                super::run::judge(&run)?;
            }
            decided.applied = true;
        }
    }
    if args.json { print_json(&decided) } else { Ok(()) }
}

fn tell_effects(effects: &Effects, is_dry_run: bool, terminal: &Terminal) {
    let verb = if is_dry_run { "     Would" } else { "      Will" };
    for effect in &effects.examples {
        terminal.note(&format!("{verb} {}: {}", effect.kind, effect.words));
    }
    if effects.examples.is_empty() {
        terminal.note(&format!("{verb} change no customer as it is"));
    }
}

async fn list(project: &Project, args: &DecisionsArgs) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let all = decisions(&lake, &project.reader_settings()).await?;
    if args.json {
        return print_json(&all);
    }
    let mut text = String::new();
    for decision in &all {
        let withdrawn = all.iter().find(|later| later.withdraws == Some(decision.decision_id));
        let state = withdrawn.map(|later| format!(" (taken back by {})", later.decision_id)).unwrap_or_default();
        line(&mut text, &format!("{}{state}", decision_text(decision)));
    }
    print(if text.is_empty() { "nothing has been decided\n" } else { &text })
}

fn decision_text(decision: &Decision) -> String {
    let Decision { decision_id, decided_by, reason, decided_at, .. } = decision;
    format!("{decision_id}  {}  {}, by {decided_by}: {reason}", day(Some(*decided_at)), decision_words(decision))
}

fn decision_words(decision: &Decision) -> String {
    let pair = match &decision.right {
        Some(right) => format!("{} and {right}", decision.left),
        None => decision.left.to_string(),
    };
    match (decision.kind, decision.withdraws) {
        (DecisionKind::Link, _) => format!("{pair} are one customer"),
        (DecisionKind::Unlink, _) => format!("{pair} are never one customer"),
        (DecisionKind::Block, _) => format!("{pair} joins nobody"),
        (DecisionKind::Withdraw, id) => format!("decision {} about {pair} holds no more", id.unwrap_or_default()),
    }
}

async fn review(project: &Project, args: &ReviewArgs, terminal: &Terminal) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let mut pairs = inquire(project, &lake, terminal).await?.review();
    let all = pairs.len();
    pairs.truncate(args.limit);
    if args.json {
        return print_json(&pairs);
    }
    let mut text = String::new();
    for pair in &pairs {
        let (left, right) = (pair.left_customer_id, pair.right_customer_id);
        line(&mut text, &format!("{left}  {right}  {:.2} %: {}", 100.0 * pair.score, pair.why));
        line(&mut text, &format!("    for:     {}", listed(&pair.agree)));
        line(&mut text, &format!("    against: {}", listed(&pair.differ)));
    }
    print(if text.is_empty() { "there is nothing to decide\n" } else { &text })?;
    if all > pairs.len() {
        let left = grouped((all - pairs.len()) as u64);
        terminal.note(&format!("           {left} more: --limit NUMBER shows them"));
    }
    Ok(())
}

fn listed(parts: &[String]) -> String {
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

async fn learn(project: &Project, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    if project.identity_rules()?.matching.is_none() {
        let remedy = "there is no [matching] in identity.toml: docs/identity.md says how records are compared";
        return Err(CliError::Argument(remedy.to_owned()));
    }
    let lake = project.open_lake_to_write().await?;
    let (tokens, settings) = (project.tokens(&lake).await?, project.session_settings(&lake).await?);
    learn_anew(project, &lake, &tokens, terminal).await?;
    if has_unified(&stages) {
        let runner = project.runner(lake, stages, settings).await?;
        let run = runner.run(&run_options(project, None, unified_stages(), false), terminal.as_ref()).await?;
        super::run::judge(&run)?;
    }
    Ok(())
}

async fn diff(project: &Project, args: &DiffArgs, terminal: &Terminal) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let tokens = project.tokens_by(&args.rules, &lake).await?;
    let settings = project.session_settings(&lake).await?;
    let inquiry = Inquiry::open(&lake, &settings, &project.tokens(&lake).await?).await?;
    let effects = inquiry.difference(&lake, &settings, &tokens, args.examples).await?;
    if args.json {
        return print_json(&effects);
    }
    let mut text = String::new();
    line(
        &mut text,
        &format!(
            "merges {} customers, splits {}, gives {} new ids",
            grouped(effects.merged),
            grouped(effects.split),
            grouped(effects.minted)
        ),
    );
    effects.examples.iter().for_each(|effect| line(&mut text, &format!("  {}: {}", effect.kind, effect.words)));
    print(&text)?;
    terminal.note("   Nothing was written: copy the file over identity.toml to have it so");
    Ok(())
}

async fn quality(project: &Project, args: &QualityArgs, terminal: &Terminal) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let quality = inquire(project, &lake, terminal).await?.quality()?;
    if args.json { print_json(&quality) } else { print(&quality_text(&quality)) }
}

fn quality_text(quality: &Quality) -> String {
    let mut text = String::new();
    line(
        &mut text,
        &format!(
            "{} customers, {} ids out of use, {} decisions in force\n",
            grouped(quality.customers),
            grouped(quality.retired),
            grouped(quality.decisions)
        ),
    );
    line(&mut text, "identifiers          all   shared     hubs  blocked recycled  most at one customer");
    for counted in &quality.types {
        line(
            &mut text,
            &format!(
                "  {:<14}{:>8}{:>9}{:>9}{:>9}{:>9}{:>22}",
                counted.identifier_type,
                grouped(counted.identifiers),
                grouped(counted.shared),
                grouped(counted.hubs),
                grouped(counted.blocked),
                grouped(counted.recycled),
                grouped(counted.most_at_one_customer)
            ),
        );
    }
    line(&mut text, "\ncustomers by their identifiers");
    for class in &quality.sizes {
        let range = match class.identifiers_max {
            Some(max) if max == class.identifiers_min => max.to_string(),
            Some(max) => format!("{} to {max}", class.identifiers_min),
            None => format!("{} and more", class.identifiers_min),
        };
        line(&mut text, &format!("  {range:<14}{:>8}", grouped(class.customers)));
    }
    for largest in &quality.largest {
        line(&mut text, &format!("  {} has {}", largest.customer_id, grouped(largest.identifiers)));
    }
    if quality.model > 0 {
        line(
            &mut text,
            &format!(
                "\nmodel {}: {} pairs of identifiers have records that are alike, {} pairs of customers are to review",
                quality.model,
                grouped(quality.alike),
                grouped(quality.to_review)
            ),
        );
        let cap = quality.guard_cap.unwrap_or_default();
        line(&mut text, &format!("more is asked for where more than {cap} identifiers would come together"));
    }
    line(&mut text, "\nwith a guard of   customers   largest   evidence cut");
    for point in &quality.guard_curve {
        line(
            &mut text,
            &format!(
                "  {:<14}{:>11}{:>10}{:>15}",
                point.cap,
                grouped(point.customers),
                grouped(point.largest),
                grouped(point.edges_cut)
            ),
        );
    }
    text
}

fn day(moment: Option<DateTime<Utc>>) -> String {
    moment.map_or_else(|| "no date".to_owned(), |moment| moment.format("%Y-%m-%d").to_string())
}

fn line(text: &mut String, words: &str) {
    // Writing to a text cannot fail.
    let _ = writeln!(text, "{words}");
}
