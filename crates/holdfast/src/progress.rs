//! Bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_types::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a plain line may tell of the same step.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// Progress on standard error, so that standard output holds results alone.
#[derive(Debug)]
pub(crate) struct Terminal {
    bars: Option<MultiProgress>,
    steps: Mutex<BTreeMap<String, Step>>,
    quiet: bool,
}

#[derive(Debug)]
struct Step {
    bar: Option<ProgressBar>,
    shown: Instant,
}

impl Terminal {
    /// Bars when standard error is a terminal. `quiet` shows problems only.
    pub(crate) fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { bars, steps: Mutex::default(), quiet }
    }

    /// Writes a log line, its newline included, above the bars.
    pub(crate) fn log(&self, line: &[u8]) {
        self.line(String::from_utf8_lossy(line).trim_end());
    }

    fn line(&self, line: &str) {
        // Who closed the pipe wants to see no more; that is no reason to stop.
        let write = || drop(writeln!(std::io::stderr(), "{line}"));
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

impl Progress for Terminal {
    fn advance(&self, name: &str, done: u64, total: Option<u64>, unit: &'static str) {
        if self.quiet {
            return;
        }
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let step = steps.entry(name.to_owned()).or_insert_with(|| Step {
            bar: self.bars.as_ref().map(|bars| bars.add(new_bar(name, total, unit))),
            shown: now,
        });
        match &step.bar {
            Some(bar) => {
                if let Some(total) = total {
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            None if now.duration_since(step.shown) >= PLAIN_INTERVAL => {
                step.shown = now;
                match total {
                    Some(total) => self.line(&format!("{name}: {done} of {total} {unit}")),
                    None => self.line(&format!("{name}: {done} {unit}")),
                }
            }
            None => {}
        }
    }

    fn finish(&self, name: &str, summary: &str) {
        if let Some(step) = self.steps.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
            && let Some(bar) = step.bar
        {
            bar.finish_and_clear();
        }
        if !self.quiet && !summary.is_empty() {
            self.line(summary);
        }
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            self.line(line);
        }
    }

    fn problem(&self, line: &str) {
        self.line(line);
    }
}

fn new_bar(name: &str, total: Option<u64>, unit: &str) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            format!("{{prefix:>14}} [{{bar:30}}] {{human_pos}}/{{human_len}} {unit} {{elapsed}}"),
        ),
        None => (ProgressBar::new_spinner(), format!("{{prefix:>14}} {{spinner}} {{human_pos}} {unit} {{elapsed}}")),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(name.to_owned())
}
