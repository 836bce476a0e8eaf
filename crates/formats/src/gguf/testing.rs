//! GGUF files for the tests: written value by value, right or wrong.

use std::path::PathBuf;

use super::ggml_type::GgmlType;

/// Collects metadata and tensors, then lays them out.
#[derive(Clone)]
pub(super) struct Builder {
    pub(super) version: u32,
    pub(super) alignment: usize,
    entries: Vec<Vec<u8>>,
    tensors: Vec<TensorSpec>,
}

#[derive(Clone)]
pub(super) struct TensorSpec {
    pub(super) name: String,
    /// Outermost first.
    pub(super) shape: Vec<u64>,
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
    /// The place in the data section; after the tensor before it if `None`.
    pub(super) offset: Option<u64>,
}

pub(super) fn text(value: &str) -> Vec<u8> {
    let mut out = (value.len() as u64).to_le_bytes().to_vec();
    out.extend(value.as_bytes());
    out
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            version: 3,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// An entry whose type and value are given as they lie in the file.
    pub(super) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let mut entry = text(key);
        entry.extend(kind.to_le_bytes());
        entry.extend(value);
        self.entries.push(entry);
        self
    }

    pub(super) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(super) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(super) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub(super) fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    pub(super) fn list(self, key: &str, kind: u32, elements: &[Vec<u8>]) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((elements.len() as u64).to_le_bytes());
        value.extend(elements.concat());
        self.raw(key, 9, &value)
    }

    pub(super) fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<_> = values.iter().map(|value| text(value)).collect();
        self.list(key, 8, &elements)
    }

    pub(super) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.list(key, 5, &elements)
    }

    pub(super) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let elements: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.list(key, 6, &elements)
    }

    /// Whether an entry is this text.
    pub(super) fn has(&self, key: &str, value: &str) -> bool {
        let wanted = Self::new().string(key, value);
        self.entries.contains(&wanted.entries[0])
    }

    pub(super) fn without(mut self, key: &str) -> Self {
        let key = text(key);
        self.entries.retain(|entry| !entry.starts_with(&key));
        self
    }

    pub(super) fn tensor(mut self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        self.tensors.push(TensorSpec {
            name: name.into(),
            shape: shape.into(),
            kind: GgmlType::F32.id(),
            data: bytemuck::cast_slice(values).into(),
            offset: None,
        });
        self
    }

    /// Another shape for a tensor, with as many zeros as it has elements.
    pub(super) fn reshaped(self, name: &str, shape: &[u64]) -> Self {
        let zeros = vec![0.0; shape.iter().product::<u64>() as usize];
        self.without_tensor(name).tensor(name, shape, &zeros)
    }

    pub(super) fn spec(mut self, spec: TensorSpec) -> Self {
        self.tensors.push(spec);
        self
    }

    pub(super) fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            let offset = tensor.offset.unwrap_or(data.len() as u64);
            out.extend(offset.to_le_bytes());
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }

    /// The file on disk, kept as long as the first of the two.
    pub(super) fn write(&self) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.gguf");
        std::fs::write(&path, self.build()).unwrap();
        (root, path)
    }
}

/// A Llama of one layer: hidden 8, 2 heads of 4, 1 key head, vocabulary 3; its own tokenizer.
pub(super) fn llama() -> Builder {
    let count = |n: u16| (0..n).map(f32::from).collect::<Vec<_>>();
    Builder::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 2)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 500_000.0)
        .tensor("token_embd.weight", &[3, 8], &count(24))
        .tensor("output_norm.weight", &[8], &count(8))
        .tensor("output.weight", &[3, 8], &count(24))
        .tensor("blk.0.attn_norm.weight", &[8], &count(8))
        .tensor("blk.0.ffn_norm.weight", &[8], &count(8))
        .tensor("blk.0.attn_q.weight", &[8, 8], &count(64))
        .tensor("blk.0.attn_k.weight", &[4, 8], &count(32))
        .tensor("blk.0.attn_v.weight", &[4, 8], &count(32))
        .tensor("blk.0.attn_output.weight", &[8, 8], &count(64))
        .tensor("blk.0.ffn_gate.weight", &[2, 8], &count(16))
        .tensor("blk.0.ffn_up.weight", &[2, 8], &count(16))
        .tensor("blk.0.ffn_down.weight", &[8, 2], &count(16))
}
