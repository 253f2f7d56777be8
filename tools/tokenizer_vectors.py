#!/usr/bin/env python3
"""Makes tests/data/tokenizer/vectors.json.gz: the token ids that Hugging Face's BERT tokenizer gives hard text, with every
setting of its normalizer, for a cased and an uncased vocabulary.

    pip install tokenizers
    python3 tools/tokenizer_vectors.py            # writes the file
    python3 tools/tokenizer_vectors.py --check    # compares the file with what it would write
"""

import argparse
import gzip
import itertools
import json
import sys
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

FILE = Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizer" / "vectors.json.gz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LINES = [
    "The Quick BROWN fox's Café, naïve façade!",
    "CAFE\u0301 e\u0301\u0327 ,\u0301a \u0301b A\u030angstro\u0308m \u00c5",
    "İstanbul ISPARTA ıI ẞß ΣΑΣ ςσ ǅ \u212a \u2126 ﬁ Ⅷ",
    "深度学习Model与里Σ中。日本語テキスト、カ\u3099が 한국어 \u1112\u1161\u11ab",
    "हिन्दी का पाठ, ไทย العَرَبِيَّة עִבְרִית",
    "Việt Nam Ệ Đ đ Ł ø Ñ ñ ü Ü ö Ö",
    "a\u00a0b\u2003c\u3000d\u2028e\u200bf\u200dg\ufeffh\u0000i\ufffdj\u000bk\u000cl\u0085m\tn",
    "\u037e \u1fef \u2260 \u00b4 A\u0338B =\u0338 \u2019s — “X” ¿Q? $5 €6 №7 ©R",
    "\U00020000\U0002b820\uf900\U0002f800 \u3400\u9fff👩\u200d👧 \U0001f3fb\u20dd",
    "x" * 101 + " " + "Y" * 100,
]


def words(text):
    """The parts of a text between white space and punctuation, rough as they are."""
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


def vocabulary(lower):
    """Single characters and beginnings of the words of all lines, in lower case without accents or as they are."""
    tokens = dict.fromkeys(SPECIAL)
    for line in LINES[:-1]:
        text = line
        if lower:
            text = "".join(c for c in unicodedata.normalize("NFD", line) if unicodedata.category(c) != "Mn").lower()
        for word in words(text):
            tokens[word[:3]] = None
        for form in (text, unicodedata.normalize("NFD", text)):
            for c in sorted(set(form)):
                if unicodedata.category(c)[0] not in "ZC":
                    tokens[c] = None
                    if unicodedata.category(c)[0] in "LM":
                        tokens["##" + c] = None
    return list(tokens)


def ids(tokens, lowercase, strip_accents, chinese):
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return [tokenizer.encode(line, add_special_tokens=False).ids for line in LINES]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    vocabularies = {"cased": vocabulary(False), "uncased": vocabulary(True)}
    cases = [
        {
            "vocabulary": name,
            "lowercase": lowercase,
            "strip_accents": strip,
            "tokenize_chinese_chars": chinese,
            "ids": ids(vocabularies[name], lowercase, strip, chinese),
        }
        for name, lowercase, strip, chinese in itertools.product(
            vocabularies, [True, False], [None, True, False], [True, False]
        )
    ]
    content = json.dumps({"vocabularies": vocabularies, "lines": LINES, "cases": cases}, separators=(",", ":"))
    if check:
        same = FILE.exists() and gzip.decompress(FILE.read_bytes()).decode() == content
        sys.exit(None if same else f"{FILE} is not what this script makes")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(gzip.compress(content.encode(), mtime=0))


if __name__ == "__main__":
    main()
