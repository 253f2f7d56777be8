//! From a foreign checkpoint's tensors to a model's table: what is there, what is missing, and the reading.

use super::names::{MLM_BIAS, Role, WORD};
use super::sizes::{Found, Given, Padding, configure, fit_vocabulary};
use super::source::{Dtype, Source, Stored};
use crate::checkpoint::hf::config::Parsed;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::table::{Init, Tensor, TensorTable};
use kernels::cpu::memory::zeros;

/// Where one tensor of the file goes.
struct Placement {
    number: usize,
    tensor: usize,
    transposed: bool,
}

/// What is read, and into what.
pub(super) struct Plan {
    pub(super) model: ModelConfig,
    pub(super) table: TensorTable,
    placements: Vec<Placement>,
    /// Number in the file, number in the table.
    tied: Vec<(usize, usize)>,
    /// Parameters that the file lacks: of the pooler and the heads only.
    pub(super) missing: Vec<String>,
    /// Tensors that are no part of the model.
    pub(super) ignored: Vec<String>,
    /// How many tensors are an optimizer's or a training loop's.
    pub(super) state: usize,
    /// Rows behind the vocabulary.
    pub(super) padding: Option<Padding>,
}

/// Refuses elements that are no floats.
pub(super) fn check_type(source: &dyn Source, number: usize) -> Result<()> {
    let Stored { name, dtype, .. } = &source.tensors()[number];
    match dtype {
        Dtype::Other(dtype) => Err(Error::file(
            source.path(),
            format!(
                "{name} is stored as {dtype}; F32, F64, F16 and BF16 can be read, convert it to one of them"
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses a tensor whose shape is not that of its place. Embeddings and bias of a padded vocabulary have more rows.
fn check_shape(
    source: &dyn Source,
    number: usize,
    transposed: bool,
    tensor: &Tensor,
    rows: usize,
) -> Result<()> {
    let stored = &source.tensors()[number];
    let mut expected = tensor.shape.clone();
    let padded = [WORD, MLM_BIAS].contains(&tensor.name.as_str());
    if padded && stored.shape.first() == Some(&rows) {
        expected[0] = rows;
    }
    if transposed {
        expected.reverse();
    }
    if stored.shape != expected {
        let (name, found) = (&stored.name, &stored.shape);
        return Err(Error::file(
            source.path(),
            format!(
                "{name} has shape {found:?}, expected {expected:?}; compare with the model's configuration"
            ),
        ));
    }
    check_type(source, number)?;
    source.check(number)
}

impl Plan {
    /// Decides what is read. Nothing large is allocated before the tensors are known to be there.
    pub(super) fn new(
        source: &mut dyn Source,
        role: &dyn Fn(&str) -> Role,
        given: &Given<'_>,
    ) -> Result<Self> {
        let found = Found::new(source, role)?;
        let sizes = found.sizes(source)?;
        let mut model = configure(source, &sizes, given)?;
        let padding = fit_vocabulary(source, &found, &sizes, given, &mut model)?;
        let parsed = Parsed(model);
        let (elements, bytes) = (parsed.encoder_elements(), source.data_bytes());
        if elements * 2 > u128::from(bytes) {
            return Err(Error::file(
                source.path(),
                format!(
                    "its shapes describe {elements} elements, the data have {bytes} bytes; fetch the file again"
                ),
            ));
        }
        let model = parsed.0;
        let table = TensorTable::new(&model);
        let (mut placements, mut missing) = (Vec::new(), Vec::new());
        for (i, tensor) in table.tensors.iter().enumerate() {
            match found.parameters.get(&tensor.name) {
                Some(&(number, transposed)) => {
                    check_shape(source, number, transposed, tensor, sizes.rows)?;
                    placements.push(Placement { number, tensor: i, transposed });
                }
                None => missing.push(tensor.name.clone()),
            }
        }
        // The order of the file is that of its data.
        placements.sort_by_key(|p| p.number);
        let mut tied = Vec::new();
        for (number, to) in found.tied {
            let i = table.tensors.iter().position(|t| t.name == to).unwrap_or_default();
            check_shape(source, number, false, &table.tensors[i], sizes.rows)?;
            tied.push((number, i));
            missing.retain(|name| name != to);
        }
        let needed = |name: &&String| name.starts_with("bert.") && !name.starts_with("bert.pooler.");
        if let Some(first) = missing.iter().find(needed) {
            let count = missing.iter().filter(needed).count();
            return Err(Error::file(
                source.path(),
                format!("{first} is missing ({count} in all); choose a file that holds a whole BERT encoder"),
            ));
        }
        let (ignored, state) = (found.ignored, found.state);
        Ok(Self { model, table, placements, tied, missing, ignored, state, padding })
    }

    /// Tensors of the file that become the model's.
    pub(super) fn tensors_read(&self) -> usize {
        self.placements.len() + self.tied.len()
    }

    /// Reads the weights [table.len]: padding is 0, a missing tensor 0 and a missing layernorm weight 1.
    pub(super) fn read(&self, source: &mut dyn Source) -> Result<Vec<f32>> {
        let mut weights = zeros("weights", self.table.len)?;
        for tensor in self.table.tensors.iter().filter(|t| t.init == Init::Ones) {
            weights[tensor.range()].fill(1.0);
        }
        for placement in &self.placements {
            let tensor = &self.table.tensors[placement.tensor];
            let target = &mut weights[tensor.range()];
            match *tensor.shape.as_slice() {
                [outputs, inputs] if placement.transposed => {
                    read_transposed(source, placement.number, target, outputs, inputs)?;
                }
                _ => read_into(source, placement.number, target)?,
            }
            check_finite(source, placement.number, target)?;
        }
        for &(number, tensor) in &self.tied {
            let tensor = &self.table.tensors[tensor];
            let own_is_there =
                self.placements.iter().any(|p| self.table.tensors[p.tensor].name == tensor.name);
            let target = &mut weights[tensor.range()];
            if !own_is_there {
                read_into(source, number, target)?;
                check_finite(source, number, target)?;
            } else if !equals(source, number, target)? {
                let name = &source.tensors()[number].name;
                let what = format!(
                    "{name} differs from {}; only models with a tied decoder can be read",
                    tensor.name
                );
                return Err(Error::file(source.path(), what));
            }
        }
        Ok(weights)
    }
}

fn check_finite(source: &dyn Source, number: usize, values: &[f32]) -> Result<()> {
    if values.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    let name = &source.tensors()[number].name;
    let what = format!("{name} holds a value that is not finite; fetch the file again or choose another");
    Err(Error::file(source.path(), what))
}

/// Reads the first elements of a tensor, as many as the target has.
fn read_into(source: &mut dyn Source, number: usize, target: &mut [f32]) -> Result<()> {
    let mut rest = target;
    source.read(number, 1, &mut |piece| {
        let count = piece.len().min(rest.len());
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(count);
        head.copy_from_slice(&piece[..count]);
        rest = tail;
    })
}

/// Reads [inputs, outputs] into [outputs, inputs].
fn read_transposed(
    source: &mut dyn Source,
    number: usize,
    target: &mut [f32],
    outputs: usize,
    inputs: usize,
) -> Result<()> {
    let mut first = 0;
    source.read(number, outputs, &mut |piece| {
        let rows = piece.len() / outputs;
        for (o, line) in target.chunks_exact_mut(inputs).enumerate() {
            for (i, to) in line[first..first + rows].iter_mut().enumerate() {
                *to = piece[i * outputs + o];
            }
        }
        first += rows;
    })
}

/// Whether a tensor's first elements are these, bit for bit.
fn equals(source: &mut dyn Source, number: usize, values: &[f32]) -> Result<bool> {
    let (mut rest, mut same) = (values, true);
    source.read(number, 1, &mut |piece| {
        let (head, tail) = rest.split_at(piece.len().min(rest.len()));
        same &= head.iter().zip(piece).all(|(a, b)| a.to_bits() == b.to_bits());
        rest = tail;
    })?;
    Ok(same)
}
