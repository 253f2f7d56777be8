//! Documents gathered into blocks, the unit of work: the same for any number of threads.

use super::excerpts::Excerpts;
use super::{Input, Piece};
use crate::data::pipeline::Produced;
use std::mem::take;
use std::ops::Range;

/// What a document's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text.
    Plain,
    /// An object with a field that holds the text.
    Json,
}

/// A document, or a piece of one, of a block.
#[derive(Debug)]
pub(crate) struct RawDocument {
    pub range: Range<usize>,
    pub form: Form,
    /// Number of the document, counted over all files.
    pub document: u64,
    pub file: usize,
    pub line: u64,
    /// False for the later pieces of a long document.
    pub first: bool,
    /// An excerpt of another block's document, only to draw random next segments from.
    pub guest: bool,
}

impl RawDocument {
    /// A piece that lies at `range` of a block.
    pub fn of(piece: &Piece<'_>, range: Range<usize>) -> Self {
        let Piece { document, file, line, form, first, .. } = *piece;
        Self { range, form, document, file, line, first, guest: false }
    }
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

/// With fewer documents than this, a block gets guests.
const FEW: usize = 4;

/// Gathers pieces into blocks. Documents for evaluation get blocks of their own, so that no sequence mixes the two; a
/// document cut into pieces gets one block a piece, so that it never meets itself as "another document".
pub(crate) struct Blocks<'a, B, E> {
    open: [Block; 2],
    excerpts: Option<(Input<'a>, [Excerpts; 2])>,
    most: usize,
    blocks: u64,
    bytes_read: B,
    emit: E,
}

impl<'a, B: Fn() -> u64, E: FnMut(Block) -> Produced> Blocks<'a, B, E> {
    /// A block holds at most `most` bytes or one piece; `bytes_read` says how much input was read so far, `emit` takes
    /// the blocks.
    pub fn new(most: usize, bytes_read: B, emit: E) -> Self {
        let open = [Block::default(), Block { eval: true, ..Block::default() }];
        Self { open, excerpts: None, most, blocks: 0, bytes_read, emit }
    }

    /// Gives blocks of few documents excerpts of others that were read before.
    pub fn with_guests(mut self, input: Input<'a>) -> Self {
        self.excerpts = Some((input, Default::default()));
        self
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
        open.documents.push(RawDocument::of(piece, start..open.bytes.len()));
        if let Some((input, excerpts)) = &mut self.excerpts {
            excerpts[usize::from(eval)].remember(piece, *input);
        }
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
        let (mut bytes, mut documents) = (take(&mut open.bytes), take(&mut open.documents));
        if let Some((_, excerpts)) = &self.excerpts
            && documents.len() < FEW
        {
            excerpts[usize::from(eval)].add_to(&mut bytes, &mut documents);
        }
        let block = Block { number: self.blocks, eval, bytes, documents, bytes_read: (self.bytes_read)() };
        self.blocks += 1;
        (self.emit)(block)
    }
}
