//! A sentiment model as bytes: a line of JSON with all but the weights, the weights as little-endian f32, and a checksum of both.

use serde::{Deserialize, Serialize};

use crate::sentiment::SentimentModel;
use crate::sentiment::ngrams::hash;
use crate::{ModelError, Result};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    bits: u32,
    bias: f32,
    neutral_below: f64,
    version: String,
}

const FORMAT: &str = "holdfast sentiment 1";

impl SentimentModel {
    /// The model as bytes.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn write(&self) -> Result<Vec<u8>> {
        let head = Head {
            format: FORMAT.to_owned(),
            bits: self.bits,
            bias: self.bias,
            neutral_below: self.neutral_below,
            version: self.version.clone(),
        };
        let mut bytes = serde_json::to_vec(&head).map_err(|error| unreadable(&error.to_string()))?;
        bytes.push(b'\n');
        bytes.extend(self.weights.iter().flat_map(|weight| weight.to_le_bytes()));
        bytes.extend(hash(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// Reads what [`SentimentModel::write`] wrote.
    ///
    /// # Errors
    ///
    /// Bytes that are cut short or changed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| unreadable("it has no first line"))?;
        let head: Head = serde_json::from_slice(&bytes[..end]).map_err(|error| unreadable(&error.to_string()))?;
        if head.format != FORMAT || !(8..=24).contains(&head.bits) {
            return Err(unreadable("its first line is of another format"));
        }
        let (content, checksum) = bytes.split_at(bytes.len().saturating_sub(8).max(end + 1));
        let weights = &content[end + 1..];
        if weights.len() != 4 << head.bits {
            return Err(unreadable("it has not as many weights as it says: it is cut short"));
        }
        if hash(content).to_le_bytes() != checksum {
            return Err(unreadable("its checksum does not fit: it is damaged"));
        }
        let weights =
            weights.chunks_exact(4).map(|weight| f32::from_le_bytes([weight[0], weight[1], weight[2], weight[3]]));
        let Head { bits, bias, neutral_below, version, .. } = head;
        Ok(Self { bits, bias, weights: weights.collect(), neutral_below, version })
    }
}

fn unreadable(problem: &str) -> ModelError {
    ModelError::Artefact { what: "the sentiment model", problem: problem.to_owned() }
}
