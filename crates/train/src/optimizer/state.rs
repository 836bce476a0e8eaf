//! What is kept of one factor between updates, and how checkpoints hold it.

use backdraft_formats::dtype::f32_bytes;
use backdraft_formats::{Dtype, FormatError, SafetensorsFile, TensorInfo};
use backdraft_kernels::adamw::{self, Moments};
use backdraft_kernels::adamw8bit::{
    self, BLOCK_SIZE, Guard, MIN_8BIT_SIZE, Moment8Bit, Moments8Bit,
};
use backdraft_kernels::optimizers::Matrices;
use backdraft_lora::AdapterParam;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::rule::Rule;
use super::{Rate, StatePrecision, StateTensor};

#[derive(Clone, Debug)]
pub(super) enum State {
    /// Row by row, as gradients are.
    F32(Box<Moments<1>>),
    Bits8(Box<Moments8Bit>),
    /// Of one matrix: [`StackedRule::names`](super::StackedRule) says what.
    Stacked(Vec<Matrices>),
}

impl State {
    pub(super) fn zeros(param: &AdapterParam, rule: Rule) -> Self {
        let values = || param.values.clone().inner();
        match rule {
            Rule::AdamW(_, StatePrecision::Bits8(_)) if param.len() >= MIN_8BIT_SIZE => {
                Self::Bits8(Box::new(Moments8Bit::zeros(&values())))
            }
            Rule::AdamW(..) => Self::F32(Box::new(Moments::zeros(&values()))),
            Rule::Stacked(rule) => {
                Self::Stacked(rule.zeros(1, param.matrix_dims(), &values().device()))
            }
        }
    }

    /// The next values of a factor `[rows, columns]`, row by row, and what is kept of it then.
    pub(super) fn step(
        self,
        (values, [rows, columns]): (Tensor<1>, [usize; 2]),
        grad: &Tensor<1>,
        at: (f64, u64),
        (rule, rate): (Rule, Rate),
    ) -> (Tensor<1>, Self) {
        match (self, rule) {
            (Self::F32(moments), Rule::AdamW(params, _)) => {
                let params = rate.params(&params);
                let (values, moments) = adamw::step(values, grad, *moments, at, &params);
                (values, Self::F32(Box::new(moments)))
            }
            (Self::Bits8(moments), Rule::AdamW(params, precision)) => {
                let guard = match precision {
                    StatePrecision::Bits8(guard) => guard,
                    StatePrecision::F32 => Guard::default(),
                };
                let params = rate.params(&params);
                let (values, moments) = adamw8bit::step(values, grad, *moments, at, &params, guard);
                (values, Self::Bits8(Box::new(moments)))
            }
            (Self::Stacked(kept), Rule::Stacked(rule)) => {
                let one = |x: Tensor<1>| x.reshape([1, rows, columns]);
                let grad = one(grad.clone());
                let (values, kept) = rule.at(rate).step(one(values), &grad, kept, at);
                (values.flatten(0, 2), Self::Stacked(kept))
            }
            (state, rule) => unreachable!("{state:?} is not of {rule:?}"),
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::F32(moments) => 8 * moments.m.shape().num_elements(),
            Self::Bits8(moments) => moments.num_bytes(),
            Self::Stacked(kept) => kept.iter().map(|x| 4 * x.shape().num_elements()).sum(),
        }
    }

    /// As a checkpoint has it, for the factor of that name.
    pub(super) fn tensors(&self, name: &str, param: &AdapterParam, rule: Rule) -> Vec<StateTensor> {
        let (m, v) = (format!("{name}.exp_avg"), format!("{name}.exp_avg_sq"));
        match (self, rule) {
            (Self::F32(moments), _) => vec![
                f32_tensor(m, &param.dims, &moments.m),
                f32_tensor(v, &param.dims, &moments.v),
            ],
            (Self::Bits8(moments), _) => [codes(&m, &moments.m), codes(&v, &moments.v)].concat(),
            (Self::Stacked(kept), Rule::Stacked(rule)) => {
                let named = rule.names().iter().zip(kept).map(|(of, kept)| {
                    let values = kept.clone().flatten(0, 2);
                    f32_tensor(format!("{name}.{of}"), &kept.dims()[1..], &values)
                });
                named.collect()
            }
            (Self::Stacked(_), rule) => unreachable!("nothing stacked is of {rule:?}"),
        }
    }

    pub(super) fn read(
        file: &SafetensorsFile,
        name: &str,
        param: &AdapterParam,
        rule: Rule,
    ) -> Result<Self, FormatError> {
        let device = param.values.clone().inner().device();
        if let Rule::Stacked(rule) = rule {
            let named = rule.names().iter().zip(rule.dims(param.matrix_dims()));
            let read = named.map(|(of, [rows, columns])| {
                let values = floats(file, &format!("{name}.{of}"), &[rows, columns])?;
                let data = TensorData::new(values, [1, rows, columns]);
                Ok(Tensor::from_data(data, (&device, DType::F32)))
            });
            return Ok(Self::Stacked(read.collect::<Result<_, FormatError>>()?));
        }
        let (m, v) = (format!("{name}.exp_avg"), format!("{name}.exp_avg_sq"));
        Ok(match Self::zeros(param, rule) {
            Self::F32(_) => {
                let read = |name: &str| -> Result<Tensor<1>, FormatError> {
                    let values = floats(file, name, &param.dims)?;
                    let data = TensorData::new(values, [param.len()]);
                    Ok(Tensor::from_data(data, &device))
                };
                Self::F32(Box::new(Moments {
                    m: read(&m)?,
                    v: read(&v)?,
                }))
            }
            Self::Bits8(_) => {
                let values = param.len();
                Self::Bits8(Box::new(Moments8Bit {
                    m: read_codes(file, &m, values, &device)?,
                    v: read_codes(file, &v, values, &device)?,
                }))
            }
            Self::Stacked(_) => unreachable!("read above"),
        })
    }
}

pub(super) fn f32_tensor(name: String, dims: &[usize], values: &Tensor<1>) -> StateTensor {
    let values: Vec<f32> = values.clone().into_data().iter::<f32>().collect();
    StateTensor {
        info: TensorInfo::new(name, Dtype::F32, dims),
        bytes: f32_bytes(&values),
    }
}

fn codes(name: &str, moment: &Moment8Bit) -> [StateTensor; 2] {
    let bytes: Vec<u8> = moment.codes.clone().into_data().iter::<u8>().collect();
    let codes = StateTensor {
        info: TensorInfo::new(name, Dtype::U8, [bytes.len()]),
        bytes,
    };
    let absmax = format!("{name}.absmax");
    [
        codes,
        f32_tensor(absmax, &moment.absmax.dims(), &moment.absmax),
    ]
}

fn read_codes(
    file: &SafetensorsFile,
    name: &str,
    values: usize,
    device: &Device,
) -> Result<Moment8Bit, FormatError> {
    check(file, name, Dtype::U8, &[values])?;
    let bytes = file.raw(name)?.bytes.into_owned();
    let blocks = values.div_ceil(BLOCK_SIZE);
    let absmax = floats(file, &format!("{name}.absmax"), &[blocks])?;
    let codes = TensorData::new(bytes, [values]);
    Ok(Moment8Bit {
        codes: Tensor::<1, Int>::from_data(codes, (device, DType::U8)),
        absmax: Tensor::from_data(TensorData::new(absmax, [blocks]), device),
    })
}

pub(super) fn floats(
    file: &SafetensorsFile,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, FormatError> {
    check(file, name, Dtype::F32, shape)?;
    file.read_f32(name)
}

fn check(
    file: &SafetensorsFile,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<(), FormatError> {
    let (path, tensor) = (file.path().to_owned(), name.to_owned());
    match file.info(name) {
        None => Err(FormatError::TensorMissing { path, tensor }),
        Some(info) if info.dtype != dtype => Err(FormatError::TensorDtype {
            path,
            tensor,
            expected: if dtype == Dtype::U8 { "U8" } else { "F32" },
            actual: info.dtype,
        }),
        Some(info) if info.shape != shape => Err(FormatError::TensorShape {
            path,
            tensor,
            expected: format!("{shape:?}"),
            actual: info.shape.clone(),
        }),
        Some(_) => Ok(()),
    }
}
