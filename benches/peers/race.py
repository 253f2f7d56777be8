#!/usr/bin/env python3
"""Trains what `launcher` trains, in PyTorch on the CPU, to the same target: the peer of the race that benches/race.sh runs.

Usage: python3 benches/peers/race.py train --side plain|tuned --run RUN --batches FILE [--out FILE] [--steps N]
       python3 benches/peers/race.py check --run RUN --batches FILE --ours RUN
       python3 benches/peers/race.py timed FILE COMMAND...
       python3 benches/peers/race.py report DIR --svg FILE [--levels ACCURACY...]

RUN is a run folder of `launcher` whose model/ holds the initial weights; its config.toml gives every hyperparameter. FILE is
what `launcher inspect RUN --batches N --out FILE` wrote: the batches, their order, their masks and the evaluation set are
the launcher's own. Dropout must be 0, so that both sides compute the same.

plain: Hugging Face BertForMaskedLM as it comes: batches padded to the longest sequence, logits of all positions.
tuned: the same model written for speed: packed tokens (padding inside attention only), one product for queries, keys and
values, the last feed-forward part and the decoder on the masked rows only, foreach AdamW.

`train` writes one JSON line for each evaluation: seconds since RACE_START (an environment variable, seconds since the epoch,
set before the process starts), samples, accuracy, loss; and one for the first step. It ends at the target. `check`
compares the first evaluation and the losses of --ours, a short run that logged every step, with both peers' own. `timed` runs
a command with RACE_START set and writes when it started, the CPU time it took, its peak memory and the load of the machine
before. `report` makes the table and the plot.
Needs PyTorch, transformers and safetensors (tools/peer_setup.sh); `report` needs Python only.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

EVAL_BATCH = 64  # sequences of an evaluation batch


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train_args = commands.add_parser("train")
    train_args.add_argument("--side", choices=["plain", "tuned"], required=True)
    train_args.add_argument("--out", type=Path, help="JSON lines [default: standard output]")
    train_args.add_argument("--steps", type=int, help="end after N steps [default: the run's]")
    check_args = commands.add_parser("check")
    check_args.add_argument("--ours", type=Path, required=True, help="a run of the launcher that logged every step")
    for sub in (train_args, check_args):
        sub.add_argument("--run", type=Path, required=True)
        sub.add_argument("--batches", type=Path, required=True)
        sub.add_argument("--threads", type=int, default=2)
    timed_args = commands.add_parser("timed")
    timed_args.add_argument("file", type=Path)
    timed_args.add_argument("line", nargs=argparse.REMAINDER)
    report_args = commands.add_parser("report")
    report_args.add_argument("dir", type=Path)
    report_args.add_argument("--svg", type=Path, required=True)
    report_args.add_argument("--levels", type=float, nargs="*", default=[], help="accuracies on the way to the target")
    return parser.parse_args()


def with_environment(threads):
    """Starts this script anew with what must be set before a process starts: threads and an allocator that keeps pages."""
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


# Data


class Part:
    """Training or evaluation batches of the file, cut out with numpy."""

    def __init__(self, path, name):
        import numpy as np
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            get = lambda key: file.get_tensor(f"{name}.{key}")
            self.tokens, self.types = get("tokens"), get("token_types")
            self.seqs, self.batches = get("cu_seqlens"), get("cu_batches")
            self.positions, self.labels = get("mlm_positions"), get("mlm_labels")
            if f"{name}.nsp_labels" in file.keys():
                raise SystemExit(f"{path}: has next-sentence labels; this race is MLM only, prepare with --no-nsp")
        self.np = np

    def cut(self, first, last):
        """Sequences first..last: lengths, tokens, types, positions of masked tokens among them, labels."""
        np = self.np
        start, end = self.seqs[first], self.seqs[last]
        low, high = np.searchsorted(self.positions, [start, end])
        lengths = np.diff(self.seqs[first : last + 1]).astype(np.int64)
        wide = lambda values: values.astype(np.int64)
        return (
            lengths,
            wide(self.tokens[start:end]),
            wide(self.types[start:end]),
            wide(self.positions[low:high] - start),
            wide(self.labels[low:high]),
        )

    def training(self, step):
        return self.cut(self.batches[step], self.batches[step + 1])

    def evaluation(self):
        count = len(self.seqs) - 1
        for first in range(0, count, EVAL_BATCH):
            yield self.cut(first, min(first + EVAL_BATCH, count))


def places(np, lengths):
    """Where each packed token lies in [B x S] padded to the longest."""
    starts = np.cumsum(lengths) - lengths
    longest = lengths.max()
    return np.repeat(np.arange(len(lengths)) * longest - starts, lengths) + np.arange(lengths.sum()), longest


# Models: each has `parameters()`, `loss(cut)` and `accuracy(cut)`


class Plain:
    def __init__(self, torch, folder, config):
        from transformers import BertForMaskedLM

        self.torch = torch
        self.model = BertForMaskedLM.from_pretrained(
            folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager"
        ).train()

    def named(self):
        return self.model.named_parameters()

    def padded(self, cut):
        import numpy as np

        lengths, tokens, types, masked, labels = cut
        at, longest = places(np, lengths)
        shape = (len(lengths), longest)
        out = {}
        for name, values in [("input_ids", tokens), ("token_type_ids", types), ("attention_mask", 1)]:
            grid = np.zeros(shape, dtype=np.int64)
            grid.reshape(-1)[at] = values
            out[name] = self.torch.from_numpy(grid)
        grid = np.full(shape, -100, dtype=np.int64)
        grid.reshape(-1)[at[masked]] = labels
        out["labels"] = self.torch.from_numpy(grid)
        return out

    def loss(self, cut):
        return self.model(**self.padded(cut)).loss

    def evaluate(self, cut):
        inputs = self.padded(cut)
        out = self.model(**inputs)
        hit = out.logits.argmax(-1) == inputs["labels"]
        return float(out.loss), int(hit.sum())


class Tuned:
    """Parameters are leaf tensors; queries, keys and values are joined once, at the start."""

    def __init__(self, torch, folder, config):
        from safetensors.torch import load_file

        self.torch, self.F = torch, torch.nn.functional
        sizes = json.loads((folder / "config.json").read_text())
        self.heads, self.eps = sizes["num_attention_heads"], sizes["layer_norm_eps"]
        if sizes["hidden_act"] != "gelu":
            raise SystemExit("the tuned peer computes the erf GELU; set model.gelu to erf")
        file = load_file(folder / "model.safetensors")
        self.p = {}
        for name, tensor in file.items():
            if "pooler" in name or "seq_relationship" in name or "decoder" in name or "position_ids" in name:
                continue
            if ".self.key." in name or ".self.value." in name:
                continue
            if ".self.query." in name:
                parts = [file[name.replace("query", part)] for part in ("query", "key", "value")]
                name, tensor = name.replace("query", "qkv"), torch.cat(parts)
            self.p[name] = tensor.clone().requires_grad_(True)
        self.layers = sizes["num_hidden_layers"]

    def named(self):
        return self.p.items()

    def linear(self, x, name):
        return self.F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def norm(self, x, name):
        return self.F.layer_norm(x, x.shape[-1:], self.p[name + ".weight"], self.p[name + ".bias"], self.eps)

    def attention(self, x, layer, shape, at, gaps):
        """[T, H], packed to packed; scores of padding are -inf."""
        torch, (batch, longest), hidden = self.torch, shape, x.shape[1]
        qkv = self.linear(x, layer + "attention.self.qkv")
        grid = torch.zeros(batch * longest, 3 * hidden).index_copy(0, at, qkv)
        q, k, v = grid.view(batch, longest, 3, self.heads, -1).permute(2, 0, 3, 1, 4).reshape(
            3, batch * self.heads, longest, -1
        ).unbind(0)
        scores = torch.baddbmm(gaps, q, k.transpose(1, 2), alpha=1 / math.sqrt(hidden // self.heads))
        mixed = torch.bmm(torch.softmax(scores, -1), v).view(batch, self.heads, longest, -1)
        return mixed.transpose(1, 2).reshape(batch * longest, hidden)

    def logits(self, cut):
        import numpy as np

        torch, p = self.torch, self.p
        lengths, tokens, types, masked, _ = cut
        grid_at, longest = places(np, lengths)
        shape, at = (len(lengths), int(longest)), torch.from_numpy(grid_at)
        rows = torch.from_numpy(masked)
        positions = torch.from_numpy(grid_at % longest)
        gaps = np.where(np.arange(longest) < lengths[:, None], np.float32(0), np.float32(-1e4))
        gaps = torch.from_numpy(np.repeat(gaps, self.heads, axis=0)[:, None, :])
        word = p["bert.embeddings.word_embeddings.weight"]
        x = self.F.embedding(torch.from_numpy(tokens), word)
        x = x + self.F.embedding(positions, p["bert.embeddings.position_embeddings.weight"])
        x = x + self.F.embedding(torch.from_numpy(types), p["bert.embeddings.token_type_embeddings.weight"])
        x = self.norm(x, "bert.embeddings.LayerNorm")
        for i in range(self.layers):
            layer = f"bert.encoder.layer.{i}."
            mixed = self.attention(x, layer, shape, at, gaps)
            if i + 1 == self.layers:
                mixed, x = mixed[at[rows]], x[rows]
            else:
                mixed = mixed[at]
            x = self.norm(x + self.linear(mixed, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
            up = self.F.gelu(self.linear(x, layer + "intermediate.dense"))
            x = self.norm(x + self.linear(up, layer + "output.dense"), layer + "output.LayerNorm")
        x = self.F.gelu(self.linear(x, "cls.predictions.transform.dense"))
        x = self.norm(x, "cls.predictions.transform.LayerNorm")
        return self.F.linear(x, word, p["cls.predictions.bias"])

    def loss(self, cut):
        return self.F.cross_entropy(self.logits(cut), self.torch.from_numpy(cut[4]))

    def evaluate(self, cut):
        logits, labels = self.logits(cut), self.torch.from_numpy(cut[4])
        return float(self.F.cross_entropy(logits, labels)), int((logits.argmax(-1) == labels).sum())


# Training


class Race:
    """A model, its optimizer and schedule as config.toml of the run says."""

    def __init__(self, torch, side, run, batches):
        import tomllib

        config = tomllib.loads((run / "config.toml").read_text())
        self.torch, self.train, self.schedule, o = torch, config["train"], config["schedule"], config["optimizer"]
        model = config["model"]
        if o["kind"] != "adamw" or self.schedule["kind"] != "linear":
            raise SystemExit(f"{run}/config.toml: the race is with AdamW and a linear schedule")
        if model["hidden_dropout"] or model["attention_dropout"]:
            raise SystemExit(f"{run}/config.toml: the race is without dropout; set both to 0")
        self.model = {"plain": Plain, "tuned": Tuned}[side](torch, run / "model", model)
        self.data, self.held_out = Part(batches, "train"), Part(batches, "eval")
        named = list(self.model.named())
        groups = [
            {"params": [p for n, p in named if is_decayed(n)], "weight_decay": o["weight_decay"]},
            {"params": [p for n, p in named if not is_decayed(n)], "weight_decay": 0.0},
        ]
        self.total = self.schedule["total_steps"] or self.train["steps"]
        self.clip, self.params = o["clip_norm"], [p for _, p in named]
        betas = (o["beta1"], o["beta2"])
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=o["eps"], foreach=side == "tuned")

    def rate(self, step):
        s, warmup = self.schedule, self.schedule["warmup_steps"]
        if step < warmup:
            return s["lr"] * step / warmup
        after = min((step - warmup) / max(self.total - warmup, 1), 1)
        return s["end_lr"] + (s["lr"] - s["end_lr"]) * (1 - after)

    def step(self, step):
        loss = self.model.loss(self.data.training(step))
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def evaluate(self):
        """Accuracy and mean loss over all masked tokens of the held-out sequences."""
        total = hits = count = 0
        with self.torch.no_grad():
            for cut in self.held_out.evaluation():
                loss, hit = self.model.evaluate(cut)
                total, hits, count = total + loss * len(cut[4]), hits + hit, count + len(cut[4])
        return hits / count, total / count


def is_decayed(name):
    return "bias" not in name and "LayerNorm" not in name


def start_torch(threads):
    import torch

    torch.set_num_threads(threads)
    return torch


def train(args):
    begin = float(os.environ.get("RACE_START", time.time()))
    race = Race(start_torch(args.threads), args.side, args.run, args.batches)
    out = open(args.out, "w") if args.out else sys.stdout

    def say(**fields):
        fields = {"seconds": round(time.time() - begin, 3), **fields}
        print(json.dumps(fields), file=out, flush=True)

    per_step, every = race.train["batch_sequences"], race.train["eval_every"]
    target = race.train["target_accuracy"]
    last = min(args.steps or race.total, len(race.data.batches) - 1)
    say(event="ready")
    for step in range(last):
        race.step(step)
        if step == 0:
            say(event="first step")
        samples = (step + 1) * per_step
        if every and samples // every > (samples - per_step) // every or step + 1 == last:
            accuracy, loss = race.evaluate()
            say(event="eval", step=step + 1, samples=samples, accuracy=accuracy, loss=loss)
            if accuracy >= target:
                break


# Is it the same task?


def records(run):
    """metrics.jsonl: losses of the steps, evaluations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in lines if "eval_mlm_loss" not in r], [r for r in lines if "eval_mlm_loss" in r]


def check(args):
    """The worst relative difference of a loss, over the first evaluation and the steps; the limit is what f32 explains."""
    torch = start_torch(args.threads)
    first = records(args.run)[1][0]
    steps = records(args.ours)[0]
    failed = False
    for side in ("plain", "tuned"):
        race = Race(torch, side, args.run, args.batches)
        accuracy, loss = race.evaluate()
        start = abs(loss / first["eval_mlm_loss"] - 1)
        hits = abs(accuracy - first["eval_mlm_accuracy"])
        worst = max(abs(float(race.step(i)) / record["mlm_loss"] - 1) for i, record in enumerate(steps))
        good = start < 1e-4 and hits < 1e-3 and worst < 1e-3
        failed |= not good
        print(
            f"{side}: first evaluation differs by {start:.1e}, accuracy by {hits:.1e}, "
            f"losses of {len(steps)} steps by up to {worst:.1e}"
        )
    if failed:
        raise SystemExit("the peers do not compute what the launcher computes")


# Report


def timed(args):
    load, start = os.getloadavg()[0], time.time()
    code = subprocess.run(args.line, env={**os.environ, "RACE_START": repr(start)}).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = round(usage.ru_utime + usage.ru_stime, 1)
    fields = {"start": start, "cpu_seconds": cpu, "peak_mb": usage.ru_maxrss // 1024, "load_before": load}
    args.file.write_text(json.dumps(fields) + "\n")
    raise SystemExit(code)


def ours(run, start):
    """The same lines for a run of the launcher, from its MLLOG."""
    lines = []
    for line in (run / "mllog.txt").read_text().splitlines():
        event = json.loads(line.split(":::MLLOG ")[1])
        seconds = round(event["time_ms"] / 1e3 - start, 3)
        if event["key"] == "run_start":
            lines.append({"seconds": seconds, "event": "ready"})
        elif event["key"] == "eval_accuracy":
            samples = event["metadata"]["epoch_num"]
            lines.append({"seconds": seconds, "event": "eval", "samples": samples, "accuracy": event["value"]})
    return lines


SIDES = {"launcher": ("#1f6f4a", "launcher"), "tuned": ("#b5651d", "PyTorch, written for speed"), "plain": ("#5b5b8c", "Hugging Face")}


def load(folder):
    """{side: {seed: lines}} of the files SIDE-SEED.timed with SIDE-SEED.jsonl or, of ours, the run folder."""
    out = {side: {} for side in SIDES}
    for path in sorted(folder.glob("*.timed")):
        side, seed = path.stem.rsplit("-", 1)
        usage = json.loads(path.read_text())
        if side == "launcher":
            lines = ours(path.with_suffix(""), usage["start"])
        else:
            lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
        out[side][seed] = [*lines, {"event": "end", **usage}]
    return out


def report(args):
    races = load(args.dir)
    import tomllib

    run = next(args.dir.glob("launcher-*/config.toml"))
    settings = tomllib.loads(run.read_text())["train"]
    target = settings["target_accuracy"]
    print("| side | seed | to the first step | to the target | samples | accuracy | CPU time | CPU a step, evaluations included | peak resident | load before |")
    print("|" + " --- |" * 10)
    batch = settings["batch_sequences"]
    for side, (_, label) in SIDES.items():
        for seed, lines in sorted(races[side].items()):
            ready = next(r["seconds"] for r in lines if r["event"] == "ready")
            last, end = [r for r in lines if r["event"] == "eval"][-1], lines[-1]
            reached = last["accuracy"] >= target
            time_to = f"{last['seconds']:.1f} s" if reached else "not reached"
            cpu = end["cpu_seconds"]
            print(
                f"| {label} | {seed} | {ready:.2f} s | {time_to} | {last['samples']:,} | {last['accuracy']:.4f} | {cpu:.0f} s "
                f"| {1e3 * cpu * batch / last['samples']:.0f} ms | {end['peak_mb']} MB | {end['load_before']:.1f} |"
            )
    for level in [*args.levels, target]:
        report_level(races, level)
    speed = {side: per_sample(races[side]) for side in SIDES if races[side]}
    print("\nseconds per 1,000 samples, evaluations included: " + ", ".join(f"{s} {v:.2f}" for s, v in speed.items()))
    args.svg.write_text(plot(races, target))


def per_sample(runs):
    """Seconds per 1,000 samples from the first step to the last evaluation, over all seeds."""
    spans = []
    for lines in runs.values():
        ready = next(r["seconds"] for r in lines if r["event"] == "ready")
        last = [r for r in lines if r["event"] == "eval"][-1]
        spans.append((last["seconds"] - ready, last["samples"]))
    return 1e3 * sum(s for s, _ in spans) / sum(n for _, n in spans)


def report_level(races, level):
    """When each run's evaluation first showed an accuracy, and how the launcher's times compare."""
    print(f"\naccuracy {level}: seconds and samples by seed")
    first = {}
    for side in SIDES:
        for seed, lines in sorted(races[side].items()):
            reached = next((r for r in lines if r["event"] == "eval" and r["accuracy"] >= level), None)
            if reached:
                first.setdefault(side, {})[seed] = (reached["seconds"], reached["samples"])
        found = (f"{seed}: {s:.1f} s, {n:,}" for seed, (s, n) in first.get(side, {}).items())
        print(f"  {side}: " + ("; ".join(found) or "not reached"))
    for side in ("tuned", "plain"):
        both = sorted(set(first.get("launcher", {})) & set(first.get(side, {})))
        if both:
            ratio = sum(first["launcher"][s][0] for s in both) / sum(first[side][s][0] for s in both)
            print(f"  launcher / {side}: {ratio:.2f} of the time (seeds {', '.join(both)})")


def plot(races, target):
    """Accuracy over seconds: one line a run."""
    runs = [(side, lines) for side in SIDES for lines in races[side].values()]
    points = lambda lines: [(0, 0)] + [(r["seconds"], r["accuracy"]) for r in lines if r["event"] == "eval"]
    right = 1.03 * max(x for _, lines in runs for x, _ in points(lines))
    top = 1.1 * max(target, max(y for _, lines in runs for _, y in points(lines)))
    width, height, left, bottom = 720, 380, 60, 330
    at = lambda x, y: (left + x / right * (width - left - 20), bottom - y / top * (bottom - 20))
    text = lambda x, y, words, more="": f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left},20 V{bottom} H{width - 20}" fill="none" stroke="#888"/>',
    ]
    tick = next(t for t in (10, 20, 30, 60, 120, 300, 600, 1200) if right / t < 10)
    for x in range(0, int(right) + 1, tick):
        out.append(text(at(x, 0)[0], bottom + 16, x, 'text-anchor="middle"'))
    for i in range(int(top / 0.05) + 1):
        out.append(text(left - 8, at(0, 0.05 * i)[1] + 4, f"{0.05 * i:.2f}", 'text-anchor="end"'))
    (x0, y0), (x1, _) = at(0, target), at(right, target)
    out.append(f'<path d="M{x0:.1f},{y0:.1f} H{x1:.1f}" stroke="#c33" stroke-dasharray="5 4"/>')
    out.append(text(x0 + 6, y0 - 5, f"target {target}", 'fill="#c33"'))
    for side, lines in runs:
        path = " ".join("%.1f,%.1f" % at(x, y) for x, y in points(lines))
        out.append(f'<polyline points="{path}" fill="none" stroke="{SIDES[side][0]}" stroke-width="1.6"/>')
    for i, (color, label) in enumerate(SIDES.values()):
        y = bottom - 60 + 18 * i
        out.append(f'<path d="M{width - 230},{y} h24" stroke="{color}" stroke-width="3"/>')
        out.append(text(width - 200, y + 4, label))
    out.append(text((left + width) / 2, height - 12, "seconds since the process started", 'text-anchor="middle"'))
    out.append(text(14, 14, "MLM accuracy on held-out text"))
    return "\n".join([*out, "</svg>", ""])


def main():
    args = arguments()
    if args.command in ("train", "check"):
        with_environment(args.threads)
    {"train": train, "check": check, "timed": timed, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
