//! A vocabulary and the settings that go with it, from files, options, or the tokens themselves.

use super::census::Census;
use super::files::{Stated, TOKENIZER};
use super::settings::{PartialSettings, TokenizerSettings};
use crate::data::shards::{MANIFEST, Manifest, VOCAB};
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A tokenizer as its files have it.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// The tokens.
    pub vocab: Vocab,
    /// How text is normalized for them.
    pub settings: TokenizerSettings,
    /// Why these settings, in words.
    pub source: String,
    /// Whether the tokens had to tell the case, as nobody states it.
    pub inferred: bool,
    /// The file with the tokens.
    pub path: PathBuf,
    census: Census,
    wanted: PartialSettings,
}

impl TokenizerFiles {
    /// Reads a vocabulary: its file, which may be a tokenizer.json, or a model's folder. Settings are those of `wanted`,
    /// then those that Hugging Face's files in the same folder state, or those in the folder `also`, or the manifest of
    /// prepared data there. What nobody states the tokens tell: whether there are upper-case letters and accents.
    ///
    /// # Errors
    /// A file that is missing or damaged, files that contradict each other, a tokenizer that is not BERT's WordPiece.
    pub fn load(path: &Path, also: Option<&Path>, wanted: PartialSettings) -> Result<Self> {
        let path = find(path)?;
        let vocab = Vocab::load(&path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut stated = Stated::in_folder(folder, &vocab)?;
        if let Some(also) = also.filter(|also| !is_same(also, folder)) {
            let there = Stated::in_folder(also, &vocab)?;
            if let Some(file) = there.files.first() {
                stated.add(there.settings, file)?;
            }
        }
        let manifest = folder.join(MANIFEST);
        if let Some(settings) = of_prepared_data(&manifest, &vocab)? {
            stated.add(settings, &manifest)?;
        }
        let both = wanted.or(stated.settings);
        let (census, inferred) = (Census::of(&vocab), both.lowercase.is_none());
        // Who states the case and nothing of accents means that they follow it.
        let open = stated.settings.lowercase.is_none();
        let settings = if open { both.resolve_by(&census) } else { both.resolve() };
        let mut reasons = Vec::new();
        if !wanted.is_empty() {
            reasons.push("as asked for".to_owned());
        }
        if !stated.files.is_empty() {
            let files: Vec<_> = stated.files.iter().map(|file| file.display().to_string()).collect();
            reasons.push(format!("as {} says", files.join(" and ")));
        }
        if inferred {
            let (upper, all, path) = (census.upper, vocab.len(), path.display());
            reasons.push(format!("as {path} suggests: {upper} of {all} tokens hold upper-case letters"));
        }
        let source = reasons.join(", ");
        Ok(Self { vocab, settings, source, inferred, path, census, wanted })
    }

    /// The tokenizer in a model's folder; none where no vocabulary lies there.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn of_model(dir: &Path) -> Result<Option<Self>> {
        match [VOCAB, TOKENIZER].iter().any(|name| dir.join(name).is_file()) {
            true => Self::load(dir, None, PartialSettings::default()).map(Some),
            false => Ok(None),
        }
    }

    /// Why text that is normalized so cannot become the tokens of this vocabulary, if so.
    pub fn contradiction(&self) -> Option<String> {
        let Census { upper, lower, .. } = self.census;
        let (path, all, source) = (self.path.display(), self.vocab.len(), &self.source);
        if self.settings.lowercase && self.census.is_cased() {
            return Some(format!(
                "{path} is a cased vocabulary, and text becomes lower case ({source}): {upper} of its {all} tokens hold \
                 upper-case letters and would never be produced"
            ));
        }
        let asked = self.wanted.lowercase == Some(false);
        (asked && self.census.is_uncased()).then(|| {
            format!(
                "{path} is an uncased vocabulary, and text keeps its case ({source}): {upper} of its {all} tokens hold \
                 upper-case letters, {lower} lower-case letters only, so words with upper-case letters would become [UNK]"
            )
        })
    }

    /// The settings and where they come from, in one line.
    pub fn describe(&self) -> String {
        let remark = self.remark().map_or(String::new(), |remark| format!("; {remark}"));
        format!("{}, {}{remark}", self.settings, self.source)
    }

    /// What is odd about settings and vocabulary and is done all the same, as `transformers` does it.
    fn remark(&self) -> Option<String> {
        let Census { accented, .. } = self.census;
        let (path, all) = (self.path.display(), self.vocab.len());
        if self.settings.strip_accents && self.census.is_accented() {
            return Some(format!(
                "{accented} of {all} tokens of {path} hold accents and are never produced, as accents are removed"
            ));
        }
        let odd = !self.settings.lowercase && self.census.is_uncased();
        odd.then(|| {
            format!(
                "{path} is an uncased vocabulary: words with upper-case letters become [UNK], as case is kept"
            )
        })
    }
}

/// The file with the tokens.
fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    match [VOCAB, TOKENIZER].map(|name| path.join(name)).into_iter().find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => Err(Error::file(
            path,
            format!(
                "is a folder that holds no {VOCAB} and no {TOKENIZER}; give the vocabulary's file, one token a line"
            ),
        )),
    }
}

/// Whether two paths are of one folder; the empty path is that of the current one.
fn is_same(a: &Path, b: &Path) -> bool {
    let resolve = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().ok()
    };
    let (a, b) = (resolve(a), resolve(b));
    a.is_some() && a == b
}

/// The settings of the prepared data that this vocabulary lies in.
fn of_prepared_data(manifest: &Path, vocab: &Vocab) -> Result<Option<PartialSettings>> {
    if !Manifest::is_one(manifest) {
        return Ok(None);
    }
    let found = Manifest::load(manifest.parent().unwrap_or(Path::new("")))?;
    Ok((found.vocab_sha256 == vocab.sha256()).then(|| found.tokenizer().into()))
}

impl From<TokenizerSettings> for PartialSettings {
    fn from(settings: TokenizerSettings) -> Self {
        Self {
            lowercase: Some(settings.lowercase),
            strip_accents: Some(Some(settings.strip_accents)),
            tokenize_chinese_chars: Some(settings.tokenize_chinese_chars),
        }
    }
}
