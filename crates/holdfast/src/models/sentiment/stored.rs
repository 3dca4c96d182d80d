//! A version of a model of texts in the registry: its weights, and sentences that it has to answer as it did before it is trusted.

use holdfast_models::sentiment::SentimentModel;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::models::kind::Kind;
use crate::models::registry::{Registry, Version, damaged};

/// The ending of the file with the weights.
pub(crate) const ENDING: &str = "ngrams";

/// What a version is asked when it is kept and when it is read. Sentences of nobody: what customers wrote is not kept a second time.
const PROBES: [&str; 12] = [
    "质量很好，非常满意",
    "物流太慢了，很失望",
    "客服态度好，下次还来",
    "有色差，跟图片不一样",
    "一般般",
    "退货",
    "Great quality, very happy with it",
    "Late again and nobody answers",
    "It is okay",
    "refund",
    "👍",
    "",
];

/// A replayed score may differ by so much.
const TOLERANCE: f64 = 1e-4;

/// A sentence with what the model said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Probe {
    text: String,
    score: f64,
}

/// A version that was read whole, with everything checked that can be.
#[derive(Debug)]
pub(crate) struct LoadedTexts {
    pub(crate) version: Version,
    pub(crate) model: SentimentModel,
}

/// The sentences with what a model says of them, as they are kept beside it.
///
/// # Errors
/// None that is known.
pub(crate) fn probes(model: &SentimentModel) -> Result<Vec<u8>, CliError> {
    let probes = PROBES.map(|text| Probe { text: text.to_owned(), score: model.read(text).score });
    serde_json::to_vec(&probes).map_err(crate::models::registry::unwritable)
}

impl Registry {
    /// Reads a version of a model of texts: files that are what their hashes say, and sentences of which it says what it said.
    ///
    /// # Errors
    /// [`CliError::ModelDamaged`] with what is wrong; a model of customers.
    pub(crate) async fn load_texts(&self, version: Version) -> Result<LoadedTexts, CliError> {
        if version.kind() != Kind::Sentiment {
            return Err(CliError::Argument(format!(
                "`{}` is about customers: it reads no texts; ask it with predict('{}', row)",
                version.model, version.model
            )));
        }
        let wrong = |what: String| damaged(&version, &what);
        let artefact = self.fetch(&version.artefact, &version.artefact_hash).await.map_err(wrong)?;
        let probes = self.fetch(&version.examples, &version.examples_hash).await.map_err(wrong)?;
        let model = SentimentModel::decode(&artefact).map_err(|error| wrong(error.to_string()))?;
        let probes: Vec<Probe> =
            serde_json::from_slice(&probes).map_err(|error| wrong(format!("its examples cannot be read ({error})")))?;
        replay(&model, &probes).map_err(wrong)?;
        Ok(LoadedTexts { version, model })
    }
}

fn replay(model: &SentimentModel, probes: &[Probe]) -> Result<(), String> {
    if probes.is_empty() {
        return Err("it has no examples".to_owned());
    }
    let differs = |probe: &&Probe| (model.read(&probe.text).score - probe.score).abs() > TOLERANCE;
    match probes.iter().find(differs) {
        Some(probe) => Err(format!(
            "of {:?} it says {:.4} where it said {:.4}: its weights are others",
            probe.text,
            model.read(&probe.text).score,
            probe.score
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_models::sentiment::SentimentSettings;

    use super::*;

    #[test]
    fn a_model_that_answers_otherwise_than_it_did_is_told_with_the_sentence() {
        let texts = ["很满意", "很失望", "very happy", "nobody answers"];
        let model = SentimentModel::fit(&texts, &[true, false, true, false], &SentimentSettings::default()).unwrap();
        let mut kept: Vec<Probe> = serde_json::from_slice(&probes(&model).unwrap()).unwrap();
        assert!(kept[0].score > 0.1 && kept[1].score < -0.1, "{kept:?}");
        replay(&model, &kept).unwrap();
        kept[1].score += 0.01;
        assert!(replay(&model, &kept).unwrap_err().contains("物流太慢了"));
        assert!(replay(&model, &[]).is_err(), "nothing was asked");
    }
}
