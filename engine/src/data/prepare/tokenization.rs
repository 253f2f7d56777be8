//! The vocabulary of a preparation, and how its text is normalized.

use crate::config::{PrepareConfig, Recipe};
use crate::data::tokenize::{PartialSettings, TokenizerFiles, TokenizerSettings};
use crate::data::vocab::Vocab;
use crate::error::{Error, Result};

/// How text becomes tokens.
#[derive(Debug, Clone)]
pub struct Tokenization {
    /// None where it is yet to be trained.
    pub vocab: Option<Vocab>,
    /// How text is normalized.
    pub settings: TokenizerSettings,
    /// One line: the settings and where they come from.
    pub told: String,
}

/// What a preparation with these options tokenizes with.
///
/// # Errors
/// Those of [`TokenizerFiles::load`]; settings that contradict the vocabulary or the recipe.
pub fn tokenization(config: &PrepareConfig) -> Result<Tokenization> {
    let wanted = PartialSettings::of(config);
    let Some(path) = &config.vocab else {
        let settings = wanted.resolve();
        check_recipe(config, settings)?;
        let why =
            if config.lowercase.is_some() { "as asked for" } else { "as a new vocabulary is by default" };
        return Ok(Tokenization { vocab: None, settings, told: format!("tokenizer: {settings}, {why}") });
    };
    let files = TokenizerFiles::load(path, None, wanted)?;
    if let Some(what) = files.contradiction() {
        let remedy = match files.settings.lowercase {
            true => {
                "set data.prepare.lowercase = false, correct what says otherwise, or name an uncased vocabulary"
            }
            false => "leave out data.prepare.lowercase, or name a cased vocabulary",
        };
        return Err(Error::config("data.prepare.lowercase", format!("{what}; {remedy}")));
    }
    check_recipe(config, files.settings)?;
    let told = format!("tokenizer: {}", files.describe());
    Ok(Tokenization { vocab: Some(files.vocab), settings: files.settings, told })
}

/// Vocabulary and settings, as far as files that may be gone tell; what they do not tell is as in `found`.
pub(super) fn as_far_as_known(
    config: &PrepareConfig,
    found: TokenizerSettings,
) -> Result<(Option<Vocab>, TokenizerSettings)> {
    let wanted = PartialSettings::of(config);
    match &config.vocab {
        Some(path) if path.exists() => {
            let files = TokenizerFiles::load(path, None, wanted)?;
            Ok((Some(files.vocab), files.settings))
        }
        Some(_) => Ok((None, wanted.or(found.into()).resolve())),
        None => Ok((None, wanted.resolve())),
    }
}

/// The reference tool has one switch, which is for case and accents both.
fn check_recipe(config: &PrepareConfig, settings: TokenizerSettings) -> Result<()> {
    if config.recipe == Recipe::Standard
        || settings == TokenizerSettings::UNCASED
        || settings == TokenizerSettings::CASED
    {
        return Ok(());
    }
    let (key, value) = match settings.tokenize_chinese_chars {
        false => ("tokenize_chinese_chars", false),
        true => ("strip_accents", settings.strip_accents),
    };
    let what = format!(
        "{value} contradicts data.prepare.recipe mlperf, whose tool has only do_lower_case, for case and accents both; use \
         the recipe standard, or another vocabulary"
    );
    Err(Error::config(format!("data.prepare.{key}"), what))
}
