//! A batch on the device: all its index arrays in one buffer, copied at once, beside the ops.

use crate::activations::Dims;
use crate::data::Batch;
use kernels::Result;
use kernels::backend::{Backend, Groups};
use std::ops::Range;

/// Each array begins at a multiple of so many indices: a cache line of a GPU.
const ALIGN: usize = 32;
/// Batches on the device: one at work, one on its way.
pub const SLOTS: usize = 2;

/// The arrays of a [`Batch`], in the order of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Tokens,
    Types,
    Positions,
    RowKeys,
    CuSeqlens,
    Rows,
    RowsKeys,
    CuRows,
    MlmRows,
    MlmLabels,
    FirstRows,
    NspLabels,
    TokenIds,
    TokenStarts,
    TokenRows,
    PositionIds,
    PositionStarts,
    PositionRows,
}

/// Number of [`Part`]s.
const PARTS: usize = 18;

/// The arrays, in the order of [`Part`].
fn arrays(b: &Batch) -> [&[u32]; PARTS] {
    [
        &b.tokens,
        &b.types,
        &b.positions,
        &b.row_keys,
        &b.cu_seqlens,
        &b.rows,
        &b.rows_keys,
        &b.cu_rows,
        &b.mlm_rows,
        &b.mlm_labels,
        &b.first_rows,
        &b.nsp_labels,
        &b.by_token.ids,
        &b.by_token.starts,
        &b.by_token.rows,
        &b.by_position.ids,
        &b.by_position.starts,
        &b.by_position.rows,
    ]
}

/// The most indices that the buffer of a batch of these sizes takes, of a model with so many positions.
pub fn most_indices(dims: &Dims, positions: usize) -> usize {
    let Dims { tokens, rows, masked, sequences } = *dims;
    // Of both groupings the rows; their values and starts, of which there are at most as many as tokens and positions.
    8 * tokens + 2 * (rows + masked + positions) + 4 * sequences + PARTS * ALIGN
}

/// [`Batch`] on the device.
pub struct DeviceBatch<B: Backend> {
    /// Sizes.
    pub dims: Dims,
    /// Longest sequence.
    pub max_length: usize,
    /// Whether the batch has next-sentence labels.
    pub nsp: bool,
    places: [Range<usize>; PARTS],
    mem: B::Mem<u32>,
    /// The buffer's contents on the host.
    staged: Vec<u32>,
    /// The last op that uses the buffer.
    used: B::Mark,
}

impl<B: Backend> DeviceBatch<B> {
    fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            dims: Dims::default(),
            max_length: 0,
            nsp: false,
            places: Default::default(),
            mem: backend.zeros("batch", 0)?,
            staged: Vec::new(),
            used: backend.mark()?,
        })
    }

    /// One of the arrays.
    pub fn at(&self, part: Part) -> B::Ref<'_, u32> {
        B::at(&self.mem, self.places[part as usize].clone())
    }

    /// Rows grouped by token id.
    pub fn by_token(&self) -> Groups<'_, B> {
        let [ids, starts, rows] = [Part::TokenIds, Part::TokenStarts, Part::TokenRows].map(|p| self.at(p));
        Groups { ids, starts, rows }
    }

    /// Rows grouped by position.
    pub fn by_position(&self) -> Groups<'_, B> {
        let [ids, starts, rows] =
            [Part::PositionIds, Part::PositionStarts, Part::PositionRows].map(|p| self.at(p));
        Groups { ids, starts, rows }
    }

    fn reserve(&mut self, backend: &B, len: usize) -> Result<()> {
        if B::len(&self.mem) < len {
            self.mem = backend.zeros("batch", len)?;
            // New memory is cleared in the order of the ops; a copy beside them may not come before that.
            self.used = backend.mark()?;
        }
        Ok(())
    }

    /// Copies a batch to the device; ops queued from here on find it there.
    fn upload(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        self.dims = Dims::of(batch);
        self.max_length = batch.max_length;
        self.nsp = !batch.nsp_labels.is_empty();
        self.staged.clear();
        for (place, values) in self.places.iter_mut().zip(arrays(batch)) {
            *place = self.staged.len()..self.staged.len() + values.len();
            self.staged.extend_from_slice(values);
            self.staged.resize(self.staged.len().next_multiple_of(ALIGN), 0);
        }
        let len = self.staged.len();
        if B::len(&self.mem) < len {
            self.reserve(backend, len.next_power_of_two())?;
        }
        let arrived = backend.upload_beside(B::at_mut(&mut self.mem, 0..len), &self.staged, &self.used)?;
        backend.wait(&arrived)
    }
}

/// The batch at work, and the one before it, whose buffer takes the next: that is copied while this one is worked on.
pub struct BatchRing<B: Backend> {
    slots: [DeviceBatch<B>; SLOTS],
    current: usize,
}

impl<B: Backend> BatchRing<B> {
    /// Empty.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self { slots: [DeviceBatch::new(backend)?, DeviceBatch::new(backend)?], current: 0 })
    }

    /// The batch that was brought last.
    pub fn current(&self) -> &DeviceBatch<B> {
        &self.slots[self.current]
    }

    /// Takes memory for batches of at most these sizes.
    pub fn reserve(&mut self, backend: &B, dims: &Dims, positions: usize) -> Result<()> {
        let len = most_indices(dims, positions);
        self.slots.iter_mut().try_for_each(|slot| slot.reserve(backend, len))
    }

    /// Brings the next batch.
    pub fn bring(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        // All that reads the current batch has been queued by now.
        self.slots[self.current].used = backend.mark()?;
        self.current = (self.current + 1) % SLOTS;
        self.slots[self.current].upload(backend, batch)
    }
}
