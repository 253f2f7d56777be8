//! Documents gathered into blocks, the unit of work: the same for any number of threads.

use super::Piece;
use crate::data::pipeline::Produced;
use std::mem::take;
use std::ops::Range;

/// What a document's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text.
    Plain,
    /// An object with a field `text`.
    Json,
}

/// A document, or a piece of one, of a block.
#[derive(Debug)]
pub(crate) struct RawDocument {
    pub range: Range<usize>,
    pub form: Form,
    pub file: usize,
    pub line: u64,
    /// False for the later pieces of a long document.
    pub first: bool,
}

/// Documents up to a number of bytes, all for training or all for evaluation.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub number: u64,
    pub eval: bool,
    pub bytes: Vec<u8>,
    pub documents: Vec<RawDocument>,
    /// Bytes of the input read when the block was complete.
    pub bytes_read: u64,
}

/// Gathers pieces into blocks. Documents for evaluation get blocks of their own, so that no sequence mixes the two; a
/// document cut into pieces gets one block a piece, so that it never meets itself as "another document".
pub(crate) struct Blocks<B, E> {
    open: [Block; 2],
    most: usize,
    blocks: u64,
    bytes_read: B,
    emit: E,
}

impl<B: Fn() -> u64, E: FnMut(Block) -> Produced> Blocks<B, E> {
    /// A block holds at most `most` bytes or one piece; `bytes_read` says how much input was read so far, `emit` takes
    /// the blocks.
    pub fn new(most: usize, bytes_read: B, emit: E) -> Self {
        let open = [Block::default(), Block { eval: true, ..Block::default() }];
        Self { open, most, blocks: 0, bytes_read, emit }
    }

    /// Adds a piece.
    pub fn add(&mut self, piece: &Piece<'_>, eval: bool) -> Produced {
        let whole = piece.first && piece.last;
        let open = &self.open[usize::from(eval)];
        if !whole || open.bytes.len() + piece.bytes.len() > self.most {
            self.flush(eval)?;
        }
        let open = &mut self.open[usize::from(eval)];
        let start = open.bytes.len();
        open.bytes.extend_from_slice(piece.bytes);
        open.documents.push(RawDocument {
            range: start..open.bytes.len(),
            form: piece.form,
            file: piece.file,
            line: piece.line,
            first: piece.first,
        });
        if whole { Ok(()) } else { self.flush(eval) }
    }

    /// Emits what is left.
    pub fn finish(mut self) -> Produced {
        self.flush(false)?;
        self.flush(true)
    }

    fn flush(&mut self, eval: bool) -> Produced {
        let open = &mut self.open[usize::from(eval)];
        if open.documents.is_empty() {
            return Ok(());
        }
        let (bytes, documents) = (take(&mut open.bytes), take(&mut open.documents));
        let block = Block { number: self.blocks, eval, bytes, documents, bytes_read: (self.bytes_read)() };
        self.blocks += 1;
        (self.emit)(block)
    }
}
