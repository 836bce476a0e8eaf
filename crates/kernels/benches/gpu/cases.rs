//! The kernels and shapes of a training step at 8B.

use backdraft_arch::{Activation, GgufBlock};
use backdraft_kernels::adamw::{self, AdamWParams, Moments};
use backdraft_kernels::attention::{self, HeadLayout, Path, Qkv};
use backdraft_kernels::codebook::{FourBitFormat, NestedFormat};
use backdraft_kernels::dequantize::{FourBit, GgufBlocks, HostAbsmax, Int8Rows, Nested};
use backdraft_kernels::exchange::{self, Group, GroupSum, Messages};
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_kernels::gated_delta::{self, DeltaLayout, Operands};
use backdraft_kernels::gemm::{self, Op};
use backdraft_kernels::low_rank::{Adapted, LowRank};
use backdraft_kernels::quantize::{
    PackedBlocks, four_bit, int8_rows, nested, nested_codes, planes,
};
use backdraft_kernels::rope::{self, RotaryTables};
use backdraft_kernels::{Segments, causal_conv, cross_entropy, rms_norm, swiglu};
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Device, Distribution, Tensor};

use super::measure::{Bench, SETS, Work, distance, relative};

const SILU: Activation = Activation::Silu;

/// Sizes of a model and a batch.
struct Sizes {
    tokens: usize,
    hidden: usize,
    intermediate: usize,
    kv: usize,
    head_dim: usize,
    vocabulary: usize,
    rank: usize,
}

pub(super) fn run(bench: &mut Bench, small: bool) {
    let sizes = if small {
        Sizes {
            tokens: 64,
            hidden: 128,
            intermediate: 320,
            kv: 64,
            head_dim: 64,
            vocabulary: 1000,
            rank: 16,
        }
    } else {
        Sizes {
            tokens: 4096,
            hidden: 4096,
            intermediate: 14_336,
            kv: 1024,
            head_dim: 128,
            vocabulary: 128_256,
            rank: 16,
        }
    };
    copy(bench, &sizes);
    products(bench, &sizes);
    norm(bench, &sizes);
    rotary(bench, &sizes);
    low_rank(bench, &sizes);
    gated(bench, &sizes);
    heads(bench, small);
    deltas(bench, small);
    decoding(bench, small);
    codes(bench, &sizes);
    few_rows(bench, &sizes);
    loss(bench, &sizes);
    optimizer(bench, &sizes);
    exchanges(bench, small);
}

/// The ceiling of everything that moves bytes: Burn's own scaling.
fn copy(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("copy") {
        return;
    }
    let shape = [s.tokens, s.intermediate];
    let x = bench.sets(shape);
    let work = Work {
        bytes: 2.0 * bench.size() * (shape[0] * shape[1]) as f64,
        ..Work::default()
    };
    bench.time(("copy", format!("{shape:?}")), work, 0.0, |i| {
        x[i].clone().mul_scalar(1.5)
    });
}

/// What an exchange of the gradients of rank 16 at 8B does on a card, in f32: messages written and added, one of eight shares summed,
/// checksums; and a whole one through NCCL, of a process with itself.
fn exchanges(bench: &mut Bench, small: bool) {
    if !bench.wants("exchange") {
        return;
    }
    let n: usize = if small { 4096 } else { 42 << 20 };
    let device = bench.device.clone();
    let Some(messages) = Messages::new(2, n, &device) else {
        return;
    };
    let values = Tensor::<1>::random([n], Distribution::Default, (&device, DType::F32));
    let work = |numbers: usize| Work {
        bytes: 4.0 * numbers as f64,
        flops: 0.0,
    };
    let shape = format!("[{n}]");
    messages.write(0, 0, &values);
    let error = distance(messages.message(0).clone(), values.clone());
    bench.time(
        ("exchange write", shape.clone()),
        work(2 * n),
        error,
        |_| {
            messages.write(0, 0, &values);
        },
    );
    messages.write(1, 0, &values);
    messages.add(1, 0);
    let error = distance(messages.message(1).clone(), values.clone() * 2.0);
    bench.time(("exchange add", shape.clone()), work(3 * n), error, |_| {
        messages.add(1, 0);
    });
    let pairs = [[0, 1], [2, 3], [0, 2], [4, 5], [6, 7], [4, 6], [0, 4]];
    let rows: Tensor<2> = values.clone().reshape([8, n / 8]);
    let [sum, expected] = [
        exchange::add_rows(&rows, &pairs),
        exchange::reference::add_rows(&rows, &pairs),
    ];
    let error = distance(sum, expected);
    let of_rows = format!("[8, {}]", n / 8);
    bench.time(
        ("exchange add rows", of_rows),
        work(n / 8 * 9),
        error,
        |_| exchange::add_rows(&rows, &pairs),
    );
    let host: Vec<f32> = values.clone().into_data().iter::<f32>().collect();
    let found = exchange::checksum(&values).ok().flatten();
    let error = f64::from(u8::from(
        found != Some(exchange::reference::checksum(&host)),
    ));
    bench.time(("exchange checksum", shape.clone()), work(n), error, |_| {
        exchange::checksum(&values)
    });
    let timeout = std::time::Duration::from_secs(60);
    let joined = exchange::unique_id().and_then(|id| Group::join(&device, &id, (0, 1), timeout));
    let group = match joined {
        Ok(group) => group,
        Err(error) => {
            println!("no exchange through NCCL: {error}");
            return;
        }
    };
    let alone = GroupSum::new(group, (vec![1], Vec::new()), n, &device);
    messages.write(0, 0, &values);
    let sum = alone.sum(vec![messages.message(0).clone()]);
    let error = distance(sum, values);
    bench.time(("exchange NCCL, alone", shape), work(4 * n), error, |_| {
        alone.sum(vec![messages.message(0).clone()])
    });
}

fn products(bench: &mut Bench, s: &Sizes) {
    let (t, h, m) = (s.tokens, s.hidden, s.intermediate);
    let large = [
        (t, h, h),
        (t, h, m),
        (t, m, h),
        (t, h, s.kv),
        (1024.min(t), h, s.vocabulary),
    ];
    for (rows, from, to) in large {
        product(bench, "gemm nt", [rows, to, from], (Op::N, Op::T), false);
        product(bench, "gemm nn", [rows, from, to], (Op::N, Op::N), false);
    }
    for (from, to) in [(h, h), (h, m), (m, h)] {
        product(
            bench,
            "gemm nt x·Aᵀ",
            [t, s.rank, from],
            (Op::N, Op::T),
            false,
        );
        product(
            bench,
            "gemm nt += xa·Bᵀ",
            [t, to, s.rank],
            (Op::N, Op::T),
            true,
        );
        product(
            bench,
            "gemm tn dyᵀ·xa",
            [to, s.rank, t],
            (Op::T, Op::N),
            false,
        );
    }
}

fn product(bench: &mut Bench, op: &str, [m, n, k]: [usize; 3], ops: (Op, Op), add: bool) {
    if !bench.wants(op) {
        return;
    }
    let orient = |op, [rows, columns]: [usize; 2]| match op {
        Op::N => [rows, columns],
        Op::T => [columns, rows],
    };
    let a = bench.sets(orient(ops.0, [m, k]));
    let b = bench.sets(orient(ops.1, [k, n]));
    let c = bench.random([m, n]);
    let y = gemm::gemm((ops.0, &a[0]), (ops.1, &b[0]), 1.0, add.then(|| c.clone()));
    let error = product_error((ops.0, &a[0]), (ops.1, &b[0]), add.then_some(&c), &y);
    drop(y);
    let passes = if add { 2.0 } else { 1.0 };
    let work = Work {
        bytes: bench.size() * ((m * k + k * n) as f64 + passes * (m * n) as f64),
        flops: 2.0 * (m * n) as f64 * k as f64,
    };
    let mut sum = Some(c);
    bench.time((op, format!("{m}×{k}×{n}")), work, error, |i| {
        let (a, b) = ((ops.0, &a[i]), (ops.1, &b[i]));
        if add {
            sum = sum.take().map(|c| gemm::gemm(a, b, 1e-3, Some(c)));
            return None;
        }
        Some(gemm::gemm(a, b, 1.0, None))
    });
}

/// Three rows of the product, in f64 on the host.
fn product_error(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    c: Option<&Tensor<2>>,
    y: &Tensor<2>,
) -> f64 {
    let [m, n] = y.dims();
    let b_dims = b.dims();
    let b = host(b.clone());
    let (mut actual, mut expected) = (Vec::new(), Vec::new());
    for row in [0, m / 2, m - 1] {
        let picked = match op_a {
            Op::N => a.clone().slice([row..row + 1, 0..a.dims()[1]]),
            Op::T => a.clone().slice([0..a.dims()[0], row..row + 1]),
        };
        let x = host(picked);
        let mut sums = match c {
            Some(c) => host(c.clone().slice([row..row + 1, 0..n])),
            None => vec![0.0; n],
        }
        .into_iter()
        .map(f64::from)
        .collect::<Vec<_>>();
        match op_b {
            Op::N => {
                for (x, b) in x.iter().zip(b.chunks(b_dims[1])) {
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum += f64::from(*x) * f64::from(*b);
                    }
                }
            }
            Op::T => {
                for (sum, b) in sums.iter_mut().zip(b.chunks(b_dims[1])) {
                    let terms = x.iter().zip(b).map(|(x, b)| f64::from(*x) * f64::from(*b));
                    *sum += terms.sum::<f64>();
                }
            }
        }
        expected.extend(sums.into_iter().map(|sum| sum as f32));
        actual.extend(host(y.clone().slice([row..row + 1, 0..n])));
    }
    relative(&actual, &expected)
}

fn host(x: Tensor<2>) -> Vec<f32> {
    let data = x.into_data().convert_dtype(DType::F32);
    data.iter::<f32>().collect()
}

fn f32(x: &Tensor<2>) -> Tensor<2> {
    x.clone().cast(DType::F32)
}

fn norm(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("rms_norm") {
        return;
    }
    let shape = [s.tokens, s.hidden];
    let (x, dy) = (bench.sets(shape), bench.sets(shape));
    let w = bench.random([s.hidden]);
    let (y, rstd) = rms_norm::forward(&x[0], &w, 1e-5);
    let w32 = w.clone().cast(DType::F32);
    let (expected, rstd32) = rms_norm::reference::forward(&f32(&x[0]), &w32, 1e-5);
    let bytes = bench.size() * (shape[0] * shape[1]) as f64;
    let work = |passes| Work {
        bytes: passes * bytes,
        ..Work::default()
    };
    bench.time(
        ("rms_norm", format!("{shape:?}")),
        work(2.0),
        distance(y, expected),
        |i| rms_norm::forward(&x[i], &w, 1e-5),
    );
    let dx = rms_norm::backward(&dy[0], &x[0], &w, &rstd);
    let expected = rms_norm::reference::backward(&f32(&dy[0]), &f32(&x[0]), &w32, &rstd32);
    bench.time(
        ("rms_norm backward", format!("{shape:?}")),
        work(3.0),
        distance(dx, expected),
        |i| rms_norm::backward(&dy[i], &x[i], &w, &rstd),
    );
}

fn rotary(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("rope") {
        return;
    }
    let angles = bench.random_f32([s.tokens, s.head_dim / 2]).mul_scalar(3.0);
    let tables = RotaryTables::new(angles.clone().cos(), angles.sin());
    for width in [s.hidden, s.kv] {
        let shape = [s.tokens, width];
        let x = bench.sets(shape);
        let y = rope::forward(x[0].clone(), &tables);
        let expected = rope::reference::rotate(f32(&x[0]), &tables, 1.0);
        let error = distance(y, expected);
        let work = Work {
            bytes: 2.0 * bench.size() * (shape[0] * shape[1]) as f64,
            ..Work::default()
        };
        // In place, as in a step.
        let mut x: Vec<_> = x.into_iter().map(Some).collect();
        bench.time(("rope", format!("{shape:?}")), work, error, |i| {
            x[i] = x[i].take().map(|x| rope::forward(x, &tables));
        });
    }
    let shapes = [[s.tokens, s.hidden], [s.tokens, s.kv]];
    let (q, k) = (bench.sets(shapes[0]), bench.sets(shapes[1]));
    let (y_q, y_k) = rope::forward_both(q[0].clone(), k[0].clone(), &tables);
    let error = [(y_q, &q[0]), (y_k, &k[0])].map(|(y, x)| {
        let expected = rope::reference::rotate(f32(x), &tables, 1.0);
        distance(y, expected)
    });
    let work = Work {
        bytes: 2.0 * bench.size() * (s.tokens * (s.hidden + s.kv)) as f64,
        ..Work::default()
    };
    let mut sets: Vec<_> = q.into_iter().zip(k).map(Some).collect();
    let name = format!("{} × {} and {}", s.tokens, s.hidden, s.kv);
    bench.time(("rope both", name), work, error[0].max(error[1]), |i| {
        sets[i] = sets[i]
            .take()
            .map(|(q, k)| rope::forward_both(q, k, &tables));
    });
}

fn gated(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("swiglu") {
        return;
    }
    let shape = [s.tokens, s.intermediate];
    let (gate, up, dy) = (bench.sets(shape), bench.sets(shape), bench.sets(shape));
    let bytes = bench.size() * (shape[0] * shape[1]) as f64;
    let work = |passes| Work {
        bytes: passes * bytes,
        ..Work::default()
    };
    let y = swiglu::forward(&gate[0], &up[0], SILU);
    let expected = swiglu::reference::forward(&f32(&gate[0]), &f32(&up[0]), SILU);
    bench.time(
        ("swiglu", format!("{shape:?}")),
        work(3.0),
        distance(y, expected),
        |i| swiglu::forward(&gate[i], &up[i], SILU),
    );
    let run =
        |i: usize| swiglu::backward(dy[i].clone(), gate[i].clone(), up[i].clone(), SILU, true);
    let d = run(0);
    let expected =
        swiglu::reference::backward(&f32(&dy[0]), &f32(&gate[0]), &f32(&up[0]), SILU, false);
    let error = distance(d.gate, expected.gate).max(distance(d.up, expected.up));
    let named = ("swiglu backward and product", format!("{shape:?}"));
    bench.time(named, work(6.0), error, run);

    let term = term(bench, shape, s.rank);
    let adapted = |base: &Tensor<2>| Adapted {
        base: base.clone(),
        term: Some(term.clone()),
    };
    let [g, u] = [&gate[0], &up[0]].map(|x| term.add_to(x.clone()));
    let y = swiglu::forward(&g, &u, SILU);
    let [found_g, found_u, found_y] =
        swiglu::forward_adapted(adapted(&gate[0]), adapted(&up[0]), SILU);
    let error = distance(found_g, f32(&g))
        .max(distance(found_u, f32(&u)))
        .max(distance(found_y, f32(&y)));
    bench.time(
        ("swiglu of adapters", format!("{shape:?}")),
        work(5.0),
        error,
        |i| swiglu::forward_adapted(adapted(&gate[i]), adapted(&up[i]), SILU),
    );
    let expected = swiglu::reference::backward(
        &f32(&term.add_to(dy[0].clone())),
        &f32(&gate[0]),
        &f32(&up[0]),
        SILU,
        false,
    );
    let run = |i: usize| {
        swiglu::backward_adapted(adapted(&dy[i]), gate[i].clone(), up[i].clone(), SILU, true)
    };
    let d = run(0);
    let error = distance(d.gate, expected.gate).max(distance(d.up, expected.up));
    let named = (
        "swiglu of adapters, backward and product",
        format!("{shape:?}"),
    );
    bench.time(named, work(6.0), error, run);
}

/// What an adapter adds to something of `shape`.
fn term(bench: &Bench, shape: [usize; 2], rank: usize) -> LowRank {
    LowRank {
        left: bench.random([shape[0], rank]),
        right: bench.random([shape[1], rank]),
        scaling: 0.02,
    }
}

/// What an adapter adds, in a pass of its own.
fn low_rank(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("low_rank") {
        return;
    }
    for (columns, rank) in [
        (s.hidden, s.rank),
        (s.hidden, 3 * s.rank),
        (s.intermediate, s.rank),
    ] {
        let shape = [s.tokens, columns];
        let (y, term) = (bench.sets(shape), term(bench, shape, rank));
        let work = Work {
            bytes: 2.0 * bench.size() * (shape[0] * shape[1]) as f64,
            ..Work::default()
        };
        let expected = f32(&term.left)
            .matmul(f32(&term.right).transpose())
            .mul_scalar(term.scaling)
            + f32(&y[0]);
        let error = distance(term.add_to(y[0].clone()), expected);
        let name = format!("{shape:?} rank {rank}");
        bench.time(("low_rank", name), work, error, |i| {
            term.add_to(y[i].clone())
        });
    }
}

/// Attention at the shapes of 8B and 1B, and at one long document.
fn heads(bench: &mut Bench, small: bool) {
    if !bench.wants("attention") {
        return;
    }
    let shapes: &[[usize; 5]] = if small {
        &[
            [2, 64, 4, 2, 64],
            [1, 128, 4, 2, 128],
            [1, 100, 2, 2, 96],
            [1, 100, 4, 2, 256],
        ]
    } else {
        // The last two are heads of Gemma 3 12B.
        &[
            [2, 2048, 32, 8, 128],
            [1, 8192, 32, 8, 128],
            [2, 2048, 32, 8, 64],
            [2, 2048, 16, 8, 256],
            [1, 8192, 16, 8, 256],
        ]
    };
    for &shape in shapes {
        head(bench, shape);
    }
}

/// Attention of one shape, on each path that tensor cores have for it.
fn head(bench: &mut Bench, [documents, length, heads, kv_heads, head_dim]: [usize; 5]) {
    let layout = HeadLayout::new(heads, kv_heads, head_dim);
    let segments = Segments::rectangular(documents, length);
    let t = documents * length;
    let [q, d_out] = [(); 2].map(|()| bench.sets([t, heads * head_dim]));
    let [k, v] = [(); 2].map(|()| bench.sets([t, kv_heads * head_dim]));
    let qkv = |i: usize| Qkv {
        q: q[i].clone(),
        k: k[i].clone(),
        v: v[i].clone(),
    };
    let exact = Qkv {
        q: f32(&q[0]),
        k: f32(&k[0]),
        v: f32(&v[0]),
    };
    let (expected, expected_lse) = attention::forward(&exact, &segments, layout);
    let theirs = attention::backward(
        &f32(&d_out[0]),
        &exact,
        (&expected, &expected_lse),
        &segments,
        layout,
    );
    // Half of the pairs are masked.
    let pairs = (documents * length * length * heads * head_dim) as f64;
    let name = format!("{documents}×{length} h {heads}/{kv_heads} d {head_dim}");
    let work = |products: f64| Work {
        flops: products * pairs,
        ..Work::default()
    };
    let mut measured = false;
    for path in Path::ALL {
        // The general kernel is measured where there is no other.
        if path == Path::Scalar && measured {
            continue;
        }
        let Some((out, lse)) = attention::forward_by(path, &qkv(0), &segments, layout) else {
            continue;
        };
        measured = true;
        let error = distance(out.clone(), expected.clone())
            .max(distance(lse.clone(), expected_lse.clone()));
        let op = format!("attention {}", path.name());
        bench.time((&op, name.clone()), work(2.0), error, |i| {
            attention::forward_by(path, &qkv(i), &segments, layout)
        });
        let saved = (&out, &lse);
        let backward =
            |i: usize| attention::backward_by(path, &d_out[i], &qkv(i), saved, &segments, layout);
        let error = backward(0).map_or(f64::INFINITY, |ours| {
            distance(ours.q, theirs.q.clone())
                .max(distance(ours.k, theirs.k.clone()))
                .max(distance(ours.v, theirs.v.clone()))
        });
        let op = format!("{op} backward");
        bench.time((&op, name.clone()), work(5.0), error, backward);
    }
}

/// Tokens over which plain tensors, one token after the other, are compared with.
const CHECKED: usize = 130;
/// Taps of a convolution.
const TAPS: usize = 4;

/// Heads of a DeltaNet: Qwen 3.5's.
const fn delta_heads(small: bool) -> DeltaLayout {
    let (key_heads, value_heads, dim) = if small { (2, 4, 16) } else { (16, 32, 128) };
    DeltaLayout {
        key_heads,
        value_heads,
        key_dim: dim,
        value_dim: dim,
    }
}

/// Operands of the delta rule, with heads that forget slowly.
fn delta_operands(bench: &Bench, t: usize, layout: DeltaLayout) -> Vec<Operands> {
    let gate = || bench.random_f32([t, layout.value_heads]);
    let operands = |qkv| Operands {
        qkv,
        beta: sigmoid(gate()),
        decay: sigmoid(gate()).mul_scalar(-0.1),
    };
    let sets = bench.sets([t, layout.width()]);
    sets.into_iter().map(operands).collect()
}

/// The first tokens, in f32.
fn first_operands(x: &Operands, rows: usize) -> Operands {
    let first = |x: &Tensor<2>| f32(&x.clone().narrow(0, 0, rows));
    Operands {
        qkv: first(&x.qkv),
        beta: first(&x.beta),
        decay: first(&x.decay),
    }
}

/// A DeltaNet's rule and its convolution.
fn deltas(bench: &mut Bench, small: bool) {
    if !bench.wants("gated_delta") && !bench.wants("causal_conv") {
        return;
    }
    let layout = delta_heads(small);
    let shapes = if small {
        [(2, 100), (1, 300)]
    } else {
        [(2, 2048), (1, 8192)]
    };
    for (documents, length) in shapes {
        let (t, segments) = (documents * length, Segments::rectangular(documents, length));
        let x = delta_operands(bench, t, layout);
        let d_out = bench.sets([t, layout.value_width()]);
        let checked = CHECKED.min(length);
        let exact = first_operands(&x[0], checked);
        let alone = Segments::rectangular(1, checked);
        let first = |x: Tensor<2>| x.narrow(0, 0, checked);
        let name = format!(
            "{documents}×{length} h {}/{} d {}",
            layout.key_heads, layout.value_heads, layout.key_dim
        );
        // Products with the state and within a chunk of 64 tokens, as the plan counts them.
        let (key, value) = (layout.key_dim as f64, layout.value_dim as f64);
        let of_token = 6.0 * key * value + 64.0 * (4.0 * key + 3.0 * value);
        let work = |passes: f64| Work {
            flops: passes * (t * layout.value_heads) as f64 * of_token,
            ..Work::default()
        };
        if bench.wants("gated_delta") {
            let out = gated_delta::forward(&x[0], &segments, layout);
            let expected = gated_delta::reference::forward(&exact, &alone, layout);
            let error = distance(first(out), expected);
            bench.time(("gated_delta", name.clone()), work(1.0), error, |i| {
                gated_delta::forward(&x[i], &segments, layout)
            });
        }
        if bench.wants("gated_delta backward") {
            // Those of a document that ends where the check does.
            let cut = |x: &Operands| Operands {
                qkv: first(x.qkv.clone()),
                beta: first(x.beta.clone()),
                decay: first(x.decay.clone()),
            };
            let d = first(d_out[0].clone());
            let found = gated_delta::backward(&d, &cut(&x[0]), &alone, layout);
            let expected = gated_delta::reference::backward(&f32(&d), &exact, &alone, layout);
            let error = distance(found.qkv, expected.qkv)
                .max(distance(found.beta, expected.beta))
                .max(distance(found.decay, expected.decay));
            let name = ("gated_delta backward", name.clone());
            bench.time(name, work(4.0), error, |i| {
                gated_delta::backward(&d_out[i], &x[i], &segments, layout)
            });
        }
        convolutions(bench, &x, &segments);
    }
}

fn convolutions(bench: &mut Bench, x: &[Operands], segments: &Segments) {
    if !bench.wants("causal_conv") {
        return;
    }
    let [t, features] = x[0].qkv.dims();
    let weight = bench.random([features * TAPS]);
    let (exact, exact_weight) = (f32(&x[0].qkv), weight.clone().cast(DType::F32));
    let dy = bench.sets([t, features]);
    let name = format!("{:?} in {}", [t, features], segments.len());
    let work = |passes: f64| Work {
        bytes: passes * bench.size() * (t * features) as f64,
        ..Work::default()
    };
    let (forward, backward) = (work(2.0), work(3.0));
    let y = causal_conv::forward(&x[0].qkv, &weight, segments);
    let expected = causal_conv::reference::forward(&exact, &exact_weight, segments);
    let error = distance(y, expected);
    bench.time(("causal_conv", name.clone()), forward, error, |i| {
        causal_conv::forward(&x[i].qkv, &weight, segments)
    });
    let dx = causal_conv::backward(dy[0].clone(), &x[0].qkv, &weight, segments);
    let (expected, _) =
        causal_conv::reference::backward(&f32(&dy[0]), &exact, &exact_weight, segments);
    let error = distance(dx, expected);
    bench.time(("causal_conv backward", name), backward, error, |i| {
        causal_conv::backward(dy[i].clone(), &x[i].qkv, &weight, segments)
    });
}

/// A token each of sequences that go on.
fn decoding(bench: &mut Bench, small: bool) {
    if !bench.wants("gated_delta of a token") {
        return;
    }
    let layout = delta_heads(small);
    let shape = [layout.value_heads * layout.key_dim, layout.value_dim];
    for sequences in [1, 16] {
        let x = delta_operands(bench, sequences, layout);
        let segments = Segments::rectangular(sequences, 1);
        let start: Vec<_> = (0..sequences).map(|_| bench.random_f32(shape)).collect();
        let exact = first_operands(&x[0], sequences);
        let (out, _) = gated_delta::forward_continuing(&x[0], &segments, layout, start.clone());
        let (expected, _) =
            gated_delta::reference::forward_from(&exact, &segments, layout, start.clone());
        let error = distance(out, expected);
        let work = Work {
            bytes: 8.0 * (sequences * layout.state()) as f64,
            ..Work::default()
        };
        let mut states = Some(start);
        let name = ("gated_delta of a token", format!("{sequences} sequences"));
        bench.time(name, work, error, |i| {
            let before = states.take().unwrap_or_default();
            let (out, left) = gated_delta::forward_continuing(&x[i], &segments, layout, before);
            states = Some(left);
            out
        });
    }
}

const BLOCK: usize = 64;

fn codes(bench: &mut Bench, s: &Sizes) {
    let formats = [
        "nf3", "nf5", "nf6", "int8", "double", "q8_0", "q4_k", "q6_k",
    ];
    if !formats
        .iter()
        .any(|format| bench.wants(&format!("dequantize {format}")))
    {
        return;
    }
    for dims in [
        [s.intermediate, s.hidden],
        [s.hidden, s.hidden],
        [s.kv, s.hidden],
    ] {
        let values = dims[0] * dims[1];
        let source: Vec<f32> = (0..values)
            .map(|i| (i as f32 * 0.618_034).fract() - 0.5)
            .collect();
        let blocks = four_bit(&source, FourBitFormat::Nf4, BLOCK);
        for (name, double) in [("dequantize", false), ("dequantize double", true)] {
            let matrix = |device: &Device| matrix(dims, &blocks, double, device);
            dequantizing(
                bench,
                name,
                matrix,
                FourBit::num_bytes,
                FourBit::dequantize_as,
            );
        }
        for (name, format) in [
            ("dequantize nf3", NestedFormat::Nf3),
            ("dequantize nf5", NestedFormat::Nf5),
            ("dequantize nf6", NestedFormat::Nf6),
        ] {
            let matrix = nested_matrix(dims, &source, format);
            dequantizing(
                bench,
                name,
                matrix,
                Nested::num_bytes,
                Nested::dequantize_as,
            );
        }
        let (numbers, absmax) = int8_rows(&source, dims[1]);
        let matrix = |device: &Device| {
            Int8Rows::from_parts(dims, numbers.clone(), absmax.clone(), device)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let name = "dequantize int8";
        dequantizing(
            bench,
            name,
            matrix,
            Int8Rows::num_bytes,
            Int8Rows::dequantize_as,
        );
        for (name, kind) in [
            ("dequantize q8_0", GgufBlock::Q8_0),
            ("dequantize q4_k", GgufBlock::Q4_K),
            ("dequantize q6_k", GgufBlock::Q6_K),
        ] {
            if dims[1].is_multiple_of(kind.values()) {
                let (bytes, values) = (GgufBlocks::num_bytes, GgufBlocks::dequantize_as);
                dequantizing(bench, name, gguf_matrix(dims, kind), bytes, values);
            }
        }
    }
}

/// Blocks of a file whose numbers in half precision are 2⁻¹⁰, and codes anything.
fn gguf_matrix(dims: [usize; 2], kind: GgufBlock) -> impl Fn(&Device) -> GgufBlocks {
    let blocks = dims[0] * dims[1] / kind.values();
    let mut bytes: Vec<u8> = (0..blocks * kind.bytes())
        .map(|i| ((i * 167) >> 3) as u8)
        .collect();
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for &at in kind.halves() {
            block[at..at + 2].copy_from_slice(&[0, 0x14]);
        }
    }
    move |device| {
        GgufBlocks::from_parts(kind, dims, bytes.clone(), device)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A matrix of codes to values in the type of activations.
fn dequantizing<M>(
    bench: &mut Bench,
    name: &'static str,
    matrix: impl Fn(&Device) -> M,
    num_bytes: impl Fn(&M) -> usize,
    dequantize: impl Fn(&M, DType) -> Tensor<2>,
) {
    if !bench.wants(name) {
        return;
    }
    let expected = dequantize(&matrix(&Device::flex()), DType::F32);
    let dims = expected.dims();
    let expected = host(expected);
    let sets: Vec<M> = (0..SETS).map(|_| matrix(&bench.device)).collect();
    let dtype = bench.dtype;
    let call = |i: usize| Some(dequantize(&sets[i], dtype));
    let error = call(0).map_or(f64::INFINITY, |y| relative(&host(y), &expected));
    let work = Work {
        bytes: num_bytes(&sets[0]) as f64 + (dims[0] * dims[1]) as f64 * bench.size(),
        ..Work::default()
    };
    bench.time((name, format!("{dims:?}")), work, error, call);
}

/// Nested codes with double scales.
fn nested_matrix(
    dims: [usize; 2],
    source: &[f32],
    format: NestedFormat,
) -> impl Fn(&Device) -> Nested {
    let blocks = nested_codes(source, BLOCK);
    let planes = planes(&blocks.codes, format);
    let absmax = HostAbsmax::Double(nested(&blocks.absmax));
    move |device| {
        let (planes, absmax) = (planes.clone(), absmax.clone());
        Nested::from_parts(format, BLOCK, dims, planes, absmax, device)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

fn matrix(dims: [usize; 2], blocks: &PackedBlocks, double: bool, device: &Device) -> FourBit {
    let absmax = if double {
        HostAbsmax::Double(nested(&blocks.absmax))
    } else {
        HostAbsmax::Single(blocks.absmax.clone())
    };
    let packed = blocks.packed.clone();
    FourBit::from_parts(FourBitFormat::Nf4, BLOCK, dims, packed, absmax, device)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Products of generation, straight from codes.
fn few_rows(bench: &mut Bench, s: &Sizes) {
    let formats = ["nf3", "nf4 double", "nf5", "nf6", "q8_0", "q4_k", "q6_k"];
    if !formats
        .iter()
        .any(|format| bench.wants(&format!("gemv {format}")))
    {
        return;
    }
    for dims in [
        [s.intermediate, s.hidden],
        [s.hidden, s.intermediate],
        [s.hidden, s.hidden],
        [s.kv, s.hidden],
    ] {
        let [out, input] = dims;
        let source: Vec<f32> = (0..out * input)
            .map(|i| (i as f32 * 0.618_034).fract() - 0.5)
            .collect();
        let blocks = four_bit(&source, FourBitFormat::Nf4, BLOCK);
        for (name, double) in [("gemv nf4", false), ("gemv nf4 double", true)] {
            let matrix = |device: &Device| matrix(dims, &blocks, double, device);
            multiplying(bench, name, matrix, FourBit::num_bytes, FourBit::dequantize);
        }
        for (name, format) in [
            ("gemv nf3", NestedFormat::Nf3),
            ("gemv nf5", NestedFormat::Nf5),
            ("gemv nf6", NestedFormat::Nf6),
        ] {
            let matrix = nested_matrix(dims, &source, format);
            multiplying(bench, name, matrix, Nested::num_bytes, Nested::dequantize);
        }
        for (name, kind) in [
            ("gemv q8_0", GgufBlock::Q8_0),
            ("gemv q4_k", GgufBlock::Q4_K),
            ("gemv q6_k", GgufBlock::Q6_K),
        ] {
            if dims[1].is_multiple_of(kind.values()) {
                let (bytes, values) = (GgufBlocks::num_bytes, GgufBlocks::dequantize);
                multiplying(bench, name, gguf_matrix(dims, kind), bytes, values);
            }
        }
    }
}

/// Products of one to eight rows with codes as they are.
fn multiplying<M: FrozenMatrix>(
    bench: &mut Bench,
    name: &'static str,
    matrix: impl Fn(&Device) -> M,
    num_bytes: impl Fn(&M) -> usize,
    dequantize: impl Fn(&M) -> Tensor<2>,
) {
    if !bench.wants(name) {
        return;
    }
    let there = dequantize(&matrix(&Device::flex()));
    let [out, input] = there.dims();
    // More than a GPU's second-level cache holds.
    let count = 256_000_000_usize.div_ceil(out * input).clamp(SETS, 64);
    let sets: Vec<M> = (0..count).map(|_| matrix(&bench.device)).collect();
    for rows in [1, 2, 4, 8] {
        let x = bench.random([rows, input]);
        let on_host = Tensor::<2>::from_data(x.clone().into_data(), &Device::flex());
        let expected = gemm::nt(&f32(&on_host), &there);
        let error = distance(sets[0].matmul(&x), expected);
        let work = Work {
            bytes: num_bytes(&sets[0]) as f64 + (rows * (input + out)) as f64 * bench.size(),
            flops: 2.0 * (rows * out * input) as f64,
        };
        let mut turn = 0;
        let shape = format!("{rows} × [{out}, {input}]");
        bench.time((name, shape), work, error, |_| {
            turn += 1;
            sets[turn % count].matmul(&x)
        });
    }
}

fn loss(bench: &mut Bench, s: &Sizes) {
    let chunk = 1024.min(s.tokens);
    let targets: Vec<u32> = (0..s.tokens)
        .map(|i| (i * 7919 % s.vocabulary) as u32)
        .collect();
    if bench.wants("softmax_nll") {
        let shape = [chunk, s.vocabulary];
        let logits = bench.random(shape).mul_scalar(3.0);
        let targets = &targets[..chunk];
        let check = 16.min(chunk);
        let rows = logits.clone().slice([0..check, 0..s.vocabulary]);
        let weights: Tensor<1> = Tensor::full([chunk], 0.01, (&bench.device, DType::F32));
        let few = weights.clone().narrow(0, 0, check);
        let (nll, d) =
            cross_entropy::softmax_nll(rows.clone(), None, &targets[..check], Some(&few));
        let (expected_nll, expected_d) =
            cross_entropy::reference::softmax_nll(f32(&rows), None, &targets[..check], Some(&few));
        let error = distance(nll, expected_nll);
        let error = match d.zip(expected_d) {
            Some((d, expected)) => error.max(distance(d, expected)),
            None => f64::INFINITY,
        };
        let work = Work {
            bytes: 2.0 * bench.size() * (shape[0] * shape[1]) as f64,
            ..Work::default()
        };
        let mut logits = Some(logits);
        bench.time(("softmax_nll", format!("{shape:?}")), work, error, |_| {
            let taken = logits.take();
            if let Some(taken) = taken {
                logits = cross_entropy::softmax_nll(taken, None, targets, Some(&weights)).1;
            }
        });
    }
    if bench.wants("cross_entropy") {
        let hidden = bench.sets([s.tokens, s.hidden]);
        let head = bench
            .random([s.vocabulary, s.hidden])
            .mul_scalar((s.hidden as f32).powf(-0.5));
        let work = Work {
            flops: 4.0 * (s.tokens * s.hidden) as f64 * s.vocabulary as f64,
            ..Work::default()
        };
        let check = 8.min(s.tokens);
        let rows = hidden[0].clone().slice([0..check, 0..s.hidden]);
        let weights: Tensor<1> = Tensor::full([s.tokens], 1e-4, (&bench.device, DType::F32));
        let ones = Tensor::ones([check], (&bench.device, DType::F32));
        let ours = cross_entropy::forward(&rows, &head, None, &targets[..check], Some(&ones));
        let logits = gemm::nt(&f32(&rows), &f32(&head));
        let (nll, d) =
            cross_entropy::reference::softmax_nll(logits, None, &targets[..check], Some(&ones));
        let expected = d.map(|d| gemm::nn(&d, &f32(&head)));
        let error = match ours.d_hidden.zip(expected) {
            Some((d, expected)) => distance(d, expected).max(distance(ours.nll, nll)),
            None => f64::INFINITY,
        };
        let shape = format!("{}×{}×{}", s.tokens, s.hidden, s.vocabulary);
        bench.time(("cross_entropy", shape), work, error, |i| {
            cross_entropy::forward(&hidden[i], &head, None, &targets, Some(&weights))
        });
    }
}

/// Tensors of adapters on seven projections in 32 layers.
const ADAPTER_TENSORS: usize = 448;

fn optimizer(bench: &mut Bench, s: &Sizes) {
    if !bench.wants("adamw") {
        return;
    }
    let shape = [s.rank, s.hidden];
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let grad = bench.random_f32(shape);
    let start = bench.random_f32(shape);
    let zeros = Moments::zeros(&start);
    let (ours, _) = adamw::step(start.clone(), &grad, zeros.clone(), (1e-2, 1), &params);
    let (expected, _) = adamw::reference::step(start.clone(), &grad, zeros, (1e-2, 1), &params);
    let error = distance(ours - start.clone(), expected - start);
    let mut state: Vec<_> = (0..ADAPTER_TENSORS)
        .map(|_| {
            let param = bench.random_f32(shape);
            let moments = Moments::zeros(&param);
            Some((param, moments))
        })
        .collect();
    let work = Work {
        bytes: 28.0 * (ADAPTER_TENSORS * shape[0] * shape[1]) as f64,
        ..Work::default()
    };
    let name = format!("{ADAPTER_TENSORS} × {shape:?}");
    bench.time(("adamw f32", name), work, error, |_| {
        for slot in &mut state {
            *slot = slot
                .take()
                .map(|(param, moments)| adamw::step(param, &grad, moments, (1e-4, 2), &params));
        }
    });
}
