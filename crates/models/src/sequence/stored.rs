//! A sequence model as two files: weights as safetensors, under PyTorch's names, and a signature in JSON that says what they are for. Each is
//! hashed; the signature names the weights it belongs to.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::sequence::network::{Network, matrix, refused};
use crate::sequence::scale::Scale;
use crate::sequence::{SequenceModel, SequenceParameters};
use crate::{ModelError, Result};

/// The two files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceArtefact {
    /// safetensors: `lstm.*` and `head.*` as in a PyTorch module with an `LSTM` and a `Linear` of these names, `scale.*` as learned from the
    /// training rows.
    pub weights: Vec<u8>,
    /// JSON: channels, steps, parameters, and the BLAKE3 hashes of the weights and of itself.
    pub signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    format: String,
    channels: Vec<String>,
    steps: usize,
    parameters: SequenceParameters,
    epochs: usize,
    weights_blake3: String,
}

const FORMAT: &str = "holdfast sequence model 1";
const BEFORE_HASH: &str = "{\"blake3\":\"";
const AFTER_HASH: &str = "\",\"signature\":";

impl SequenceModel {
    /// The model as files.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn write(&self) -> Result<SequenceArtefact> {
        let weights = self.tensors()?;
        let signature = Signature {
            format: FORMAT.to_owned(),
            channels: self.channels.clone(),
            steps: self.steps,
            parameters: self.parameters.clone(),
            epochs: self.epochs,
            weights_blake3: blake3::hash(&weights).to_hex().to_string(),
        };
        let body = serde_json::to_string(&signature).map_err(|error| unreadable(error.to_string()))?;
        let hash = blake3::hash(body.as_bytes()).to_hex();
        let signature = format!("{BEFORE_HASH}{hash}{AFTER_HASH}{body}}}\n").into_bytes();
        Ok(SequenceArtefact { weights, signature })
    }

    /// Reads what [`SequenceModel::write`] wrote.
    ///
    /// # Errors
    ///
    /// Files that are cut short or changed, or do not belong together.
    pub fn read(artefact: &SequenceArtefact) -> Result<Self> {
        let signature = checked(&artefact.signature)?;
        if blake3::hash(&artefact.weights).to_hex().as_str() != signature.weights_blake3 {
            return Err(unreadable("the weights are not those of the signature: they are damaged, or another model's"));
        }
        signature.parameters.check()?;
        if signature.channels.is_empty() || signature.steps == 0 {
            return Err(unreadable("its signature has no channels or no steps"));
        }
        let tensors = SafeTensors::deserialize(&artefact.weights).map_err(|error| unreadable(error.to_string()))?;
        let (hidden, channels) = (signature.parameters.hidden, signature.channels.len());
        let values = |name: &str, shape: &[usize]| values(&tensors, name, shape);
        let bias = values("lstm.bias_ih_l0", &[4 * hidden])?;
        let more_bias = values("lstm.bias_hh_l0", &[4 * hidden])?;
        let bias = bias.into_iter().zip(more_bias).map(|(one, other)| one + other).collect();
        let network = Network::new([
            matrix(values("lstm.weight_ih_l0", &[4 * hidden, channels])?, 4 * hidden, channels)?,
            matrix(values("lstm.weight_hh_l0", &[4 * hidden, hidden])?, 4 * hidden, hidden)?,
            matrix(bias, 4 * hidden, 1)?,
            matrix(values("head.weight", &[1, hidden])?, 1, hidden)?,
            matrix(values("head.bias", &[1])?, 1, 1)?,
        ])?;
        let scale = Scale {
            logarithm: signature.parameters.logarithm,
            mean: values("scale.mean", &[channels])?,
            factor: values("scale.factor", &[channels])?,
        };
        let Signature { channels, steps, parameters, epochs, .. } = signature;
        Ok(Self { channels, steps, scale, network, parameters, epochs })
    }

    fn tensors(&self) -> Result<Vec<u8>> {
        let (hidden, channels) = (self.parameters.hidden, self.channels.len());
        let network = &self.network;
        let tensors = [
            ("lstm.weight_ih_l0", vec![4 * hidden, channels], bytes_of(network.of_input.as_tensor())?),
            ("lstm.weight_hh_l0", vec![4 * hidden, hidden], bytes_of(network.of_state.as_tensor())?),
            ("lstm.bias_ih_l0", vec![4 * hidden], bytes_of(network.bias.as_tensor())?),
            // PyTorch adds two biases.
            ("lstm.bias_hh_l0", vec![4 * hidden], vec![0; 16 * hidden]),
            ("head.weight", vec![1, hidden], bytes_of(network.head.as_tensor())?),
            ("head.bias", vec![1], bytes_of(network.head_bias.as_tensor())?),
            ("scale.mean", vec![channels], bytes(&self.scale.mean)),
            ("scale.factor", vec![channels], bytes(&self.scale.factor)),
        ];
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            Ok((*name, view.map_err(|error| unreadable(error.to_string()))?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let about = HashMap::from([("format".to_owned(), FORMAT.to_owned())]);
        safetensors::serialize(views, Some(about)).map_err(|error| unreadable(error.to_string()))
    }
}

/// The signature, if its bytes are those that were hashed.
fn checked(bytes: &[u8]) -> Result<Signature> {
    let rest = bytes.strip_prefix(BEFORE_HASH.as_bytes()).and_then(|rest| rest.split_at_checked(64));
    let (hash, rest) = rest.ok_or_else(|| unreadable("its signature does not begin as one"))?;
    let body = rest.strip_prefix(AFTER_HASH.as_bytes()).and_then(|rest| rest.strip_suffix(b"}\n"));
    let body = body.ok_or_else(|| unreadable("its signature is cut short or was formatted anew"))?;
    if blake3::hash(body).to_hex().as_bytes() != hash {
        return Err(unreadable("the hash of its signature does not fit: it is damaged"));
    }
    let signature: Signature = serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
    if signature.format != FORMAT {
        return Err(unreadable(format!("its format is {:?} where {FORMAT:?} is read", signature.format)));
    }
    Ok(signature)
}

fn values(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = tensors.tensor(name).map_err(|error| unreadable(error.to_string()))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        let (kind, has) = (tensor.dtype(), tensor.shape());
        return Err(unreadable(format!("{name} is {kind:?} {has:?} where F32 {shape:?} is needed")));
    }
    let values =
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let values: Vec<f32> = values.collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(unreadable(format!("{name} holds values that are no numbers")));
    }
    Ok(values)
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
    Ok(bytes(&values.map_err(refused)?))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn unreadable(problem: impl Into<String>) -> ModelError {
    ModelError::Artefact { what: "the sequence model", problem: problem.into() }
}
