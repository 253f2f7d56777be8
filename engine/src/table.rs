//! The flat table of parameters: name, shape and place of every tensor.
//!
//! Weights, gradients and both moments share this one index space, one allocation each. Norms, LAMB's ratios,
//! all-reduce buckets, shards and checkpoints are ranges of it.

use crate::config::ModelConfig;
use kernels::backend::TensorSpan;
use std::ops::Range;

/// Groups of tensors start at a multiple of this many elements.
const ALIGN: usize = 64;

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal, cut at two standard deviations, of standard deviation `initializer_range`.
    TruncatedNormal,
    /// 0: biases and layernorm's beta.
    Zeros,
    /// 1: layernorm's gamma.
    Ones,
}

/// One parameter tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Hugging Face's name.
    pub name: String,
    /// Logical shape: one or two sizes, `[out, in]` for weights.
    pub shape: Vec<usize>,
    /// First element in the table.
    pub offset: usize,
    /// How it starts.
    pub init: Init,
    /// Whether weight decay and LAMB's ratio apply: not for biases and layernorms.
    pub decay: bool,
}

impl Tensor {
    /// Number of elements, without padding.
    #[allow(clippy::len_without_is_empty, reason = "a tensor is never empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its place in the table, without padding.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Places of one linear layer's weight and bias.
#[derive(Debug, Clone)]
pub struct Linear {
    /// [out, in]
    pub weight: Range<usize>,
    /// [out]
    pub bias: Range<usize>,
}

/// Places of one layernorm's gamma and beta.
#[derive(Debug, Clone)]
pub struct Norm {
    /// [H]
    pub gamma: Range<usize>,
    /// [H]
    pub beta: Range<usize>,
}

/// Places of one transformer layer's tensors.
#[derive(Debug, Clone)]
pub struct LayerTensors {
    /// Query, key and value as one [3H, H] product. Three named tensors for LAMB and checkpoints.
    pub qkv: Linear,
    /// Attention's output projection [H, H].
    pub attention_output: Linear,
    /// Layernorm after attention.
    pub attention_norm: Norm,
    /// First product of the feed-forward part [F, H].
    pub intermediate: Linear,
    /// Second product [H, F].
    pub output: Linear,
    /// Layernorm after the feed-forward part.
    pub output_norm: Norm,
}

/// Every parameter of a model. The only source for parameters, gradients, moments and checkpoints.
#[derive(Debug, Clone)]
pub struct TensorTable {
    /// In the order of the table.
    pub tensors: Vec<Tensor>,
    /// Elements of the table, padding included.
    pub len: usize,
    /// Rows of the word embeddings in memory: the vocabulary rounded up to a multiple of 64. The rows past the
    /// vocabulary are 0 and stay 0.
    pub padded_vocab: usize,
    /// [padded_vocab, H]; the MLM decoder is tied to it.
    pub word: Range<usize>,
    /// [positions, H]
    pub position: Range<usize>,
    /// [types, H]
    pub kind: Range<usize>,
    /// Layernorm of the embeddings.
    pub embedding_norm: Norm,
    /// The transformer's layers.
    pub layers: Vec<LayerTensors>,
    /// Pooler [H, H].
    pub pooler: Linear,
    /// MLM transform [H, H].
    pub transform: Linear,
    /// Layernorm of the MLM transform.
    pub transform_norm: Norm,
    /// MLM output bias [padded_vocab].
    pub decoder_bias: Range<usize>,
    /// NSP classifier [2, H].
    pub seq_relationship: Linear,
}

struct Builder {
    tensors: Vec<Tensor>,
    len: usize,
}

impl Builder {
    /// Places a tensor; `memory` elements are taken, which is more than the shape's where rows are padded.
    fn place(&mut self, name: String, shape: &[usize], init: Init, memory: usize) -> Range<usize> {
        let offset = self.len;
        let decay = !(name.contains("LayerNorm") || name.contains("bias"));
        self.tensors.push(Tensor { name, shape: shape.to_vec(), offset, init, decay });
        self.len += memory;
        offset..self.len
    }

    fn align(&mut self) {
        self.len = self.len.next_multiple_of(ALIGN);
    }

    fn tensor(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Range<usize> {
        self.align();
        self.place(name.into(), shape, init, shape.iter().product())
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        Linear {
            weight: self.tensor(format!("{name}.weight"), &[outputs, inputs], Init::TruncatedNormal),
            bias: self.tensor(format!("{name}.bias"), &[outputs], Init::Zeros),
        }
    }

    fn norm(&mut self, name: &str, size: usize) -> Norm {
        Norm {
            gamma: self.tensor(format!("{name}.LayerNorm.weight"), &[size], Init::Ones),
            beta: self.tensor(format!("{name}.LayerNorm.bias"), &[size], Init::Zeros),
        }
    }

    /// Query, key and value without gaps between them.
    fn qkv(&mut self, name: &str, hidden: usize) -> Linear {
        let mut joined = |suffix: &str, shape: &[usize], init| {
            self.align();
            let start = self.len;
            for part in ["query", "key", "value"] {
                let name = format!("{name}.{part}.{suffix}");
                self.place(name, shape, init, shape.iter().product());
            }
            start..self.len
        };
        Linear {
            weight: joined("weight", &[hidden, hidden], Init::TruncatedNormal),
            bias: joined("bias", &[hidden], Init::Zeros),
        }
    }
}

impl TensorTable {
    /// Lays out a model's parameters.
    pub fn new(config: &ModelConfig) -> Self {
        let (h, f) = (config.hidden, config.intermediate);
        let padded_vocab = config.vocab_size.next_multiple_of(ALIGN);
        let mut b = Builder { tensors: Vec::new(), len: 0 };

        let word_name = "bert.embeddings.word_embeddings.weight".to_owned();
        let word = b.place(word_name, &[config.vocab_size, h], Init::TruncatedNormal, padded_vocab * h);
        let position = b.tensor(
            "bert.embeddings.position_embeddings.weight",
            &[config.max_positions, h],
            Init::TruncatedNormal,
        );
        let kind = b.tensor(
            "bert.embeddings.token_type_embeddings.weight",
            &[config.type_vocab, h],
            Init::TruncatedNormal,
        );
        let embedding_norm = b.norm("bert.embeddings", h);
        let layers = (0..config.layers)
            .map(|i| {
                let name = format!("bert.encoder.layer.{i}");
                LayerTensors {
                    qkv: b.qkv(&format!("{name}.attention.self"), h),
                    attention_output: b.linear(&format!("{name}.attention.output.dense"), h, h),
                    attention_norm: b.norm(&format!("{name}.attention.output"), h),
                    intermediate: b.linear(&format!("{name}.intermediate.dense"), f, h),
                    output: b.linear(&format!("{name}.output.dense"), h, f),
                    output_norm: b.norm(&format!("{name}.output"), h),
                }
            })
            .collect();
        let pooler = b.linear("bert.pooler.dense", h, h);
        let transform = b.linear("cls.predictions.transform.dense", h, h);
        let transform_norm = b.norm("cls.predictions.transform", h);
        b.align();
        let decoder_bias =
            b.place("cls.predictions.bias".into(), &[config.vocab_size], Init::Zeros, padded_vocab);
        let seq_relationship = b.linear("cls.seq_relationship", 2, h);
        b.align();
        Self {
            tensors: b.tensors,
            len: b.len,
            padded_vocab,
            word,
            position,
            kind,
            embedding_norm,
            layers,
            pooler,
            transform,
            transform_norm,
            decoder_bias,
            seq_relationship,
        }
    }

    /// Where the gradients begin that are complete after each stage of backward, up to the stage before: the heads, the
    /// layers from the last, the embeddings.
    pub fn stage_starts(&self) -> Vec<usize> {
        let layers = self.layers.iter().rev().map(|l| l.qkv.weight.start);
        std::iter::once(self.pooler.weight.start).chain(layers).chain([0]).collect()
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The tensors as the optimizers see them.
    pub fn spans(&self) -> Vec<TensorSpan> {
        self.tensors.iter().map(|t| TensorSpan { range: t.range(), decay: t.decay }).collect()
    }

    /// What ops read as [`kernels::Backend::master`] has it: layernorms, each of whose gamma and beta lie together.
    pub fn masters(&self) -> Vec<Range<usize>> {
        let layers = self.layers.iter().flat_map(|l| [&l.attention_norm, &l.output_norm]);
        let norms = std::iter::once(&self.embedding_norm).chain(layers).chain([&self.transform_norm]);
        norms.map(|norm| norm.gamma.start..norm.beta.end).collect()
    }

    /// Number of parameters, padding not counted.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(Tensor::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn bert_large_has_the_published_number_of_parameters_and_tensors() {
        let table = TensorTable::new(&ModelConfig { vocab_size: 30522, ..Preset::Large.model() });
        assert_eq!(table.parameters(), 336_226_108);
        assert_eq!(table.tensors.len(), 398);
        assert_eq!(table.padded_vocab, 30528);
    }

    #[test]
    fn tensors_do_not_overlap_and_qkv_has_no_gaps() {
        let config =
            ModelConfig { vocab_size: 101, hidden: 20, heads: 5, intermediate: 36, ..Preset::Tiny.model() };
        let table = TensorTable::new(&config);
        for pair in table.tensors.windows(2) {
            assert!(pair[0].range().end <= pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
        assert_eq!(table.layers[0].qkv.weight.len(), 3 * 20 * 20);
        assert_eq!(table.layers[0].qkv.bias.len(), 3 * 20);
        assert!(table.tensors.iter().filter(|t| t.decay).all(|t| t.shape.len() == 2));
    }
}
