//! Whether a text is content or not: logistic regression over hashed n-grams that are weighed by naive Bayes (Wang and Manning 2012), one model for
//! Chinese and English, without a list of words.
//!
//! Trained from labelled texts of whoever uses it; none is shipped. Two classes teach no neutral one: what is neither clearly good nor clearly
//! bad is called neutral by a band of confidence, which is a setting.

mod ngrams;
mod stored;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::boost::probability;
use crate::measure::check_labels;
use crate::{ModelError, Result};

pub use ngrams::Language;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SentimentSettings {
    /// Weights are 2 to this many: 20 is four megabytes.
    pub bits: u32,
    /// Times through all texts.
    pub epochs: u32,
    /// Step of AdaGrad (Duchi, Hazan and Singer 2011).
    pub step: f64,
    /// L2 penalty, per text.
    pub l2: f64,
    pub seed: u64,
    /// Below this probability of the likelier class, a text is neutral.
    pub neutral_below: f64,
    /// Named in every answer.
    pub version: String,
}

impl Default for SentimentSettings {
    fn default() -> Self {
        Self { bits: 20, epochs: 12, step: 0.5, l2: 1e-6, seed: 0, neutral_below: 0.65, version: "1".to_owned() }
    }
}

/// What a text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    Negative,
    /// Too little to tell.
    Neutral,
    Positive,
}

impl Tone {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Neutral => "neutral",
            Self::Positive => "positive",
        }
    }
}

/// The answer for one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sentiment<'a> {
    /// From −1, negative, to 1, positive: 2 p − 1.
    pub score: f64,
    /// Probability of the likelier class, from 0.5.
    pub confidence: f64,
    pub tone: Tone,
    pub language: Language,
    /// Of the model that says so.
    pub version: &'a str,
}

/// A trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct SentimentModel {
    bits: u32,
    bias: f32,
    weights: Vec<f32>,
    neutral_below: f64,
    version: String,
}

impl SentimentModel {
    /// Trains on texts; `positive` says which are content. The same texts count once: copies in a corpus make its measure a lie, so keep them out of
    /// what is held out as well ([`distinct`]).
    ///
    /// # Errors
    ///
    /// No texts, one class, settings out of range.
    pub fn fit(texts: &[&str], positive: &[bool], settings: &SentimentSettings) -> Result<Self> {
        settings.check()?;
        check_labels("the labelled texts", texts.len(), positive)?;
        let rows: Vec<Vec<u32>> = texts.iter().map(|text| ngrams::places(text, settings.bits)).collect();
        let ratios = ratios(&rows, positive, settings.bits);
        let mut weights = vec![0.0_f32; 1 << settings.bits];
        let mut squares = vec![1e-8_f32; 1 << settings.bits];
        let (mut bias, mut bias_square) = (0.0_f32, 1e-8_f32);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        #[expect(clippy::cast_possible_truncation, reason = "settings in single precision")]
        let (step, l2) = (settings.step as f32, settings.l2 as f32);
        for _ in 0..settings.epochs {
            for last in (1..order.len()).rev() {
                let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
                order.swap(last, usize::try_from(other).unwrap_or(last));
            }
            for &row in &order {
                let places = &rows[row];
                let value = value(places);
                let sum: f32 = places.iter().map(|&place| weights[place as usize] * ratios[place as usize]).sum();
                let margin = bias + value * sum;
                let error = 1.0 / (1.0 + (-margin).exp()) - f32::from(u8::from(positive[row]));
                bias_square += error * error;
                bias -= step * error / bias_square.sqrt();
                for &place in places {
                    let place = place as usize;
                    let gradient = error * value * ratios[place] + l2 * weights[place];
                    squares[place] += gradient * gradient;
                    weights[place] -= step * gradient / squares[place].sqrt();
                }
            }
        }
        for (weight, ratio) in weights.iter_mut().zip(ratios) {
            *weight *= ratio;
        }
        let version = settings.version.clone();
        Ok(Self { bits: settings.bits, bias, weights, neutral_below: settings.neutral_below, version })
    }

    /// What a text says; neutral with confidence 0.5 where it has no letter, hanzi or emoji in it, and where nothing in it was in a text that taught.
    /// Of a text longer than 20,000 characters the beginning is read.
    pub fn read(&self, text: &str) -> Sentiment<'_> {
        let places = ngrams::places(text, self.bits);
        let language = Language::of(text);
        // Without this all texts in a language that nobody taught would be what most texts that taught are.
        if places.iter().all(|&place| self.weights[place as usize].abs() < f32::MIN_POSITIVE) {
            return Sentiment { score: 0.0, confidence: 0.5, tone: Tone::Neutral, language, version: &self.version };
        }
        let sum: f32 = places.iter().map(|&place| self.weights[place as usize]).sum();
        let p = probability(f64::from(self.bias + value(&places) * sum));
        let confidence = p.max(1.0 - p);
        let tone = match p {
            _ if confidence < self.neutral_below => Tone::Neutral,
            p if p > 0.5 => Tone::Positive,
            _ => Tone::Negative,
        };
        Sentiment { score: 2.0 * p - 1.0, confidence, tone, language, version: &self.version }
    }
}

impl SentimentSettings {
    /// Refuses settings out of range.
    ///
    /// # Errors
    ///
    /// The first of them.
    pub fn check(&self) -> Result<()> {
        let wrong = |name, value, range| Err(ModelError::Parameter { name, value, range });
        if !(8..=24).contains(&self.bits) {
            return wrong("bits", f64::from(self.bits), "from 8 to 24");
        }
        if self.epochs == 0 {
            return wrong("epochs", 0.0, "at least 1");
        }
        if !(self.step > 0.0 && self.step <= 10.0) {
            return wrong("step", self.step, "above 0 and at most 10");
        }
        if !(0.0..=1.0).contains(&self.l2) {
            return wrong("l2", self.l2, "from 0 to 1");
        }
        if !(0.5..1.0).contains(&self.neutral_below) {
            return wrong("neutral_below", self.neutral_below, "from 0.5 to below 1");
        }
        Ok(())
    }
}

/// The places of texts that are the first of their kind: white space, case and width aside, the same text is one.
pub fn distinct(texts: &[&str]) -> Vec<usize> {
    let mut seen = std::collections::HashSet::new();
    let mut first = Vec::new();
    for (place, text) in texts.iter().enumerate() {
        if seen.insert(ngrams::plain(text)) {
            first.push(place);
        }
    }
    first
}

/// How much likelier a place is in a positive text than in a negative one, ln, each counted once more than it is there: n-grams that tell little begin
/// small and stay so (Wang and Manning 2012).
fn ratios(rows: &[Vec<u32>], positive: &[bool], bits: u32) -> Vec<f32> {
    let mut counts = vec![[1.0_f64; 2]; 1 << bits];
    for (places, &positive) in rows.iter().zip(positive) {
        for &place in places {
            counts[place as usize][usize::from(positive)] += 1.0;
        }
    }
    let sums = counts.iter().fold([0.0; 2], |[bad, good], [one, other]| [bad + one, good + other]);
    #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
    let ratio = |[bad, good]: [f64; 2]| ((good / sums[1]) / (bad / sums[0])).ln() as f32;
    counts.into_iter().map(ratio).collect()
}

/// What each n-gram of a text counts: texts of any length weigh the same.
fn value(places: &[u32]) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "a factor in single precision")]
    let root = (places.len() as f64).sqrt() as f32;
    1.0 / root.max(1.0)
}

#[cfg(test)]
mod tests;
