//! Names of other trainers: Unsloth, transformers' `TrainingArguments`, TRL, PEFT, Axolotl, LLaMA-Factory,
//! torchtune, mlx-lm and bitsandbytes. Data only; `lookup` searches it.
//!
//! A line has a meaning and the names that have it, in one string. A name with a dot is looked for whole before
//! its last part is, and a section that has a line covers what stands in it.
//!
//! # Source
//! transformers 5.24, TRL 1.16, PEFT 0.21.2, Axolotl 0.19, LLaMA-Factory 0.9.5, torchtune 0.6.1, mlx-lm 0.32,
//! Unsloth 2026.10, with the names that earlier versions of them had.

/// What a name of another trainer stands for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A key with the same meaning and the same values.
    Key(&'static str),
    /// A key in the same place whose values differ, and how.
    Like(&'static str, &'static str),
    /// Nothing to set, and why.
    Always(&'static str),
    /// A command or a flag instead.
    Command(&'static str),
    /// Not in this version, and what to do instead.
    NotYet(&'static str),
}

use Foreign::{Always, Command, Key, Like, NotYet};

const PREFERENCE: &str = "training on rewards (GRPO, PPO); objective.kind is \"dpo\", \"orpo\", \"simpo\", \"cpo\", \"kto\" or \"reward\" for preferences";
const DISTILLATION: &str = "distillation from a teacher; train on its answers as rows";
const FULL: &str = "\"all\" for every tensor of the base, or a list of names and patterns of modules; left out, adapters are trained";
const OTHER_ADAPTERS: &str = "adapters other than LoRA; take it out for plain LoRA";
const OTHER_START: &str = "another initialization of the adapter; A is Kaiming-uniform and B is zero, as by PEFT's default";
const DISTRIBUTED: &str = "several processes or GPUs; a run has one device";
const TRACKERS: &str = "trackers; every run writes tensorboard event files, metrics.jsonl and report.html into output_dir";
const HUB: &str =
    "uploading; the adapter in output_dir/adapter is PEFT's format, which `hf upload` takes";
const VISION: &str = "images, audio and video; rows are text";
const OTHER_OPTIMIZERS: &str = "other optimizers; `train.optimizer` is \"adamw\", \"adamw_8bit\", \"lion\", \"sgd\", \"adafactor\", \"muon\" or \"schedule_free_adamw\"";
const OTHER_LOSS: &str = "another loss; it is the mean cross-entropy of the supervised tokens";
const VOCABULARY: &str =
    "changing the vocabulary other than by tokens.add; else the model's own tokens are used";
const STREAMING: &str =
    "streaming rows; they are tokenised once into the cache and read from there by memory map";
const ROPE: &str =
    "changing the model's positions; max_seq_length is at most what the model was made for";
const GENERATE: &str =
    "`backdraft generate` and `backdraft eval --generate` write answers, with flags of their own";
const CODE: &str = "nothing is ever run that a model's repository brings along; take it out";
const KERNELS: &str =
    "kernels are chosen by device and number format, and the fast ones are on; take it out";
const DATALOADER: &str = "rows are tokenised by all cores and read from memory maps; take it out";
const PRECISION: &str = "sums and the adapter are in f32 whatever dtype says; take it out";
const COMPONENT: &str = "a recipe names no classes; take it out";
const TOKENIZER: &str = "the tokenizer is the model's own; take it out";
const NO_PADDING: &str =
    "rows are laid end to end, so there is nothing to pad; take it out, or see data.batching";
const SAFETENSORS: &str = "files are safetensors, written whole or not at all; take it out";
const LOGS: &str =
    "every step is recorded, and a line is printed every train.logging_steps; take it out";
const CACHE: &str = "models come from the hub's usual cache (HF_HOME); take it out";

/// Switches whose name says what being on means: what to write where they are on, and where they are off.
pub(crate) const SWITCHES: &[(&str, &str, &str)] = &[
    (
        "train_on_inputs train_on_prompt train_on_input train_on_source",
        r#"write train_on = "everything""#,
        r#"write train_on = "responses""#,
    ),
    (
        "assistant_only_loss train_on_responses_only only_train_on_response mask_prompt mask_inputs use_label_mask",
        r#"write train_on = "responses""#,
        r#"write train_on = "everything""#,
    ),
    (
        "completion_only_loss",
        r#"write train_on = "completion""#,
        r#"write train_on = "everything""#,
    ),
    (
        "mask_history last_response_only train_on_last_step_only",
        r#"write train_on = "last_turn""#,
        r#"write train_on = "responses""#,
    ),
    (
        "padding_free batch_flattening dpo_padding_free",
        r#"write batching = "padding-free", the default"#,
        r#"write batching = "padded", or take it out"#,
    ),
    (
        "group_by_length",
        r#"write batching = "padded", which puts rows of similar length together"#,
        "take it out",
    ),
    (
        "disable_gradient_checkpointing",
        r#"write activation_policy = "keep-all""#,
        r#"write activation_policy = "smart", or "recompute-all" for what gradient checkpointing does elsewhere"#,
    ),
    ("fp16 float16", r#"write dtype = "f16""#, "take it out"),
    ("bf16 bfloat16", r#"write dtype = "bf16""#, "take it out"),
    ("no_cuda use_cpu", r#"write device = "cpu""#, "take it out"),
];

/// Meanings, and the names that have them.
pub(crate) const FOREIGN: &[(Foreign, &str)] = &[
    // The model.
    (
        Key("model"),
        "base_model base_model_config model_name model_name_or_path model_path model_id model_id_or_path \
         pretrained_model_name_or_path checkpointer checkpointer.checkpoint_dir checkpoint_dir",
    ),
    (
        Like(
            "model",
            "a revision is written behind the hub id, as in \"org/name@revision\"",
        ),
        "revision model_revision revision_of_model",
    ),
    (
        Like("dtype", "write \"bf16\", \"f16\", \"f32\" or \"auto\""),
        "bf16 fp16 bfloat16 float16 float32 fp32 torch_dtype compute_dtype pure_bf16 half half_precision mixed_precision \
         precision fp16_opt_level load_in_16bit infer_dtype float32_mixed_precision",
    ),
    (
        Like("quantization.quant_type", "with load_in_4bit = true"),
        "bnb_4bit_quant_type quantization_type model.quant_type",
    ),
    (
        Key("quantization.double_quant"),
        "bnb_4bit_use_double_quant use_bnb_nested_quant double_quantization bnb_4bit_double_quant use_nested_quant",
    ),
    (
        Like(
            "load_in_4bit",
            "write load_in_4bit = true for 4 bits, load_in_8bit = true for 8",
        ),
        "quantization_bit quantize_base quantize quantization_config bnb_config quantization_method quant_bits \
         load_in_nf4 q_lora qlora model_quantization_config bnb_config_kwargs model_quantization_config_kwargs",
    ),
    (
        Key("quantization.skip_modules"),
        "llm_int8_skip_modules modules_to_not_convert skip_quant_modules",
    ),
    (
        Key("quantization.block_size"),
        "blocksize quant_block_size bnb_4bit_blocksize groupsize",
    ),
    (
        Always("the computation's number format is dtype, and scales are f32; take it out"),
        "bnb_4bit_compute_dtype bnb_4bit_quant_storage upcast_layernorm upcast_lmhead_output embeddings_skip_upcast \
         fp32_norms fp32_norm_classes cast_lm_head_to_fp32 peft_autocast_adapter_dtype autocast_adapter_dtype \
         half_precision_backend bf16_full_eval fp16_full_eval",
    ),
    (
        Always(
            "rows of 8-bit weights have one scale each, and activations are not quantised; take it out",
        ),
        "llm_int8_threshold llm_int8_has_fp16_weight llm_int8_enable_fp32_cpu_offload",
    ),
    (
        NotYet(
            "other formats of the base than 4 bits (NF4, FP4) and 8 bits; set load_in_4bit or load_in_8bit",
        ),
        "fp8 fp8_config fp8_backend fp8_enable_fsdp_float8_all_gather load_in_fp8 load_in_2bit load_in_3bit load_in_6bit \
         gptq awq hqq aqlm quantizer quantizer._component_ qat qat_scheme qat_config fake_quant_after_n_steps activation_dtype \
         weight_dtype quantize_embedding use_onebitllms float8_kv_cache use_qalora qalora_group_size quantize_moe_experts \
         tokens_per_group",
    ),
    (
        Always(CODE),
        "trust_remote_code overrides_of_model_config overrides_of_model_kwargs model_init_kwargs \
         type_of_model model_type cls_model_config is_falcon_derived_model is_llama_derived_model is_mistral_derived_model \
         is_qwen_derived_model use_exact_model_name plugins trainer_cls use_auth_token",
    ),
    (
        Always(
            "a gated model is fetched with the token that HF_TOKEN or `hf auth login` gives; take it out",
        ),
        "token hub_token hf_hub_token hf_token hf_use_auth_token ms_hub_token om_hub_token",
    ),
    (
        Always(CACHE),
        "cache_dir model_cache_dir hf_home cache_implementation use_cache use_kv_cache enable_kv_cache",
    ),
    (Key("device"), "no_cuda use_cpu device_type accelerator"),
    (
        NotYet("spreading a model over devices; device names one"),
        "device_map device_map_planner_kwargs quantization_device_map max_memory offload_folder cpu_offload \
         low_cpu_ram ple_cpu_offload offload_embedding layer_offloading offload_layers \
         lora_on_cpu ephemeral_gpu_offload runtime_config n_gpu num_gpus gpus",
    ),
    (
        Key("memory_budget"),
        "gpu_memory_limit gpu_memory_utilization memory_limit vram_limit max_gpu_memory",
    ),
    (
        Always("weights are read straight from memory maps; take it out"),
        "low_cpu_mem_usage experimental_skip_move_to_device qlora_sharded_model_loading merge_lora",
    ),
    (
        Always(KERNELS),
        "attn_implementation flash_attention flash_attn flash_attention_2 use_flash_attention_2 use_flash_attn xformers_attention \
         sdp_attention sdpa_attention flex_attention flex_attn_compile_kwargs sage_attention eager_attention flash_attn_cross_entropy \
         flash_attn_fuse_mlp flash_attn_rms_norm flash_attn_d512 flash_optimum sdpa_varlen fused_attn_kernel use_kernels use_liger \
         use_liger_kernel use_liger_loss liger_kernel_config enable_liger_kernel liger_rope liger_rms_norm liger_swiglu \
         liger_glu_activation liger_layer_norm liger_cross_entropy liger_fused_linear_cross_entropy dpo_use_liger_kernel use_unsloth \
         lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy chunked_cross_entropy_num_chunks \
         tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp unsloth_tiled_mlp torch_compile torch_compile_backend \
         torch_compile_mode torch_compile_options compile torchdynamo dynamo_backend deepcompile tf32 jit_mode_eval use_ipex \
         use_v1_kernels unsloth_force_compile unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o \
         unsloth_rms_norm unsloth_rope cut_cross_entropy pretrain_multipack_attn large_head_attention gemma4_hybrid_attn_impl \
         fused block_diag_attn optimizer.fused fast_inference cudnn_deterministic_mode",
    ),
    (
        Like(
            "activation_policy",
            "\"smart\" recomputes only what the memory demands, \"recompute-all\" every layer, \"keep-all\" nothing",
        ),
        "gradient_checkpointing use_gradient_checkpointing activation_checkpointing enable_activation_checkpointing grad_checkpoint \
         grad_checkpointing disable_gradient_checkpointing use_unsloth_gc selective_checkpointing recompute recompute_layer_types \
         ac_mode ac_option use_gradient_ckpt checkpoint_skip_layers enable_gradient_checkpointing",
    ),
    (
        Always("nothing about recomputation needs more than activation_policy; take it out"),
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs use_reentrant_gc use_reentrant",
    ),
    (
        Key("activation_offloading"),
        "enable_activation_offloading offload_activations",
    ),
    (
        Key("max_seq_length"),
        "sequence_len max_length cutoff_len max_seq_len model_max_length max_sequence_length sequence_length block_size_tokens \
         max_position_embeddings max_packed_sequence_len tokenizer.max_seq_len context_length seq_length seq_len max_len \
         max_context_length n_ctx eval_sequence_len max_source_length max_target_length",
    ),
    (
        NotYet(ROPE),
        "rope_scaling rope_theta rope_type use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks shift_attn \
         s2_attention scaling_softmax scaling_softmax_factor scaling_softmax_bias mixture_of_depths",
    ),
    // The adapter.
    (
        Key("lora.rank"),
        "r lora_r lora_rank lora_dim lora_parameters.rank max_lora_rank adapter_rank",
    ),
    (Key("lora.alpha"), "lora_alpha lora_parameters.alpha"),
    (
        Like(
            "lora.alpha",
            "it is divided by the rank: alpha = scale x rank",
        ),
        "lora_parameters.scale lora_scale scaling lora_scaling",
    ),
    (Key("lora.dropout"), "lora_dropout lora_parameters.dropout"),
    (
        Like(
            "lora.target_modules",
            "a list of projections, such as [\"q_proj\", \"v_proj\"]; left out, all",
        ),
        "lora_target_modules lora_target lora_target_linear lora_parameters.keys lora_modules lora_attn_modules \
         finetune_attention_modules finetune_mlp_modules apply_lora_to_mlp target_linear",
    ),
    (
        Key("lora.use_rslora"),
        "rslora peft_use_rslora rs_lora use_rs_lora",
    ),
    (Key("lora.bias"), "lora_bias_type train_bias"),
    (
        Like(
            "lora.layers_to_transform",
            "a list of layers, counted from 0",
        ),
        "peft_layers_to_transform num_layers lora_layers finetune_last_n_layers lora_num_layers layers",
    ),
    (
        Always("adapters are LoRA, over 4 bits with load_in_4bit = true (QLoRA); take it out"),
        "use_peft use_lora peft_type peft_method finetuning_type fine_tune_type train_type tuner_type sft_type task_type \
         lora_task_type inference_mode peft fan_in_fan_out lora_fan_in_fan_out layers_pattern peft_layers_pattern megatron_config \
         megatron_core temporary_location finetune_language_layers adapter_folder save_adapter_weights_only save_only_adapter \
         save_adapter adapter_name revision_of_peft",
    ),
    (
        Key("lora.use_dora"),
        "dora peft_use_dora model.use_dora weight_decomposition",
    ),
    (
        NotYet(OTHER_ADAPTERS),
        "use_bdlora use_vera use_moslora layer_replication peft_layer_replication alora_invocation_tokens arrow_config velora_config \
         monteclora_config kasa_config block_diag_lora use_qlora_dora oft_rank oft_block_size oft_target module_dropout use_badam \
         badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose \
         relora relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_prune_method relora_cpu_offload \
         lisa_n_layers lisa_step_interval lisa_layers_attribute lisa_activated_layers use_llama_pro num_virtual_tokens \
         prompt_tuning_init ia3_config num_experts_lora router_temperature target_modules_bd_a target_modules_bd_b nblocks match_strict \
         use_gks task_adapter_names gks_adapter_names",
    ),
    (
        Key("lora.rank_pattern"),
        "lora_rank_pattern peft_rank_pattern",
    ),
    (
        Key("lora.alpha_pattern"),
        "lora_alpha_pattern peft_alpha_pattern",
    ),
    (
        Key("lora.exclude_modules"),
        "lora_exclude_modules peft_exclude_modules",
    ),
    (
        NotYet(
            "adapters on bare parameters, such as experts; lora.target_modules names linear layers",
        ),
        "target_parameters lora_target_parameters",
    ),
    (
        Like(
            "lora.modules_to_save",
            "a list of ends of paths, such as [\"lm_head\", \"embed_tokens\"]; a tied head is trained with the embedding",
        ),
        "lora_modules_to_save peft_modules_to_save additional_target train_embeddings train_lm_head lm_head_trainable",
    ),
    (
        Always("a tied head stays tied to the embedding; take it out"),
        "ensure_weight_tying peft_ensure_weight_tying",
    ),
    (
        Like(
            "train.groups",
            "a list of tables with match and learning_rate, which may name what lora.modules_to_save does",
        ),
        "embedding_learning_rate embedding_lr embedding_lr_scale",
    ),
    (
        NotYet(
            "biases and adapters of LoRA's own there, or weights that start anew; lora.modules_to_save trains norms, \
             embed_tokens and lm_head whole beside adapters",
        ),
        "lora_bias apply_lora_to_output reinit_weights",
    ),
    (
        Like(
            "tokens.add",
            "a list of texts; rows are added where the tables have too few",
        ),
        "add_tokens",
    ),
    (
        Like("lora.trainable_tokens", "texts of tokens, not ids"),
        "trainable_token_indices peft_trainable_token_indices",
    ),
    (
        NotYet(OTHER_START),
        "eva_config corda_config lora_ga_config pissa_init pissa_iter pissa_convert olora",
    ),
    (
        Like(
            "lora.init",
            "\"default\", \"loftq\", \"qera\", \"pissa\" or \"orthogonal\"",
        ),
        "init_lora_weights peft_init_lora_weights loftq_config loftq_bits loftq_iter use_loftq init_weights lora_init_type",
    ),
    (
        Key("train.loraplus_lr_ratio"),
        "loraplus_ratio lora_plus_ratio lorap_lr_ratio lora_plus_lr_ratio",
    ),
    (
        Like(
            "train.loraplus_lr_ratio",
            "how many times as fast as A every B learns, such as 16",
        ),
        "lora_plus loraplus use_lora_plus use_loraplus",
    ),
    (
        Always("weight_decay is that of A and B, each times its own learning rate; take it out"),
        "loraplus_weight_decay",
    ),
    (
        Always("no adapter is on the embedding, which this is the learning rate of; take it out"),
        "loraplus_lr_embedding loraplus_lr_embedding_ratio",
    ),
    (
        Like(
            "lora.adapter",
            "the directory of a PEFT adapter, or of a run; `--resume` goes on with a run that was stopped",
        ),
        "lora_model_dir adapter_name_or_path resume_adapter_file peft_model_id adapter_model adapter_checkpoint resume_adapter \
         lora_checkpoint lora_weights lora_name_or_path recipe_checkpoint checkpoint_files",
    ),
    (
        Always(
            "an adapter that is trained further is saved as a new one, in output_dir; take it out",
        ),
        "create_new_adapter ref_model_adapters",
    ),
    (
        Like("trainable", FULL),
        "full_finetuning full_finetune use_full_finetuning unfrozen_parameters freeze_trainable_layers freeze_trainable_modules \
         freeze_extra_modules freeze_layers decoder_trainable freeze_parameters",
    ),
    (
        NotYet("training from random weights; trainable = \"all\" trains those of the model"),
        "train_from_scratch",
    ),
    // The rows.
    (
        Like(
            "data.train",
            "a file, a folder, a glob, a hub data set such as \"org/name:train\", or a list of sources",
        ),
        "dataset datasets dataset_name dataset_path dataset_id train_file train_files train_data train_dataset train_data_path data_path \
         data_file data_files data_dir dataset_dir dataset_file training_file training_data pretraining_dataset dataset.source \
         dataset._component_ dataset.data_files dataset.data_dir datasets.path datasets.ds_type datasets.data_files datasets.data_dir \
         media_dir dataset_config dataset_config_name dataset_mixer",
    ),
    (
        Like(
            "data.train",
            "the split is written behind a hub data set, as in \"org/name:train\"",
        ),
        "dataset_split dataset_train_split dataset.split dataset.subset datasets.split datasets.name train_split split subset",
    ),
    (
        Like(
            "data.eval",
            "a file, a hub data set, or a share of the rows to learn from, such as 0.05",
        ),
        "eval_file eval_dataset eval_data validation_file validation_data valid_file validation_dataset val_file val_set_size val_size test_size \
         validation_split validation_split_percentage validation_ratio test_datasets test_split_size dataset_test_split eval_split val_data \
         valid_data val_dataset test_file run_val_every_n_steps dataset_val eval_size do_eval val",
    ),
    (
        Like(
            "data.format",
            "messages, sharegpt, alpaca, prompt_completion, text, or auto, which sees it from the rows",
        ),
        "dataset_format datasets.type datasets.format formatting dataset_type data_format conversation_style dataset.conversation_style \
         datasets.conversation template_format",
    ),
    (
        Like(
            "data.fields",
            "a table of the format's fields and yours, such as { messages = \"dialogue\" }",
        ),
        "dataset_text_field text_field text_column field_messages field_instruction field_input field_output field_system field_human field_model \
         field_tools field_thinking field_prompt field_completion field field_human_name message_field_role message_field_content \
         message_property_mappings dataset.column column column_map dataset.column_map columns field_label field_chosen field_rejected \
         prompt_feature text_feature completion_feature chat_feature prompt_column response_column input_column output_column messages_field \
         datasets.roles roles",
    ),
    (
        Like(
            "data.chat_template",
            "a built-in name that `backdraft init --templates` lists, or a .jinja file; left out, the model's own",
        ),
        "template chat_template_path chat_template_jinja chat_template_file custom_chat_template conversation conversation_template template_type \
         prompt_template_name instruct_template tokenizer.prompt_template",
    ),
    (
        Like(
            "data.prompt_template",
            "text with {instruction}, {input} and {output}",
        ),
        "alpaca_prompt prompt_format prompt_style system_format no_input_format input_format completion_format dataset_prompt prompt_template_file \
         formatting_func formatting_prompts_func",
    ),
    (
        Like(
            "data.train_on",
            "\"responses\", \"last_turn\", \"completion\" or \"everything\"",
        ),
        "train_on_inputs train_on_prompt train_on_input completion_only_loss assistant_only_loss mask_prompt mask_history train_on_responses_only \
         roles_to_train train_on_eos train_on_eot train_on_last_step_only dataset.train_on_input response_template instruction_template \
         instruction_part response_part last_response_only only_train_on_response message_field_training message_field_training_detail \
         use_label_mask train_on_source mask_inputs",
    ),
    (
        Like(
            "data.batching",
            "\"padding-free\" lays rows end to end, \"packed\" fills max_seq_length with them, \"padded\" groups rows by length",
        ),
        "packing sample_packing packed neat_packing eval_packing eval_sample_packing padding_free packing_strategy dataset.packed group_by_length \
         train_sampling_strategy length_column_name batch_flattening multipack_real_batches use_packing dataset_packing \
         dpo_padding_free curriculum_sampling sample_packing_sequentially pretraining_sample_concatenation",
    ),
    (
        Like("data.overlong", "\"truncate\", \"drop\" or \"split\""),
        "truncation_mode excess_length_strategy truncation truncation_strategy truncation_side overflow",
    ),
    (
        Like("data.cache", "a folder, \"auto\" or \"off\""),
        "dataset_prepared_path overwrite_cache tokenized_path preprocessed_path dataset_keep_in_memory data_shared_file_system skip_prepare_dataset \
         num_dataset_shards_to_save dataset_cache",
    ),
    (
        Always("rows are shuffled in each epoch, by seed; take it out"),
        "shuffle shuffle_dataset disable_shuffling shuffle_merged_datasets shuffle_before_merging_datasets dataloader.shuffle dataset_shuffle \
         shuffle_buffer_size do_shuffle",
    ),
    (
        Always("equal rows are counted and kept; `backdraft data check` shows them"),
        "dataset_exact_deduplication dedup deduplicate",
    ),
    (
        Always(NO_PADDING),
        "pad_to_sequence_len pad_to_multiple_of pad_token padding_side pad_token_id padding padding_value pad_to_max_length ignore_pad_token_for_loss label_pad_token_id \
         sample_packing_group_size sample_packing_bin_size sample_packing_mp_start_method sample_packing_eff_est",
    ),
    (
        Always(DATALOADER),
        "dataset_num_proc dataset_processes dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor \
         dataloader_multiprocessing_context dataloader_in_order preprocessing_num_workers preprocessing_batch_size num_workers num_proc \
         dataloader remove_unused_columns label_names dataset_batch_size collate_fn accelerator_config preprocess_shards \
         dataset_kwargs is_preprocess preprocess_iterable tokenized_dataset dispatch_batches num_of_sequences chars_per_token",
    ),
    (
        Always("an epoch ends with whatever rows are left; take it out"),
        "dataloader_drop_last drop_last",
    ),
    (
        NotYet(STREAMING),
        "streaming dataset_streaming streaming_multipack_buffer_size pretrain_multipack_buffer_size iterable_dataset",
    ),
    (
        Like(
            "data.train",
            "a source's weight says how often its rows are visited: { path = \"a.jsonl\", weight = 0.5 }",
        ),
        "mix_strategy interleave_probs interleave_strategy sampling_weights mixing_weights dataset_weights datasets.weight datasets.shards \
         datasets.shards_idx dataset_shard_num dataset_shard_idx max_samples max_train_samples max_eval_samples num_samples num_train_samples \
         datasets.max_samples fraction limit",
    ),
    (
        Always("tools and system messages are taken from the rows; take it out"),
        "tool_format default_system default_system_message system_prompt drop_system_message datasets.system_prompt new_system_prompt",
    ),
    (
        Always(
            "reasoning is rendered as the chat template does with the rows' own fields; take it out",
        ),
        "enable_thinking preserve_thinking split_thinking template_thinking_key chat_template_kwargs",
    ),
    (
        Always(TOKENIZER),
        "tokenizer tokenizer.path tokenizer._component_ tokenizer.merges_file tokenizer_config tokenizer_type tokenizer_name \
         tokenizer_name_or_path tokenizer_path tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common tokenizer_save_jinja_files \
         use_fast_tokenizer fix_tokenizer processor_type processor_kwargs split_special_tokens eos_token bos_token unk_token eot_tokens \
         dataset.add_eos add_eos_token add_bos_token add_generation_prompt fix_untrained_tokens append_concat_token add_special_tokens_to_prompt",
    ),
    (
        NotYet(VOCABULARY),
        "special_tokens add_special_tokens new_special_tokens_config init_special_tokens resize_vocab resize_model_vocab \
         added_tokens_overrides additional_special_tokens resize_token_embeddings resize_token_embeddings_to_32x mean_resizing_embeddings \
         shrink_embeddings new_tokens",
    ),
    (
        Like(
            "data.skip_bad_rows",
            "how many broken rows may be passed over",
        ),
        "skip_errors ignore_errors skip_invalid on_bad_rows",
    ),
    // The run.
    (
        Key("train.micro_batch_size"),
        "batch_size per_device_train_batch_size per_gpu_train_batch_size train_batch_size train_micro_batch_size_per_gpu device_batch_size \
         micro_batch per_device_batch_size",
    ),
    (
        Always("evaluation takes micro-batches of train.micro_batch_size; take it out"),
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size eval_accumulation_steps val_batches test_batches val_batch_size \
         batch_eval_metrics prediction_loss_only eval_do_concat_batches eval_use_gather_object include_for_metrics eval_on_each_dataset",
    ),
    (
        Key("train.grad_accumulation_steps"),
        "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches grad_accum grad_accum_steps gas accumulation_steps \
         gradient_accumulation_iters",
    ),
    (
        NotYet("finding a batch size by trial; `backdraft plan` computes the largest that fits"),
        "auto_find_batch_size find_batch_size",
    ),
    (
        Key("train.epochs"),
        "num_train_epochs num_epochs n_epochs epoch num_epoch max_epochs total_epochs train_epochs",
    ),
    (
        Key("train.max_steps"),
        "iters iterations num_steps max_steps_per_epoch num_train_steps max_train_steps total_steps max_iters train_steps num_iters",
    ),
    (
        Key("train.learning_rate"),
        "lr optimizer.lr base_lr peak_lr max_lr initial_lr init_lr learning_rate_multiplier",
    ),
    (
        Like(
            "train.lr_scheduler",
            "constant, constant_with_warmup, linear, cosine, or a table with a kind and options",
        ),
        "lr_scheduler_type scheduler scheduler_type lr_schedule lr_scheduler._component_ lr_schedule.name lr_decay_style schedule lr_decay decay_lr \
         learning_rate_scheduler lr_scheduler_name",
    ),
    (
        Like(
            "train.lr_scheduler",
            "options stand in its table: { kind = \"cosine_with_min_lr\", min_lr_rate = 0.1 }",
        ),
        "lr_scheduler_kwargs scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio min_lr min_lr_rate min_lr_ratio lr_end lr_div_factor \
         lr_scheduler.num_cycles num_cycles lr_schedule.arguments power timescale jagged_restart_steps jagged_restart_warmup_steps \
         jagged_restart_anneal_steps lr_quadratic_warmup min_learning_rate lr_min_ratio",
    ),
    (
        Key("train.warmup_steps"),
        "warmup num_warmup_steps lr_scheduler.num_warmup_steps lr_warmup_steps lr_schedule.warmup warmup_iters warmup_updates lr_warmup_iters",
    ),
    (
        Key("train.warmup_ratio"),
        "warmup_proportion warmup_fraction lr_warmup_fraction warmup_percent",
    ),
    (
        Like(
            "train.optimizer",
            "\"adamw\", \"adamw_8bit\", \"lion\", \"sgd\", \"adafactor\", \"muon\" or \"schedule_free_adamw\"",
        ),
        "use_muon adafactor optim optimizer_name optimizer_type optimizer._component_ optimiser optimizer_class",
    ),
    (
        Like(
            "train.adam_beta1",
            "and train.adam_beta2, train.adam_epsilon, train.weight_decay beside it",
        ),
        "optim_args optimizer_config optimizer_kwargs betas adam_betas optimizer_params",
    ),
    (
        Key("train.momentum"),
        "sgd_momentum muon_momentum optimizer.momentum",
    ),
    (Key("train.adam_beta1"), "beta1 adam_b1"),
    (Key("train.adam_beta2"), "beta2 adam_b2"),
    (
        Key("train.adam_epsilon"),
        "adam_eps eps optimizer.eps adamw_epsilon",
    ),
    (
        Key("train.weight_decay"),
        "decay wd optimizer.weight_decay adam_weight_decay",
    ),
    (
        Key("train.max_grad_norm"),
        "clip_grad_norm max_norm gradient_clipping gradient_clip_val grad_clip clip_grad max_gradient_norm gradient_clip grad_clip_norm",
    ),
    (
        NotYet(OTHER_OPTIMIZERS),
        "optim_target_modules adam_beta3 adam_epsilon2 torchdistx_path use_galore galore_target galore_rank galore_update_interval galore_scale \
         galore_proj_type galore_layerwise use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type \
         apollo_scale_type apollo_layerwise apollo_scale_front use_adam_mini dion_lr dion_momentum dion_rank_fraction \
         dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits \
         qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size q_galore_config optimizer_in_bwd \
         muon_lr",
    ),
    (
        Key("train.neftune_noise_alpha"),
        "noisy_embedding_alpha neftune_alpha neft_alpha",
    ),
    (
        Like(
            "train.neftune_noise_alpha",
            "the noise's strength, such as 5",
        ),
        "neftune use_neftune",
    ),
    (
        Key("train.ema_decay"),
        "ema_beta ema_rate ema_decay_rate model_ema_decay",
    ),
    (
        Key("train.layer_lr_decay"),
        "layerwise_lr_decay layer_wise_lr_decay layer_decay lr_layer_decay llrd layerwise_decay layer_decay_rate",
    ),
    (
        Like(
            "train.groups",
            "a [[train.groups]] table each, with match and learning_rate or weight_decay",
        ),
        "lr_groups param_groups parameter_groups optimizer_grouped_parameters",
    ),
    (
        Key("train.label_smoothing_factor"),
        "train.label_smoothing loss.label_smoothing label_smoothing_epsilon label_smooth",
    ),
    (
        Key("train.z_loss"),
        "z_loss_weight z_loss_coef z_loss_coefficient z_loss_multiplier lse_square_scale softmax_auxiliary_loss_multiplier",
    ),
    (
        NotYet(OTHER_LOSS),
        "compute_loss_func custom_loss use_dft_loss \
         use_asft_loss asft_alpha use_eaft_loss use_eaft eaft_alpha eaft_k router_aux_loss_coef moe_aux_loss_coef output_router_logits \
         focal_loss chunk_loss entropy_coef",
    ),
    (
        Always(
            "losses are divided by the supervised tokens of the whole optimiser step; take it out",
        ),
        "average_tokens_across_devices loss._component_ loss_reduction num_items_in_batch normalize_loss use_liger_cross_entropy",
    ),
    (
        Key("seed"),
        "random_state random_seed data_seed rng_seed manual_seed rand_seed",
    ),
    (
        Always("a seed makes the same run again on the same device; take it out"),
        "full_determinism deterministic use_deterministic_algorithms",
    ),
    (
        Key("output_dir"),
        "adapter_path output_path save_dir out_dir output save_path checkpointer.output_dir save_directory output_folder work_dir",
    ),
    (
        Command("`--force` replaces a run that output_dir holds"),
        "overwrite_output_dir overwrite",
    ),
    (
        Command("`backdraft train --resume [DIR]` continues a run"),
        "resume_from_checkpoint auto_resume_from_checkpoints resume_from resume ignore_data_skip resume_training restore_callback_states_from_checkpoint \
         resume_from_ckpt checkpoint resume_path continue_training",
    ),
    (
        Key("train.logging_steps"),
        "log_every_n_steps steps_per_report log_interval logging_interval log_every log_steps print_every logging_freq",
    ),
    (
        Key("train.eval_steps"),
        "steps_per_eval eval_every eval_interval evaluation_steps val_check_interval eval_freq eval_every_n_steps validation_steps",
    ),
    (
        Like(
            "train.eval_steps",
            "evaluation comes every so many steps and at the end, wherever data.eval names rows",
        ),
        "eval_strategy evaluation_strategy evals_per_epoch eval_delay eval_on_start evaluate_during_training eval_at_end",
    ),
    (
        Key("train.save_steps"),
        "save_every save_interval save_freq checkpoint_every checkpointing_steps save_every_n_steps ckpt_interval",
    ),
    (
        Like(
            "train.save_steps",
            "checkpoints come every so many steps, at the best evaluation and at the end",
        ),
        "save_strategy saves_per_epoch save_on_each_node save_first_step save_every_n_epochs save_sliding_window dynamic_checkpoint \
         enable_jit_checkpoint save_last enable_async_checkpointing",
    ),
    (
        Key("train.save_total_limit"),
        "keep_last_n_checkpoints max_checkpoints_to_keep max_to_keep keep_checkpoints total_limit",
    ),
    (Key("train.early_stopping_metric"), "metric_for_best_model"),
    (
        Always(
            "the adapter is that of the best evaluation by train.early_stopping_metric; take it out",
        ),
        "load_best_model_at_end greater_is_better save_best_model keep_best load_best",
    ),
    (
        Always(
            "a checkpoint holds the adapter and the optimiser's state, and output_dir/adapter the adapter alone; take it out",
        ),
        "save_only_model save_safetensors_only save_optimizer_state save_optimizer",
    ),
    (
        Always(SAFETENSORS),
        "save_safetensors safe_serialization safetensors export_legacy_format max_shard_size",
    ),
    (
        Key("train.early_stopping_min_improvement"),
        "early_stopping_threshold early_stopping_min_delta early_stopping_delta min_delta",
    ),
    (
        Key("train.early_stopping_patience"),
        "early_stopping_steps early_stopping patience early_stop_patience early_stop",
    ),
    (
        NotYet(
            "ending a run by its training loss; a loss that is no number ends it, and data.eval with early_stopping_patience does",
        ),
        "loss_watchdog_threshold loss_watchdog_patience stop_loss target_loss",
    ),
    (
        Always(
            "a training loss or gradient that is not finite ends the run before it reaches the weights; take it out",
        ),
        "logging_nan_inf_filter skip_nan check_for_nan",
    ),
    (
        Like(
            "tracker.kind",
            "\"mlflow\" or \"trackio\", with tracker.url",
        ),
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name mlflow use_trackio trackio trackio_project_name \
         trackio_run_name",
    ),
    (
        NotYet(TRACKERS),
        "report_to wandb wandb_project wandb_name wandb_run_id wandb_mode wandb_entity wandb_watch wandb_log_model wandb_run_name \
         wandb_api_key wandb_token wandb_log_unique_prompts use_wandb enable_wandb hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key \
         comet_mode comet_online comet_experiment_config comet project project_name use_swanlab swanlab_project swanlab_workspace \
         swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret swanlab trackio_space_id trackio_bucket_id trackio_static_space_id use_otel_metrics \
         otel_metrics_host otel_metrics_port experiment_name",
    ),
    (
        Always("every run writes tensorboard event files into output_dir/tensorboard; take it out"),
        "use_tensorboard logging_dir enable_tensorboard tensorboard_log_dir tensorboard_dir tensorboard metric_logger metric_logger._component_ \
         metric_logger.log_dir log_dir",
    ),
    (
        Always(LOGS),
        "logging_strategy logging_first_step log_on_each_node log_level log_level_replica disable_tqdm include_num_input_tokens_seen \
         include_tokens_per_second include_tkps include_effective_tokens_per_second skip_memory_metrics log_peak_memory_stats print_param_status \
         plot_loss debug verbose disable_log_stats log_completions_steps logging",
    ),
    (
        NotYet("profiling inside a run; the dashboard shows tokens/s and memory"),
        "profiler profiler_steps profiler_steps_start enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps \
         profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules profile",
    ),
    (
        Always("memory goes by memory_budget, and no cache has to be emptied; take it out"),
        "torch_empty_cache_steps gc_steps gc_collect_steps clear_cache_threshold empty_cache dataset_low_memory",
    ),
    (
        NotYet(HUB),
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision push_dataset_to_hub push_to_hub_model_id \
         push_to_hub_organization push_to_hub_token hub_repo hub_organization export_hub_model_id log_completions_hub_repo",
    ),
    (
        Command("`backdraft merge` writes a model with the adapter folded in"),
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset export_quantization_nsamples \
         export_quantization_maxlen merge_method merge_adapter merged_output_dir save_merged save_method save_pretrained_merged save_gguf gguf",
    ),
    (
        Command(GENERATE),
        "do_sample temperature top_p top_k min_p num_beams max_new_tokens repetition_penalty length_penalty skip_special_tokens generation_kwargs \
         predict_with_generate generation_max_length generation_num_beams eval_num_beams generate_samples num_generation_samples \
         generation_max_new_tokens generation_temperature generation_top_p generation_top_k generation_prompt_ratio generation_do_sample \
         eval_max_new_tokens eval_table_size eval_table_max_new_tokens do_bench_eval bench_dataset bench_split bench_source_max_len \
         do_causal_lm_eval eval_causal_lm_metrics compute_metrics preprocess_logits_for_metrics compute_accuracy test infer_backend \
         gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature \
         generate_max_len n_samples_per_prompt",
    ),
    (
        NotYet(DISTRIBUTED),
        "ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters ddp_static_graph ddp_backend deepspeed \
         deepspeed_config zero_stage fsdp fsdp_config fsdp_version fsdp_cpu_offload fsdp_final_state_dict_type fsdp_min_num_params \
         fsdp_transformer_layer_cls_to_wrap memory_efficient_fsdp_wrap custom_sharded_layers parallelism_config tensor_parallel_dim \
         tensor_parallel_plan tensor_parallel_size tensor_parallel_degree sequence_parallel_degree sequence_parallel_size context_parallel_size \
         context_parallel_degree pipeline_parallel_size data_parallel_size data_parallel_shard_dim data_parallel_replicate_dim dp_shard_size \
         dp_replicate_size expert_parallel_size ring_attn_func heads_k_stride world_size local_rank rank_id num_nodes num_processes \
         num_machines machine_rank master_addr master_port use_ray ray_run_name ray_num_workers ray_init_kwargs ray_scope \
         resources_per_worker tpu_num_cores tpu_metrics_debug sharded_ddp xpu_backend use_mps_device split_batches mp_parameters use_mca \
         use_hyper_parallel hyper_parallel_args devices accelerate accelerate_config nproc_per_node disable_grad_sync ds3_gather_for_generation",
    ),
    (
        Always("rows are supervised fine-tuning (SFT), which `train` does; take it out"),
        "stage do_train",
    ),
    (
        Command("`backdraft eval --generate` answers rows and compares the answers"),
        "do_predict",
    ),
    (Key("objective.kind"), "rl"),
    (
        Like("objective.kind", "it names what is minimized"),
        "dpo kto orpo simpo cpo rm",
    ),
    (
        Key("objective.beta"),
        "rl_beta dpo_beta pref_beta orpo_alpha",
    ),
    (
        Like("objective.loss", "it is the loss of kind = \"dpo\""),
        "loss_type dpo_loss_type pref_loss",
    ),
    (Key("objective.loss_weights"), "dpo_loss_weights"),
    (Key("objective.label_smoothing"), "dpo_label_smoothing"),
    (Key("objective.sft_weight"), "rpo_alpha cpo_alpha pref_ftx"),
    (Key("objective.gamma"), "simpo_gamma"),
    (
        Always("a reward model (objective.kind = \"reward\") has one output"),
        "num_labels",
    ),
    (
        Key("objective.desirable_weight"),
        "kto_desirable_weight kto_chosen_weight",
    ),
    (
        Key("objective.undesirable_weight"),
        "kto_undesirable_weight kto_rejected_weight",
    ),
    (
        Key("objective.precompute_reference"),
        "precompute_ref_log_probs",
    ),
    (
        NotYet(PREFERENCE),
        "trl grpo ppo rlhf pref_bco_weight \
         dpo_use_weighting use_weighting dpo_norm_loss dpo_use_logits_to_keep dpo_generate_during_eval \
         generate_during_eval ld_alpha f_divergence_type f_alpha_divergence_coef discopop_tau \
         reference_free precompute_ref_batch_size sync_ref_model ref_model_mixup_alpha ref_model_sync_steps \
         ref_model ref_model_quantization_bit ref_model_init_kwargs ref_adapter_name force_use_ref_model model_adapter_name max_prompt_length \
         max_prompt_len max_completion_length reward_model reward_model_path reward_model_adapters reward_model_quantization_bit \
         reward_model_type process_reward_model reward_funcs reward_weights reward_clip_range \
         scale_rewards normalize_advantages advantage_estimator num_generations num_generations_eval generation_batch_size \
         steps_per_generation num_iterations epsilon epsilon_high delta importance_sampling_level mask_truncated_completions \
         top_entropy_quantile use_vllm vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex \
         vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization \
         vllm_max_model_length vllm_tensor_parallel_size vllm_importance_sampling_correction vllm_importance_sampling_mode \
         vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_guided_decoding_regex \
         vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size \
         sglang_config sglang_lora_backend log_completions num_completions_to_print log_unique_prompts log_multimodal \
         max_tool_calling_iterations ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards whiten_rewards kl_coeff \
         kl_coef kl_loss_weight lam cliprange cliprange_value vf_coef use_adaptive_entropy entropy_coef_min entropy_coef_max \
         entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl multi_objective_aggregation disable_dropout \
         use_transformers_paged use_transformers_continuous_batching transformers_continuous_batching_config sapo_temperature_neg \
         sapo_temperature_pos vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg rl_coef ebft policy_model reward_and_value_model \
         value_checkpointer reward_checkpointer ref_checkpointer ref_policy_checkpointer ppo_batch_size forward_batch_size penalise_no_eos \
         reward_penalty missing_eos_penalty chosen_format rejected_format logprobs_field tpo_alpha tpo_l_gamma is_encoder_decoder \
         prompt_dataset response_length num_mini_batches whiten rloo_k stop_token num_sample_generations rollout_func replay_buffer_size reward_num_workers step_separator",
    ),
    (
        NotYet(DISTILLATION),
        "teacher_model teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs teacher_checkpointer kd_loss kd_ratio \
         kd_alpha kd_temperature kd_ce_alpha kd_trainer kd_top_k_before_softmax lmbda seq_kd distillation_alpha distillation_mode \
         teacher_temperature loss_top_k loss_add_tail use_uld_loss distillation",
    ),
    (
        NotYet(VISION),
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model freeze_mm_modules image_max_pixels image_min_pixels \
         image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video \
         audio_sampling_rate image_size image_resize_algorithm finetune_vision_layers finetune_audio_layers encoder_trainable \
         fusion_trainable vision is_multimodal text_only max_pixels min_pixels",
    ),
    (
        NotYet("mixtures of experts; dense models are trained"),
        "num_experts experts_implementation llama4_linearized_experts use_kt kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts \
         kt_lora_expert_num kt_lora_expert_intermediate_size moe_kernels",
    ),
    (
        Always(PRECISION),
        "fp32_residual keep_fp32 upcast_adapter cast_to_fp32 upcast",
    ),
    (
        Always(COMPONENT),
        "_component_ axolotl_config_path strict capabilities env_capabilities axolotl_version",
    ),
];
