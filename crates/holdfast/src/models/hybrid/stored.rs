//! The sequence model of a hybrid in the registry: weights as a file of their own, and what belongs to them beside the examples of the trees.

use holdfast_models::sequence::{SequenceArtefact, SequenceModel, Sequences};
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::models::registry::Registry;

/// Sequences that are kept with a model, to be replayed before it is trusted.
const EXAMPLES: usize = 8;

/// A replayed probability may differ by so much: kinds of processors add in other orders.
const TOLERANCE: f64 = 1e-4;

/// What is kept of a sequence model beside its weights.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeptSequence {
    /// The file with the weights, below `_holdfast`, and its hash.
    weights: String,
    weights_hash: String,
    /// Channels, steps and parameters, with the hash of the weights and its own.
    signature: String,
    examples: Vec<Example>,
}

/// A sequence with what the model said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Example {
    /// Step by step, channel by channel.
    values: Vec<f32>,
    present: Vec<bool>,
    probability: f64,
}

impl Registry {
    /// Keeps the weights of a sequence model, and examples out of these sequences.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) async fn keep_sequence(
        &self,
        name: &str,
        model: &SequenceModel,
        sequences: &Sequences,
    ) -> Result<KeptSequence, CliError> {
        let SequenceArtefact { weights, signature } = model.write()?;
        let (weights, weights_hash) = self.store(name, weights, "safetensors").await?;
        let signature = String::from_utf8_lossy(&signature).into_owned();
        Ok(KeptSequence { weights, weights_hash, signature, examples: examples(model, sequences)? })
    }

    /// Reads a sequence model: files that are what their hashes say, and sequences of which it says what it said.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) async fn load_sequence(&self, kept: &KeptSequence) -> Result<SequenceModel, String> {
        let weights = self.fetch(&kept.weights, &kept.weights_hash).await?;
        let artefact = SequenceArtefact { weights, signature: kept.signature.clone().into_bytes() };
        let model = SequenceModel::read(&artefact).map_err(|error| error.to_string())?;
        replay(&model, &kept.examples)?;
        Ok(model)
    }
}

fn examples(model: &SequenceModel, sequences: &Sequences) -> Result<Vec<Example>, CliError> {
    let step = (sequences.rows() / EXAMPLES).max(1);
    let rows: Vec<usize> =
        (0..sequences.rows()).step_by(step).filter(|row| sequences.length(*row) > 0).take(EXAMPLES).collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let probabilities = model.probabilities(&sequences.take(&rows)?)?;
    let example = |(row, probability): (usize, Option<f64>)| {
        let values = (0..sequences.steps()).flat_map(|step| sequences.step(row, step)).copied().collect();
        Some(Example { values, present: sequences.present_steps(row).to_vec(), probability: probability? })
    };
    Ok(rows.into_iter().zip(probabilities).filter_map(example).collect())
}

fn replay(model: &SequenceModel, examples: &[Example]) -> Result<(), String> {
    if examples.is_empty() {
        return Err("its sequence model has no examples".to_owned());
    }
    let values = examples.iter().flat_map(|example| example.values.iter().copied()).collect();
    let present = examples.iter().flat_map(|example| example.present.iter().copied()).collect();
    let sequences = Sequences::dense(model.channels().to_vec(), model.steps(), values, Some(present));
    let said = sequences.and_then(|sequences| model.probabilities(&sequences)).map_err(|error| error.to_string())?;
    if said.len() != examples.len() {
        return Err("the examples of its sequence model have other channels".to_owned());
    }
    for (row, (example, said)) in examples.iter().zip(said).enumerate() {
        if !said.is_some_and(|said| (said - example.probability).abs() <= TOLERANCE) {
            return Err(format!(
                "of sequence {} its sequence model says {} where it said {:.6}: its weights are others",
                row + 1,
                said.map_or_else(|| "nothing".to_owned(), |said| format!("{said:.6}")),
                example.probability
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_models::sequence::{SequenceParameters, SequenceTrainingSet};

    use super::*;

    #[test]
    fn a_sequence_model_that_answers_otherwise_than_it_did_is_told_with_the_sequence() {
        let values: Vec<f32> = (0..160_u16).map(|value| f32::from(value * 7 % 11)).collect();
        let sequences = Sequences::dense(vec!["visits".to_owned()], 4, values, None).unwrap();
        let labels: Vec<bool> = (0..40).map(|row| row % 3 == 0).collect();
        let train = SequenceTrainingSet { sequences: &sequences, labels: &labels, groups: None };
        let parameters = SequenceParameters { hidden: 4, epochs: 2, ..SequenceParameters::default() };
        let model = SequenceModel::fit(&train, &parameters, &mut |_| {}).unwrap().model;
        let mut kept = examples(&model, &sequences).unwrap();
        assert_eq!(kept.len(), EXAMPLES);
        replay(&model, &kept).unwrap();
        kept[2].probability += 0.01;
        assert!(replay(&model, &kept).unwrap_err().contains("of sequence 3 "));
        kept[4].values.pop();
        assert!(replay(&model, &kept).is_err(), "a sequence of another length");
        assert!(replay(&model, &[]).is_err(), "nothing was asked");
    }
}
