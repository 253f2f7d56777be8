#!/usr/bin/env python3
"""Megabytes of text a second that Hugging Face `tokenizers` alone turns into WordPiece ids: the yardstick of preparation.

Usage: python3 benches/peers/hf_tokenizers.py [--vocab data/vocab.txt] [--threads 1 2] [--seconds 10] FILE…

Prints one JSON line for each call and number of threads: `encode_batch` (with offsets) and `encode_batch_fast` (without
them, the faster one). Lines are read and split before the clock starts; they are encoded without special tokens, in
batches of 10,000; the figure is the median over passes. Needs the Python package tokenizers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

BATCH = 10_000


def measure(args, threads):
    import tokenizers

    tokenizer = tokenizers.BertWordPieceTokenizer(args.vocab, lowercase=True)._tokenizer
    lines = [line for path in args.files for line in open(path, encoding="utf-8").read().split("\n") if line]
    megabytes = sum(len(line.encode()) + 1 for line in lines) / 1e6
    batches = [lines[i : i + BATCH] for i in range(0, len(lines), BATCH)]
    for call in ("encode_batch", "encode_batch_fast"):
        encode, rates, end = getattr(tokenizer, call), [], time.perf_counter() + args.seconds / 2
        while len(rates) < 3 or time.perf_counter() < end:
            start, tokens = time.perf_counter(), 0
            for batch in batches:
                tokens += sum(map(len, encode(batch, add_special_tokens=False)))
            rates.append(megabytes / (time.perf_counter() - start))
        rate = statistics.median(rates)
        figures = {
            "peer": "tokenizers",
            "call": call,
            "threads": threads,
            "mb_per_second": round(rate, 2),
            "mb_per_second_per_thread": round(rate / threads, 2),
            "best": round(max(rates), 2),
            "megabytes": round(megabytes, 2),
            "tokens": tokens,
            "passes": len(rates),
            "version": tokenizers.__version__,
        }
        print(json.dumps(figures), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="plain text, one sentence a line")
    parser.add_argument("--vocab", default="data/vocab.txt")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10, help="measured time for each number of threads")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args, args.child)
        return
    for threads in args.threads:  # the number of threads is fixed when a process starts
        parallel = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
        run = [sys.executable, *sys.argv, "--child", str(threads)]
        subprocess.run(run, check=True, env={**os.environ, **parallel})


if __name__ == "__main__":
    main()
