//! Documents to sequences, as BERT's create_pretraining_data (Devlin et al., 2019, appendix A.2) builds them.

use crate::config::PrepareConfig;
use kernels::philox::Stream;
use std::ops::Range;

/// Tokenized documents, one after another: tokens in sentences in documents.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub tokens: Vec<u32>,
    /// Offsets into `tokens`; one more than sentences.
    sentences: Vec<usize>,
    /// Offsets into the sentences; one more than documents.
    documents: Vec<usize>,
    /// From this one on, documents only lend random next segments; none if there is no such number.
    guests: Option<usize>,
    /// Whether the documents are parts of a single one, in order.
    divided: bool,
}

impl Documents {
    pub fn new() -> Self {
        Self { tokens: Vec::new(), sentences: vec![0], documents: vec![0], guests: None, divided: false }
    }

    /// Makes a sentence of the tokens appended since the last one, if any. One of more than `longest` tokens, which
    /// the original would throw away except for one sequence, becomes sentences of a quarter of that.
    pub fn end_sentence(&mut self, longest: usize) {
        let mut start = self.sentences[self.sentences.len() - 1];
        let end = self.tokens.len();
        if end - start > longest {
            let part = longest.div_ceil(4);
            while end - start > part {
                start += part;
                self.sentences.push(start);
            }
        }
        if end > start {
            self.sentences.push(end);
        }
    }

    /// Makes a document of the sentences since the last one, if any.
    pub fn end_document(&mut self) {
        let end = self.sentences.len() - 1;
        if end > self.documents[self.documents.len() - 1] {
            self.documents.push(end);
        }
    }

    /// Makes guests of all documents that follow: no sequence begins in them.
    pub fn begin_guests(&mut self) {
        self.guests = Some(self.len());
    }

    /// Makes documents of a single one's parts, so that random next segments come from elsewhere in it where there is
    /// no other text; from the same place they would often be what follows, or what the sequence holds already.
    pub fn divide_a_single_one(&mut self) {
        const PARTS: usize = 16;
        /// Shorter parts would end most sequences early.
        const SENTENCES: usize = 32;
        let sentences = self.sentences.len() - 1;
        let parts = PARTS.min(sentences / SENTENCES);
        if self.len() == 1 && self.own() == 1 && parts > 1 {
            self.documents = (0..=parts).map(|i| i * sentences / parts).collect();
            (self.guests, self.divided) = (None, true);
        }
    }

    /// Number of documents that sequences are made of.
    fn own(&self) -> usize {
        self.guests.unwrap_or(self.len())
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.documents.len() - 1
    }

    /// The sentences of a document.
    fn document(&self, d: usize) -> Range<usize> {
        self.documents[d]..self.documents[d + 1]
    }

    /// The tokens of successive sentences.
    fn span(&self, sentences: Range<usize>) -> Range<usize> {
        self.sentences[sentences.start]..self.sentences[sentences.end]
    }
}

/// A sequence, as places in [`Documents::tokens`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub a: Range<usize>,
    /// Segment B, and whether it is random; none for full sentences.
    pub b: Option<(Range<usize>, bool)>,
}

/// Cuts every document into sequences.
pub(crate) fn build(
    docs: &Documents,
    options: &PrepareConfig,
    stream: &mut Stream,
    mut emit: impl FnMut(Pair),
) {
    for d in 0..docs.own() {
        if options.nsp {
            pairs(docs, d, options, stream, &mut emit);
        } else {
            full_sentences(docs, d, options, stream, &mut emit);
        }
    }
}

/// Special tokens of a sequence.
pub(crate) fn specials(nsp: bool) -> usize {
    if nsp { 3 } else { 2 }
}

fn target_length(options: &PrepareConfig, stream: &mut Stream) -> usize {
    let most = options.max_seq_length - specials(options.nsp);
    if stream.uniform() < options.short_seq_prob { stream.range(2, most as u32) as usize } else { most }
}

/// [CLS] A [SEP] B [SEP]: half of the time B follows A, else it is from another document, and what would have followed
/// is put back. Where there is no other text, B always follows.
fn pairs(
    docs: &Documents,
    d: usize,
    options: &PrepareConfig,
    stream: &mut Stream,
    emit: &mut impl FnMut(Pair),
) {
    let sentences = docs.document(d);
    let target = target_length(options, stream);
    let mut first = sentences.start;
    while first < sentences.end {
        let mut end = first + 1;
        while end < sentences.end && docs.span(first..end).len() < target {
            end += 1;
        }
        let count = end - first;
        let a_end = first + if count > 1 { stream.range(1, count as u32 - 1) as usize } else { 1 };
        let mut a = docs.span(first..a_end);
        let random = if count == 1 || stream.uniform() < 0.5 {
            random_segment(docs, d, first..a_end, target.saturating_sub(a.len()), stream)
        } else {
            None
        };
        let (mut b, random) = match random {
            Some(b) => (b, true),
            None if a_end < sentences.end => {
                end = end.max(a_end + 1);
                (docs.span(a_end..end), false)
            }
            // A sentence with no other text: its first half is followed by its second.
            None => {
                let half = a.start + a.len() / 2;
                (half..std::mem::replace(&mut a.end, half), false)
            }
        };
        first = if random { a_end } else { end };
        truncate(&mut a, &mut b, options.max_seq_length - specials(true), stream);
        // Only the half of a single token is empty.
        if !a.is_empty() {
            emit(Pair { a, b: Some((b, random)) });
        }
    }
}

/// Sentences of another document, from a random one on, up to `length` tokens or as few more as the last sentence brings.
/// If there is no other document, they are of the same one, but neither of A, the sentences `a`, nor do they begin with what
/// follows it; none if that leaves nothing.
fn random_segment(
    docs: &Documents,
    not: usize,
    a: Range<usize>,
    length: usize,
    stream: &mut Stream,
) -> Option<Range<usize>> {
    let (start, last) = if docs.len() > 1 {
        let d = stream.below(docs.len() as u32 - 1) as usize;
        let sentences = docs.document(d + usize::from(d >= not));
        let start = sentences.start + stream.below(sentences.len() as u32) as usize;
        // The next part of a divided document begins with what follows A; its middle does not.
        let follows = docs.divided && start == a.end;
        (start + if follows { sentences.len() / 2 } else { 0 }, sentences.end)
    } else {
        let sentences = docs.document(not);
        let before = a.start - sentences.start;
        let after = sentences.end.saturating_sub(a.end + 1);
        if before + after == 0 {
            return None;
        }
        match stream.below((before + after) as u32) as usize {
            place if place < before => (sentences.start + place, a.start),
            place => (a.end + 1 + place - before, sentences.end),
        }
    };
    let mut end = start + 1;
    while end < last && docs.span(start..end).len() < length {
        end += 1;
    }
    Some(docs.span(start..end))
}

/// Takes tokens from either end, at random, of the longer segment until both fit.
fn truncate(a: &mut Range<usize>, b: &mut Range<usize>, most: usize, stream: &mut Stream) {
    while a.len() + b.len() > most {
        let longer = if a.len() > b.len() { &mut *a } else { &mut *b };
        if stream.next_u32() >> 31 == 0 { longer.start += 1 } else { longer.end -= 1 }
    }
}

/// [CLS] sentences [SEP]: as many sentences of one document as fit (FULL-SENTENCES without crossing documents, that is
/// DOC-SENTENCES, of Liu et al., RoBERTa, 2019). Every token comes exactly once.
fn full_sentences(
    docs: &Documents,
    d: usize,
    options: &PrepareConfig,
    stream: &mut Stream,
    emit: &mut impl FnMut(Pair),
) {
    let sentences = docs.document(d);
    let mut first = sentences.start;
    while first < sentences.end {
        let target = target_length(options, stream);
        let mut end = first + 1;
        while end < sentences.end && docs.span(first..end + 1).len() <= target {
            end += 1;
        }
        emit(Pair { a: docs.span(first..end), b: None });
        first = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::philox::PREPARE;

    /// Documents of random shapes whose token at place i is i, so that a token says where it is from.
    fn documents(seed: u64, count: usize, longest: usize) -> Documents {
        let mut stream = Stream::new(seed, 0, PREPARE);
        let mut docs = Documents::new();
        for _ in 0..count {
            for _ in 0..stream.below(30) {
                for _ in 0..stream.below(60) {
                    docs.tokens.push(docs.tokens.len() as u32);
                }
                docs.end_sentence(longest);
            }
            docs.end_document();
        }
        docs
    }

    fn all(docs: &Documents, options: &PrepareConfig, seed: u64) -> Vec<Pair> {
        let mut out = Vec::new();
        build(docs, options, &mut Stream::new(seed, 1, PREPARE), |p| out.push(p));
        out
    }

    #[test]
    fn pairs_keep_order_lengths_labels_and_put_back_what_is_unused() {
        for max_seq_length in [5, 16, 64, 512] {
            let options = PrepareConfig { max_seq_length, ..PrepareConfig::default() };
            let docs = documents(3, 300, max_seq_length - 3);
            let pairs = all(&docs, &options, 7);
            let document_of = |token: usize| {
                let sentence = docs.sentences.partition_point(|&s| s <= token) - 1;
                docs.documents.partition_point(|&s| s <= sentence) - 1
            };
            let mut random = 0;
            let mut covered = 0; // up to where the text was seen or truncated away
            for pair in &pairs {
                let (b, is_random) = pair.b.clone().unwrap();
                assert!(!pair.a.is_empty() && !b.is_empty());
                assert!(pair.a.len() + b.len() <= max_seq_length - 3);
                let d = document_of(pair.a.start);
                assert_eq!(d, document_of(pair.a.end - 1));
                assert_eq!(document_of(b.start), document_of(b.end - 1));
                assert_eq!(is_random, document_of(b.start) != d);
                assert!(pair.a.start >= covered, "{pair:?} repeats text before {covered}");
                // Without truncation nothing lies between this pair and the one before.
                let begun = docs.sentences[docs.sentences.partition_point(|&s| s <= pair.a.start) - 1];
                assert!(pair.a.start == covered || begun >= covered);
                covered = if is_random { pair.a.end } else { b.end };
                if !is_random {
                    assert!(b.start >= pair.a.end);
                }
                random += usize::from(is_random);
            }
            if max_seq_length == 64 {
                // Half by chance, the rest from last single sentences of a document.
                let share = random as f64 / pairs.len() as f64;
                assert!((0.45..0.75).contains(&share), "{share}");
            }
        }
    }

    /// With sequences longer than any chunk nothing is truncated, so A and true B segments cover every token once.
    #[test]
    fn put_back_covers_all_text() {
        let options = PrepareConfig { max_seq_length: 4000, short_seq_prob: 0.0, ..PrepareConfig::default() };
        let mut docs = Documents::new();
        for d in 0..50 {
            for _ in 0..1 + d % 40 {
                docs.tokens.extend([7; 9]);
                docs.end_sentence(3997);
            }
            docs.end_document();
        }
        let mut covered = 0;
        for pair in all(&docs, &options, 1) {
            assert_eq!(pair.a.start, covered);
            covered = pair.a.end;
            if let Some((b, false)) = pair.b {
                assert_eq!(b.start, covered);
                covered = b.end;
            }
        }
        assert_eq!(covered, docs.tokens.len());
    }

    #[test]
    fn full_sentences_hold_every_token_once() {
        let options = PrepareConfig { max_seq_length: 40, nsp: false, ..PrepareConfig::default() };
        let docs = documents(5, 200, 37);
        let mut covered = 0;
        for pair in all(&docs, &options, 2) {
            assert_eq!((pair.a.start, pair.b), (covered, None));
            assert!(pair.a.len() <= 38);
            covered = pair.a.end;
        }
        assert_eq!(covered, docs.tokens.len());
    }

    #[test]
    fn short_sequences_come_as_often_as_asked() {
        let mut docs = Documents::new();
        for _ in 0..2000 {
            for _ in 0..20 {
                docs.tokens.extend([1; 5]);
                docs.end_sentence(61);
            }
            docs.end_document();
        }
        let options = PrepareConfig { max_seq_length: 64, nsp: false, ..PrepareConfig::default() };
        // Whole ones hold 60 of at most 62 tokens, and each document's last is shorter too: look at first ones.
        let firsts: Vec<_> = all(&docs, &options, 3).into_iter().filter(|p| p.a.start % 100 == 0).collect();
        let short = firsts.iter().filter(|p| p.a.len() < 60).count() as f64 / 2000.0;
        assert!((0.07..0.13).contains(&short), "{short}"); // 0.1 * 58 / 61, standard deviation 0.007
    }

    /// Documents of `sentences` sentences of ten tokens, which are the number of the document.
    fn plain(docs: &mut Documents, count: u32, sentences: usize) {
        for d in 0..count {
            for _ in 0..sentences {
                docs.tokens.extend([d; 10]);
                docs.end_sentence(125);
            }
            docs.end_document();
        }
    }

    /// How many pairs are random, where each random segment came from, and the number of pairs; documents are known
    /// by their first tokens.
    fn sources(docs: &Documents) -> (usize, Vec<usize>, usize) {
        let options = PrepareConfig { max_seq_length: 128, ..PrepareConfig::default() };
        let starts: Vec<usize> = (0..docs.len()).map(|d| docs.span(docs.document(d)).start).collect();
        let of = |token: usize| starts.partition_point(|&s| s <= token) - 1;
        let pairs = all(docs, &options, 1);
        let (mut random, mut from) = (0, vec![0; docs.len()]);
        for Pair { a, b } in &pairs {
            let (b, is_random) = b.clone().unwrap();
            assert_eq!(is_random, of(b.start) != of(a.start));
            assert!(of(a.start) < docs.own());
            random += usize::from(is_random);
            from[of(b.start)] += usize::from(is_random);
        }
        (random, from, pairs.len())
    }

    #[test]
    fn guests_lend_random_segments_and_begin_no_sequence() {
        let mut docs = Documents::new();
        plain(&mut docs, 1, 8000);
        docs.begin_guests();
        plain(&mut docs, 4, 200);
        docs.divide_a_single_one();
        let (random, from, pairs) = sources(&docs);
        let share = random as f64 / pairs as f64;
        assert!((0.45..0.55).contains(&share), "{share}");
        assert_eq!(from[0], 0);
        assert!(from[1..].iter().all(|&n| n * 4 > random / 2), "{from:?}");

        let mut docs = Documents::new();
        docs.begin_guests();
        plain(&mut docs, 1, 200);
        docs.divide_a_single_one();
        assert_eq!(all(&docs, &PrepareConfig::default(), 1), []);
    }

    #[test]
    fn a_long_single_document_meets_its_other_parts() {
        let mut docs = Documents::new();
        plain(&mut docs, 1, 20 * 16 * 32);
        docs.begin_guests();
        docs.divide_a_single_one();
        assert_eq!(docs.len(), 16);
        let (random, from, pairs) = sources(&docs);
        let share = random as f64 / pairs as f64;
        assert!((0.45..0.55).contains(&share), "{share}");
        assert!(from.iter().all(|&n| n * 16 > random / 2), "{from:?}");
    }

    #[test]
    fn several_or_short_documents_stay_as_they_are() {
        for (count, sentences) in [(3, 400), (1, 63)] {
            let mut docs = Documents::new();
            plain(&mut docs, count, sentences);
            docs.begin_guests();
            docs.divide_a_single_one();
            assert_eq!(docs.len(), count as usize);
        }
    }

    /// A single document of sentences of these lengths, divided if it is long.
    fn single(lengths: &[usize], longest: usize) -> Documents {
        let mut docs = Documents::new();
        for &length in lengths {
            docs.tokens.extend((0..length as u32).map(|_| 7));
            docs.end_sentence(longest);
        }
        docs.end_document();
        docs.begin_guests();
        docs.divide_a_single_one();
        docs
    }

    #[test]
    fn without_other_text_b_is_what_follows() {
        for (lengths, want) in [
            (&[3][..], vec![(0..1, 1..3)]),
            (&[1], vec![]),
            (&[4, 5], vec![(0..4, 4..9)]),
            (&[200, 5], vec![(0..200, 200..205)]),
        ] {
            for seed in 0..20 {
                let options = PrepareConfig { short_seq_prob: 0.0, ..PrepareConfig::default() };
                let pairs = all(&single(lengths, 509), &options, seed);
                let want: Vec<Pair> =
                    want.iter().cloned().map(|(a, b)| Pair { a, b: Some((b, false)) }).collect();
                assert_eq!(pairs, want, "{lengths:?}");
            }
        }
    }

    /// In the very order of the text, whatever parts it was divided into.
    fn check_random(docs: &Documents, options: &PrepareConfig, seed: u64) -> usize {
        let sentence_end = |token: usize| docs.sentences[docs.sentences.partition_point(|&s| s < token)];
        let pairs = all(docs, options, seed);
        for Pair { a, b } in &pairs {
            let (b, random) = b.clone().unwrap();
            assert!(!a.is_empty() && !b.is_empty() && (a.end <= b.start || b.end <= a.start), "{a:?} {b:?}");
            // Truncation may have taken the end of A's last sentence.
            assert!(!random || (b.start != a.end && b.start != sentence_end(a.end)), "{a:?} {b:?}");
            assert!(random || b.start >= a.end);
        }
        pairs.iter().filter(|pair| pair.b.as_ref().is_some_and(|b| b.1)).count()
    }

    proptest::proptest! {
        #[test]
        fn no_random_segment_follows_or_overlaps_within_one_document(
            lengths in proptest::collection::vec(1usize..40, 1..140),
            max_seq_length in 8usize..80,
            seed: u64,
        ) {
            let options = PrepareConfig { max_seq_length, short_seq_prob: 0.3, ..PrepareConfig::default() };
            let docs = single(&lengths, max_seq_length - 3);
            let random = check_random(&docs, &options, seed);
            // Half of the pairs are random, of which a text as long as this has many.
            proptest::prop_assert!(random > 0 || docs.tokens.len() < 30 * max_seq_length);
        }
    }

    #[test]
    fn what_follows_across_the_parts_of_a_document_is_never_random() {
        // Many uses of one text: a part's end meets the next part's beginning in some of them.
        let docs = single(&[5; 64], 29);
        assert_eq!(docs.len(), 2);
        let options = PrepareConfig { max_seq_length: 32, ..PrepareConfig::default() };
        let random: usize = (0..2000).map(|seed| check_random(&docs, &options, seed)).sum();
        assert!(random > 10_000);
    }
}
