//! What training the base keeps beside it: how long gradients, and which weights.

use backdraft_arch::Trainable;

use crate::TrainRecipe;
use crate::names::{DType, KeptGradients, Optimizer};
use crate::reader::Reader;

const GRADIENTS: &str = "train.gradients";
const MASTERS: &str = "train.master_weights";

/// What does not go together with gradients that are not kept, and with weights in bf16 alone.
pub(crate) fn check(
    reader: &mut Reader<'_>,
    trainable: &Trainable,
    train: &TrainRecipe,
    dtype: DType,
) {
    masters(reader, trainable, train, dtype);
    let kept = train.gradients;
    if kept.is_whole() {
        return;
    }
    if !trainable.is_full() {
        let instead = "gradients of adapters are small; take it out, or train the base with trainable = \"all\"";
        reader.conflict(GRADIENTS, "trainable = \"adapter\"", instead);
    }
    if train.grad_accumulation_steps > 1 {
        let other = format!(
            "grad_accumulation_steps = {}",
            train.grad_accumulation_steps
        );
        let instead = "what micro-batches add up to has to be kept; write grad_accumulation_steps = 1, and raise \
                       micro_batch_size by as much";
        reader.conflict(GRADIENTS, other, instead);
    }
    if kept == KeptGradients::Released && train.max_grad_norm > 0.0 {
        let other = format!("max_grad_norm = {}", train.max_grad_norm);
        let instead = "clipping takes the norm of all gradients before any of them is used; write max_grad_norm = 0, or \
                       gradients = \"two-passes\", which takes about twice the time";
        reader.conflict(GRADIENTS, other, instead);
    }
    if kept == KeptGradients::TwoPasses && train.max_grad_norm == 0.0 {
        let instead = "the first pass finds the norm by which gradients are clipped; write gradients = \"released\"";
        reader.conflict(GRADIENTS, "max_grad_norm = 0", instead);
    }
}

fn masters(reader: &mut Reader<'_>, trainable: &Trainable, train: &TrainRecipe, dtype: DType) {
    if train.master_weights.are_kept() {
        return;
    }
    if !trainable.is_full() {
        let instead = "adapters are small and kept in f32; take it out";
        reader.conflict(MASTERS, "trainable = \"adapter\"", instead);
    }
    if dtype == DType::F16 {
        let instead = "weights have the digits of bf16; write dtype = \"bf16\"";
        reader.conflict(MASTERS, "dtype = \"f16\"", instead);
    }
    if train.optimizer == Optimizer::ScheduleFreeAdamw {
        let instead = "its result is worked out of what is trained, and would have many times its error; write \
                       optimizer = \"adamw\"";
        reader.conflict(
            MASTERS,
            format!("optimizer = \"{}\"", train.optimizer),
            instead,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{KeptGradients, MasterWeights, Recipe};

    const FULL: &str =
        "model = \"a/b\"\ntrainable = \"all\"\n[data]\ntrain = \"t.jsonl\"\n[train]\n";

    fn read(text: &str) -> Result<Recipe, String> {
        Recipe::from_toml(text, Path::new("/r"), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn gradients_are_released_where_that_can_be() {
        let said = [
            (
                KeptGradients::Released,
                "max_grad_norm = 0\ngradients = \"released\"\n",
            ),
            (KeptGradients::TwoPasses, "gradients = \"two-passes\"\n"),
        ];
        for (kept, said) in said {
            let recipe = read(&format!("{FULL}grad_accumulation_steps = 1\n{said}")).unwrap();
            assert_eq!(recipe.train.gradients, kept);
            let text = recipe.to_toml().unwrap();
            assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
            let refused = read(&format!("{FULL}grad_accumulation_steps = 2\n{said}")).unwrap_err();
            assert!(refused.contains("grad_accumulation_steps = 1"), "{refused}");
            let adapter = FULL.replace("\"all\"", "\"adapter\"");
            let refused = read(&format!("{adapter}grad_accumulation_steps = 1\n{said}"));
            assert!(
                refused.unwrap_err().contains("trainable = \"all\""),
                "{said}"
            );
        }
        let one = format!("{FULL}grad_accumulation_steps = 1\n");
        let refused = read(&format!("{one}gradients = \"released\"\n")).unwrap_err();
        assert!(refused.contains("two-passes"), "{refused}");
        let none = format!("{one}max_grad_norm = 0\ngradients = \"two-passes\"\n");
        assert!(read(&none).unwrap_err().contains("released"));
        assert!(
            !read(FULL)
                .unwrap()
                .to_toml()
                .unwrap()
                .contains("gradients =")
        );
    }

    #[test]
    fn weights_in_bf16_alone_are_those_of_the_base() {
        let said = format!("{FULL}master_weights = \"none\"\n");
        let recipe = read(&said).unwrap();
        assert_eq!(recipe.train.master_weights, MasterWeights::None);
        let text = recipe.to_toml().unwrap();
        assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
        assert!(!read(FULL).unwrap().to_toml().unwrap().contains("master"));
        for (text, expected) in [
            (said.replace("\"all\"", "\"adapter\""), "take it out"),
            (format!("dtype = \"f16\"\n{said}"), "dtype = \"bf16\""),
            (
                format!(
                    "{said}optimizer = \"schedule_free_adamw\"\nlr_scheduler = \"constant_with_warmup\"\n"
                ),
                "optimizer = \"adamw\"",
            ),
        ] {
            let refused = read(&text).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
