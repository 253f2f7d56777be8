//! The recipe `standard`: blocks of documents to sequences, in bounded memory.

use super::held_out::HeldOut;
use super::part::{Outcome, Unit, Work};
use super::{Phase, PrepareProgress, unknown};
use crate::config::{Masking, PrepareConfig, Split};
use crate::data::input::{Block, Blocks, Input, Omitted, Reader, Seen, document_text};
use crate::data::masking::{MaskRule, pieces};
use crate::data::pipeline::ordered;
use crate::data::sentences::for_each_sentence;
use crate::data::sequences::{Documents, Pair, build};
use crate::data::shards::{Columns, SplitWriter, TextCounts};
use crate::data::tokenize::{Tokenizer, TokenizerSettings};
use crate::data::vocab::Vocab;
use crate::error::Result;
use kernels::philox::{MASKING, PREPARE, Stream, step_key};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use xxhash_rust::xxh3::Xxh3;

/// Memory for blocks under way, in bytes, for ordinary text. Text of nothing but one-byte tokens takes twice that.
pub(crate) const BUDGET: usize = 352 << 20;

/// Bytes of text in a block. More documents to draw random next segments from, or less memory where each document
/// becomes many sequences.
fn block_bytes(dupe_factor: usize) -> usize {
    if dupe_factor <= 2 { 2 << 20 } else { 1 << 20 }
}

/// Makes the sequences of the blocks that are this process's. It reads all of the input: where a block begins, its number,
/// and the excerpts it gets depend on all that came before.
pub(super) fn make_sequences(work: &Work<'_>) -> Result<Outcome> {
    let Work { files, config, vocab, settings, dir, threads, progress, share } = *work;
    let piece = block_bytes(config.dupe_factor);
    let input = Input { files, config };
    let (ahead, seen) = (Seen::default(), Seen::default());
    let rule = HeldOut::new(&Reader { input, piece, seen: &ahead, scratch: dir }, config)?;
    let reader = Reader { input, piece, seen: &seen, scratch: dir };
    let writer = |name| {
        let masks = config.masking == Masking::Static;
        SplitWriter::new(dir, name, vocab, config.max_seq_length, config.nsp, masks)
            .with_shard_bytes(share.shard_bytes())
    };
    let (mut train, mut eval) = (writer("train"), writer("eval"));
    let mut outcome = Outcome { unigrams: vec![0; vocab.len()], ..Outcome::default() };
    let mut done = PrepareProgress::new(Phase::Sequences, files);
    let mut texts = [TextCounts::default(), TextCounts::default()];
    let maker = Maker::new(input, vocab, settings)?;
    let (mut blocks_read, mut text_hash) = (0, Xxh3::new());
    // Of a byte of text: itself, its part of a token of 4 bytes, and each time about a byte of sequences, in vectors with
    // room to grow.
    let expansion = config.dupe_factor.saturating_mul(2).saturating_add(4);
    let budget = (BUDGET / expansion).min((threads + 2) * piece);
    ordered(
        threads,
        budget,
        |emit| {
            let on_block = |block: Block| {
                blocks_read = block.number + 1;
                if !share.is_all() {
                    text_hash.update(&block.bytes);
                }
                let cost = block.bytes.len();
                if share.has(block.number) { emit(block, cost) } else { Ok(()) }
            };
            let mut blocks = Blocks::new(piece, || seen.bytes.load(Relaxed), on_block);
            if config.nsp {
                blocks = blocks.with_guests(input);
            }
            reader.read(&mut |piece| blocks.add(&piece, rule.is_eval(piece.document)))?;
            blocks.finish()
        },
        || {
            let mut tokenizer = maker.tokenizer.clone();
            let maker = &maker;
            move |block: Block| maker.make(&block, &mut tokenizer)
        },
        |made: Made| {
            let writer = if made.eval { &mut eval } else { &mut train };
            writer.append(&made.columns, made.with_text)?;
            texts[usize::from(made.eval)].add(&made.text);
            for (sum, &count) in outcome.unigrams.iter_mut().zip(&made.unigrams) {
                *sum += u64::from(count);
            }
            outcome.units.push(Unit { eval: made.eval, sequences: made.columns.len() as u64 });
            done.bytes_read = made.bytes_read;
            done.documents += made.documents;
            done.sequences += made.columns.len() as u64;
            done.tokens += made.columns.tokens() as u64;
            done.invalid_utf8 += made.invalid_utf8;
            outcome.omitted.add(&made.omitted);
            progress(&done);
            Ok(())
        },
    )?;
    outcome.documents = done.documents;
    outcome.invalid_utf8 = done.invalid_utf8;
    // All parts read all of the input: one of them speaks of it.
    if share.has(0) {
        outcome.omitted.add(&seen.omitted());
    }
    outcome.train = train.finish()?;
    outcome.eval = eval.finish()?;
    [outcome.train.text, outcome.eval.text] = texts.map(Some);
    outcome.all_units = blocks_read;
    outcome.text_xxh3 = Some(format!("{:016x}", text_hash.digest()));
    Ok(outcome)
}

/// What a block became.
struct Made {
    eval: bool,
    columns: Columns,
    /// Documents that begin in this block.
    documents: u64,
    /// Of these, with text.
    with_text: u64,
    invalid_utf8: u64,
    omitted: Omitted,
    text: TextCounts,
    /// Of the text's tokens; empty for evaluation.
    unigrams: Vec<u32>,
    bytes_read: u64,
}

/// Makes sequences of blocks.
struct Maker<'a> {
    input: Input<'a>,
    config: &'a PrepareConfig,
    vocab: &'a Vocab,
    tokenizer: Tokenizer,
    rule: MaskRule,
    /// Where whole words are masked: of each token, whether it continues a word.
    pieces: Option<Arc<[bool]>>,
}

impl<'a> Maker<'a> {
    fn new(input: Input<'a>, vocab: &'a Vocab, settings: TokenizerSettings) -> Result<Self> {
        let config = input.config;
        let rule = MaskRule {
            probability: config.masked_lm_prob,
            max_predictions: config.max_predictions,
            vocab_size: vocab.len() as u32,
            mask: vocab.mask,
        };
        let pieces = config.whole_word_masking.then(|| pieces(vocab));
        Ok(Self { input, config, vocab, tokenizer: Tokenizer::new(vocab, settings)?, rule, pieces })
    }

    fn make(&self, block: &Block, tokenizer: &mut Tokenizer) -> Result<Made> {
        let mut made = Made {
            eval: block.eval,
            columns: Columns::new(self.vocab.len()),
            documents: 0,
            with_text: 0,
            invalid_utf8: 0,
            omitted: Omitted::default(),
            text: TextCounts::default(),
            unigrams: Vec::new(),
            bytes_read: block.bytes_read,
        };
        let mut documents = Documents::new();
        let (own, guests): (Vec<_>, Vec<_>) = block.documents.iter().partition(|d| !d.guest);
        for document in own {
            let read = document_text(document, &block.bytes, self.input)?;
            if let Some(row) = read.bad {
                made.omitted.leave_out(row);
                continue;
            }
            let before = documents.len();
            let counts = self.tokenize(&read.text, tokenizer, &mut documents);
            unknown::add(&mut made.text, counts, &read.text, |word| {
                let mut ids = Vec::new();
                tokenizer.encode(word, &mut ids);
                ids.contains(&self.vocab.unk)
            });
            made.invalid_utf8 += read.invalid;
            made.omitted.rows_without_text += u64::from(read.null);
            made.documents += u64::from(document.first);
            made.with_text += u64::from(document.first && documents.len() > before);
        }
        if !block.eval {
            made.unigrams = vec![0; self.vocab.len()];
            documents.tokens.iter().for_each(|&t| made.unigrams[t as usize] += 1);
        }
        documents.begin_guests();
        for document in guests {
            let read = document_text(document, &block.bytes, self.input)?;
            self.tokenize(&read.text, tokenizer, &mut documents);
        }
        if self.config.nsp {
            documents.divide_a_single_one();
        }
        for dupe in 0..self.config.dupe_factor as u64 {
            let key = step_key(self.config.seed, dupe);
            let mut masks = Stream::new(key, block.number, MASKING);
            let mut stream = Stream::new(key, block.number, PREPARE);
            build(&documents, self.config, &mut stream, |pair| {
                self.store(&pair, &documents.tokens, &mut masks, &mut made.columns);
            });
        }
        Ok(made)
    }

    fn tokenize(&self, text: &str, tokenizer: &mut Tokenizer, documents: &mut Documents) -> TextCounts {
        let longest = self.config.max_seq_length - 3;
        let (first, mut counts) = (documents.tokens.len(), TextCounts::default());
        let mut sentence = |text: &str| {
            let before = documents.tokens.len();
            tokenizer.encode(text, &mut documents.tokens);
            counts.sentences += u64::from(documents.tokens.len() > before);
            documents.end_sentence(longest);
        };
        match self.config.split {
            Split::Lines => text.lines().for_each(&mut sentence),
            Split::Sentences => for_each_sentence(text, &mut sentence),
        }
        documents.end_document();
        let tokens = &documents.tokens[first..];
        counts.tokens = tokens.len() as u64;
        counts.unknown = tokens.iter().filter(|&&token| token == self.vocab.unk).count() as u64;
        counts
    }

    fn store(&self, pair: &Pair, tokens: &[u32], masks: &mut Stream, columns: &mut Columns) {
        let mut sequence = Vec::with_capacity(self.config.max_seq_length);
        sequence.push(self.vocab.cls);
        sequence.extend_from_slice(&tokens[pair.a.clone()]);
        sequence.push(self.vocab.sep);
        let segment_b = sequence.len();
        if let Some((b, _)) = &pair.b {
            sequence.extend_from_slice(&tokens[b.clone()]);
            sequence.push(self.vocab.sep);
        }
        columns.push(&sequence, segment_b, pair.b.as_ref().map(|(_, random)| *random));
        if self.config.masking == Masking::Static {
            let mut count = 0;
            let set = |position: usize, replacement: Option<u32>| {
                columns.push_mask(position, replacement.unwrap_or(sequence[position]));
                count += 1;
            };
            match &self.pieces {
                None => self.rule.draw(sequence.len(), segment_b, masks, set),
                Some(pieces) => {
                    let continues = |position: usize| pieces[sequence[position] as usize];
                    self.rule.draw_words(sequence.len(), segment_b, continues, masks, set);
                }
            }
            columns.end_mask(count);
        }
    }
}
