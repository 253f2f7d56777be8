#!/usr/bin/env python3
"""Loads a model folder with transformers and computes the losses of one batch.

Usage: python3 tools/check_transformers.py MODEL_DIR BATCH.safetensors [--tolerance 1e-4]

The batch holds input_ids, attention_mask, token_type_ids, labels (B, S) and, if there are sentence pairs,
next_sentence_label (B), i64, as a golden file does and as `launcher eval --dump-batch` writes it, with or without the
prefix `batch0.`. If it also holds the tensors `mlm_loss` or `nsp_loss` (one number), or metadata of these names, they are
compared. Losses are computed in float64 from the stored weights, without dropout.

Prints one JSON object. Exits with 1 if transformers misses a weight, finds one that it does not know, or a loss differs
by more than the tolerance. Needs PyTorch, transformers and safetensors (tools/peer_setup.sh).
"""

import argparse
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, BertForPreTraining

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
NEXT_SENTENCE = "next_sentence_label"
TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def read_batch(path):
    """The batch's tensors and the losses that the file claims."""
    with safe_open(path, "pt") as f:
        names, metadata = set(f.keys()), f.metadata() or {}
        prefix = "batch0." if "batch0.input_ids" in names else ""
        fields = [*INPUTS, "labels"]
        missing = [prefix + k for k in fields if prefix + k not in names]
        if missing:
            sys.exit(f"{path}: lacks {', '.join(missing)}")
        fields += [NEXT_SENTENCE] if prefix + NEXT_SENTENCE in names else []
        batch = {k: f.get_tensor(prefix + k).long() for k in fields}
        claimed = {}
        for name in ("mlm_loss", "nsp_loss"):
            if name in names:
                claimed[name] = float(f.get_tensor(name))
            elif name in metadata:
                claimed[name] = float(metadata[name])
    return batch, claimed


@torch.no_grad()
def losses(model, batch):
    out = model(**{k: batch[k] for k in INPUTS})
    cross_entropy = torch.nn.functional.cross_entropy
    mlm = cross_entropy(out.prediction_logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    result = {"mlm_loss": float(mlm)}
    if NEXT_SENTENCE in batch:
        result["nsp_loss"] = float(cross_entropy(out.seq_relationship_logits, batch[NEXT_SENTENCE]))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("batch", metavar="BATCH.safetensors")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of a loss")
    args = parser.parse_args()

    batch, claimed = read_batch(args.batch)
    model, info = BertForPreTraining.from_pretrained(args.model, output_loading_info=True)
    problems = [f"missing weight {k}" for k in info["missing_keys"] if k not in TIED]
    problems += [f"unexpected weight {k}" for k in info["unexpected_keys"]]
    problems += [f"wrong shape: {k}" for k in info["mismatched_keys"]]
    result = losses(model.double().eval(), batch)
    for name, value in claimed.items():
        result[f"claimed_{name}"] = value
        if name not in result:
            problems.append(f"{name} is in the batch file, but no {NEXT_SENTENCE}")
        elif not abs(value - result[name]) <= args.tolerance:
            problems.append(f"{name} is {result[name]:.7f} here and {value:.7f} in the batch file")
    if os.path.exists(os.path.join(args.model, "vocab.txt")):
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        result["tokenizer"] = f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"
    result["gelu"] = model.config.hidden_act
    result["problems"] = problems
    print(json.dumps(result))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
