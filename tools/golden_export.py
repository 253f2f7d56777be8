#!/usr/bin/env python3
"""Makes golden files: a BERT's hidden states, logits, losses, gradients and ten optimizer steps, in float64.

Usage: python3 tools/golden_export.py --out FILE [--name N] [--seed N] [--vocab N] [--hidden N] [--layers N] [--heads N]
                                      [--inter N] [--pos N] [--types N] [--act gelu|gelu_new] [--lens N N …] [--unlabelled ROW] [--fresh]
       python3 tools/golden_export.py --check FILE…

Needs PyTorch, transformers, numpy and safetensors (tools/peer_setup.sh). The format is described in tests/golden/README.md.
The model is Hugging Face's BertForPreTraining with eager attention and no dropout; AdamW is torch's, LAMB is MLPerf's
formula. --check recomputes a file from its own weights and batches, prints the worst relative error of each group of
tensors, and exits with 1 where one exceeds 1e-8 (1e-6 for weights, which are stored in f32). The error is the norm of the
difference over the norm of the stored tensor; for a gradient, over at least a millionth of the whole gradient's norm:
the softmax is blind to a key bias, so that its gradient is rounding noise around 0.
"""

import argparse
import json
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining

BATCHES, STEPS, WARMUP, TOTAL, BASE_LR = 3, 10, 3, 12, 0.01
BETA1, BETA2, EPS, DECAY = 0.9, 0.999, 1e-6, 0.01
FIELDS = ["input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label"]
TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
NOTE = (
    "BertForPreTraining, float64, dropout 0; LR: warmup 3 of 12 steps, base 0.01, linear decay; clip 1.0; eps 1e-6; "
    "decay .01 except LayerNorm and bias"
)


def configuration(args):
    return BertConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.inter,
        hidden_act=args.act,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=args.pos,
        type_vocab_size=args.types,
        attn_implementation="eager",
    )


def parameters(model):
    """(name, parameter) without the tied decoder."""
    return [(n, p) for n, p in model.named_parameters() if n not in TIED]


def initial_weights(config, fresh):
    """Weights that f32 holds exactly: those of a new model, or large ones with biases off 0 and layernorms off 1."""
    model = BertForPreTraining(config).double()
    with torch.no_grad():
        for name, p in parameters(model):
            if fresh:
                pass
            elif name.endswith("LayerNorm.weight"):
                p.copy_(1 + 0.1 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.1 * torch.randn_like(p))
            else:
                p.copy_(0.15 * torch.randn_like(p))
            p.copy_(p.float())
    return {n: p.detach().float().clone() for n, p in parameters(model)}


def make_batch(config, lens, unlabelled):
    """Random tokens, right-padded with 0; about 15 % labelled, the first token of every second sequence among them,
    nothing in row `unlabelled`."""
    shape = (len(lens), max(lens))
    ids, mask, types = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    labels = torch.full(shape, -100)
    for row, n in enumerate(lens):
        ids[row, :n] = torch.randint(1, config.vocab_size, (n,))
        mask[row, :n] = 1
        types[row, n // 2 : n] = torch.randint(0, config.type_vocab_size, (1,)) if n == 1 else config.type_vocab_size - 1
        labelled = torch.randperm(n)[: max(1, round(0.15 * n))]
        if row % 2 == 0:
            labelled[0] = 0
        if row != unlabelled:
            labels[row, labelled] = torch.randint(1, config.vocab_size, (len(labelled),))
    nsp = torch.randint(0, 2, (len(lens),))
    return dict(zip(FIELDS, (ids, mask, types, labels, nsp)))


def load_model(config, weights):
    """The model in evaluation mode with these weights; transformers ties the decoder."""
    model = BertForPreTraining(config).double().eval()
    with torch.no_grad():
        for name, p in parameters(model):
            p.copy_(weights[name].double())
    return model


def first_batch(config, weights, batch):
    """Everything the file says of batch 0."""
    model = load_model(config, weights)
    out = model(**batch, output_hidden_states=True)
    cross_entropy = torch.nn.functional.cross_entropy
    mlm = cross_entropy(out.prediction_logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    nsp = cross_entropy(out.seq_relationship_logits, batch["next_sentence_label"])
    out.loss.backward()
    tensors = {f"hidden.{k}": h for k, h in enumerate(out.hidden_states)}
    tensors |= {"prediction_logits": out.prediction_logits, "seq_relationship_logits": out.seq_relationship_logits}
    tensors |= {"loss": out.loss.view(1), "mlm_loss": mlm.view(1), "nsp_loss": nsp.view(1)}
    tensors |= {f"grad.{n}": p.grad for n, p in parameters(model)}
    return tensors


def adapted(name):
    """Whether decay and LAMB's ratio apply."""
    return "LayerNorm" not in name and "bias" not in name


def learning_rate(step):
    return BASE_LR * step / WARMUP if step < WARMUP else BASE_LR * (1 - step / TOTAL)


def adamw(model):
    """torch's AdamW after clip_grad_norm_; returns the update (learning rate -> gradient norm)."""
    named = parameters(model)
    groups = [
        {"params": [p for n, p in named if adapted(n)], "weight_decay": DECAY},
        {"params": [p for n, p in named if not adapted(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=BASE_LR, betas=(BETA1, BETA2), eps=EPS)

    def update(lr):
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        return norm

    return update


def lamb(model):
    """LAMB as MLPerf's reference computes it, with bias correction; returns the update."""
    named = parameters(model)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in named}
    count = 0

    @torch.no_grad()
    def update(lr):
        nonlocal count
        count += 1
        norm = torch.sqrt(sum((p.grad**2).sum() for _, p in named))
        for name, p in named:
            m, v = moments[name]
            g = p.grad / torch.clamp(norm, min=1.0)
            m.mul_(BETA1).add_((1 - BETA1) * g)
            v.mul_(BETA2).add_((1 - BETA2) * g * g)
            u = (m / (1 - BETA1**count)) / (torch.sqrt(v / (1 - BETA2**count)) + EPS)
            ratio = 1.0
            if adapted(name):
                u = u + DECAY * p
                w_norm, u_norm = p.norm(), u.norm()
                ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
            p.sub_(lr * ratio * u)
        return norm

    return update


def trajectory(config, weights, batches, optimizer, prefix):
    """Ten steps: losses and norms before each update, the learning rates, and the weights after the last."""
    model = load_model(config, weights)
    update = optimizer(model)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        model.zero_grad(set_to_none=True)
        loss = model(**batches[step % BATCHES]).loss
        loss.backward()
        rates.append(learning_rate(step))
        norms.append(float(update(rates[-1])))
        losses.append(float(loss))
    values = {"losses": losses, "grad_norms": norms, "lrs": rates}
    tensors = {f"{prefix}.{k}": torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
    return tensors | {f"{prefix}.param.{n}": p.detach().float() for n, p in parameters(model)}


def compute(config, weights, batches):
    """All results of a case, from its weights and batches."""
    results = first_batch(config, weights, batches[0])
    for optimizer, prefix in ((adamw, "adamw"), (lamb, "lamb")):
        results |= trajectory(config, weights, batches, optimizer, prefix)
    return {name: t.detach().clone().contiguous() for name, t in results.items()}


def export(args):
    torch.manual_seed(args.seed)
    config = configuration(args)
    weights = initial_weights(config, args.fresh)
    batches = [make_batch(config, args.lens, args.unlabelled) for _ in range(BATCHES)]
    tensors = {f"batch{i}.{k}": t for i, b in enumerate(batches) for k, t in b.items()}
    tensors |= {f"param.{n}": t for n, t in weights.items()}
    tensors |= compute(config, weights, batches)
    keys = ["name", "seed", "vocab", "hidden", "layers", "heads", "inter", "pos", "act", "lens"]
    case = {k: getattr(args, k) for k in keys}
    defaults = {"types": 2, "unlabelled": None, "fresh": False}
    case |= {k: getattr(args, k) for k, default in defaults.items() if getattr(args, k) != default}
    metadata = {"case": json.dumps(case), "config": json.dumps(config.to_dict()), "note": NOTE}
    save_file(tensors, args.out, metadata)
    print(f"{args.out}: {len(tensors)} tensors, loss {float(tensors['loss']):.6f}")


def group_of(name):
    return name.split(".")[0] if not name.startswith(("adamw", "lamb")) else ".".join(name.split(".")[:2])


def check(path):
    """Recomputes the results of a file; True if all agree."""
    with safe_open(path, "pt") as f:
        stored = {k: f.get_tensor(k) for k in f.keys()}
        config = BertConfig(**json.loads(f.metadata()["config"]), attn_implementation="eager")
    weights = {k.removeprefix("param."): t for k, t in stored.items() if k.startswith("param.")}
    batches = [{k: stored[f"batch{i}.{k}"] for k in FIELDS} for i in range(BATCHES)]
    results = compute(config, weights, batches)
    expected = {k for k in stored if not k.startswith(("batch", "param."))}
    for name in sorted(expected ^ results.keys()):
        print(f"{path}: {name} is in {'the file' if name in expected else 'the recomputation'} only")
    worst, good = {}, expected == results.keys()
    real = batches[0]["attention_mask"].bool()
    gradient_norm = float(sum((t**2).sum() for k, t in stored.items() if k.startswith("grad.")).sqrt())
    for name in sorted(expected & results.keys()):
        ours, theirs = results[name], stored[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            print(f"{path}: {name} is {theirs.dtype} {list(theirs.shape)}, recomputed {ours.dtype} {list(ours.shape)}")
            good = False
            continue
        if name == "prediction_logits" or name.startswith("hidden."):
            ours, theirs = ours[real], theirs[real]
        floor = 1e-6 * gradient_norm if name.startswith("grad.") else 1e-12
        error = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=floor))
        limit = 1e-6 if ".param." in name else 1e-8
        good = good and error <= limit
        worst[group_of(name)] = max(worst.get(group_of(name), 0.0), error)
    print(f"{path}: {'agrees' if good else 'DIFFERS'}; " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", metavar="FILE", help="recompute these files instead of making one")
    parser.add_argument("--out", metavar="FILE", help="safetensors file to write")
    parser.add_argument("--name", default="case")
    parser.add_argument("--act", choices=["gelu", "gelu_new"], default="gelu_new", help="erf or tanh GELU")
    parser.add_argument("--lens", type=int, nargs="+", default=[17, 9, 5], help="length of each sequence")
    parser.add_argument("--unlabelled", type=int, metavar="ROW", help="a sequence without a token to predict")
    parser.add_argument("--fresh", action="store_true", help="weights of a new model: biases 0, layernorms 1")
    sizes = {"seed": 11, "vocab": 101, "hidden": 32, "layers": 2, "heads": 2, "inter": 64, "pos": 40, "types": 2}
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    args = parser.parse_args()
    if args.check:
        sys.exit(not all([check(path) for path in args.check]))
    if not args.out:
        parser.error("--out or --check is needed")
    if max(args.lens) > args.pos or min(args.lens) < 1:
        parser.error(f"--lens must lie between 1 and --pos {args.pos}")
    export(args)


if __name__ == "__main__":
    main()
