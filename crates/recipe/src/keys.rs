//! Every key of a recipe: what it means, where to start, when to change it.
//!
//! The reader takes its defaults from here and `init` its comments, so the two cannot part.

/// One key of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Section and name, as `--set` takes it: `train.learning_rate`.
    pub path: &'static str,
    /// The value where the recipe gives none, written as TOML; `None` where leaving it out has its own meaning.
    pub default: Option<&'static str>,
    /// A value to show where there is no default, written as TOML.
    pub example: &'static str,
    /// What it is, in which unit, and which values it takes.
    pub meaning: &'static str,
    /// When to change it; empty where nothing general can be said.
    pub change: &'static str,
}

impl Key {
    /// The section, or `""` for the keys at the top.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// The name within the section.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }
}

/// Sections of a recipe, in the order a recipe is written.
pub const SECTIONS: [&str; 7] = [
    "quantization",
    "lora",
    "tokens",
    "objective",
    "data",
    "train",
    "tracker",
];

/// The section that `tune` reads; a run has none.
pub(crate) const SWEEP: &str = "sweep";

/// The table form of `train.lr_scheduler`, which carries the options of a schedule.
pub(crate) const SCHEDULER: &str = "train.lr_scheduler";

/// Options of the table form of `train.lr_scheduler`.
pub(crate) const SCHEDULER_OPTIONS: [&str; 8] = [
    "kind",
    "num_cycles",
    "min_lr",
    "min_lr_rate",
    "power",
    "lr_end",
    "lr_start",
    "timescale",
];

const fn key(path: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key {
        path,
        default: Some(default),
        example: default,
        meaning,
        change: "",
    }
}

const fn optional(path: &'static str, example: &'static str, meaning: &'static str) -> Key {
    Key {
        path,
        default: None,
        example,
        meaning,
        change: "",
    }
}

const fn change(key: Key, change: &'static str) -> Key {
    Key { change, ..key }
}

/// All keys, in the order a recipe is written.
pub const KEYS: &[Key] = &[
    optional(
        "model",
        r#""HuggingFaceTB/SmolLM2-135M-Instruct""#,
        "The model to fine-tune: a hub id, a Hugging Face directory, or a .gguf file.",
    ),
    key(
        "output_dir",
        r#""outputs""#,
        "Where the adapter (or the model, see trainable), checkpoints and logs go.",
    ),
    key(
        "seed",
        "42",
        "Seed for shuffling, adapter initialization and dropout.",
    ),
    key(
        "dtype",
        r#""auto""#,
        "Data type to compute in: auto, bf16, f16 or f32; auto is bf16 where tensor cores have it, f16 where they have only that, else f32.",
    ),
    change(
        key(
            "load_in_4bit",
            "false",
            "Load the frozen linear layers in 4 bits (QLoRA); see [quantization]. Trains nearly as without, where quantization.bits = 4.5 and lora.init = \"qera\" stand beside it: `init --load-in-4bit` writes both.",
        ),
        "out of memory: true",
    ),
    key(
        "load_in_8bit",
        "false",
        "Load the frozen linear layers in 8 bits, one scale per row.",
    ),
    change(
        key(
            "max_seq_length",
            "2048",
            "Maximum tokens per row; longer rows are truncated (see data.overlong), and counted in the report.",
        ),
        "out of memory: lower",
    ),
    key(
        "activation_policy",
        r#""smart""#,
        "What the forward pass keeps for the backward pass: smart recomputes as little as the memory allows, tensor by tensor; keep-all nothing; recompute-all every layer; sqrt keeps every √n-th layer's input. The gradients are the same. `backdraft plan` shows what each costs.",
    ),
    optional(
        "memory_budget",
        r#""12GiB""#,
        "Memory that a step may use under smart, base included. Left out: what is free, less a margin.",
    ),
    key(
        "activation_offloading",
        "true",
        "Whether smart may offload activations to host memory between the forward and backward pass, where the device copies while it computes (CUDA) and that costs less than recomputing.",
    ),
    change(
        key(
            "base",
            r#""device""#,
            "Where the matrices of the base's layers stay while adapters are trained: device; or host, in pinned host memory, from which each layer comes to the GPU while the one before computes (CUDA), so that the GPU holds those of two layers only. The results are the same bits. `backdraft plan` shows whether computing hides the copies.",
        ),
        "out of memory on a GPU: \"host\"",
    ),
    key(
        "device",
        r#""auto""#,
        "Where to compute: auto, cpu, cuda, cuda:N or wgpu; auto is cuda:0 where there is one.",
    ),
    change(
        key(
            "trainable",
            r#""adapter""#,
            "What is trained: adapter (LoRA, see [lora]); all, every tensor of the base (full fine-tuning); or a list of modules by name, end of path or regular expression, such as [\"norm\", 'layers\\.[0-3]'], with what is inside them. Without adapters the result is a model, output_dir/model, and training takes 16 bytes a value with adamw.",
        ),
        "with \"all\", start at learning_rate = 1e-5",
    ),
    key(
        "quantization.quant_type",
        r#""nf4""#,
        "Data type of the 4-bit weights: nf4 or fp4. Only with load_in_4bit.",
    ),
    key(
        "quantization.block_size",
        "64",
        "Quantization block size: 64 or 128 weights per scale. Only with load_in_4bit.",
    ),
    key(
        "quantization.double_quant",
        "true",
        "Double quantization: quantize the scales too, 4.13 bits per weight instead of 4.5. Only with load_in_4bit.",
    ),
    key(
        "quantization.skip_modules",
        r#"["lm_head"]"#,
        "Modules to leave unquantized: a path, or components of one such as \"down_proj\" or \"layers.0\".",
    ),
    change(
        key(
            "quantization.keep_blocks",
            "false",
            "Train over a GGUF file's own blocks (Q4_K, Q8_0 and so on), which stay in memory as the file has them; otherwise they are dequantized, or quantized anew by load_in_4bit or load_in_8bit.",
        ),
        "out of memory over a .gguf file: true",
    ),
    change(
        optional(
            "quantization.bits",
            "4.5",
            "Adaptive precision: mean bits of a quantized weight, scales included. What an error of each projection would cost is measured on training rows, and each gets one of formats so that the cost is least. \"auto\" takes as many, up to 8, as make a step at most 5 % slower in the memory that there is. Left out: every projection gets quant_type. Only with load_in_4bit.",
        ),
        "result worse than without quantization: raise; out of memory: lower",
    ),
    optional(
        "quantization.base_memory",
        r#""5GiB""#,
        "Adaptive precision within a size: what the whole base may take, embeddings included, in place of bits.",
    ),
    optional(
        "quantization.plan",
        r#""precision.json""#,
        "A file that says how each projection is stored, as `backdraft plan --measure --write` makes it: nothing is measured before the first step. With bits, later points of adapt_at go on from it. Only with load_in_4bit.",
    ),
    key(
        "quantization.formats",
        r#"["nf3", "nf4", "nf5", "nf6", "int8"]"#,
        "What bits may be dealt out as: nf3, nf4, nf5 and nf6 take their number and 0.13 with double_quant, int8 takes 8. Only with bits or base_memory.",
    ),
    key(
        "quantization.adapt_at",
        "[0.0]",
        "When precision is dealt out: shares of the run, rising. 0.0 is before the first step; at a later one everything is measured anew, and what does not improve the loss of rows kept for it is taken back. Only with bits or base_memory.",
    ),
    key(
        "quantization.calibration_tokens",
        "4096",
        "Tokens of training rows that are measured; half as many of others are looked at to see whether it helped. Only with bits, base_memory or lora.init = \"qera\".",
    ),
    optional(
        "lora.adapter",
        r#""outputs""#,
        "An adapter to train further, made here or by PEFT: its directory, or that of a run. Its rank, alpha, use_rslora, use_dora, modules and patterns are taken over (dropout too, where it is left out), and a key that says otherwise is an error; the optimizer starts fresh. Left out: a new adapter.",
    ),
    change(
        key(
            "lora.rank",
            "16",
            "LoRA rank (r): more can learn more, and takes more memory.",
        ),
        "result too weak: raise; out of memory: lower",
    ),
    key(
        "lora.alpha",
        "32",
        "LoRA alpha: adapters are scaled by alpha / rank (alpha / sqrt(rank) with rsLoRA).",
    ),
    change(
        key(
            "lora.dropout",
            "0.0",
            "LoRA dropout: the share of an adapter's inputs set to zero in training, from 0 to below 1.",
        ),
        "over-fitting on few rows: 0.05 to 0.1",
    ),
    key(
        "lora.use_rslora",
        "false",
        "Rank-stabilized LoRA: scale by alpha / sqrt(rank), which suits high ranks.",
    ),
    change(
        key(
            "lora.use_dora",
            "false",
            "Weight-decomposed LoRA (DoRA): train the length of each row of a weight beside its direction. A step takes about half as much again. Not where init is loftq, qera or pissa, where bits are dealt out, or with the optimizer muon.",
        ),
        "a low rank is too weak: true",
    ),
    key(
        "lora.target_modules",
        r#""all-linear""#,
        "The linear layers that get an adapter, by name or end of path, and the tables embed_tokens and lm_head where they are named; or \"all-linear\", which is every linear layer but the head; or a regular expression for whole paths, such as '.*\\.layers\\.[0-3]\\..*_proj'. As by PEFT.",
    ),
    optional(
        "lora.exclude_modules",
        r#"["layers.0.self_attn.q_proj"]"#,
        "Modules that get no adapter, whatever else names them: names or ends of paths, or a regular expression for whole paths.",
    ),
    key(
        "lora.init",
        r#""default""#,
        "Where adapters start: default changes nothing yet; loftq gives back the part of the quantization error that fits into the rank; qera the part that matters most by measurement on training rows; both only over a quantized base. pissa takes the largest part of the weights out of the base and trains it; only over one that is not quantized. The adapter that it leaves fits the original base, with twice the rank. orthogonal changes nothing yet either, but draws both factors, so that both learn from the first step on, as by PEFT; it takes even ranks.",
    ),
    key(
        "lora.bias",
        r#""none""#,
        "Biases of the base to train beside the adapters, as by PEFT: all, or lora_only for those of modules with an adapter. They are saved in the adapter.",
    ),
    optional(
        "lora.modules_to_save",
        r#"["lm_head", "embed_tokens"]"#,
        "Modules of the base to train whole beside the adapters, as by PEFT: each whose path ends in one of these texts, so that \"norm\" takes every norm. Norms, embed_tokens and lm_head; a tied head is trained with the embedding. They are saved in the adapter. Not where quantized, nor with the optimizer muon.",
    ),
    key(
        "lora.key_prefix",
        r#""auto""#,
        "Names in the adapter's file: auto has those of the base's class, which are model.language_model.layers… where the language model is one part of several (Gemma 3 from 4B, Mistral Small 3.1, Ministral 3); text has model.layers…, for serving the language model alone. An adapter under the names of another class may load and do nothing.",
    ),
    optional(
        "lora.layers_to_transform",
        "[0, 1, 2]",
        "Layers that get adapters, counted from 0. Left out: all of them.",
    ),
    optional(
        "lora.rank_pattern",
        r#"{ q_proj = 8, 'layers\.[0-3]\..*' = 32 }"#,
        "Ranks of some modules: the first of the names or regular expressions that a module's path ends in. Left out: lora.rank for all.",
    ),
    optional(
        "lora.alpha_pattern",
        "{ q_proj = 16 }",
        "The same for alpha. A module's adapter is scaled by its own alpha over its own rank.",
    ),
    optional(
        "lora.trainable_tokens",
        r#"["<tool>"]"#,
        "Tokens of the vocabulary whose rows of the embedding are trained beside the adapters, and their rows of the head where that is a matrix of its own: PEFT's trainable_token_indices, by text. Tokens of tokens.add are always among them.",
    ),
    optional(
        "tokens.add",
        r#"["<tool>", "</tool>"]"#,
        "New tokens: added to the tokenizer, which is saved beside the adapter, and to the vocabulary, whose embedding and head get a row for each where they have too few. Only these rows are trained. Needs a base in Hugging Face's format.",
    ),
    key(
        "tokens.init",
        r#""mean""#,
        "Where rows of new tokens start: mean is the mean of all rows; subtokens is the mean of the rows of the tokens that the text of tokens.descriptions, or else that of the token itself, is made of. Only with tokens.add.",
    ),
    optional(
        "tokens.descriptions",
        r#"{ "<tool>" = "call of a tool" }"#,
        "What new tokens mean, in words. Only with tokens.init = \"subtokens\".",
    ),
    key(
        "objective.kind",
        r#""sft""#,
        "What is minimized: sft (the supervised tokens' mean loss); over rows of format preference: dpo, orpo, simpo, cpo or reward (a reward model: a head with one row, score, is trained whole in place of the one that predicts tokens); over unpaired or preference rows: kto. Those that compare likelihoods take a learning rate of about a tenth of sft's.",
    ),
    change(
        optional(
            "objective.beta",
            "0.1",
            "How much the margin between answers counts (dpo and kto: higher stays closer to the base); weight of the odds ratio for orpo. Left out: 0.1, or 2.0 for simpo.",
        ),
        "answers degrade although accuracies rise: higher, or a lower learning rate",
    ),
    optional(
        "objective.loss",
        r#""sigmoid""#,
        "Loss of a pair, for dpo: sigmoid, sigmoid_norm, ipo, hinge, robust, apo_zero, apo_down or nca_pair, as by TRL, or a list of them, which are summed and each told of; sft in a list is what sft_weight weighs. Left out: sigmoid.",
    ),
    optional(
        "objective.loss_weights",
        "[1.0, 0.5]",
        "What each loss of objective.loss counts in the sum: a number above 0 for each. Left out: 1.0 each.",
    ),
    optional(
        "objective.label_smoothing",
        "0.1",
        "Share of pairs that may be the wrong way round, from 0 to below 0.5: for simpo, cpo, and dpo's sigmoid and robust. Left out: 0.",
    ),
    change(
        optional(
            "objective.sft_weight",
            "0.2",
            "Weight of the mean loss of the chosen answers beside that of the pairs, for dpo, simpo and cpo. Left out: 0, or 1.0 for cpo. orpo always has it with weight 1, over prompts too, as by TRL.",
        ),
        "chosen answers become unlikely too: raise",
    ),
    optional(
        "objective.gamma",
        "0.5",
        "Margin that a pair should have, for simpo, subtracted after beta, and for reward, subtracted from the difference of the rewards. Left out: 0.5, or 0 for reward.",
    ),
    optional(
        "objective.center_rewards_coefficient",
        "0.01",
        "Weight of the squared sum of a pair's rewards, for reward, such as 0.01: keeps them around 0. Left out: 0.",
    ),
    optional(
        "objective.desirable_weight",
        "1.0",
        "Weight of desirable answers, for kto. Left out: 1.0.",
    ),
    optional(
        "objective.undesirable_weight",
        "1.0",
        "Weight of undesirable answers, for kto. Left out: 1.0.",
    ),
    optional(
        "objective.reference",
        r#""start""#,
        "What dpo and kto compare answers with: start (the model that training begins with; with lora.adapter a frozen copy of it is kept beside) or base (the base alone). Left out: start.",
    ),
    optional(
        "objective.precompute_reference",
        "true",
        "Whether dpo asks the reference once, before the first step, and keeps what it said in data.cache, two numbers a pair: no step and no evaluation has a reference pass, and with lora.adapter no copy is kept. Left out: false.",
    ),
    optional(
        "data.train",
        r#""train.jsonl""#,
        "Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path, weight (or epochs, or share), format and fields, or a list of these.",
    ),
    optional(
        "data.mixing_temperature",
        "2.0",
        "How sources of data.train are mixed: an epoch visits each by its rows to the power of 1 / this; 1 is as many rows as it has, large values as many rows of each. Left out: by the weight, epochs or share of each.",
    ),
    optional(
        "data.eval",
        r#""eval.jsonl""#,
        "Rows held out, to see over-fitting: sources as in train, or a share of its rows such as 0.05, chosen by the seed. Left out: no evaluation.",
    ),
    optional(
        "data.eval_sets",
        r#"{ general = "general.jsonl" }"#,
        "Further rows held out, each set under a name: measured before the first step and at every evaluation, to see what is forgotten. Sources as in train; only with data.eval.",
    ),
    key(
        "data.format",
        r#""auto""#,
        "Format of the rows: messages, sharegpt (chats), alpaca (instruction, input, output), prompt_completion, text, preference (prompt, chosen, rejected), unpaired (prompt, completion, label), or auto: detected from the first rows.",
    ),
    optional(
        "data.fields",
        r#"{ instruction = "question", output = "answer" }"#,
        "Your names for the fields of the format. Left out: the format's own.",
    ),
    optional(
        "data.chat_template",
        r#""chatml""#,
        "Template for chats: a built-in one (`backdraft init --templates` lists them) or a .jinja file. Left out: the model's own.",
    ),
    optional(
        "data.prompt_template",
        r#""Task: {instruction}\nAnswer: {output}""#,
        "Turns an alpaca row into text: {instruction}, {input}, {output}; the EOS token is added at the end. Left out: the model's own chat template.",
    ),
    key(
        "data.train_on",
        r#""responses""#,
        "Tokens that count in the loss: responses, last_turn, completion (after the prompt of rows that have one) or everything (always so for text).",
    ),
    key(
        "data.overlong",
        r#""truncate""#,
        "Rows longer than max_seq_length: truncate cuts their end, drop leaves them out, split makes several of them (text only).",
    ),
    optional(
        "data.split_overlap",
        "64",
        "Tokens that each part of a row repeats of the part before, as context that is not trained again; only with overlong = \"split\". Left out: 1, which nothing predicts.",
    ),
    change(
        key(
            "data.batching",
            r#""padding-free""#,
            "Rows of a micro-batch: padding-free lays them end to end; packed does so with packs of rows that fill max_seq_length, and counts packs as rows; padded fills up similar ones, for comparison. A pair is one row: two texts, never in different micro-batches, and packs are twice as long.",
        ),
        "many short rows: packed, with fewer packs per step than rows before",
    ),
    key(
        "data.skip_bad_rows",
        "0",
        "How many bad rows may be skipped; they are listed in skipped_rows.jsonl. One more ends the run.",
    ),
    key(
        "data.cache",
        r#""auto""#,
        "Folder for tokenized rows, so that the next run starts at once: auto is backdraft/tokens in the user's cache, off keeps them in memory.",
    ),
    change(
        key(
            "train.micro_batch_size",
            "2",
            "Rows in one forward and backward pass.",
        ),
        "out of memory: lower it, and raise grad_accumulation_steps by as much",
    ),
    change(
        key(
            "train.grad_accumulation_steps",
            "4",
            "Micro-batches per optimizer step: rows per step = micro_batch_size x this, 8 to 16 to start.",
        ),
        "unstable: larger",
    ),
    key(
        "train.gradient_blocks",
        "1",
        "Sums that a step's gradient is added up from, in a fixed order. As many processes can share a step, and their number, 1 to this, changes no bit of the run. At most grad_accumulation_steps.",
    ),
    change(
        key(
            "train.gradients",
            r#""whole""#,
            "How long gradients are kept where tensors of the base are trained: whole, until the update; released, until those of a layer are complete, which they update at once: 4 bytes a value less, without clipping (max_grad_norm = 0); two-passes does so with clipping, by a pass before that finds the norm alone, and takes about twice the time. The last two take one micro-batch a step. The update is the same.",
        ),
        "out of memory with trainable = \"all\": released",
    ),
    change(
        key(
            "train.master_weights",
            r#""f32""#,
            "The weights of full fine-tuning, beside what computes: f32, values that updates add up in; none, bf16 alone, to which each update is rounded up or down by chance (stochastic rounding): 2 bytes a value in place of 6 where dtype = \"bf16\"; a base in f32 is rounded before the first step.",
        ),
        "out of memory with trainable = \"all\": none",
    ),
    change(
        key(
            "train.epochs",
            "3",
            "Passes over the training rows. Or give max_steps.",
        ),
        "eval loss starts to rise: fewer",
    ),
    optional(
        "train.max_steps",
        "100",
        "Optimizer steps of the run, instead of epochs.",
    ),
    change(
        key(
            "train.learning_rate",
            "2e-4",
            "Peak learning rate, reached after the warm-up.",
        ),
        "loss falls too slowly: raise; unstable: lower",
    ),
    key(
        "train.lr_scheduler",
        r#""cosine""#,
        "Learning rate schedule: constant, constant_with_warmup, linear, cosine, or a table with a kind and options.",
    ),
    optional(
        "train.warmup_steps",
        "5",
        "Steps over which the learning rate rises from 0, instead of warmup_ratio.",
    ),
    change(
        key(
            "train.warmup_ratio",
            "0.05",
            "Share of the steps over which the learning rate rises from 0.",
        ),
        "loss jumps early on: more",
    ),
    change(
        key(
            "train.optimizer",
            r#""adamw""#,
            "The optimizer: adamw; adamw_8bit, which keeps its state in 8 bits; lion (a learning rate of about a tenth, adam_beta2 = 0.99 in its paper); sgd, with momentum; adafactor, which keeps next to nothing; muon, which makes each update of A and B orthogonal; schedule_free_adamw, whose result is a running mean, with lr_scheduler = \"constant_with_warmup\".",
        ),
        "out of memory with a high rank: adamw_8bit",
    ),
    key(
        "train.loraplus_lr_ratio",
        "1.0",
        "LoRA+: how many times as fast as A every B learns; learning_rate, and the rate that is reported, are A's. 1 is plain LoRA. Weight decay goes by each one's own rate, as by PEFT's loraplus_weight_decay.",
    ),
    key(
        "train.layer_lr_decay",
        "1.0",
        "Layer-wise learning rate decay: what each layer learns by, over the one above it, from above 0 to 1; the last layer has the whole rate.",
    ),
    optional(
        "train.ema_decay",
        "0.99",
        "A running mean of the adapter (EMA), in which the past has this share at every step: it is what evaluations measure and what is saved, while the adapter itself goes on training. 0.99 looks back over some 100 steps. Left out: none.",
    ),
    key(
        "train.label_smoothing_factor",
        "0.0",
        "Label smoothing: the share of each target that is spread over the whole vocabulary, from 0 to below 1. The step minimizes penalized_loss; loss stays the mean nll, as in evaluations. Only with objective.kind = \"sft\".",
    ),
    key(
        "train.z_loss",
        "0.0",
        "What the square of the logits' logsumexp counts in the loss of each token, such as 1e-4: keeps logits from drifting. Reported as label smoothing is. Only with objective.kind = \"sft\".",
    ),
    key(
        "train.neftune_noise_alpha",
        "0.0",
        "NEFTune: noise on the embeddings while training, uniform up to alpha / sqrt(tokens of the row x hidden size); 5 to 15 where it is used, 0 is none. Evaluation has none. Only with objective.kind = \"sft\".",
    ),
    key(
        "train.weight_decay",
        "0.01",
        "Weight decay (decoupled): applied at every step, times the learning rate.",
    ),
    optional(
        "train.momentum",
        "0.9",
        "Share of past gradients in the momentum of sgd and muon, from 0 to below 1. Left out: 0.9, or 0.95 for muon.",
    ),
    key(
        "train.adam_beta1",
        "0.9",
        "AdamW's beta1: decay of the mean of gradients. Lion's: share of the past in an update.",
    ),
    key(
        "train.adam_beta2",
        "0.999",
        "AdamW's beta2: decay of the mean of squared gradients. Lion's: decay of the mean of gradients.",
    ),
    key(
        "train.adam_epsilon",
        "1e-8",
        "Added to AdamW's denominator.",
    ),
    key(
        "train.max_grad_norm",
        "1.0",
        "Gradient clipping: gradients are scaled down to this global norm; 0 turns it off.",
    ),
    key(
        "train.logging_steps",
        "10",
        "Optimizer steps between log lines.",
    ),
    key(
        "train.eval_steps",
        "50",
        "Optimizer steps between evaluations; only with data.eval.",
    ),
    change(
        optional(
            "train.early_stopping_patience",
            "3",
            "Evaluations in a row without an improvement after which the run ends; only with data.eval. Left out: it runs to the last step.",
        ),
        "over-fitting: 2 to 5",
    ),
    key(
        "train.early_stopping_metric",
        r#""loss""#,
        "Which evaluation is the best one, whose adapter is kept and which a patience waits for: the lowest loss, nll, reward_rejected, logp_rejected, entropy or kl, or the highest accuracy, margin, reward_chosen or logp_chosen, where the objective has it; only with data.eval.",
    ),
    optional(
        "train.early_stopping_eval",
        r#""general""#,
        "The set of data.eval_sets whose numbers tell which evaluation is the best one, and which a patience waits for. Left out: data.eval.",
    ),
    key(
        "train.early_stopping_min_improvement",
        "0.0",
        "The eval loss, or what early_stopping_metric names, must become better by more than this to count as an improvement; only with a patience.",
    ),
    key(
        "train.save_steps",
        "100",
        "Optimizer steps between checkpoints; the best evaluation and the end of the run are always saved.",
    ),
    key(
        "train.save_total_limit",
        "3",
        "Checkpoints to keep; older ones are deleted, the best one and the newest good one never.",
    ),
    key(
        "train.sample_rows",
        "3",
        "Held-out rows (else training rows) that are answered before and after the run, for report.html; 0 is none.",
    ),
    optional(
        "train.groups",
        r#"[{ match = "q_proj", learning_rate = 1e-4, weight_decay = 0.0 }]"#,
        "Modules whose adapters have a learning rate or a weight decay of their own, as [[train.groups]] tables: match is a name, an end of a path or a regular expression, as in lora.rank_pattern, and the first that matches counts. The schedule, loraplus_lr_ratio and layer_lr_decay go for them too.",
    ),
    optional(
        "tracker.kind",
        r#""mlflow""#,
        "A server that is told of the run as well: mlflow, by its REST interface, or trackio. A run never waits for it. Left out: none, and nothing is sent.",
    ),
    optional(
        "tracker.url",
        r#""http://127.0.0.1:5000""#,
        "The server's address. What lets one in comes from the environment: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; TRACKIO_WRITE_TOKEN.",
    ),
    optional(
        "tracker.experiment",
        r#""backdraft""#,
        "MLflow's experiment or Trackio's project, which is made where it is missing. Left out: backdraft.",
    ),
    optional(
        "tracker.run_name",
        r#""first try""#,
        "The run's name there. Left out: that of output_dir.",
    ),
];

/// Settings of `[sweep]`, beside the keys of a recipe that it tries values of.
pub(crate) const SWEEP_KEYS: &[Key] = &[
    key(
        "sweep.method",
        r#""grid""#,
        "How settings are chosen: grid tries every combination of the values; random draws trials of them; halving gives all of them a part of the steps and only the best the rest.",
    ),
    optional(
        "sweep.trials",
        "12",
        "How many settings are drawn, each once. For random, and for halving, which without it takes every combination.",
    ),
    optional(
        "sweep.seed",
        "42",
        "Seed of the draws: a number. A list or a range under this name is the recipe's seed, to be tried. Left out: the recipe's seed.",
    ),
    key(
        "sweep.reduction_factor",
        "3",
        "Which part of the trials goes on each time that halving looks at them: 3 keeps the best third, and gives it three times the steps.",
    ),
];

/// The documentation of a key.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    let mut keys = KEYS.iter().chain(SWEEP_KEYS);
    keys.find(|key| key.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_a_section_and_ends_its_sentence() {
        for key in KEYS {
            assert!(
                key.section().is_empty() || SECTIONS.contains(&key.section()),
                "{}",
                key.path
            );
            assert!(key.meaning.ends_with('.'), "{}", key.path);
            assert!(
                toml::de::DeValue::parse(key.example).is_ok(),
                "{}",
                key.path
            );
        }
    }
}
