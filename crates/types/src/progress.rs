/// Where long work reports how far it is. The binary shows a bar on a terminal and plain lines elsewhere; tests ignore
/// it. Calls are cheap and may come from any thread.
pub trait Progress: Send + Sync + std::fmt::Debug {
    /// `step` has done `done` of `total` units (`total` is absent when it cannot be known).
    fn advance(&self, step: &str, done: u64, total: Option<u64>, unit: &'static str);

    /// `step` is over; `summary` is one line for people.
    fn finish(&self, step: &str, summary: &str);

    /// Something worth a line that is neither progress nor an error.
    fn note(&self, line: &str);

    /// Something that went wrong and that the error at the end does not tell. Shown also where progress is not.
    fn problem(&self, line: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advance(&self, _step: &str, _done: u64, _total: Option<u64>, _unit: &'static str) {}
    fn finish(&self, _step: &str, _summary: &str) {}
    fn note(&self, _line: &str) {}
    fn problem(&self, _line: &str) {}
}
