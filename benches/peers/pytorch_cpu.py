#!/usr/bin/env python3
"""Tokens per second of a BERT pre-training step in PyTorch on the CPU: the yardstick of the engine's CPU backend.

Usage: python3 benches/peers/pytorch_cpu.py [--tuned] [--seq 128 512] [--batch 16 4] [--seconds 30] [--threads 2]

Needs PyTorch and, without --tuned, transformers (tools/peer_setup.sh). Prints one JSON line for each sequence length.

A step is forward, backward, clipping to norm 1, AdamW and clearing the gradients, in f32, with dropout 0.1 at hidden
states and attention weights; every sequence is full, 15 % of the tokens carry a label, and the loss is MLM + NSP. The
figure is the median of the steps of the second half of --seconds.

Without --tuned: Hugging Face BertForPreTraining as it comes (logits of all positions; eager attention, which is what this
version of PyTorch leaves). With --tuned: a model of the same sizes written for speed: one product for Q, K and V, MLM
head on labelled positions only, last feed-forward on the rows that the heads read, dropout masks from random bytes (one
64-bit draw for eight elements; probability 26/256), foreach AdamW. Both run under an allocator that keeps its pages,
without which page faults cost PyTorch up to a quarter of the step.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time

VOCAB = 30522
SIZES = {"base": (12, 768, 12), "large": (24, 1024, 16), "mini": (4, 256, 4), "tiny": (2, 128, 2)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuned", action="store_true", help="the model written for speed instead of Hugging Face's")
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--seq", type=int, nargs="+", default=[128, 512], help="tokens of each sequence")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 4], help="sequences, one number for each --seq")
    parser.add_argument("--seconds", type=float, default=30, help="measured time for each sequence length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    if len(args.seq) != len(args.batch):
        parser.error("--seq and --batch need as many numbers as each other")
    return args


def with_environment(threads):
    """Starts this script anew with what must be set before a process starts: threads and the allocator."""
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 28),
    }
    missing = {k: v for k, v in wanted.items() if k not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **missing})


def make_batch(torch, batch, seq):
    """Full sequences; 15 % of the tokens labelled, as many in each sequence."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 30000, (batch, seq), generator=rng)
    types = (torch.arange(seq) >= seq // 2).long().expand(batch, seq).contiguous()
    labels = torch.full((batch, seq), -100)
    for row in range(batch):
        masked = torch.randperm(seq, generator=rng)[: max(1, round(0.15 * seq))]
        labels[row, masked] = ids[row, masked]
        ids[row, masked] = 103
    return ids, types, labels, torch.randint(0, 2, (batch,), generator=rng)


def hugging_face(torch, args, seq, data):
    from transformers import BertConfig, BertForPreTraining

    layers, hidden, heads = SIZES[args.model]
    model = BertForPreTraining(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=512,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
        )
    )
    ids, types, labels, nsp = data
    return model, lambda: model(input_ids=ids, token_type_ids=types, labels=labels, next_sentence_label=nsp).loss


def tuned(torch, args, seq, data):
    from torch import nn
    import torch.nn.functional as F

    layers, hidden, heads = SIZES[args.model]
    ids, types, labels, nsp = data
    batch = ids.shape[0]
    cut = round(256 * args.dropout)

    def drop(x):
        if cut == 0:
            return x
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
        return x * keep.to(x.dtype).mul_(256 / (256 - cut))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
            self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
            self.norm1, self.norm2 = nn.LayerNorm(hidden, eps=1e-12), nn.LayerNorm(hidden, eps=1e-12)

        def forward(self, x, rows=None):
            qkv = self.qkv(x).view(batch, seq, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.reshape(3, batch * heads, seq, hidden // heads).unbind(0)
            scale = 1 / math.sqrt(hidden // heads)
            weights = drop(torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), -1))
            mixed = torch.bmm(weights, v).view(batch, heads, seq, -1).transpose(1, 2).reshape(batch * seq, hidden)
            if rows is not None:
                mixed, x = mixed[rows], x[rows]
            x = self.norm1(x + drop(self.out(mixed)))
            return self.norm2(x + drop(self.down(F.gelu(self.up(x)))))

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.norm = nn.Embedding(VOCAB, hidden), nn.LayerNorm(hidden, eps=1e-12)
            self.position, self.kind = nn.Embedding(512, hidden), nn.Embedding(2, hidden)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.pooler, self.nsp = nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
            self.transform, self.transform_norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden, eps=1e-12)
            self.bias = nn.Parameter(torch.zeros(VOCAB))
            for p in self.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, 0, 0.02)

    masked = (labels.flatten() >= 0).nonzero().squeeze(1)
    targets = labels.flatten()[masked]
    rows = torch.cat([torch.arange(batch) * seq, masked])
    model = Bert()

    def loss():
        x = model.word(ids) + model.position.weight[:seq] + model.kind(types)
        x = drop(model.norm(x)).view(batch * seq, hidden)
        for layer in model.layers[:-1]:
            x = layer(x)
        x = model.layers[-1](x, rows)
        hidden_states = model.transform_norm(F.gelu(model.transform(x[batch:])))
        mlm = F.cross_entropy(F.linear(hidden_states, model.word.weight, model.bias), targets)
        return mlm + F.cross_entropy(model.nsp(torch.tanh(model.pooler(x[:batch]))), nsp)

    return model, loss


def measure(torch, args, seq, batch):
    torch.manual_seed(0)
    data = make_batch(torch, batch, seq)
    model, loss = (tuned if args.tuned else hugging_face)(torch, args, seq, data)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, foreach=args.tuned)

    def step():
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not args.tuned)
        return value

    step()
    times, end = [], time.perf_counter() + args.seconds
    while len(times) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        value = step()
        times.append(time.perf_counter() - start)
    if not math.isfinite(float(value)):
        raise SystemExit("the loss is not finite")
    seconds = statistics.median(times[len(times) // 2 :])
    figures = {
        "peer": "pytorch-tuned" if args.tuned else "pytorch-transformers",
        "model": args.model,
        "tokens_per_second": round(batch * seq / seconds, 1),
        "ms": round(1e3 * seconds, 1),
        "fastest_ms": round(1e3 * min(times), 1),
        "seq": seq,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "dropout": args.dropout,
        "steps": len(times),
        "torch": torch.__version__,
    }
    print(json.dumps(figures), flush=True)


def main():
    args = arguments()
    with_environment(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    for seq, batch in zip(args.seq, args.batch):
        measure(torch, args, seq, batch)


if __name__ == "__main__":
    main()
