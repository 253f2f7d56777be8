//! The ops on an NVIDIA GPU, generic over `f32` and `bf16` weights and activations; everything else is `f32`.
//!
//! One file of `cu/` holds an op's kernels, the file of the same name here checks the lengths and launches them. Products go
//! through cuBLASLt or our own kernels (gemm/). Every op is queued on one stream and returns at once.

mod attention;
mod columns;
mod cross_entropy;
mod device;
mod embedding;
mod events;
mod failure;
mod gelu;
mod gemm;
mod graph;
mod images;
mod launch;
mod layernorm;
mod linear;
mod memory;
pub mod nccl;
mod nonfinite;
mod optim;
mod pinned;
mod probe;
mod profile;
mod rows;
mod tensor_map;
mod timing;
mod transfer;
mod work;

pub use device::{Device, OLDEST, OLDEST_DRIVER, count, driver_version, pci_bus_id};
pub use gemm::Tiles;
pub use images::{ARCHS, COMPILER, IMAGES, Image, Resources, resources};
pub use memory::{Memory, View, ViewMut};
pub use nccl::Nccl;
pub use probe::{DriverProbe, GpuProbe, KernelsProbe, LibraryProbe, Probe, Trouble, probe};
pub use profile::{KernelTime, OpTime, Work};
pub use transfer::{Mark, Pending};

use crate::backend::*;
use crate::error::check_len;
use crate::{Error, Result};
use bytemuck::Pod;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 32 bits, products without TF32: for parity.
    F32,
    /// bfloat16, accumulated in f32: for training.
    Bf16,
}

/// The type of weights and activations.
pub trait Element: Pod + Send + Sync {
    /// Which one.
    const KIND: Kind;
    /// Rounds.
    fn from_f32(x: f32) -> Self;
    /// Widens.
    fn to_f64(self) -> f64;
}

impl Element for f32 {
    const KIND: Kind = Kind::F32;
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Element for bf16 {
    const KIND: Kind = Kind::Bf16;
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

/// How a GPU is used. Graphs do not change results; algorithms may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The ops between [`Backend::begin_step`] and [`Backend::end_step`] become CUDA graphs.
    pub graph: bool,
    /// Products' algorithms are chosen by measurement, else by cuBLASLt's heuristic, which answers the same every time.
    pub measure: bool,
    /// Files that keep the algorithms between processes, so that a later run ends with the same bits: the first one that is
    /// there is read, all are written.
    pub choices: Vec<PathBuf>,
    /// Where our own kernels can do a product they do it with these tiles, faster or not: for tests and benchmarks.
    pub own: Option<Tiles>,
}

impl Default for Options {
    /// No graphs, algorithms by measurement.
    fn default() -> Self {
        Self { graph: false, measure: true, choices: Vec::new(), own: None }
    }
}

/// A GPU as a device of training.
pub struct Cuda<E> {
    device: Arc<Device>,
    transfer: transfer::Transfer,
    products: gemm::Products,
    spans: optim::Spans,
    kind: PhantomData<E>,
}

/// All parameters on a GPU.
pub struct Weights<E> {
    master: Memory<f32>,
    /// Rounded; none where elements are f32.
    rounded: Option<Memory<E>>,
}

impl<E: Element> Cuda<E> {
    /// A backend on an open GPU.
    ///
    /// # Errors
    /// cuBLASLt that is missing or does not start, a GPU without memory.
    pub fn new(device: Arc<Device>, options: Options) -> Result<Self> {
        let transfer = transfer::Transfer::new(&device, options.graph);
        let products = gemm::Products::new(&device, &options)?;
        Ok(Self { device, transfer, products, spans: optim::Spans::default(), kind: PhantomData })
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Copies within the GPU, in the order of the ops; the lengths must agree.
    ///
    /// # Errors
    /// Lengths that do not, and what the driver says.
    pub fn copy<T: Pod + Send + Sync>(&self, dst: ViewMut<'_, T>, src: View<'_, T>) -> Result<()> {
        check_len("copy", "src", src.len(), dst.len())?;
        let _op = self.device.op(|| work::copy(size_of::<T>() * dst.len()));
        self.device.copy(dst.ptr(), src.ptr(), size_of::<T>() * dst.len())
    }
}

impl<E: Element> Backend for Cuda<E> {
    const HOST: bool = false;
    type Elem = E;
    type Acc = f32;
    type Mem<T: Pod + Send + Sync> = Memory<T>;
    type Ref<'a, T: 'a + Send + Sync> = View<'a, T>;
    type Mut<'a, T: 'a + Send + Sync> = ViewMut<'a, T>;
    type Mark = Mark;
    type Pending = Pending;
    type Weights = Weights<E>;

    fn describe(&self) -> String {
        let (major, minor) = self.device.arch();
        let bits = match E::KIND {
            Kind::F32 => "f32",
            Kind::Bf16 => "bf16",
        };
        format!(
            "GPU {}, {}, compute capability {major}.{minor}, {bits}",
            self.device.ordinal(),
            self.device.name()
        )
    }

    fn remarks(&self, head_size: usize) -> Vec<String> {
        let path = attention::remark::<E>(head_size);
        path.into_iter().chain(self.products.notice()).collect()
    }

    fn memory(&self) -> Option<u64> {
        let used: u64 = self.device.usage().iter().map(|(_, bytes)| bytes).sum();
        self.device.memory().ok().map(|(free, _)| free as u64 + used)
    }

    fn elems(&self, what: &'static str, len: usize) -> Result<Memory<E>> {
        Memory::zeroed(&self.device, what, len)
    }
    fn zeros<T: Pod + Send + Sync>(&self, what: &'static str, len: usize) -> Result<Memory<T>> {
        Memory::zeroed(&self.device, what, len)
    }
    fn len<T: Pod + Send + Sync>(mem: &Memory<T>) -> usize {
        mem.len()
    }
    fn at<T: Pod + Send + Sync>(mem: &Memory<T>, range: Range<usize>) -> View<'_, T> {
        mem.view(range)
    }
    fn at_mut<T: Pod + Send + Sync>(mem: &mut Memory<T>, range: Range<usize>) -> ViewMut<'_, T> {
        mem.view_mut(range)
    }
    fn shorten<'short, 'long: 'short, T: 'long + Send + Sync>(r: View<'long, T>) -> View<'short, T> {
        r.shorten()
    }
    fn upload<T: Pod + Send + Sync>(&self, dst: ViewMut<'_, T>, src: &[T]) -> Result<()> {
        check_len("upload", "src", src.len(), dst.len())?;
        self.device.upload(dst.ptr(), bytemuck::cast_slice(src))
    }
    fn download<T: Pod + Send + Sync>(&self, src: View<'_, T>, dst: &mut [T]) -> Result<()> {
        check_len("download", "dst", dst.len(), src.len())?;
        self.device.download(bytemuck::cast_slice_mut(dst), src.ptr())
    }
    fn download_elems(&self, src: View<'_, E>, dst: &mut [f64]) -> Result<()> {
        check_len("download_elems", "dst", dst.len(), src.len())?;
        let mut host = vec![E::zeroed(); dst.len()];
        self.device.download(bytemuck::cast_slice_mut(&mut host), src.ptr())?;
        dst.iter_mut().zip(host).for_each(|(dst, src)| *dst = src.to_f64());
        Ok(())
    }
    fn mark(&self) -> Result<Mark> {
        self.transfer.mark()
    }
    fn wait(&self, mark: &Mark) -> Result<()> {
        self.transfer.wait(mark)
    }
    fn upload_beside(&self, dst: ViewMut<'_, u32>, src: &[u32], after: &Mark) -> Result<Mark> {
        self.transfer.upload_beside(dst, src, after)
    }
    fn read_later(&self, parts: &[View<'_, f32>]) -> Result<Pending> {
        self.transfer.read_later(parts)
    }
    fn read(&self, pending: Pending) -> Result<Vec<f32>> {
        self.transfer.read(pending)
    }
    fn begin_step(&self) -> Result<()> {
        self.transfer.begin_step()
    }
    fn end_step(&self) -> Result<()> {
        self.transfer.end_step()
    }
    fn clear<T: Pod + Send + Sync>(&self, dst: ViewMut<'_, T>) -> Result<()> {
        let _op = self.device.op(|| work::clear(size_of::<T>() * dst.len()));
        self.device.fill(dst.ptr(), 0, dst.len() * size_of::<T>())
    }

    fn weights(&self, len: usize) -> Result<Weights<E>> {
        let master = Memory::zeroed(&self.device, "master weights", len)?;
        let rounded = match E::KIND {
            Kind::F32 => None,
            Kind::Bf16 => Some(Memory::zeroed(&self.device, "weights", len)?),
        };
        Ok(Weights { master, rounded })
    }
    fn weight(weights: &Weights<E>, range: Range<usize>) -> View<'_, E> {
        match &weights.rounded {
            Some(rounded) => rounded.view(range),
            None => weights.master.view(range).cast(),
        }
    }
    fn master(weights: &Weights<E>, range: Range<usize>) -> View<'_, f32> {
        weights.master.view(range)
    }
    fn upload_weights(&self, weights: &mut Weights<E>, at: usize, src: &[f32]) -> Result<()> {
        let have = weights.master.len();
        let end = at.saturating_add(src.len());
        if end > have {
            let what = format!("{} elements at {at} reach beyond the table of {have}", src.len());
            return Err(Error::Unsupported { op: "upload_weights", what });
        }
        self.upload(weights.master.view_mut(at..end), src)?;
        if let Some(rounded) = &mut weights.rounded {
            let src: Vec<E> = src.iter().map(|&w| E::from_f32(w)).collect();
            self.upload(rounded.view_mut(at..end), &src)?;
        }
        Ok(())
    }

    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::embedding_forward(&args));
        embedding::forward(&self.device, args)
    }
    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::embedding_backward(&args));
        embedding::backward(&self.device, args)
    }
    fn layernorm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::layernorm_forward(&args));
        layernorm::forward(&self.device, args)
    }
    fn layernorm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::layernorm_backward(&args));
        layernorm::backward(&self.device, args)
    }
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::linear_forward(&args));
        linear::forward(&self.products, args)
    }
    fn linear_gelu_forward(&self, args: LinearGeluForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::linear_gelu_forward(&args));
        linear::gelu_forward(&self.device, &self.products, args)
    }
    fn linear_gelu_dgrad(&self, args: LinearGeluDgrad<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::linear_gelu_dgrad(&args));
        linear::gelu_dgrad(&self.device, &self.products, args)
    }
    fn linear_dgrad(&self, args: LinearDgrad<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::linear_dgrad(&args));
        linear::dgrad(&self.products, args)
    }
    fn linear_wgrad(&self, args: LinearWgrad<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::linear_wgrad(&args));
        linear::wgrad(&self.products, args)
    }
    fn bias_grad(&self, args: BiasGrad<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::bias_grad(&args));
        rows::bias_grad(&self.device, args)
    }
    fn gelu_forward(&self, args: GeluForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::gelu_forward(&args));
        gelu::forward(&self.device, args)
    }
    fn gelu_backward(&self, args: GeluBackward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::gelu_backward(&args));
        gelu::backward(&self.device, args)
    }
    fn attention_forward(&self, args: AttentionForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::attention_forward(&args));
        attention::forward(&self.device, args)
    }
    fn attention_backward(&self, args: AttentionBackward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::attention_backward(&args));
        attention::backward(&self.device, args)
    }
    fn gather_rows(&self, args: GatherRows<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::gather_rows(&args));
        rows::gather(&self.device, args)
    }
    fn scatter_add_rows(&self, args: ScatterAddRows<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::scatter_add_rows(&args));
        rows::scatter_add(&self.device, args)
    }
    fn cross_entropy(&self, args: CrossEntropy<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::cross_entropy(&args));
        cross_entropy::cross_entropy(&self.device, args)
    }
    fn tanh_forward(&self, args: TanhForward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::tanh_forward(&args));
        gelu::tanh_forward(&self.device, args)
    }
    fn tanh_backward(&self, args: TanhBackward<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::tanh_backward(&args));
        gelu::tanh_backward(&self.device, args)
    }

    fn square_sums(&self, sums: ViewMut<'_, f64>, x: View<'_, f32>) -> Result<()> {
        let _op = self.device.op(|| work::floats("square_sums", 1, x.len()));
        optim::square_sums(&self.device, sums, x)
    }
    fn root_of_sum(&self, norm: ViewMut<'_, f32>, sums: View<'_, f64>) -> Result<()> {
        let _op = self.device.op(|| work::floats("root_of_sum", 2, sums.len()));
        optim::root_of_sum(&self.device, norm, sums)
    }
    fn find_nonfinite(&self, place: ViewMut<'_, f32>, x: View<'_, f32>, norm: View<'_, f32>) -> Result<()> {
        let _op = self.device.op(|| work::floats("find_nonfinite", 1, norm.len()));
        nonfinite::find_nonfinite(&self.device, place, x, norm)
    }
    fn clip(&self, x: ViewMut<'_, f32>, norm: View<'_, f32>, max_norm: f64) -> Result<()> {
        let _op = self.device.op(|| work::floats("clip", 2, x.len()));
        optim::clip(&self.device, x, norm, max_norm)
    }
    fn adamw(&self, args: OptimizerStep<'_, Self>) -> Result<()> {
        let _op = self.device.op(|| work::optimizer("adamw", &args, 7, true));
        optim::adamw(&self.device, &self.spans, args)
    }
    fn lamb_moments(&self, args: OptimizerStep<'_, Self>, sums: ViewMut<'_, f64>) -> Result<()> {
        let _op = self.device.op(|| work::optimizer("lamb_moments", &args, 6, false));
        optim::lamb_moments(&self.device, &self.spans, args, sums)
    }
    fn lamb_apply(&self, args: OptimizerStep<'_, Self>, sums: View<'_, f64>) -> Result<()> {
        let _op = self.device.op(|| work::optimizer("lamb_apply", &args, 4, true));
        optim::lamb_apply(&self.device, &self.spans, args, sums)
    }
}
