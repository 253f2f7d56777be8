//! What other programs call the tensors of a BERT.

/// What data-parallel wrappers, torch.compile, NVIDIA's split of the model in two and modules with a field `model` put
/// before names.
const WRAPPERS: [&str; 5] = ["module.", "_orig_mod.", "bert_model_segment.", "heads_only_segment.", "model."];

/// A name without what wrappers put before it. A field `bert` that holds a model with heads gives `bert.bert.` and
/// `bert.cls.`.
fn unwrapped(mut name: &str) -> &str {
    let within = |name: &&str| name.starts_with("bert.") || name.starts_with("cls.");
    loop {
        let wrapper = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper));
        match wrapper.or_else(|| name.strip_prefix("bert.").filter(within)) {
            Some(rest) => name = rest,
            None => return name,
        }
    }
}

/// The name in the table for a name in a file: unwrapped, with the prefix `bert.`, and without `gamma` and `beta`.
pub(in crate::checkpoint) fn canonical(name: &str) -> String {
    let name = unwrapped(name);
    let mut full = match ["embeddings.", "encoder.", "pooler."].iter().any(|p| name.starts_with(p)) {
        true => format!("bert.{name}"),
        false => name.to_owned(),
    };
    for (old, new) in [("LayerNorm.gamma", "weight"), ("LayerNorm.beta", "bias")] {
        if full.ends_with(old) {
            full.truncate(full.rfind('.').map_or(0, |dot| dot + 1));
            full.push_str(new);
        }
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_off_in_any_order() {
        for (name, expected) in [
            ("bert.pooler.dense.weight", "bert.pooler.dense.weight"),
            ("pooler.dense.weight", "bert.pooler.dense.weight"),
            ("model.bert.pooler.dense.weight", "bert.pooler.dense.weight"),
            ("model.pooler.dense.weight", "bert.pooler.dense.weight"),
            ("bert.bert.pooler.dense.weight", "bert.pooler.dense.weight"),
            (
                "module._orig_mod.model.bert.bert.embeddings.LayerNorm.gamma",
                "bert.embeddings.LayerNorm.weight",
            ),
            ("bert.cls.predictions.bias", "cls.predictions.bias"),
            ("module.cls.predictions.transform.LayerNorm.beta", "cls.predictions.transform.LayerNorm.bias"),
            ("roberta.embeddings.LayerNorm.weight", "roberta.embeddings.LayerNorm.weight"),
            ("model.decoder.weight", "decoder.weight"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }
}
