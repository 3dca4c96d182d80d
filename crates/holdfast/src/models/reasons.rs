//! Why a customer is scored as they are, in words: the features that add most to the log-odds, and those that take most away.

use std::collections::BTreeMap;

use holdfast_models::{Feature, FeatureKind, Signature};

/// How many features are named that raise a score, and how many that lower it.
pub(crate) const RAISES: usize = 3;
pub(crate) const LOWERS: usize = 2;

/// What each feature is called.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    features: Vec<(Feature, String)>,
}

/// The reasons of one customer, strongest first; none where nothing adds or takes away.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reasons {
    pub(crate) raises: [Option<String>; RAISES],
    pub(crate) lowers: [Option<String>; LOWERS],
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
    pub(crate) fn reasons(&self, values: &[f32], contributions: &[f32]) -> Reasons {
        let mut order: Vec<usize> = (0..self.features.len()).collect();
        // Equal contributions stand in the order of features.
        order.sort_by(|left, right| contributions[*right].total_cmp(&contributions[*left]));
        let mut up = order.iter().copied().filter(|place| contributions[*place] > 0.0);
        let mut down = order.iter().rev().copied().filter(|place| contributions[*place] < 0.0);
        Reasons {
            raises: std::array::from_fn(|_| up.next().map(|place| self.told(place, values[place]))),
            lowers: std::array::from_fn(|_| down.next().map(|place| self.told(place, values[place]))),
        }
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
        let reasons = words.reasons(&[45.0, 1.0, f32::NAN, 1.5], &[0.8, -0.3, 0.1, 0.0]);
        let raises =
            [Some("no purchase for 45 days".to_owned()), Some("Visits, last 30 days: not known".to_owned()), None];
        assert_eq!(reasons.raises, raises);
        assert_eq!(reasons.lowers, [Some("tier: silver".to_owned()), None]);
    }
}
