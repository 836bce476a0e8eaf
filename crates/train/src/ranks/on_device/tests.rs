#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use backdraft_arch::StatePrecision;
use backdraft_comm::{Alone, BlockSums, Launcher, Meeting, Server, Start, World};
use backdraft_formats::ModelSource;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::device;
use backdraft_kernels::gemm::Op;
use backdraft_lora::{LoraConfig, TargetModule};
use backdraft_model::CausalLm;
use burn::tensor::{Device, Tensor, TensorData};

use super::super::{AnswerNumbers, Beside, Blocks, Ranks, Sum};
use crate::objective::Objective;
use crate::optimizer::Optimizer;

/// Blocks of the step, of which one has no micro-batch.
const BLOCKS: usize = 5;
const EMPTY: usize = 2;

fn model(device: &Device) -> CausalLm {
    let tiny = "/../../tests/golden/tiny/llama-tied";
    let source = ModelSource::open(format!("{}{tiny}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let lora = LoraConfig {
        rank: 16,
        target_modules: vec![TargetModule::QProj, TargetModule::DownProj],
        ..LoraConfig::default()
    };
    let model = CausalLm::load(&source, device).unwrap();
    model.with_lora(&lora, 3).unwrap()
}

/// Numbers of very different sizes, so that sums depend on their order.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u32 + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / 1e9 - 2.1).powi(9) as f32
    };
    (0..count).map(next).collect()
}

/// A step of some blocks on a device: what each block of this process came to, and what the step did.
struct Done {
    blocks: Vec<(usize, Vec<f32>)>,
    sum: Vec<f32>,
}

fn step(device: &Device, ranks: Ranks) -> Done {
    let mut model = model(device);
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
    };
    let mut optimizer = Optimizer::adamw(params, StatePrecision::F32);
    optimizer.adopt(&mut model);
    let blocks = Blocks::new(BLOCKS, ranks).of(&optimizer, device);
    let beside = Beside {
        penalizes: true,
        answers: AnswerNumbers::new(Objective::NextToken, Vec::new()),
    };
    let buffers = || -> Vec<f32> {
        let buffers = optimizer.gradient_buffers().unwrap().into_iter();
        buffers
            .flat_map(|buffer| buffer.into_data().iter::<f32>().collect::<Vec<_>>())
            .collect()
    };
    let seen = Mutex::new(Vec::new());
    let compute = |micro_batches: &[usize]| {
        let mut grads = optimizer.grads();
        let Some(&block) = micro_batches.first() else {
            let zeroes = vec![0.0; buffers().len() + 2];
            seen.lock().unwrap().push((EMPTY, zeroes));
            return Ok::<_, Infallible>(Sum {
                grads,
                nll: None,
                penalized: None,
                answers: Vec::new(),
            });
        };
        for (i, (_, param)) in model.trained_params().enumerate() {
            let [rows, columns] = param.matrix_dims();
            let of = |count, shape: [usize; 2], seed| {
                let data = TensorData::new(numbers(count, seed), shape);
                Tensor::<2>::from_data(data, device)
            };
            let left = of(rows, [rows, 1], 7 * i + block);
            let right = of(columns, [1, columns], 5 * i + 31 * block);
            grads.add_product(param.id, (Op::N, &left), (Op::N, &right), 1.0);
        }
        let number = |seed| Tensor::<1>::from_data(&numbers(1, seed)[..], device);
        let (nll, penalized) = (number(block), number(block + 40));
        let mut all = buffers();
        all.extend([&nll, &penalized].map(|one| one.clone().into_scalar::<f32>()));
        seen.lock().unwrap().push((block, all));
        Ok(Sum {
            grads,
            nll: Some(nll),
            penalized: Some(penalized),
            answers: Vec::new(),
        })
    };
    let mine = |block| if block == EMPTY { vec![] } else { vec![block] };
    let mine: Vec<Vec<usize>> = blocks.range().map(mine).collect();
    let Ok(sum) = blocks.sum(&model, (&mine, &beside), compute);
    let sum = sum.unwrap();
    assert_eq!(sum.grads.len(), model.trained_params().count());
    let mut all = buffers();
    let told = [sum.nll, sum.penalized].map(Option::unwrap);
    all.extend(told.map(|one| one.into_scalar::<f32>()));
    Done {
        blocks: seen.into_inner().unwrap(),
        sum: all,
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn world(rank: usize, size: usize, port: u16) -> World {
    let meeting = Meeting {
        host: "127.0.0.1".to_owned(),
        port,
        kept: true,
    };
    let start = Start {
        launcher: Launcher::Variables,
        rank,
        size,
        local_rank: rank,
        meeting: Some(meeting),
        run: "backdraft/test/0".to_owned(),
    };
    World::join(&start, "here", Duration::from_secs(60)).unwrap()
}

/// Alone and by two and three processes, which exchange through the host: what the host adds up in the order of the tree.
#[test]
fn a_device_has_the_bits_of_the_host() {
    let devices = [("cuda", device::cuda(0)), ("wgpu", device::wgpu())];
    for (name, device) in devices {
        let device = match device {
            Ok(device) => device,
            Err(error) => {
                println!("nothing was added on {name}: {error}");
                continue;
            }
        };
        let alone = step(&device, Ranks::alone().unwrap());
        let length = alone.sum.len();
        let mut expected = BlockSums::new(0, 1, BLOCKS, length);
        for (block, (of, numbers)) in alone.blocks.iter().enumerate() {
            assert_eq!(block, *of);
            expected.push(numbers.clone());
        }
        let expected = bits(&expected.finish(&mut Alone).unwrap());
        assert!(bits(&alone.sum) == expected, "{name}, alone");
        for size in [2, 3] {
            let server = Server::listen("127.0.0.1", 0).unwrap();
            let (port, device) = (server.port(), &device);
            let of_rank = move |rank| {
                let world = world(rank, size, port);
                let engine = world.store_engine().unwrap();
                let ranks = Ranks::new(world, engine);
                let done = step(device, ranks.clone());
                ranks.leave().unwrap();
                done.sum
            };
            let sums: Vec<Vec<f32>> = thread::scope(|scope| {
                let ranks: Vec<_> = (0..size)
                    .map(|rank| scope.spawn(move || of_rank(rank)))
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            for (rank, sum) in sums.iter().enumerate() {
                assert!(bits(sum) == expected, "{name}, rank {rank} of {size}");
            }
        }
    }
}
