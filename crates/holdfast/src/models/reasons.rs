//! Why a customer is scored as they are, in words: the features that add most to the log-odds, and those that take most away.

use std::collections::BTreeMap;

use holdfast_models::{Feature, FeatureKind, Signature};

/// At most how many features are named that raise a score, and how many that lower it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HowMany {
    pub(crate) raises: usize,
    pub(crate) lowers: usize,
}

impl HowMany {
    /// Those of the tables of scores.
    pub(crate) const OF_SCORES: Self = Self { raises: 3, lowers: 2 };
}

/// What each feature is called.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    features: Vec<(Feature, String)>,
}

/// The reasons of one customer, strongest first; none where nothing adds or takes away.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reasons {
    pub(crate) raises: Vec<String>,
    pub(crate) lowers: Vec<String>,
}

impl Words {
    /// The words of a model: those of its file, else the comment of the column up to its first semicolon, else its name.
    pub(crate) fn of(
        signature: &Signature,
        said: &BTreeMap<String, String>,
        comments: &BTreeMap<String, String>,
    ) -> Self {
        let features = signature.features().iter().map(|feature| {
            let words = said.get(&feature.name).cloned().unwrap_or_else(|| {
                let comment =
                    comments.get(&feature.name).map(|comment| comment.split(';').next().unwrap_or_default().trim());
                format!("{}: {{value}}", comment.filter(|comment| !comment.is_empty()).unwrap_or(&feature.name))
            });
            (feature.clone(), words)
        });
        Self { features: features.collect() }
    }

    /// The reasons for one row: its features, and what each adds to the log-odds. What adds nothing is no reason.
    pub(crate) fn reasons(&self, values: &[f32], contributions: &[f32], most: HowMany) -> Reasons {
        let mut order: Vec<usize> = (0..self.features.len()).collect();
        // Equal contributions stand in the order of features.
        order.sort_by(|left, right| contributions[*right].total_cmp(&contributions[*left]));
        let up = order.iter().filter(|place| contributions[**place] > 0.0);
        let down = order.iter().rev().filter(|place| contributions[**place] < 0.0);
        let told = |place: &usize| self.told(*place, values[*place]);
        Reasons { raises: up.take(most.raises).map(told).collect(), lowers: down.take(most.lowers).map(told).collect() }
    }

    fn told(&self, place: usize, value: f32) -> String {
        let (feature, words) = &self.features[place];
        let value = match &feature.kind {
            _ if value.is_nan() => "not known".to_owned(),
            FeatureKind::Category(names) => {
                let name = names.iter().enumerate().find(|(code, _)| (*code as f32 - value).abs() < 0.5);
                name.map_or_else(|| "not known".to_owned(), |(_, name)| name.clone())
            }
            _ => number(value),
        };
        words.replace("{value}", &value)
    }
}

/// Whole numbers without a point, others with two digits behind it.
fn number(value: f32) -> String {
    // −0 is 0.
    let value = value + 0.0;
    if value.fract().abs() < f32::EPSILON { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_in_both_directions_are_told_and_what_adds_nothing_is_not() {
        let names = ["days", "tier", "visits", "spend"];
        let features = names.iter().map(|name| Feature {
            name: (*name).to_owned(),
            kind: if *name == "tier" {
                FeatureKind::Category(vec!["gold".into(), "silver".into()])
            } else {
                FeatureKind::Number
            },
        });
        let signature = Signature::new(features.collect()).unwrap();
        let said = [("days".to_owned(), "no purchase for {value} days".to_owned())].into();
        let comments = [("visits".to_owned(), "Visits, last 30 days; 0 without".to_owned())].into();
        let words = Words::of(&signature, &said, &comments);
        let told = |most| words.reasons(&[45.0, 1.0, f32::NAN, 1.5], &[0.8, -0.3, 0.1, 0.0], most);
        let reasons = told(HowMany::OF_SCORES);
        assert_eq!(reasons.raises, ["no purchase for 45 days", "Visits, last 30 days: not known"]);
        assert_eq!(reasons.lowers, ["tier: silver"]);
        let fewer = told(HowMany { raises: 1, lowers: 0 });
        assert_eq!(fewer.raises, ["no purchase for 45 days"]);
        assert!(fewer.lowers.is_empty());
    }
}
