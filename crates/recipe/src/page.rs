//! `docs/recipe.md`: the table of keys as a page.

use std::fmt::Write;

use crate::keys::{KEYS, SECTIONS, SWEEP, SWEEP_KEYS};

const HEAD: &str = "\
# Keys of a recipe

Made from `crates/recipe/src/keys.rs` by `cargo xtask docs`; a test holds the two together. `backdraft init` writes
the same as comments of a recipe. Only `model` and `data.train` have to be given. Relative paths start at the recipe's
directory. `--set SECTION.KEY=VALUE` changes a value for one run; a relative path given so starts at the working
directory.

";

const TAIL: &str = "\
## More about some keys

- A *step* is an optimizer step everywhere. Gradients are divided by the supervised tokens of the whole step, so
  `grad_accumulation_steps` does not change the gradient of those rows.
- `data.train` is a file, folder, glob or hub data set (`org/name`, `org/name:split`, `org/name@revision:config/split`), a
  table `{ path = \"…\", weight = 0.5, format = \"…\", fields = { … } }`, or a list of these. An epoch visits each row of a
  source `weight` times; 0.5 visits half of them, others each epoch. In place of `weight`, `epochs = 1` lets the whole run (of
  `train.epochs`) visit each of its rows once, and `share = 0.1` lets it fill a tenth of the rows of every epoch, beside those that the
  other sources give: both to a whole number of rows an epoch, and going through the rows in turn, so that none comes again before all
  others have. `data.mixing_temperature` chooses all weights instead: of as many rows as there are, a source of n gets its part by
  n^(1/T). `data check` says how many rows of each source an epoch visits.
- `data.overlong = \"split\"` makes parts of long `text` rows. The first has the BOS token, the last the end token, as the whole row would.
  With `split_overlap = 256` each part begins with the last 256 tokens of the one before, which are not trained a second time.
- `data.eval` is the same, or a share of the training rows such as `0.05`, chosen by the seed and by what rows say, so that
  equal rows stay on one side. Rows of a file of its own that are also learned from are counted and noted.
- `data.eval_sets` has further rows to measure, such as those of tasks that must not be forgotten: `{ general = \"general.jsonl\" }`.
  Each set is measured before the first step and at every evaluation, and told under its name beside what it was before. The rows of
  `data.eval` remain those of the curve and the diagnosis, and decide which step is the best one, unless `train.early_stopping_eval`
  names a set that does. `backdraft eval recipe.toml` measures them too, after the rows of `data.eval`.
- `lora.target_modules`, `exclude_modules`, `rank_pattern` and `alpha_pattern` mean what they mean to PEFT. A list has names or ends
  of paths behind a dot; a text is a regular expression for whole paths (`model.layers.0.self_attn.q_proj`), without look-around;
  what `exclude_modules` means is left out first; the first pattern that a path ends in counts, ranks and alphas looked up apart. A
  name or a pattern that matches nothing is an error here, as is one that takes a module which is neither a projection of a layer nor
  `embed_tokens` or `lm_head`.
- Adapters of `embed_tokens` and `lm_head` are PEFT's (`lora_embedding_A`, which starts at zero, and `lora_embedding_B`, which is drawn); they take a
  fraction of the memory of `modules_to_save`. On a tied model either changes its own side alone, as by
  PEFT without `ensure_weight_tying`; merged or exported, such a model has a head of its own
  (`tie_word_embeddings = false`; not where it is one part of several, and not a Gemma 2 as GGUF). They are served beside others. With `layers_to_transform` a table is named by its whole path (`model.embed_tokens`, `lm_head`). `dropout` is for what the
  head's adapter reads, `loraplus_lr_ratio` not for the embedding's (PEFT has a rate of 1e-6 for it there; `train.groups` sets one). Not with
  `use_dora`, an `init` other than `default`, the optimizer `muon`, `tokens.add`, `trainable_tokens`, or a table that is trained whole.
- `lora.key_prefix` matters where the language model is one part of a model. vLLM serves the whole there, and takes an adapter whose
  names are those of the language model alone without a word and without any effect; with `auto` the names are
  `base_model.model.model.language_model.layers…`, as PEFT over transformers 5 has them. `text` is for who serves the language
  model alone. Either is read here, over either model.
- `lora.adapter` (`train --adapter DIR`) takes an adapter of PEFT or of a run, and trains it further over `model`. It need not be
  there any more when the run is resumed, unless answers are compared with it. A base or a quantization other than the adapter's is told.
- `tokens.add` puts tokens at the end of the tokenizer, which the run saves beside its adapter, as `add_tokens` of transformers does;
  the embedding, and a head of its own, get rows where they have too few. Rows of these tokens and of `lora.trainable_tokens` are
  trained in both tables (with a tied head the one row acts in both), at the learning rate of the adapters, and saved as PEFT's
  `trainable_token_indices`. PEFT loads the adapter over a base that is resized first: `model.resize_token_embeddings(len(tokenizer))`.
  A merged model has everything in it. Such adapters are not trained further, combined, or served beside others: merge them first.
- `lora.bias` and `lora.modules_to_save` are PEFT's, and so is what they leave: `lm_head.weight` and the like in the adapter's file.
  Values are f32, updated by the same optimizer at the adapters' learning rate, which `train.groups` can set apart
  (`{ match = \"embed_tokens\", learning_rate = 2e-5 }`), with weight decay as theirs. On a tied model `embed_tokens` and `lm_head`
  name the one table, which is saved with `ensure_weight_tying = true`, as PEFT does then; an adapter of PEFT that unties the two is
  refused. Rows of `tokens.add` are a part of a table that is trained whole. Such adapters are trained further, merged and exported,
  not combined or served beside others.
- `trainable = \"all\"` and lists train tensors of the base in place of adapters: `[lora]` is left out then, and no key of it is taken. A
  pattern means modules as in `lora.rank_pattern`, and what is inside of them: `\"mlp\"`, `\"layers.3\"`, `'model.layers.*.mlp.*'`. On a tied
  model `lm_head` and `embed_tokens` are the one table. Values, gradients and sums are f32, with a copy in `dtype` where that is another; one
  gradient of everything is kept for a step, so that it can be clipped and accumulated; `train.gradients` keeps a layer's at a time. Norms and biases are not decayed, as by
  transformers' Trainer; a group of `train.groups` that gives them a `weight_decay` has the last word. `output_dir/model` is in the types of the base's
  files, `checkpoints/*/model` has what is trained in f32 and is a Hugging Face directory too. Quantized weights, objectives with a
  reference (`dpo`, `kto`), Muon and a DeltaNet's convolution, rates and norm are refused by name.
- `objective`: losses and gradients are means over the pairs (for `kto` the answers) of the whole step, however they are dealt to
  micro-batches. The reference of `dpo` and `kto` is the model that training begins with, computed over the same micro-batch:
  the base with its adapters skipped, or, with `lora.adapter`, a frozen copy of those factors beside the trained ones, which a
  resumed run reads again and refuses if they have changed. `reference = \"base\"` skips adapters there too. Other `lora.init`
  than `default` are refused. The first loss of `sigmoid` is ln 2 where the reference is the start and nothing is dropped out.
  `kto`'s estimate of the KL divergence goes over the whole step: each prompt with the answer of the row before it.
- `objective.kind = \"reward\"` trains a reward model as TRL's `RewardTrainer` does: LoRA on the layers, and whole the head `score`, one row
  without a bias over the normed hidden state of the last token of prompt and answer. It is drawn from the seed with the config's
  `initializer_range`, as transformers does, or read from a base that has one (`score.weight`, one label). The reward of an answer is its
  score, in f32; nothing goes by likelihoods. The adapter is PEFT's for the task SEQ_CLS, with `modules_to_save = [\"score\"]`. A row's `margin` (a number) is subtracted from the difference of its rewards too, as TRL's
  column is; other objectives refuse rows that have one.
  transformers reads the last token that is not the pad token: with `pad_token` = `eos_token` that is the one before the end, so
  give its tokenizer another pad token.
- `train.lr_scheduler` is a name or a table such as `{ kind = \"cosine_with_min_lr\", min_lr_rate = 0.1 }`. Kinds: `constant`,
  `constant_with_warmup`, `linear`, `cosine`, `cosine_with_restarts`, `cosine_with_min_lr`, `polynomial`, `inverse_sqrt`; values
  as in transformers, held at the end; and `range_test`, which rises from `lr_start` to the peak by the same factor at each step, as
  `backdraft tune` uses it. A warm-up may outlast a trial of a few steps, with a warning.
- `[[train.groups]]` tables come last in a recipe, each with `match` and `learning_rate` or `weight_decay`. A factor's rate is its group's
  (else `train.learning_rate`), times `loraplus_lr_ratio` for B, times `layer_lr_decay` for each layer above its own; the schedule's curve is
  the same for all. A group that matches no adapted module is an error.
- `optimizer = \"schedule_free_adamw\"` and `ema_decay`: evaluations and adapters, those of checkpoints too, are the running mean; what is
  trained lies in the checkpoint's `optimizer.safetensors` beside it.
- `[tracker]` sends the numbers of steps and evaluations and the recipe's values to a server beside what the run leaves on the disk
  ([a run](running.md#trackers)). Its keys may change when a run is resumed, which goes on in the same run there.
- `[sweep]` is what `backdraft tune` goes through ([tuning](tuning.md)); `train` leaves it out and has the recipe's own values. Beside
  its settings stand keys of the recipe with values to try: a list, `\"train.learning_rate\" = [1e-4, 3e-4, 1e-3]`, or a range,
  `{ min = 1e-5, max = 1e-3, scale = \"log\", steps = 5 }`; `scale` is `linear` where it is left out, and `steps`, how many values of
  the range there are, is for grids. Ranges between whole numbers have whole numbers, others three digits.
- `dtype = \"f16\"` scales the loss, beginning with 2^16: a step whose gradients overflow is repeated under half the scale, and
  2,000 steps without that double it. The processor computes in f32 only.
- `data.cache`: a file's name is a hash of the rows, the tokenizer, the template and the settings; nothing is ever deleted
  there. Where it cannot be written, rows stay in a temporary file or in memory, with a warning.
";

/// The page.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for section in std::iter::once("").chain(SECTIONS).chain([SWEEP]) {
        let title = match section {
            "" => "At the top".to_owned(),
            section => format!("`[{section}]`"),
        };
        let _ = write!(
            page,
            "## {title}\n\n| key | default | meaning | when to change it |\n| --- | --- | --- | --- |\n"
        );
        let keys = KEYS.iter().chain(SWEEP_KEYS);
        for key in keys.filter(|key| key.section() == section) {
            let default = match key.default {
                Some(default) => format!("`{default}`"),
                None => format!("none; such as `{}`", key.example),
            };
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                key.name(),
                cell(&default),
                cell(key.meaning),
                cell(key.change),
            );
        }
        page.push('\n');
    }
    page.push_str(TAIL);
    page
}

/// A `|` would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_docs_is_this_one() {
        let page = include_str!("../../../docs/recipe.md");
        assert!(
            page == super::page(),
            "docs/recipe.md is not what keys.rs says: run `cargo xtask docs`"
        );
    }
}
